//! Health, derived from the parts each time it is asked for, never remembered.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use interlock_bus::{Client, Payload};
use serde::Serialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::{
    Shared,
    access::{Access, Scope},
    error::ApiError,
    parameters::Parameters,
    server::{Data, resource},
};

/// How long the runtime may take to say how it is. It answers from memory.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(live, ready, whole, status_answer))]
pub(super) struct Api;

/// A part of the runtime.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct HealthPart {
    name: String,
    /// `running`, `starting`, `degraded`, `error`, `stopping` or `stopped`.
    state: String,
    restarts: u64,
    /// What it lacks now, or why it failed last.
    reason: Option<String>,
    /// What it says of itself.
    detail: Option<String>,
}

/// How it is, derived from the parts.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Health {
    /// As of a part; `live` if nothing was looked at but this process.
    status: String,
    parts: Vec<HealthPart>,
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    let get = |path| resource(path, "GET");
    config
        .service(get("/health/live").route(web::get().to(live)))
        .service(get("/health/ready").route(web::get().to(ready)))
        .service(get("/health").route(web::get().to(whole)))
        .service(get("/v1/status").route(web::get().to(status_answer)));
}

/// Whether this process answers. Needs no token.
#[utoipa::path(get, path = "/health/live", tag = "about", security(()), responses((status = 200, body = Health)))]
async fn live(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Parameters::of(&request)?.end()?;
    Ok(HttpResponse::Ok().json(Health { status: "live".to_owned(), parts: Vec::new() }))
}

/// Whether every part is ready.
#[utoipa::path(
    get, path = "/health/ready", tag = "about",
    responses((status = 200, body = Health), (status = 503, description = "A part is not ready", body = Health))
)]
async fn ready(shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Parameters::of(&request)?.end()?;
    Ok(health(&shared, true).await)
}

/// Whether it can be used, with every part's state: unless a part that all depends on is down.
#[utoipa::path(
    get, path = "/health", tag = "about",
    responses((status = 200, body = Health), (status = 503, description = "It cannot be used", body = Health))
)]
async fn whole(shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Parameters::of(&request)?.end()?;
    Ok(health(&shared, false).await)
}

async fn health(shared: &Shared, must_be_ready: bool) -> HttpResponse {
    let health = match status(shared, &shared.client).await {
        Ok(status) => of_tree(&status),
        Err(error) => {
            let part = HealthPart {
                name: "runtime".to_owned(),
                state: "error".to_owned(),
                restarts: 0,
                reason: Some(error.to_string()),
                detail: None,
            };
            Health { status: "error".to_owned(), parts: vec![part] }
        }
    };
    let healthy = health.status == "running" || (!must_be_ready && health.status == "degraded");
    let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(code).json(health)
}

/// What the runtime says of itself, as `interlock status --json`: who runs, the tree, what is to be said of its configuration.
#[utoipa::path(get, path = "/v1/status", tag = "about", responses((status = 200, body = serde_json::Value)))]
async fn status_answer(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    Ok(HttpResponse::Ok().json(status(&shared, &access.client()?).await?))
}

async fn status(shared: &Shared, client: &Client) -> Result<Value, ApiError> {
    let message = client
        .request(&shared.options.status_topic, Payload::bytes(Vec::new()), STATUS_TIMEOUT)
        .await
        .map_err(|error| ApiError::of_component("runtime", &error))?;
    message.decode().map_err(|error| ApiError::bad_answer("runtime", &error))
}

/// The tree's state and each child's, out of the runtime's status.
fn of_tree(status: &Value) -> Health {
    let tree = &status["tree"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let state = |value: &Value| text(value).unwrap_or_else(|| "error".to_owned());
    let children = tree["children"].as_array().into_iter().flatten();
    let parts = children.map(|child| HealthPart {
        name: text(&child["name"]).unwrap_or_default(),
        state: state(&child["state"]),
        restarts: child["restarts"].as_u64().unwrap_or(0),
        // What it lacks now says more than why it was restarted once.
        reason: text(&child["impaired"]).or_else(|| text(&child["last_failure"]["reason"])),
        detail: text(&child["status"]),
    });
    Health { status: state(&tree["state"]), parts: parts.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_state_is_that_of_the_tree_and_unknown_is_an_error() {
        let status = json!({ "tree": { "state": "degraded", "children": [
            { "name": "model", "state": "degraded", "restarts": 2, "last_failure": { "reason": "it was killed" } },
        ] } });
        let health = of_tree(&status);
        assert_eq!(health.status, "degraded");
        assert_eq!(health.parts[0].reason.as_deref(), Some("it was killed"));
        let status = json!({ "tree": { "state": "degraded", "children": [
            { "name": "model", "state": "degraded", "status": "x", "impaired": "no server", "last_failure": { "reason": "old" } },
        ] } });
        let part = &of_tree(&status).parts[0];
        assert_eq!((part.reason.as_deref(), part.detail.as_deref()), (Some("no server"), Some("x")));
        assert_eq!(of_tree(&json!({})).status, "error");
    }
}
