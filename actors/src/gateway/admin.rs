//! What `interlock` can order, over HTTP: components, configuration, log levels, the end. The runtime carries it out; it
//! is asked on the bus as the peer of the token, so that its log says who has ordered what.

mod shapes;

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use interlock_bus::{Client, Payload, TopicName};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::{
    Orders,
    access::{Access, Scope},
    body,
    error::ApiError,
    parameters::Parameters,
    server::{Data, resource},
};

/// How long the runtime may take to answer. What it is ordered it does meanwhile.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the configuration again may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(
    components,
    plan,
    explain,
    start,
    stop_component,
    restart,
    reload,
    levels,
    set_level,
    reset_levels,
    stop
))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/admin/components", "GET").route(web::get().to(components)))
        .service(resource("/v1/admin/components/{name}/plan", "GET").route(web::get().to(plan)))
        .service(resource("/v1/admin/components/{name}/explain", "GET").route(web::get().to(explain)))
        .service(resource("/v1/admin/components/{name}/start", "POST").route(web::post().to(start)))
        .service(resource("/v1/admin/components/{name}/stop", "POST").route(web::post().to(stop_component)))
        .service(resource("/v1/admin/components/{name}/restart", "POST").route(web::post().to(restart)))
        .service(resource("/v1/admin/reload", "POST").route(web::post().to(reload)))
        .service(
            resource("/v1/admin/log-levels", "GET, PUT, DELETE")
                .route(web::get().to(levels))
                .route(web::put().to(set_level))
                .route(web::delete().to(reset_levels)),
        )
        .service(resource("/v1/admin/stop", "POST").route(web::post().to(stop)));
}

/// Asks the runtime, and reads its answer.
async fn ask(
    client: &Client,
    topic: &TopicName,
    payload: Payload,
    limit: Duration,
) -> Result<Value, ApiError> {
    let answered = client.request(topic, payload, limit).await;
    let message = answered.map_err(|error| ApiError::of_component("runtime", &error))?;
    message.decode().map_err(|error| ApiError::bad_answer("runtime", &error))
}

fn json_of(value: &Value) -> Result<Payload, ApiError> {
    Payload::json(value).map_err(|error| ApiError::unsendable(&error))
}

/// Lists components: state, restarts, reasons, load, as `interlock ps --json`.
#[utoipa::path(get, path = "/v1/admin/components", tag = "admin", responses((status = 200, body = shapes::Components)))]
async fn components(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let topic = &shared.options.orders.ps;
    let mut status = ask(&access.client()?, topic, Payload::default(), ORDER_TIMEOUT).await?;
    let mut tree = status["tree"].take();
    Ok(HttpResponse::Ok().json(json!({
        "state": tree["state"].take(), "at": tree["at"].take(), "components": tree["children"].take(),
    })))
}

/// Says what will be done with a component that fails now, as `interlock plan --json`.
#[utoipa::path(
    get, path = "/v1/admin/components/{name}/plan", tag = "admin",
    params(
        ("name" = String, Path, description = "Which component", example = "conversation"),
        ("fails_after_ms" = Option<u64>, Query, description = "How long each start is supposed to take until it fails", example = 0),
    ),
    responses((status = 200, body = shapes::Plan))
)]
async fn plan(
    access: Access,
    shared: Data,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    let mut parameters = Parameters::of(&request)?;
    let fails_after_ms = parameters.number::<u64>("fails_after_ms")?.unwrap_or(0);
    parameters.end()?;
    let question = json_of(&json!({ "component": name.as_str(), "fails_after_ms": fails_after_ms }))?;
    Ok(HttpResponse::Ok()
        .json(ask(&access.client()?, &shared.options.orders.plan, question, ORDER_TIMEOUT).await?))
}

/// Tells of a component in words: what it waits for, why it is down, when it is tried next, as `interlock explain`.
#[utoipa::path(
    get, path = "/v1/admin/components/{name}/explain", tag = "admin",
    params(("name" = String, Path, description = "Which component", example = "conversation")),
    responses((status = 200, body = shapes::Explained))
)]
async fn explain(
    access: Access,
    shared: Data,
    name: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let topic = &shared.options.orders.explain;
    Ok(HttpResponse::Ok()
        .json(ask(&access.client()?, topic, Payload::text(name.as_str()), ORDER_TIMEOUT).await?))
}

async fn order(
    access: &Access,
    shared: &Data,
    topic: impl Fn(&Orders) -> &TopicName,
    name: &str,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let topic = topic(&shared.options.orders);
    let ordered = ask(&access.client()?, topic, Payload::text(name), ORDER_TIMEOUT).await?;
    Ok(HttpResponse::build(StatusCode::ACCEPTED).json(ordered))
}

