//! `/v1/admin/backups`: backups in the directory of backups, as `interlock backup`. A restore needs a stopped runtime, and so
//! has no place here.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use zeroize::Zeroizing;

use super::{
    access::{Access, Scope},
    body,
    error::ApiError,
    keys::ask,
    long,
    parameters::Parameters,
    secret::Secret,
    server::{Data, resource},
    steward::NewBackup as Wanted,
};
use crate::{backup::BackupName, store::Passphrase};

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(list, create, verify))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/v1/admin/backups", "GET, POST")
                .route(web::get().to(list))
                .route(web::post().to(create)),
        )
        .service(resource("/v1/admin/backups/{name}/verify", "POST").route(web::post().to(verify)));
}

/// A backup as it can be seen without its passphrase, as `interlock backup list --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Backup {
    /// The name of its file.
    name: String,
    path: String,
    bytes: u64,
    /// When it was made, in nanoseconds since the Unix epoch; null if its header cannot be read.
    created_ns: Option<u64>,
    /// What was backed up.
    database_id: Option<String>,
    /// Bytes of what is sealed in it.
    plain_bytes: Option<u64>,
    /// What can be seen to be wrong.
    problem: Option<String>,
}

/// The backups in the directory of backups, the newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Backups {
    directory: String,
    backups: Vec<Backup>,
}

/// A backup that is wanted.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct NewBackup {
    /// The name of its file in the directory of backups; one by the time if it is left out. `.ilbk` is put behind it.
    #[schema(pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,94}$", example = "before-update")]
    name: Option<String>,
    /// What it is sealed under: at least 12 characters. Without it the passphrase that the runtime was given for backups.
    #[schema(value_type = Option<String>, format = Password, max_length = 1024, example = "correct horse battery")]
    passphrase: Option<Secret>,
}

/// With what a backup is opened.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Opening {
    /// Its passphrase. Without it the one that the runtime was given for backups.
    #[schema(value_type = Option<String>, format = Password, max_length = 1024, example = "correct horse battery")]
    passphrase: Option<Secret>,
}

/// What is known of a database in a backup.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BackupDatabase {
    schema_version: u32,
    application_id: i32,
    page_bytes: u64,
    pages: u64,
    /// Rows of each table.
    rows: std::collections::BTreeMap<String, u64>,
}

/// A file in a backup.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BackupPart {
    /// `database`, `key` or `config`.
    kind: String,
    name: String,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    database: Option<BackupDatabase>,
}

/// What is in a backup.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BackupContents {
    /// Version of the program that made it.
    program: String,
    created_ns: u64,
    database_id: String,
    /// What its data key was sealed under: `keystore`, `passphrase` or `none`.
    seal: String,
    parts: Vec<BackupPart>,
}

/// What became of temporary files.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WipedFiles {
    wiped: u64,
    unlinked_only: u64,
    failed: u64,
}

/// A backup that was made, and read back whole.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MadeBackup {
    /// The name of its file.
    name: String,
    path: String,
    bytes: u64,
    contents: BackupContents,
    wiped: WipedFiles,
    /// What the key store has besides, and is not in it: no plain files.
    left_out: Vec<String>,
}

/// A backup that is whole.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct VerifiedBackup {
    name: String,
    path: String,
    bytes: u64,
    chunks: u64,
    contents: BackupContents,
}

/// Lists the backups in the directory of backups; needs no passphrase. They are restored with `interlock backup restore`, with
/// the runtime stopped.
#[utoipa::path(get, path = "/v1/admin/backups", tag = "admin", responses((status = 200, body = Backups)))]
async fn list(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    Ok(HttpResponse::Ok().json(ask(&shared, |steward| steward.backups()).await?))
}

/// Seals databases, keys and configuration into one file in the directory of backups, while everything goes on. Answered at the
/// end, however long that takes; with `Accept: text/event-stream` with events `progress`, and then `end` or `error`. A client
/// that goes away ends it.
#[utoipa::path(
    post, path = "/v1/admin/backups", tag = "admin", request_body = NewBackup,
    responses((status = 200, content((MadeBackup = "application/json"), (String = "text/event-stream"))))
)]
async fn create(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let bytes = body::read_secret(&request, payload, &shared.options).await?;
    let new: NewBackup = body::secret_json(&bytes)?;
    let name = new.name.as_deref().map(name).transpose()?.map(BackupName::with_ending);
    let wanted = Wanted { name, passphrase: passphrase(new.passphrase)? };
    let by = access.peer().clone();
    long::answer(&shared, &request, move |steward, watcher| steward.create_backup(&by, wanted, watcher)).await
}

/// Reads a backup to its end and opens each chunk of it. Answered at the end, or with `Accept: text/event-stream` with events.
#[utoipa::path(
    post, path = "/v1/admin/backups/{name}/verify", tag = "admin",
    params(("name" = String, Path, description = "The name of its file in the directory of backups", example = "before-update.ilbk")),
    request_body = Opening,
    responses((status = 200, content((VerifiedBackup = "application/json"), (String = "text/event-stream"))))
)]
async fn verify(
    access: Access,
    shared: Data,
    wanted: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let name = name(&wanted)?;
    let bytes = body::read_secret(&request, payload, &shared.options).await?;
    let opening: Opening = body::secret_json(&bytes)?;
    let (by, passphrase) = (access.peer().clone(), passphrase(opening.passphrase)?);
    long::answer(&shared, &request, move |steward, watcher| {
        steward.verify_backup(&by, &name, passphrase, watcher)
    })
    .await
}

fn name(text: &str) -> Result<BackupName, ApiError> {
    text.parse().map_err(|error: crate::backup::BackupNameError| ApiError::BadRequest(error.to_string()))
}

fn passphrase(given: Option<Secret>) -> Result<Option<Passphrase>, ApiError> {
    let read = |secret: Secret| {
        let bytes = Zeroizing::new(secret.as_str().as_bytes().to_vec());
        Passphrase::new(bytes, "`passphrase`").map_err(|error| ApiError::BadRequest(error.to_string()))
    };
    given.map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_never_shown_also_by_what_refuses_a_body() {
        let body: NewBackup = body::secret_json(br#"{"passphrase":"open sesame 1234"}"#).unwrap();
        assert!(!format!("{body:?}").contains("sesame"));
        for bad in [
            r#""open sesame 1234""#,
            r#"["open sesame 1234"]"#,
            r#" ["name", "open sesame 1234"]"#,
            r#"{"open sesame 1234":"passphrase"}"#,
            r#"{"passphrase":["open sesame 1234"]}"#,
            r#"{"name":"a","passphrase":"open sesame 1234"x}"#,
            r#"{"passphrase":"open sesame 1234","passphrase":"open sesame 1234"}"#,
        ] {
            let error = body::secret_json::<NewBackup>(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("may hold a passphrase") && !error.contains("sesame"), "{error}");
        }
        let error = body::secret_json::<NewBackup>(br#"{"file":"/etc/passwd"}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field at line 1") && error.contains("`name`"), "{error}");
        let error =
            body::secret_json::<NewBackup>(br#"{"passphrase":123456789012}"#).unwrap_err().to_string();
        assert!(!error.contains("123456789012"), "{error}");
    }
}
