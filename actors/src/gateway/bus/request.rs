//! `POST /v1/bus/request`: one answer, or its parts as they come.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use interlock_bus::{
    Client, Message, ReplyStream, RequestError, TopicName,
    inspect::{Decoded, Schemas},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use utoipa::ToSchema;

use super::{
    message::{self, Shown},
    parse,
    publish::time_limit,
};
use crate::gateway::{
    access::{Access, Scope},
    body,
    error::ApiError,
    hangup::Hangup,
    server::Data,
    sse::{self, Sink},
};

/// How long an answer may take unless it is said.
pub(in crate::gateway) const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a stream waits for its first part before it begins: a refusal comes at once, and is an answer of its own.
const FIRST_PART_WITHIN: Duration = Duration::from_secs(1);

const EXAMPLE: &str = "{\"topic\":\"modelservice/models/v1\"}";

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct NewRequest {
    /// On which topic.
    #[schema(example = "modelservice/models/v1")]
    pub(in crate::gateway) topic: String,
    /// What is sent: a text as it is, everything else as JSON; nothing if it is left out or null.
    pub(in crate::gateway) payload: Option<Value>,
    /// Bytes to be sent instead, in base64.
    pub(in crate::gateway) payload_base64: Option<String>,
    /// What it is; by default what `payload` says.
    pub(in crate::gateway) content_type: Option<String>,
    /// How long the whole answer may take; a minute if it is left out.
    #[schema(minimum = 1, maximum = 600_000)]
    pub(in crate::gateway) timeout_ms: Option<u64>,
}

/// One part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::gateway) struct Part {
    /// Which part, from 1 on.
    part: u64,
    #[serde(flatten)]
    shown: Shown,
}

impl Part {
    pub(in crate::gateway) fn new(message: &Message, decoded: Decoded) -> Self {
        Self { part: message.sequence, shown: Shown::new(decoded, message) }
    }
}

/// Asks with the rights of the token's peer. Answered with the last part, or with `Accept: text/event-stream` with each
/// part as an event `part` and then `end` or `error`; a client that goes away cancels its request either way.
#[utoipa::path(
    post, path = "/v1/bus/request", tag = "bus", request_body = NewRequest,
    responses(
        (status = 200, content((Part = "application/json"), (String = "text/event-stream")))
    )
)]
pub(super) async fn request(
    access: Access,
    shared: Data,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Bus)?;
    let bytes = body::read(&request, body, &shared.options).await?;
    let wanted: NewRequest = body::json(&bytes, EXAMPLE)?;
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let streams = accept.is_some_and(|accept| accept.contains("text/event-stream"));
    let client = access.client()?;
    let permit = shared.stream_permit()?;
    let hangup = Hangup::of(&request);
    let mut replies = hangup.during(ask(&client, wanted)).await??;
    let mut schemas = Schemas::default();
    if !streams {
        let last = hangup.during(replies.last()).await?.map_err(|error| ApiError::of_request(&error))?;
        let decoded = schemas.decode(&client, &last).await;
        return Ok(HttpResponse::Ok().json(Part::new(&last, decoded)));
    }
    // An answer that cannot begin is an error of its own.
    let first = match hangup.during(timeout(FIRST_PART_WITHIN, replies.next())).await? {
        Ok(Some(Err(error))) => return Err(ApiError::of_request(&error)),
        first => first.ok(),
    };
    let (sink, response) = sse::stream(&shared);
    actix_web::rt::spawn(pass_on(client, replies, first, schemas, sink, permit));
    Ok(response)
}

/// Sends a question.
pub(in crate::gateway) async fn ask(client: &Client, wanted: NewRequest) -> Result<ReplyStream, ApiError> {
    let topic: TopicName = parse(&wanted.topic)?;
    let limit = time_limit(wanted.timeout_ms, TIMEOUT)?;
    let payload = message::payload(wanted.payload, wanted.payload_base64, wanted.content_type)?;
    client.request_stream(&topic, payload, limit).await.map_err(|error| ApiError::of_request(&error))
}

/// Passes parts on until the end, or until the reader is gone: dropping the replies cancels the request.
async fn pass_on(
    client: Client,
    mut replies: ReplyStream,
    mut first: Option<Option<Result<Message, RequestError>>>,
    mut schemas: Schemas,
    sink: Sink,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        let next = match first.take() {
            Some(first) => first,
            None => match sink.alive(replies.next()).await {
                Ok(next) => next,
                Err(_gone) => return,
            },
        };
        let mut events = String::new();
        let is_end = match next {
            Some(Ok(part)) => {
                let decoded = schemas.decode(&client, &part).await;
                sse::write(&mut events, "part", &Part::new(&part, decoded));
                false
            }
            Some(Err(error)) => {
                sse::write(&mut events, "error", &ApiError::of_request(&error).content());
                true
            }
            None => {
                sse::write(&mut events, "end", &json!({}));
                true
            }
        };
        if sink.send(events).await.is_err() || is_end {
            return;
        }
    }
}
