//! What is published durably and not finished, and dead letters, over HTTP.

use std::path::PathBuf;

use actix_web::{HttpRequest, HttpResponse, web};
use interlock_bus::{Payload, PeerName, TopicFilter, TopicName, durable::words};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    error::ApiError,
    parameters::Parameters,
    server::{Data, resource},
};
use crate::store::{
    DataKey, StoreError,
    outbox::{
        DeliveryState, Desk, KeepFinished, OutboxLimits, OutboxStore,
        desk::{DeliveryFilter, Edit, Message, MessageId},
    },
};

/// Deliveries of one answer unless it is said.
const DELIVERIES: usize = 100;
/// Deliveries of one answer at most.
const DELIVERIES_MAX: usize = 10_000;
/// Bytes of a payload that are shown.
const SHOWN_BYTES: usize = 64 << 10;
/// How long the outbox may take to say that it will look.
const LOOK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// Where the outbox's database is, and its key.
pub type OutboxKey = dyn Fn() -> Result<(PathBuf, DataKey), StoreError> + Send + Sync;

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(outbox, dead_letters, dead_letter, drop_dead_letter, retry))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/admin/outbox", "GET").route(web::get().to(outbox)))
        .service(resource("/v1/admin/dead-letters", "GET").route(web::get().to(dead_letters)))
        .service(
            resource("/v1/admin/dead-letters/{id}", "GET, DELETE")
                .route(web::get().to(dead_letter))
                .route(web::delete().to(drop_dead_letter)),
        )
        .service(resource("/v1/admin/dead-letters/{id}/retry", "POST").route(web::post().to(retry)));
}

/// A delivery of a durable message, as `interlock outbox list --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Delivery {
    /// The message's place in the order of acceptance.
    number: u64,
    #[schema(value_type = String, format = "uuid")]
    id: String,
    consumer: String,
    /// `pending`, `leased`, `acknowledged`, `dead` or `dropped`.
    state: String,
    topic: String,
    key: String,
    origin: String,
    bytes: u64,
    accepted_ms: u64,
    changed_ms: u64,
    /// When the next attempt is due; 0 for at once, or for never.
    due_ms: u64,
    attempts: u32,
    /// Why the last failed attempt failed.
    reason: Option<String>,
}

/// Deliveries, in the order of their acceptance.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deliveries {
    deliveries: Vec<Delivery>,
    /// Whether there are more than were asked for.
    more: bool,
}

/// An attempt that failed, or what somebody did to a delivery.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Attempt {
    consumer: String,
    attempt: u32,
    begun_ms: u64,
    ended_ms: u64,
    reason: String,
}

/// One message whole, as `interlock dlq show --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DurableMessage {
    number: Option<u64>,
    id: Option<String>,
    topic: Option<String>,
    key: Option<String>,
    origin: Option<String>,
    bytes: Option<u64>,
    accepted_ms: Option<u64>,
    finished_ms: Option<u64>,
    /// `json`, `text` or `hex`, and whether it was `cut`.
    payload: Value,
    damage: Option<String>,
    deliveries: Vec<Delivery>,
    attempts: Vec<Attempt>,
}

/// How many deliveries were changed.
#[derive(Debug, Serialize, ToSchema)]
struct Changed {
    changed: u64,
}

/// Looks into the outbox, on a thread that may wait for the disk. `None` if nothing was ever published durably.
async fn look<T: Send + 'static>(
    shared: &Data,
    look: impl FnOnce(&Desk) -> Result<T, StoreError> + Send + 'static,
) -> Result<Option<T>, ApiError> {
    let place = shared.options.outbox.clone();
    let looked = web::block(move || {
        let (path, key) = place()?;
        Desk::open(&path, &key)?.map(|desk| look(&desk)).transpose()
    });
    match looked.await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(ApiError::of_store(&error)),
        Err(_) => {
            Err(ApiError::refused(503, "busy", "there is no thread to look into the outbox; try again soon"))
        }
    }
}

/// Deliveries of the query that are in one of these states, unless it names others.
async fn list(
    access: Access,
    shared: Data,
    request: HttpRequest,
    states: Vec<DeliveryState>,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    let mut parameters = Parameters::of(&request)?;
    let since = parameters.time("since")?;
    let limit = parameters.count("limit", DELIVERIES_MAX)?.unwrap_or(DELIVERIES);
    let filter = DeliveryFilter {
        states,
        topic: parameters.parsed::<TopicFilter>("topic")?,
        consumer: parameters.parsed::<PeerName>("consumer")?,
        key: parameters.one("key")?,
        reason: parameters.one("reason")?,
        // Before 1970 nothing was accepted.
        since_ms: since.map(|since| u64::try_from(since.as_millisecond()).unwrap_or(0)),
        message: None,
        // One more, to know that there are more.
        limit: Some(limit + 1),
    };
    parameters.end()?;
    let mut found = look(&shared, move |desk| desk.list(&filter)).await?.unwrap_or_default();
    let more = found.len() > limit;
    found.truncate(limit);
    Ok(HttpResponse::Ok().json(json!({ "deliveries": found, "more": more })))
}

