//! The bus for web clients: what the broker knows, and publishing, asking and subscribing with the rights of a token's
//! peer. What can be seen is told in the same objects that the `bus` tool prints with `--json`.

pub(super) mod message;
pub(super) mod publish;
pub(super) mod request;
mod shapes;
pub(super) mod subscribe;

use actix_web::{HttpRequest, HttpResponse, web};
use interlock_bus::{
    Client, PeerName, TopicFilter, TopicName,
    inspect::{self, InspectError},
    keys::Right,
};
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::{
    access::{Access, Scope},
    error::ApiError,
    parameters::Parameters,
    server::resource,
};

/// How far back rates are told unless it is said, in seconds.
const RATE_SECONDS: u64 = 60;

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(
    topics,
    topic,
    peers,
    refusals,
    events,
    gates,
    ledger,
    why,
    rates,
    subscribe::subscribe,
    publish::publish,
    request::request
))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    let get = |path| resource(path, "GET");
    config
        .service(get("/v1/bus/topics").route(web::get().to(topics)))
        .service(get("/v1/bus/topics/{topic:.*}").route(web::get().to(topic)))
        .service(get("/v1/bus/peers").route(web::get().to(peers)))
        .service(get("/v1/bus/refusals").route(web::get().to(refusals)))
        .service(get("/v1/bus/events").route(web::get().to(events)))
        .service(get("/v1/bus/gates").route(web::get().to(gates)))
        .service(get("/v1/bus/ledger").route(web::get().to(ledger)))
        .service(get("/v1/bus/why").route(web::get().to(why)))
        .service(get("/v1/bus/rates").route(web::get().to(rates)))
        .service(get("/v1/bus/subscribe").route(web::get().to(subscribe::subscribe)))
        .service(resource("/v1/bus/publish", "POST").route(web::post().to(publish::publish)))
        .service(resource("/v1/bus/request", "POST").route(web::post().to(request::request)));
}

/// Reads the query, and gives the session of whoever may look.
fn look<T>(
    access: &Access,
    request: &HttpRequest,
    read: impl FnOnce(&mut Parameters) -> Result<T, ApiError>,
) -> Result<(Client, T), ApiError> {
    access.require(Scope::Inspect)?;
    let mut parameters = Parameters::of(request)?;
    let read = read(&mut parameters)?;
    parameters.end()?;
    Ok((access.client()?, read))
}

impl From<InspectError> for ApiError {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Topic(error) => Self::BadRequest(error.to_string()),
            InspectError::Request(error) => Self::of_component("broker", &error),
            other => Self::bad_answer("broker", &other),
        }
    }
}

/// Lists topics: how much flows, who publishes, who subscribes, who serves.
#[utoipa::path(
    get, path = "/v1/bus/topics", tag = "bus",
    params(
        ("filter" = Option<String>, Query, description = "Only topics that match: `+` is one level, `#` the rest", example = "conversation/#"),
        ("only" = Option<String>, Query, description = "`published`, `subscribed` or `both`: only those with this end alone, or with both", example = "both"),
    ),
    responses((status = 200, body = shapes::Topics))
)]
async fn topics(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, (filter, only)) = look(&access, &request, |parameters| {
        let filter = parameters.parsed::<TopicFilter>("filter")?;
        Ok((filter, parameters.parsed::<inspect::Only>("only")?))
    })?;
    let rows = inspect::topics(&client, filter.as_ref(), only).await?;
    Ok(HttpResponse::Ok().json(json!({ "topics": rows })))
}

/// Shows a topic from all sides: who may and does publish, get and serve it, and what waits or was lost.
#[utoipa::path(
    get, path = "/v1/bus/topics/{topic}", tag = "bus",
    params(("topic" = String, Path, description = "The topic; it may contain `/`", example = "conversation/turn/started/v1")),
    responses((status = 200, body = shapes::TopicParts))
)]
async fn topic(
    access: Access,
    topic: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let (client, ()) = look(&access, &request, |_| Ok(()))?;
    let topic: TopicName = parse(&topic)?;
    let parts = inspect::topic(&client, &topic).await?;
    if parts.is_empty() {
        return Err(ApiError::Unknown { what: "topic", name: topic.to_string() });
    }
    Ok(HttpResponse::Ok().json(json!({ "parts": parts })))
}

/// Lists who is connected.
#[utoipa::path(get, path = "/v1/bus/peers", tag = "bus", responses((status = 200, body = shapes::Peers)))]
async fn peers(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, ()) = look(&access, &request, |_| Ok(()))?;
    Ok(HttpResponse::Ok().json(json!({ "peers": inspect::peers(&client).await? })))
}

