//! `/v1/admin/keys`: who may connect to the bus, and do what, as `interlock keys`. A running broker follows at once.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use interlock_bus::{PeerName, Permissions, Rules, TopicFilter, inspect};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    body,
    error::ApiError,
    parameters::Parameters,
    secret::Secret,
    server::{Data, resource},
    steward::{MadeKey, NewPeer, Refusal, Steward},
};

/// How long the key before a new one is accepted unless it is said: seven days, as on the command line.
const OVERLAP_S: u64 = 7 * 24 * 3600;
/// How far away the end of a key or token may be. What is to have none leaves it out.
const SECONDS_MAX: u64 = 100 * 365 * 24 * 3600;

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(list, show, issue, revoke, rotate))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/v1/admin/keys", "GET, POST").route(web::get().to(list)).route(web::post().to(issue)),
        )
        .service(
            resource("/v1/admin/keys/{name}", "GET, DELETE")
                .route(web::get().to(show))
                .route(web::delete().to(revoke)),
        )
        .service(resource("/v1/admin/keys/{name}/rotate", "POST").route(web::post().to(rotate)));
}

/// What a peer may do of one kind.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyRules {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
}

/// What a peer may do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyRights {
    #[serde(default)]
    publish: Option<KeyRules>,
    #[serde(default)]
    subscribe: Option<KeyRules>,
    #[serde(default)]
    serve: Option<KeyRules>,
    #[serde(default)]
    request: Option<KeyRules>,
    /// Whether it may hold publishers up.
    #[serde(default)]
    wait: bool,
}

/// A key that was replaced.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OldKey {
    public_key: String,
    fingerprint: String,
    /// Until when it is accepted, in milliseconds since the Unix epoch.
    until_ms: u64,
    last_use_ms: Option<u64>,
}

/// A peer and its key, as `interlock keys list --json`. Times are milliseconds since the Unix epoch.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    /// `active`, `expired` or `revoked`.
    state: String,
    /// In Z85.
    public_key: String,
    fingerprint: String,
    issued_ms: Option<u64>,
    expires_ms: Option<u64>,
    last_use_ms: Option<u64>,
    key_last_use_ms: Option<u64>,
    old_keys: Vec<OldKey>,
    permissions: KeyRights,
    /// Each filter and where it stands; of one peer alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    rules: Option<Vec<PlacedRule>>,
    /// Its sessions now, as `bus peers --json`; of one peer alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Vec<Object>>)]
    sessions: Option<Vec<Value>>,
}

/// A filter, and where it stands.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlacedRule {
    /// `publish`, `subscribe`, `serve` or `request`.
    right: String,
    /// `allow` or `deny`.
    decision: String,
    filter: String,
    file: String,
    line: Option<u64>,
}

/// Who is enrolled.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyList {
    keys: Vec<Key>,
}

/// A peer that is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewKey {
    /// Its name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$", example = "sensor")]
    name: PeerName,
    /// What it may publish.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["weather/#"]))]
    publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    subscribe: Vec<TopicFilter>,
    /// What it may serve.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    serve: Vec<TopicFilter>,
    /// What it may request.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    request: Vec<TopicFilter>,
    /// After how many seconds its key ends; without this it does not.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3153600000_u64)]
    expires_in_s: Option<u64>,
}

/// A key that was made.
#[derive(Debug, Serialize, ToSchema)]
struct NewCredentials {
    name: String,
    /// In Z85.
    public_key: String,
    fingerprint: String,
    /// When it ends, in milliseconds since the Unix epoch.
    expires_ms: Option<u64>,
    /// The text of the credentials file, which holds the secret key: shown this once, and kept nowhere here. Null for a program of
    /// this runtime, which has it already.
    #[schema(value_type = Option<String>)]
    credentials: Option<Secret>,
    /// What there is to say of it.
    notice: Option<String>,
}

/// How a key is to be replaced.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Rotation {
    /// For how many seconds the old key is accepted: 0 after a leak, which ends every old key at once. Seven days if it is left
    /// out.
    #[schema(maximum = 3153600000_u64, example = 3600)]
    overlap_s: Option<u64>,
    /// After how many seconds the peer's keys end; without this their end stays as it is.
    #[schema(minimum = 1, maximum = 3153600000_u64)]
    expires_in_s: Option<u64>,
}

/// A key that took the place of another.
#[derive(Debug, Serialize, ToSchema)]
struct RotatedKey {
    name: String,
    /// The new one, in Z85.
    public_key: String,
    fingerprint: String,
    /// The public key before it.
    before: String,
    /// Until when that is accepted, in milliseconds since the Unix epoch; null if not at all.
    before_until_ms: Option<u64>,
    expires_ms: Option<u64>,
    /// The text of the new credentials file, shown this once; null for a component of this runtime, which has it already.
    #[schema(value_type = Option<String>)]
    credentials: Option<Secret>,
}

/// Lists who is enrolled: key, state, until when, last use, rights.
#[utoipa::path(get, path = "/v1/admin/keys", tag = "admin", responses((status = 200, body = KeyList)))]
async fn list(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let keys = ask(&shared, |steward| steward.keys()).await?;
    Ok(HttpResponse::Ok().json(json!({ "keys": keys })))
}

