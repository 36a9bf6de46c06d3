//! Health, derived from the parts each time it is asked for, never remembered.

use std::time::Duration;

use actix_web::{HttpResponse, http::StatusCode, web};
use interlock_bus::{Client, Payload};
use serde_json::{Value, json};

use super::{
    Shared,
    access::{Access, Scope},
    error::ApiError,
    server::{Data, resource},
};
use crate::topics::{self, ModelList};

/// How long the runtime may take to say how it is. It answers from memory.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the model service may take to say which models there are; a remote server may be asked.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn routes(config: &mut web::ServiceConfig) {
    let get = |path| resource(path, "GET");
    config
        .service(get("/health/live").route(web::get().to(live)))
        .service(get("/health/ready").route(web::get().to(async |data: Data| health(&data, true).await)))
        .service(get("/health").route(web::get().to(async |data: Data| health(&data, false).await)))
        .service(get("/v1/status").route(web::get().to(status_answer)))
        .service(get("/v1/models").route(web::get().to(models)));
}

/// `GET /health/live`: this process answers.
async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "live" }))
}

/// `GET /health`: 200 with every part's state, unless a part that all depends on is down. `GET /health/ready`: 200 only
/// if every part is ready.
async fn health(shared: &Shared, must_be_ready: bool) -> HttpResponse {
    let (state, parts) = match status(shared, &shared.client).await {
        Ok(status) => parts(&status),
        Err(error) => (
            "error".to_owned(),
            json!([{ "name": "runtime", "state": "error", "reason": error.to_string() }]),
        ),
    };
    let healthy = state == "running" || (!must_be_ready && state == "degraded");
    let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(code).json(json!({ "status": state, "parts": parts }))
}

/// `GET /v1/status`: what `interlock status --json` prints.
async fn status_answer(access: Access, shared: Data) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Ok(HttpResponse::Ok().json(status(&shared, &access.client()?).await?))
}

/// `GET /v1/models`: which back end answers, and what people should know of it.
async fn models(access: Access, shared: Data) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let topic = topics::topic(topics::MODELS);
    let message = shared
        .client
        .request(&topic, Payload::bytes(Vec::new()), MODELS_TIMEOUT)
        .await
        .map_err(|error| ApiError::of_request(&error))?;
    let list: ModelList =
        topics::read(&message).map_err(|error| unreadable("model service", &error.to_string()))?;
    Ok(HttpResponse::Ok().json(list))
}

async fn status(shared: &Shared, client: &Client) -> Result<Value, ApiError> {
    let message = client
        .request(&shared.options.status_topic, Payload::bytes(Vec::new()), STATUS_TIMEOUT)
        .await
        .map_err(|error| ApiError::of_request(&error))?;
    message.decode().map_err(|error| unreadable("runtime", &error.to_string()))
}

/// The tree's state and each child's, out of the runtime's status.
fn parts(status: &Value) -> (String, Value) {
    let tree = &status["tree"];
    let children = tree["children"].as_array().into_iter().flatten();
    let parts = children.map(|child| {
        // What it lacks now says more than why it was restarted once.
        let impaired = Some(&child["impaired"]).filter(|impaired| !impaired.is_null());
        json!({
            "name": child["name"],
            "state": child["state"],
            "restarts": child["restarts"],
            "reason": impaired.unwrap_or(&child["last_failure"]["reason"]),
            "detail": child["status"],
        })
    });
    let parts: Vec<Value> = parts.collect();
    (tree["state"].as_str().unwrap_or("error").to_owned(), Value::Array(parts))
}

fn unreadable(who: &str, problem: &str) -> ApiError {
    ApiError::Turn {
        status: StatusCode::BAD_GATEWAY,
        code: "bad_answer".to_owned(),
        text: format!("the answer of the {who} cannot be read: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_that_of_the_tree_and_unknown_is_an_error() {
        let status = json!({ "tree": { "state": "degraded", "children": [
            { "name": "model", "state": "degraded", "restarts": 2, "last_failure": { "reason": "it was killed" } },
        ] } });
        let (state, parts) = parts(&status);
        assert_eq!(state, "degraded");
        assert_eq!(parts[0]["reason"], "it was killed");
        let status = json!({ "tree": { "state": "degraded", "children": [
            { "name": "model", "state": "degraded", "status": "x", "impaired": "no server", "last_failure": { "reason": "old" } },
        ] } });
        let (_, parts) = super::parts(&status);
        assert_eq!((&parts[0]["reason"], &parts[0]["detail"]), (&json!("no server"), &json!("x")));
        assert_eq!(super::parts(&json!({})).0, "error");
    }
}
