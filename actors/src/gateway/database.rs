//! `/v1/admin/database`: where conversations and log are kept, and whether they are well, as `interlock db`.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    error::ApiError,
    keys::ask,
    long,
    parameters::Parameters,
    server::{Data, resource},
};

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(status, check))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/admin/database", "GET").route(web::get().to(status)))
        .service(resource("/v1/admin/database/check", "POST").route(web::post().to(check)));
}

/// The inside of a database.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseContent {
    bytes: u64,
    /// Bytes of the write-ahead log.
    wal_bytes: u64,
    journal_mode: String,
    page_bytes: u64,
    pages: u64,
    free_pages: u64,
    /// Bytes mapped into memory; always 0.
    mmap_bytes: u64,
    /// When the last migration was applied, in nanoseconds since the Unix epoch.
    migrated_ns: u64,
    /// Rows of each table.
    rows: std::collections::BTreeMap<String, u64>,
}

/// The database, as `interlock db status --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseStatus {
    path: String,
    exists: bool,
    /// Its schema: a number, or `unknown` before it is initialised.
    schema_version: serde_json::Value,
    /// The newest schema of this program.
    known_version: u32,
    sqlite: String,
    sqlcipher: String,
    /// What the data key is sealed under: `keystore`, `passphrase` or `none`.
    wrap: Option<String>,
    content: Option<DatabaseContent>,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseFinding {
    /// `seal`, `structure`, `orphan`, `missing`, `changed` or `foreign`.
    kind: String,
    what: String,
}

/// Something in the schema.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseObject {
    /// `table`, `index`, `trigger` or `view`.
    #[serde(rename = "type")]
    kind: String,
    name: String,
    /// SHA-256 of its text; null where SQLite makes it itself.
    sha256: Option<String>,
}

/// A migration that was applied.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseMigration {
    version: u32,
    name: String,
    /// SHA-256 of its text.
    checksum: String,
    applied_ns: i64,
}

/// What was found, as `interlock db check --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DatabaseCheck {
    path: String,
    /// Whether nothing is wrong.
    ok: bool,
    findings: Vec<DatabaseFinding>,
    objects: Vec<DatabaseObject>,
    migrations: Vec<DatabaseMigration>,
    /// Pages that were read.
    pages: i64,
}

/// Shows where the database is, its versions, size and rows. It is made and mended with the runtime stopped, by
/// `interlock db init` and `interlock db repair`.
#[utoipa::path(get, path = "/v1/admin/database", tag = "admin", responses((status = 200, body = DatabaseStatus)))]
async fn status(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    Ok(HttpResponse::Ok().json(ask(&shared, |steward| steward.database()).await?))
}

/// Reads every page and checks seal, structure, references and schema, while everything goes on. Answered at the end, however
/// long that takes; with `Accept: text/event-stream` with an event `end` or `error`. What is wrong is mended by
/// `interlock db repair`, with the runtime stopped.
#[utoipa::path(
    post, path = "/v1/admin/database/check", tag = "admin",
    responses((status = 200, content((DatabaseCheck = "application/json"), (String = "text/event-stream"))))
)]
async fn check(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    long::answer(&shared, &request, |steward, _| steward.check_database()).await
}
