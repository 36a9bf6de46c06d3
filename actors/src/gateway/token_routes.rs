//! `/v1/admin/tokens`: who may come in.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use interlock_bus::{
    PeerName, TopicFilter,
    keys::{KeyError, time_text},
};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    body,
    error::{ApiError, TOKENS_UNREADABLE},
    keys::within,
    parameters::Parameters,
    server::{Data, resource},
    tokens::{Grants, ListedToken, TokenError, now_ms},
};

/// The interface of this file.
#[derive(OpenApi)]
#[openapi(paths(list, issue, revoke))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/v1/admin/tokens", "GET, POST").route(web::get().to(list)).route(web::post().to(issue)),
        )
        .service(resource("/v1/admin/tokens/{name}", "DELETE").route(web::delete().to(revoke)));
}

/// All tokens.
#[derive(Debug, Serialize, ToSchema)]
struct TokenList {
    /// The oldest first.
    tokens: Vec<TokenEntry>,
}

/// A token as it is known; itself it is kept nowhere.
#[derive(Debug, Serialize, ToSchema)]
struct TokenEntry {
    /// Its name.
    name: String,
    /// `active`, `expired` or `revoked`.
    state: &'static str,
    /// What it opens: `chat`, `bus`, `inspect`, `admin`, `metrics`.
    scopes: Vec<&'static str>,
    /// The peer that its bearer is on the bus.
    peer: String,
    /// When it was made, RFC 3339.
    issued: String,
    /// When it ends.
    expires: Option<String>,
    /// When it was last used, to the minute.
    last_used: Option<String>,
    /// What its peer may publish, beside what goes with the scopes.
    publish: Vec<String>,
    /// What it may subscribe to.
    subscribe: Vec<String>,
    /// What it may request.
    request: Vec<String>,
}

impl From<ListedToken> for TokenEntry {
    fn from(listed: ListedToken) -> Self {
        let ListedToken { record, state, last_used_ms, permissions } = listed;
        let allowed = |rules: &interlock_bus::Rules| rules.allow.iter().map(ToString::to_string).collect();
        Self {
            name: record.name.to_string(),
            state,
            scopes: record.scopes.iter().map(|scope| scope.as_str()).collect(),
            peer: record.peer().to_string(),
            issued: time_text(record.issued_ms),
            expires: record.expires_ms.map(time_text),
            last_used: last_used_ms.map(time_text),
            publish: allowed(&permissions.publish),
            subscribe: allowed(&permissions.subscribe),
            request: allowed(&permissions.request),
        }
    }
}

/// A token that is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Its name.
    #[schema(value_type = String, pattern = "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,59}$", example = "dashboard")]
    name: PeerName,
    /// What it is to open: `chat`, `bus`, `inspect`, `admin`, `metrics`.
    #[schema(value_type = Vec<String>, example = json!(["chat"]))]
    scopes: Vec<Scope>,
    /// What its peer may publish; needs the scope `bus`, as do the next two.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    subscribe: Vec<TopicFilter>,
    /// What it may request.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    request: Vec<TopicFilter>,
    /// After how many seconds it ends; without this it does not.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3153600000_u64)]
    expires_in_s: Option<u64>,
}

/// A token that was made.
#[derive(Debug, Serialize, ToSchema)]
struct IssuedToken {
    /// Its name.
    name: String,
    /// The token itself, which is shown this once.
    token: String,
    /// The peer that its bearer is on the bus.
    peer: String,
    /// When it ends, RFC 3339.
    expires: Option<String>,
}

/// All tokens that were issued.
#[utoipa::path(get, path = "/v1/admin/tokens", tag = "admin", responses((status = 200, body = TokenList)))]
async fn list(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let store = shared.doorkeeper.store().clone();
    let tokens = blocking(move || Ok(store.list()?)).await?;
    let tokens = tokens.into_iter().map(TokenEntry::from).collect();
    Ok(HttpResponse::Ok().json(TokenList { tokens }))
}