/// Starts a component that is down, with a whole budget of restarts; it is done meanwhile.
#[utoipa::path(
    post, path = "/v1/admin/components/{name}/start", tag = "admin",
    params(("name" = String, Path, description = "Which component", example = "model")),
    responses((status = 202, body = shapes::Ordered))
)]
async fn start(access: Access, shared: Data, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    order(&access, &shared, |orders| &orders.start, &name).await
}

/// Stops a component and keeps it down; it is done meanwhile. The broker and the runtime are not stopped by themselves.
#[utoipa::path(
    post, path = "/v1/admin/components/{name}/stop", tag = "admin",
    params(("name" = String, Path, description = "Which component", example = "model")),
    responses((status = 202, body = shapes::Ordered))
)]
async fn stop_component(
    access: Access,
    shared: Data,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    order(&access, &shared, |orders| &orders.stop_component, &name).await
}

/// Restarts a component, with a whole budget of restarts; it is done meanwhile. Restarting the gateway ends this
/// connection after the answer.
#[utoipa::path(
    post, path = "/v1/admin/components/{name}/restart", tag = "admin",
    params(("name" = String, Path, description = "Which component", example = "model")),
    responses((status = 202, body = shapes::Ordered))
)]
async fn restart(access: Access, shared: Data, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    order(&access, &shared, |orders| &orders.restart, &name).await
}

/// Reads the configuration again, and says what changed and what waits for the next start. One with mistakes is refused
/// whole, and the present one stays in force.
#[utoipa::path(post, path = "/v1/admin/reload", tag = "admin", responses((status = 200, body = shapes::Reloaded)))]
async fn reload(access: Access, shared: Data) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let topic = &shared.options.orders.reload;
    let mut answer = ask(&access.client()?, topic, Payload::default(), RELOAD_TIMEOUT).await?;
    match answer["Err"].as_str() {
        Some(mistakes) => Err(ApiError::refused(422, "configuration", mistakes)),
        None => Ok(HttpResponse::Ok().json(answer["Ok"].take())),
    }
}

async fn order_levels(access: &Access, shared: &Data, order: &Value) -> Result<HttpResponse, ApiError> {
    let topic = &shared.options.orders.log_levels;
    Ok(HttpResponse::Ok().json(ask(&access.client()?, topic, json_of(order)?, ORDER_TIMEOUT).await?))
}

/// Tells which log records are kept of whom.
#[utoipa::path(get, path = "/v1/admin/log-levels", tag = "admin", responses((status = 200, body = shapes::Levels)))]
async fn levels(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    order_levels(&access, &shared, &json!("show")).await
}

/// Another level, beside the configuration.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLevel {
    /// A component, or a module.
    #[schema(example = "gateway")]
    name: String,
    /// What is kept of it: `trace`, `debug`, `info`, `warn`, `error`, or `off` for nothing.
    #[schema(example = "debug")]
    level: String,
    /// For how long; without it until it is taken back.
    #[schema(example = 60_000)]
    for_ms: Option<u64>,
}

/// Keeps log records of a component or module from another level on, for a while or until it is taken back.
#[utoipa::path(
    put, path = "/v1/admin/log-levels", tag = "admin", request_body = NewLevel,
    responses((status = 200, body = shapes::Levels))
)]
async fn set_level(
    access: Access,
    shared: Data,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let bytes = body::read(&request, body, &shared.options).await?;
    let NewLevel { name, level, for_ms } = body::json(&bytes, "{\"name\":\"gateway\",\"level\":\"debug\"}")?;
    order_levels(&access, &shared, &json!({ "set": { "name": name, "level": level, "for_ms": for_ms } }))
        .await
}

/// Takes back what was set beside the configuration, of one component or module, or of all.
#[utoipa::path(
    delete, path = "/v1/admin/log-levels", tag = "admin",
    params(("name" = Option<String>, Query, description = "Of which component or module; of all if left out", example = "gateway")),
    responses((status = 200, body = shapes::Levels))
)]
async fn reset_levels(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let mut parameters = Parameters::of(&request)?;
    let name = parameters.one("name")?;
    parameters.end()?;
    order_levels(&access, &shared, &json!({ "reset": { "name": name } })).await
}

/// Stops everything, in order, as `interlock stop`.
#[utoipa::path(post, path = "/v1/admin/stop", tag = "admin", responses((status = 202, body = shapes::Stopping)))]
async fn stop(access: Access, shared: Data) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let answer =
        ask(&access.client()?, &shared.options.orders.stop, Payload::default(), ORDER_TIMEOUT).await?;
    Ok(HttpResponse::build(StatusCode::ACCEPTED).json(answer))
}
