//! What was said before, read from the store.

use actix_web::{HttpRequest, HttpResponse, web};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Shared,
    access::{Access, Scope},
    error::ApiError,
    parameters::Parameters,
    server::{Data, id_of},
};
use crate::store::{Conversation, Reader, Store, StoreError, StoredMessage};

/// Conversations of one answer, the most recent ones.
const CONVERSATIONS_MAX: usize = 1000;

/// Messages of one answer, the newest ones.
const MESSAGES_MAX: usize = 1000;

/// A conversation, without what was said in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Summary {
    id: String,
    /// May be empty.
    title: String,
    #[schema(value_type = Option<String>, format = "date-time")]
    created_at: Option<Timestamp>,
    /// When something was said last.
    #[schema(value_type = Option<String>, format = "date-time")]
    updated_at: Option<Timestamp>,
    message_count: u64,
}

/// Conversations, the one used last first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Conversations {
    conversations: Vec<Summary>,
}

/// Something that was said.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Said {
    #[schema(value_type = String, format = "uuid")]
    id: Uuid,
    /// The turn it belongs to.
    #[schema(value_type = String, format = "uuid")]
    turn: Uuid,
    #[schema(value_type = Option<String>, format = "date-time")]
    at: Option<Timestamp>,
    /// `system`, `user` or `assistant`.
    role: &'static str,
    /// `complete`; or `failed` or `cancelled` with what there was until then.
    state: &'static str,
    text: String,
}

/// A conversation with what was said in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Told {
    #[serde(flatten)]
    summary: Summary,
    /// The newest 1000, in the order in which they were said.
    messages: Vec<Said>,
}

/// Lists conversations, the one used last first.
#[utoipa::path(get, path = "/v1/conversations", tag = "conversations", responses((status = 200, body = Conversations)))]
pub(super) async fn conversations(
    access: Access,
    shared: Data,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    Parameters::of(&request)?.end()?;
    let list = read(&shared, |reader| reader.conversations(CONVERSATIONS_MAX)).await?;
    let conversations = list.into_iter().map(Summary::from).collect();
    Ok(HttpResponse::Ok().json(Conversations { conversations }))
}

/// Shows a conversation with what was said in it.
#[utoipa::path(
    get, path = "/v1/conversations/{id}", tag = "conversations",
    params(("id" = String, Path, description = "Which conversation", example = "kitchen")),
    responses((status = 200, body = Told))
)]
pub(super) async fn conversation(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    Parameters::of(&request)?.end()?;
    let id = id_of(&id)?.as_str().to_owned();
    let wanted = id.clone();
    let found = read(&shared, move |reader| {
        let Some(conversation) = reader.conversation(&wanted)? else { return Ok(None) };
        Ok(Some((conversation, reader.history(&wanted, MESSAGES_MAX)?)))
    })
    .await?;
    let (conversation, messages) = found.ok_or(ApiError::UnknownConversation(id))?;
    let messages = messages.into_iter().map(Said::from).collect();
    Ok(HttpResponse::Ok().json(Told { summary: conversation.into(), messages }))
}

/// The store that is open now.
pub(super) fn store(shared: &Shared) -> Result<Store, ApiError> {
    (shared.options.store)().ok_or_else(ApiError::store_is_closed)
}

/// Reads on one of the store's reading threads.
pub(super) async fn read<T: Send + 'static>(
    shared: &Shared,
    read: impl FnOnce(&mut Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    store(shared)?.read(read).await.map_err(|error| ApiError::of_store(&error))
}

/// One conversation of the store.
pub(super) async fn summary(shared: &Shared, id: &str) -> Result<Summary, ApiError> {
    let wanted = id.to_owned();
    let found = read(shared, move |reader| reader.conversation(&wanted)).await?;
    found.map(Summary::from).ok_or_else(|| ApiError::UnknownConversation(id.to_owned()))
}

impl From<Conversation> for Summary {
    fn from(conversation: Conversation) -> Self {
        Self {
            id: conversation.id,
            title: conversation.title,
            created_at: time(conversation.created_ns),
            updated_at: time(conversation.updated_ns),
            message_count: conversation.messages,
        }
    }
}

impl From<StoredMessage> for Said {
    fn from(stored: StoredMessage) -> Self {
        Self {
            id: stored.message.id,
            turn: stored.message.turn,
            at: time(stored.time_ns),
            role: stored.message.role.as_str(),
            state: stored.message.state.as_str(),
            text: stored.message.text,
        }
    }
}

/// Nanoseconds since the Unix epoch as RFC 3339.
fn time(ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(ns)).ok()
}