/// Issues a token. It is in the answer, and never shown again.
#[utoipa::path(post, path = "/v1/admin/tokens", tag = "admin", request_body = NewToken, responses((status = 201, body = IssuedToken)))]
async fn issue(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let new: NewToken = body::json(&bytes, "{\"name\":\"dashboard\",\"scopes\":[\"chat\"]}")?;
    if new.expires_in_s == Some(0) {
        return Err(ApiError::BadRequest(
            "`expires_in_s` is 0: a token that ends at once is of no use".to_owned(),
        ));
    }
    let lasting = new.expires_in_s.map(|seconds| within("expires_in_s", seconds)).transpose()?;
    let expires_ms = lasting.map(|seconds| now_ms().saturating_add(seconds.saturating_mul(1000)));
    let NewToken { name, scopes, publish, subscribe, request, .. } = new;
    let (store, rights) = (shared.doorkeeper.store().asked_by(access.peer()), shared.options.rights.clone());
    let issued = blocking(move || {
        let grants = Grants { scopes, publish, subscribe, request };
        let token = store.issue(&name, &grants, &*rights, expires_ms)?;
        Ok((name, token))
    });
    let (name, token) = issued.await?;
    let peer = format!("{}{name}", super::tokens::PEER_PREFIX);
    let expires = expires_ms.map(time_text);
    let answer = IssuedToken { name: name.to_string(), token: (*token).clone(), peer, expires };
    Ok(HttpResponse::Created().json(answer))
}

/// Revokes a token: its bearer's requests are refused and its streams end at once, also if the list of tokens is damaged.
#[utoipa::path(delete, path = "/v1/admin/tokens/{name}", tag = "admin",
    params(("name" = String, Path, description = "The token's name", example = "dashboard")), responses((status = 204)))]
async fn revoke(access: Access, shared: Data, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let unknown = |error: interlock_bus::peer::PeerNameError| ApiError::BadRequest(error.to_string());
    let name: PeerName = name.parse().map_err(unknown)?;
    let store = shared.doorkeeper.store().asked_by(access.peer());
    if let Some(unsaid) = blocking(move || store.revoke(&name)).await? {
        tracing::warn!(error = %unsaid, "a token was revoked in one of two files alone");
    }
    // Its streams end now, and not at the next look.
    shared.doorkeeper.look_after();
    Ok(HttpResponse::NoContent().finish())
}

/// Work on files, beside the requests of others.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |text: String| refusal(StatusCode::INTERNAL_SERVER_ERROR, "keys", text);
    match web::block(work).await {
        Ok(outcome) => outcome.map_err(|error| {
            let text = error.to_string();
            match error {
                TokenError::Exists(_) | TokenError::Full => {
                    refusal(StatusCode::CONFLICT, "token_exists", text)
                }
                TokenError::Keys(KeyError::PeerExists { .. }) => {
                    refusal(StatusCode::CONFLICT, "peer_exists", text)
                }
                TokenError::Unknown(_) => refusal(StatusCode::NOT_FOUND, "unknown_token", text),
                // Without the path, which is no affair of whoever asks from elsewhere.
                TokenError::Keys(KeyError::TokensDamaged { problem, .. }) => {
                    let text = format!(
                        "the list of tokens is damaged: {problem}; `interlock check` names the file, `interlock tokens reset` puts it aside"
                    );
                    refusal(StatusCode::SERVICE_UNAVAILABLE, TOKENS_UNREADABLE, text)
                }
                TokenError::Name(_)
                | TokenError::Whole
                | TokenError::Reserved(_)
                | TokenError::NoScope
                | TokenError::OfTheBroker { .. }
                | TokenError::RightsWithoutBus => ApiError::BadRequest(text),
                TokenError::Keys(_) => failed(text),
            }
        }),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn refusal(status: StatusCode, code: &str, text: String) -> ApiError {
    ApiError::Turn { status, code: code.to_owned(), text }
}