/// Shows one peer: each right and where it stands, its keys, its sessions now.
#[utoipa::path(
    get, path = "/v1/admin/keys/{name}", tag = "admin",
    params(("name" = String, Path, description = "Which peer", example = "sensor")),
    responses((status = 200, body = Key))
)]
async fn show(
    access: Access,
    shared: Data,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let name = peer(&name)?;
    let wanted = name.clone();
    let mut key = ask(&shared, move |steward| steward.key(&wanted)).await?;
    let mut sessions = inspect::peers(&access.client()?).await?;
    sessions.retain(|session| session["peer"] == name.as_str());
    key["sessions"] = sessions.into();
    Ok(HttpResponse::Ok().json(key))
}

/// Enrols a peer with a new key. The credentials are in the answer, and never shown again.
#[utoipa::path(
    post, path = "/v1/admin/keys", tag = "admin", request_body = NewKey,
    responses((status = 201, body = NewCredentials))
)]
async fn issue(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let new: NewKey = body::json(&bytes, "{\"name\":\"sensor\",\"publish\":[\"weather/#\"]}")?;
    let permissions = Permissions {
        publish: Rules::allowing(new.publish),
        subscribe: Rules::allowing(new.subscribe),
        serve: Rules::allowing(new.serve),
        request: Rules::allowing(new.request),
        ..Permissions::default()
    };
    let notice = permissions.is_empty().then(|| {
        "no right was given: the peer can connect only once it has one in `authorized.toml`".to_owned()
    });
    let wanted = NewPeer { name: new.name, permissions, expires_in: lasting(new.expires_in_s)? };
    let by = access.peer().clone();
    let MadeKey { facts, credentials } = ask(&shared, move |steward| steward.issue_key(&by, &wanted)).await?;
    let answer = NewCredentials {
        name: text(&facts, "name"),
        public_key: text(&facts, "public_key"),
        fingerprint: text(&facts, "fingerprint"),
        expires_ms: facts["expires_ms"].as_u64(),
        credentials: credentials.map(Secret::new),
        notice,
    };
    Ok(once(StatusCode::CREATED, &answer))
}

/// Revokes the key of a peer; its sessions end at once. The peer of a token is revoked with its token.
#[utoipa::path(
    delete, path = "/v1/admin/keys/{name}", tag = "admin",
    params(("name" = String, Path, description = "Which peer", example = "sensor")), responses((status = 204))
)]
async fn revoke(
    access: Access,
    shared: Data,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let (by, name) = (access.peer().clone(), peer(&name)?);
    ask(&shared, move |steward| steward.revoke_key(&by, &name)).await?;
    // If it was that of a token, its streams end now, and not at the next look.
    shared.doorkeeper.look_after();
    Ok(HttpResponse::NoContent().finish())
}

/// Gives a peer a new key. The new credentials are in the answer, and never shown again.
#[utoipa::path(
    post, path = "/v1/admin/keys/{name}/rotate", tag = "admin",
    params(("name" = String, Path, description = "Which peer", example = "sensor")),
    request_body = Rotation, responses((status = 200, body = RotatedKey))
)]
async fn rotate(
    access: Access,
    shared: Data,
    name: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let wanted: Rotation = match bytes.is_empty() {
        true => Rotation::default(),
        false => body::json(&bytes, "{\"overlap_s\":3600}")?,
    };
    let overlap = Duration::from_secs(within("overlap_s", wanted.overlap_s.unwrap_or(OVERLAP_S))?);
    let (expires_in, by, name) = (lasting(wanted.expires_in_s)?, access.peer().clone(), peer(&name)?);
    let made = ask(&shared, move |steward| steward.rotate_key(&by, &name, overlap, expires_in));
    let MadeKey { facts, credentials } = made.await?;
    let answer = RotatedKey {
        name: text(&facts, "name"),
        public_key: text(&facts, "public_key"),
        fingerprint: text(&facts, "fingerprint"),
        before: text(&facts, "before"),
        before_until_ms: facts["before_until_ms"].as_u64(),
        expires_ms: facts["expires_ms"].as_u64(),
        credentials: credentials.map(Secret::new),
    };
    Ok(once(StatusCode::OK, &answer))
}

/// An answer that nobody on the way may keep.
fn once(status: StatusCode, answer: &impl Serialize) -> HttpResponse {
    HttpResponse::build(status).insert_header((header::CACHE_CONTROL, "no-store")).json(answer)
}

/// Asks the steward, beside the requests of others.
pub(super) async fn ask<T: Send + 'static>(
    shared: &Data,
    work: impl FnOnce(&dyn Steward) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, ApiError> {
    let steward = shared.options.steward.clone();
    match web::block(move || work(&*steward)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(ApiError::refused(503, "busy", "there is no thread for this now; try again soon")),
    }
}

fn peer(name: &str) -> Result<PeerName, ApiError> {
    name.parse().map_err(|error: interlock_bus::peer::PeerNameError| ApiError::BadRequest(error.to_string()))
}

/// For how long a key is to work.
fn lasting(seconds: Option<u64>) -> Result<Option<Duration>, ApiError> {
    match seconds {
        Some(0) => Err(ApiError::BadRequest(
            "`expires_in_s` is 0: a key that ends at once is of no use; leave it out for one without an end"
                .to_owned(),
        )),
        Some(seconds) => Ok(Some(Duration::from_secs(within("expires_in_s", seconds)?))),
        None => Ok(None),
    }
}

/// A time from now that can be meant.
pub(super) fn within(field: &str, seconds: u64) -> Result<u64, ApiError> {
    if seconds <= SECONDS_MAX {
        return Ok(seconds);
    }
    Err(ApiError::BadRequest(format!(
        "`{field}` is {seconds}; allowed is at most {SECONDS_MAX}, a hundred years"
    )))
}

fn text(facts: &Value, field: &str) -> String {
    facts[field].as_str().unwrap_or_default().to_owned()
}
