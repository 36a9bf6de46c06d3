//! Conversations: beginning, naming, ending and deleting them, and hearing what goes on in one.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use interlock_bus::{Message, Payload, SubscribeOptions, Subscription, client::Event};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{OpenApi, ToSchema};

use super::{
    Shared,
    access::{Access, Scope},
    body,
    error::ApiError,
    history::{self, Summary},
    parameters::Parameters,
    server::{Data, id_of, resource},
    sse::{self, Sink},
    turn,
};
use crate::topics::{
    self, ConversationId, ConversationOrder, TurnDelta, TurnError, TurnFinal, TurnStarted, TurnsDeleted,
};

/// Characters of a title.
const TITLE_CHARACTERS_MAX: usize = 200;

/// How long the engine may take to end a turn, which saves what there was of it, or to delete a conversation.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// The last event of a conversation.
const DELETED: &str = "deleted";

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(
    history::conversations,
    history::conversation,
    create,
    rename,
    delete,
    cancel,
    events,
    turn::message,
    turn::chat
))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/v1/conversations", "GET, POST")
                .route(web::get().to(history::conversations))
                .route(web::post().to(create)),
        )
        .service(
            resource("/v1/conversations/{id}", "GET, PATCH, DELETE")
                .route(web::get().to(history::conversation))
                .route(web::patch().to(rename))
                .route(web::delete().to(delete)),
        )
        .service(resource("/v1/conversations/{id}/cancel", "POST").route(web::post().to(cancel)))
        .service(resource("/v1/conversations/{id}/events", "GET").route(web::get().to(events)));
}

/// A conversation to be begun.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewConversation {
    /// Its id: 1 to 64 letters, digits, `-` and `_`; a fresh one if it is left out.
    #[schema(example = "kitchen")]
    id: Option<String>,
    /// At most 200 characters. A conversation without a title has none until somebody gives it one.
    #[schema(example = "The kitchen", max_length = 200)]
    #[serde(default)]
    title: String,
}

/// What changes of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    /// At most 200 characters.
    #[schema(example = "A kitchen", max_length = 200)]
    title: String,
}

fn title(text: &str) -> Result<&str, ApiError> {
    match text.chars().count() {
        0..=TITLE_CHARACTERS_MAX => Ok(text),
        long => Err(ApiError::BadRequest(format!(
            "`title` has {long} characters; the limit is {TITLE_CHARACTERS_MAX}"
        ))),
    }
}

/// Begins a conversation. One that nobody has begun begins with the first thing that is said in it.
#[utoipa::path(
    post, path = "/v1/conversations", tag = "conversations", request_body = NewConversation,
    responses((status = 201, body = Summary))
)]
async fn create(
    access: Access,
    shared: Data,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let bytes = body::read(&request, body, &shared.options).await?;
    let wanted: NewConversation = body::json(&bytes, "{\"id\":\"kitchen\",\"title\":\"The kitchen\"}")?;
    let id = wanted.id.as_deref().map_or_else(|| Ok(ConversationId::new()), id_of)?;
    let title = title(&wanted.title)?;
    let created = history::store(&shared)?.create_conversation(id.as_str(), title).await;
    if !created.map_err(|error| ApiError::of_store(&error))? {
        let text = format!("conversation `{id}` is there already; choose another id, or none");
        return Err(ApiError::refused(409, "conversation_exists", text));
    }
    Ok(HttpResponse::Created().json(history::summary(&shared, id.as_str()).await?))
}

/// Gives a conversation another title.
#[utoipa::path(
    patch, path = "/v1/conversations/{id}", tag = "conversations", request_body = Changes,
    params(("id" = String, Path, description = "Which conversation", example = "kitchen")),
    responses((status = 200, body = Summary))
)]
async fn rename(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let id = id_of(&id)?;
    let bytes = body::read(&request, body, &shared.options).await?;
    let changes: Changes = body::json(&bytes, "{\"title\":\"The kitchen\"}")?;
    let renamed = history::store(&shared)?.rename_conversation(id.as_str(), title(&changes.title)?).await;
    if !renamed.map_err(|error| ApiError::of_store(&error))? {
        return Err(ApiError::UnknownConversation(id.to_string()));
    }
    Ok(HttpResponse::Ok().json(history::summary(&shared, id.as_str()).await?))
}

/// Gives the engine an order, and waits until it is carried out.
async fn order(shared: &Shared, topic: &'static str, conversation: ConversationId) -> Result<(), ApiError> {
    let payload = Payload::json(&ConversationOrder { conversation });
    let payload = payload.map_err(|error| ApiError::unsendable(&error))?;
    let answered = shared.client.request(&topics::topic(topic), payload, ORDER_TIMEOUT).await;
    answered.map(|_done| ()).map_err(|error| ApiError::of_component(turn::ENGINE, &error))
}

