//! What was said before, read from the store.

use actix_web::{HttpResponse, web};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Shared,
    access::{Access, Scope},
    error::ApiError,
    server::{Data, id_of, resource},
};
use crate::store::{Conversation, StoreError, StoredMessage};

/// Conversations of one answer, the most recent ones.
const CONVERSATIONS_MAX: usize = 1000;

/// Messages of one answer, the newest ones.
const MESSAGES_MAX: usize = 1000;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/conversations", "GET").route(web::get().to(conversations)))
        .service(resource("/v1/conversations/{id}", "GET").route(web::get().to(conversation)));
}

/// `GET /v1/conversations`
async fn conversations(access: Access, shared: Data) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let list = read(&shared, |reader| reader.conversations(CONVERSATIONS_MAX)).await?;
    let list: Vec<Value> = list.iter().map(summary).collect();
    Ok(HttpResponse::Ok().json(json!({ "conversations": list })))
}

/// `GET /v1/conversations/{id}`
async fn conversation(access: Access, shared: Data, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let id = id_of(&id)?.as_str().to_owned();
    let wanted = id.clone();
    let found = read(&shared, move |reader| {
        let Some(conversation) = reader.conversation(&wanted)? else { return Ok(None) };
        Ok(Some((conversation, reader.history(&wanted, MESSAGES_MAX)?)))
    })
    .await?;
    let (conversation, messages) = found.ok_or(ApiError::UnknownConversation(id))?;
    let mut answer = summary(&conversation);
    answer["messages"] = messages.iter().map(message).collect();
    Ok(HttpResponse::Ok().json(answer))
}

async fn read<T: Send + 'static>(
    shared: &Shared,
    read: impl FnOnce(&mut crate::store::Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = (shared.options.store)().ok_or_else(|| ApiError::Turn {
        status: actix_web::http::StatusCode::SERVICE_UNAVAILABLE,
        code: crate::topics::code::STORE.to_owned(),
        text: "the store is not open yet; try again soon".to_owned(),
    })?;
    store.read(read).await.map_err(|error| ApiError::of_store(&error))
}

fn summary(conversation: &Conversation) -> Value {
    json!({
        "id": conversation.id,
        "title": conversation.title,
        "created_at": time(conversation.created_ns),
        "updated_at": time(conversation.updated_ns),
        "message_count": conversation.messages,
    })
}

fn message(stored: &StoredMessage) -> Value {
    json!({
        "id": stored.message.id,
        "turn": stored.message.turn,
        "at": time(stored.time_ns),
        "role": stored.message.role.as_str(),
        "state": stored.message.state.as_str(),
        "text": stored.message.text,
    })
}

/// Nanoseconds since the Unix epoch as RFC 3339.
fn time(ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(ns)).ok()
}