/// Lists connections and operations that were refused, and why.
#[utoipa::path(get, path = "/v1/bus/refusals", tag = "bus", responses((status = 200, body = shapes::Refusals)))]
async fn refusals(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, ()) = look(&access, &request, |_| Ok(()))?;
    let refused = inspect::refused(&client).await?;
    Ok(HttpResponse::Ok().json(json!({
        "refusals": refused.connections, "counts": refused.counts, "denials": refused.operations,
    })))
}

/// Lists what the broker noticed: who came and went, refusals, slow subscribers, held topics.
#[utoipa::path(
    get, path = "/v1/bus/events", tag = "bus",
    params(("since" = Option<u64>, Query, description = "Only those after this time, in milliseconds since the Unix epoch", example = 0)),
    responses((status = 200, body = shapes::Events))
)]
async fn events(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, since) = look(&access, &request, |parameters| parameters.number::<u64>("since"))?;
    let mut noticed = inspect::events(&client).await?;
    noticed.events.retain(|event| since.is_none_or(|since| event["at_ms"].as_u64() > Some(since)));
    Ok(HttpResponse::Ok().json(json!({
        "events": noticed.events, "forgotten": noticed.forgotten, "lost": noticed.lost,
    })))
}

/// Lists publishers that wait for their consumers: for whom, and what they hold.
#[utoipa::path(get, path = "/v1/bus/gates", tag = "bus", responses((status = 200, body = shapes::Gates)))]
async fn gates(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, ()) = look(&access, &request, |_| Ok(()))?;
    Ok(HttpResponse::Ok().json(json!({ "gates": inspect::gates(&client).await? })))
}

/// The drop ledger: published = delivered + queued + dropped + denied, in each row.
#[utoipa::path(get, path = "/v1/bus/ledger", tag = "bus", responses((status = 200, body = shapes::Ledger)))]
async fn ledger(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, ()) = look(&access, &request, |_| Ok(()))?;
    let rows = inspect::ledger(&client).await?;
    let balances = rows.iter().all(|row| row["balances"] == Value::Bool(true));
    Ok(HttpResponse::Ok().json(json!({ "ledger": rows, "balances": balances })))
}

/// Says why a peer can or cannot publish, subscribe, serve or request a topic.
#[utoipa::path(
    get, path = "/v1/bus/why", tag = "bus",
    params(
        ("peer" = String, Query, description = "Who", example = "gateway"),
        ("operation" = String, Query, description = "`publish`, `subscribe`, `serve` or `request`", example = "request"),
        ("topic" = String, Query, description = "On which topic", example = "conversation/user/input/v1"),
    ),
    responses((status = 200, body = shapes::Why))
)]
async fn why(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, (peer, operation, topic)) = look(&access, &request, |parameters| {
        let peer = parameters.needed::<PeerName>("peer")?;
        let operation = parameters.needed::<Right>("operation")?;
        Ok((peer, operation, parameters.needed::<TopicName>("topic")?))
    })?;
    Ok(HttpResponse::Ok().json(inspect::why(&client, &peer, operation, &topic).await?))
}

/// Shows how much flowed when: rates of the last seconds, up to an hour, from the broker's own statistics.
#[utoipa::path(
    get, path = "/v1/bus/rates", tag = "bus",
    params(
        ("filter" = Option<String>, Query, description = "Topics: `+` is one level, `#` the rest; all if left out", example = "#"),
        ("since" = Option<String>, Query, description = "How far back, up to an hour, for example `30s` or `10m`; a minute if left out", example = "30s"),
        ("series" = Option<bool>, Query, description = "Whether each second is told, too", example = true),
    ),
    responses((status = 200, body = shapes::RateList))
)]
async fn rates(access: Access, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let (client, (filter, seconds, series)) = look(&access, &request, |parameters| {
        let filter = match parameters.parsed::<TopicFilter>("filter")? {
            Some(filter) => filter,
            None => parse("#")?,
        };
        let seconds = parameters.duration("since")?.map_or(RATE_SECONDS, |since| since.as_secs().max(1));
        Ok((filter, seconds, parameters.flag("series")?))
    })?;
    let flow = inspect::rates(&client, &[filter], seconds).await?;
    let mut answer = json!({
        "rates": flow.summary(), "now": flow.now, "left_out": flow.left_out, "complete_from": flow.complete_from,
    });
    if series {
        answer["series"] = flow.series.into();
    }
    Ok(HttpResponse::Ok().json(answer))
}

/// A topic or a filter of a request.
pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|error: T::Err| ApiError::BadRequest(error.to_string()))
}