/// Deletes a conversation with all its messages. What goes on in it is ended first.
#[utoipa::path(
    delete, path = "/v1/conversations/{id}", tag = "conversations",
    params(("id" = String, Path, description = "Which conversation", example = "kitchen")),
    responses((status = 204))
)]
async fn delete(access: Access, shared: Data, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    order(&shared, topics::DELETE, id_of(&id)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Ends the turn that runs in a conversation, whoever asked for it; what there was of the answer is kept. Answered when it
/// has ended; 404 if there is no such conversation, 409 if no turn runs in it.
#[utoipa::path(
    post, path = "/v1/conversations/{id}/cancel", tag = "conversations",
    params(("id" = String, Path, description = "Which conversation", example = "kitchen")),
    responses((status = 204)), extensions(("x-example-status" = json!(409)))
)]
async fn cancel(access: Access, shared: Data, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let id = id_of(&id)?;
    let ended = order(&shared, topics::CANCEL, id.clone()).await;
    if let Err(error) = ended {
        // Whether it is unknown or merely quiet the store knows.
        if error.code() == topics::code::NOT_RUNNING {
            history::summary(&shared, id.as_str()).await?;
        }
        return Err(error);
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Streams what goes on in a conversation from now on, whoever asks: events `started`, `delta`, then `final` or `error`
/// for each turn; `lost` in the place of events that the reader was too slow for; `deleted` at the end of the conversation,
/// or `ended` with the reason at the end of the stream.
#[utoipa::path(
    get, path = "/v1/conversations/{id}/events", tag = "conversations",
    params(("id" = String, Path, description = "Which conversation; it need not be there yet", example = "kitchen")),
    responses((status = 200, content((String = "text/event-stream"))))
)]
async fn events(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    Parameters::of(&request)?.end()?;
    let id = id_of(&id)?;
    let permit = shared.stream_permit()?;
    let turns = topics::filter(topics::TURN_ALL);
    // A session of its own: a slow reader must not hold back others.
    let attached = (shared.options.attach)(shared.client.name());
    let client = attached.map_err(|failure| ApiError::NoSession(failure.to_string()))?;
    let subscription = client.subscribe(&turns, SubscribeOptions::default()).await?;
    let (sink, response) = sse::stream(&shared);
    actix_web::rt::spawn(pass_on(shared, id, subscription, sink, permit));
    Ok(response)
}

/// Passes events on until the reader is gone, or the conversation.
async fn pass_on(
    shared: Data,
    id: ConversationId,
    mut subscription: Subscription,
    sink: Sink,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        let next = sink.alive(async {
            tokio::select! {
                biased;
                () = shared.stopped() => Err(ApiError::Stopping),
                event = subscription.next() => event.ok_or_else(|| {
                    let reason = subscription.end_reason().unwrap_or_default();
                    ApiError::refused(502, "ended", format!("the subscription has ended: {reason}"))
                }),
            }
        });
        let Ok(next) = next.await else { return };
        let mut events = String::new();
        let mut is_end = next.is_err();
        match next {
            Ok(Event::Message(message)) => {
                if let Some((name, data)) = of_conversation(&message, &id) {
                    sse::write(&mut events, name, &data);
                    is_end = name == DELETED;
                }
            }
            Ok(Event::Gap { count, reason }) => {
                sse::write(&mut events, "lost", &json!({ "count": count, "reason": reason }));
            }
            Err(error) => sse::write(&mut events, "ended", &error.content()),
        }
        if sink.send(events).await.is_err() || is_end {
            return;
        }
    }
}

/// What a message says, if it is about this conversation.
fn of_conversation(message: &Message, id: &ConversationId) -> Option<(&'static str, Value)> {
    let is = |topic: &'static str| message.topic == topics::topic(topic);
    if is(topics::TURN_STARTED) {
        let turn = topics::read::<TurnStarted>(message).ok().filter(|turn| turn.conversation == *id)?;
        return Some(("started", json!(turn)));
    }
    if is(topics::TURN_DELTA) {
        let turn = topics::read::<TurnDelta>(message).ok().filter(|turn| turn.conversation == *id)?;
        return Some(("delta", json!(turn)));
    }
    if is(topics::TURN_FINAL) {
        let turn = topics::read::<TurnFinal>(message).ok().filter(|turn| turn.conversation == *id)?;
        return Some(("final", json!(turn)));
    }
    if is(topics::TURNS_DELETED) {
        let gone = topics::read::<TurnsDeleted>(message).ok().filter(|gone| gone.conversation == *id)?;
        return Some((DELETED, json!(gone)));
    }
    if !is(topics::TURN_ERROR) {
        return None;
    }
    let turn = topics::read::<TurnError>(message).ok().filter(|turn| turn.conversation == *id)?;
    Some(("error", json!({ "turn": turn.turn, "code": turn.code, "message": turn.text })))
}