/// Lists what was published durably and waits or is under way, the oldest first.
#[utoipa::path(
    get, path = "/v1/admin/outbox", tag = "admin",
    params(
        ("topic" = Option<String>, Query, description = "Of messages on topics of this filter"),
        ("consumer" = Option<String>, Query, description = "To this consumer", pattern = "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$"),
        ("key" = Option<String>, Query, description = "Of messages with this ordering key"),
        ("reason" = Option<String>, Query, description = "Whose last failed attempt gave a reason with this text in it"),
        ("since" = Option<String>, Query, description = "Accepted then or later: RFC 3339, or how long ago, as `10m`", example = "1h"),
        ("limit" = Option<usize>, Query, description = "At most so many; 100 if it is left out", example = 10, minimum = 1, maximum = 10_000),
    ),
    responses((status = 200, body = Deliveries))
)]
async fn outbox(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    list(access, shared, request, vec![DeliveryState::Pending, DeliveryState::Leased]).await
}

/// Lists dead letters: what will not be tried again unless somebody asks for it. The oldest first.
#[utoipa::path(
    get, path = "/v1/admin/dead-letters", tag = "admin",
    params(
        ("topic" = Option<String>, Query, description = "Of messages on topics of this filter"),
        ("consumer" = Option<String>, Query, description = "To this consumer", pattern = "^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$"),
        ("key" = Option<String>, Query, description = "Of messages with this ordering key"),
        ("reason" = Option<String>, Query, description = "Whose last failed attempt gave a reason with this text in it"),
        ("since" = Option<String>, Query, description = "Accepted then or later: RFC 3339, or how long ago, as `10m`", example = "1h"),
        ("limit" = Option<usize>, Query, description = "At most so many; 100 if it is left out", example = 10, minimum = 1, maximum = 10_000),
    ),
    responses((status = 200, body = Deliveries))
)]
async fn dead_letters(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    list(access, shared, request, vec![DeliveryState::Dead]).await
}

/// A message by number or id.
async fn message(shared: &Data, id: &str) -> Result<Message, ApiError> {
    let parsed: MessageId = id.parse().map_err(ApiError::BadRequest)?;
    let found = look(shared, move |desk| desk.message(&parsed)).await?.flatten();
    found.ok_or_else(|| ApiError::Unknown { what: "message", name: id.to_owned() })
}

/// Shows a durable message whole, with what was tried.
#[utoipa::path(
    get, path = "/v1/admin/dead-letters/{id}", tag = "admin",
    params(("id" = String, Path, description = "The message: its number or its id", example = "1")),
    responses((status = 200, body = DurableMessage)), extensions(("x-example-status" = json!(404)))
)]
async fn dead_letter(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    Ok(HttpResponse::Ok().json(message(&shared, &id).await?.as_json(SHOWN_BYTES)))
}

/// Changes the dead letters of a message, and tells the outbox.
async fn change(access: &Access, shared: &Data, id: &str, edit: Edit) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    let message = message(shared, id).await?;
    let dead = message.deliveries.into_iter().filter(|delivery| delivery.state == DeliveryState::Dead);
    let dead: Vec<_> = dead.map(|delivery| (delivery.number, delivery.consumer, delivery.state)).collect();
    if dead.is_empty() {
        return Err(ApiError::Unknown { what: "dead letter", name: id.to_owned() });
    }
    let (client, place) = (access.client()?, shared.options.outbox.clone());
    let by = format!("`{}` (gateway)", client.name());
    // Forgetting is for whoever has the configuration of the running instance.
    let keep = KeepFinished { age_max: std::time::Duration::MAX, messages_max: u64::MAX };
    let opened = web::block(move || {
        let (path, key) = place()?;
        OutboxStore::open(&path, &key, OutboxLimits::default(), keep)
    });
    let busy = |_| ApiError::refused(503, "busy", "there is no thread to change the outbox; try again soon");
    let store = opened.await.map_err(busy)?.map_err(|error| ApiError::of_store(&error))?;
    let edited = store.edit(edit, dead, by.clone()).await;
    web::block(move || store.close()).await.map_err(busy)?;
    let changed = edited.map_err(|error| ApiError::refused(500, "store", error.text))?;
    tracing::info!(by, message = id, changed, ?edit, "dead letters were changed");
    if let Ok(topic) = words::LOOK.parse::<TopicName>()
        && let Err(error) = client.request(&topic, Payload::default(), LOOK_TIMEOUT).await
    {
        // It sees by itself at its next look.
        tracing::debug!(%error, "the outbox was not told of a change");
    }
    Ok(HttpResponse::Ok().json(Changed { changed }))
}

/// Gives up the dead letters of a message for good.
#[utoipa::path(
    delete, path = "/v1/admin/dead-letters/{id}", tag = "admin",
    params(("id" = String, Path, description = "The message: its number or its id", example = "1")),
    responses((status = 200, body = Changed)), extensions(("x-example-status" = json!(404)))
)]
async fn drop_dead_letter(
    access: Access,
    shared: Data,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    change(&access, &shared, &id, Edit::Drop).await
}

/// Sends the dead letters of a message again, with the same id and no attempts counted.
#[utoipa::path(
    post, path = "/v1/admin/dead-letters/{id}/retry", tag = "admin",
    params(("id" = String, Path, description = "The message: its number or its id", example = "1")),
    responses((status = 200, body = Changed)), extensions(("x-example-status" = json!(404)))
)]
async fn retry(access: Access, shared: Data, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    change(&access, &shared, &id, Edit::Retry).await
}
