//! `POST /v1/bus/publish`.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use interlock_bus::{
    Client, Header, PublishOptions, TopicName,
    client::WaitError,
    durable::{DurableError, DurableOptions},
    error::PublishError,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{message, parse};
use crate::gateway::{
    access::{Access, Scope},
    body,
    error::ApiError,
    server::Data,
};
use crate::topics::code;

/// How long publishing may take unless it is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time that may be said, in milliseconds.
pub(in crate::gateway) const TIMEOUT_MS_MAX: u64 = 600_000;
const EXAMPLE: &str = "{\"topic\":\"weather/now\",\"payload\":{\"degrees\":21}}";

/// A message to be published.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct NewPublish {
    /// On which topic.
    #[schema(example = "weather/now")]
    pub(in crate::gateway) topic: String,
    /// What is sent: a text as it is, everything else as JSON; nothing if it is left out or null.
    #[schema(example = json!({ "degrees": 21 }))]
    pub(in crate::gateway) payload: Option<Value>,
    /// Bytes to be sent instead, in base64.
    pub(in crate::gateway) payload_base64: Option<String>,
    /// What it is; by default what `payload` says.
    pub(in crate::gateway) content_type: Option<String>,
    /// Headers of your own: pairs of a name and a value.
    #[serde(default)]
    pub(in crate::gateway) headers: Vec<(String, String)>,
    /// Keep it as the topic's last value.
    #[serde(default)]
    pub(in crate::gateway) retain: bool,
    /// For how many milliseconds anybody wants it.
    pub(in crate::gateway) expires_ms: Option<u64>,
    /// Wait until this many subscribers are there.
    #[schema(maximum = 100_000)]
    pub(in crate::gateway) wait: Option<usize>,
    /// Give it to the outbox: it is on its disk when this is answered, and each consumer of the topic gets it.
    #[serde(default)]
    pub(in crate::gateway) durable: bool,
    /// Durable messages with the same key keep their order; by default those of one topic do.
    pub(in crate::gateway) key: Option<String>,
    /// How long this may take; ten seconds if it is left out.
    #[schema(minimum = 1, maximum = 600_000)]
    pub(in crate::gateway) timeout_ms: Option<u64>,
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct Accepted {
    topic: String,
    /// Subscribers that have it in their queue; of a durable one left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    subscribers: Option<u32>,
    /// Subscribers that lost it because their queue was full; of a durable one left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dropped: Option<u32>,
    /// Whether it is the topic's last value now, if it was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retained: Option<bool>,
    /// The id of a durable message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = "uuid")]
    id: Option<Uuid>,
    /// Its place in the order of acceptance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    number: Option<u64>,
}

/// Publishes a message with the rights of the token's peer, and says how many subscribers have it in their queues.
#[utoipa::path(
    post, path = "/v1/bus/publish", tag = "bus", request_body = NewPublish,
    responses((status = 200, body = Accepted))
)]
pub(super) async fn publish(
    access: Access,
    shared: Data,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Bus)?;
    let bytes = body::read(&request, body, &shared.options).await?;
    let wanted: NewPublish = body::json(&bytes, EXAMPLE)?;
    Ok(HttpResponse::Ok().json(send(&access.client()?, wanted).await?))
}

/// How long something may take that says it in milliseconds.
pub(in crate::gateway) fn time_limit(
    timeout_ms: Option<u64>,
    default: Duration,
) -> Result<Duration, ApiError> {
    match timeout_ms {
        None => Ok(default),
        Some(ms @ 1..=TIMEOUT_MS_MAX) => Ok(Duration::from_millis(ms)),
        Some(ms) => Err(ApiError::BadRequest(format!(
            "`timeout_ms` is {ms}; it has to be from 1 to {TIMEOUT_MS_MAX}"
        ))),
    }
}

/// Publishes, and waits for the word of the broker or of the outbox.
pub(in crate::gateway) async fn send(client: &Client, wanted: NewPublish) -> Result<Accepted, ApiError> {
    let topic: TopicName = parse(&wanted.topic)?;
    let limit = time_limit(wanted.timeout_ms, TIMEOUT)?;
    let plain_only = wanted.retain || wanted.wait.is_some() || wanted.expires_ms.is_some();
    if wanted.durable && plain_only {
        let text = "`retain`, `wait` and `expires_ms` are for messages that are not `durable`";
        return Err(ApiError::BadRequest(text.to_owned()));
    }
    if !wanted.durable && wanted.key.is_some() {
        return Err(ApiError::BadRequest("`key` is for messages that are `durable`".to_owned()));
    }
    let payload = message::payload(wanted.payload, wanted.payload_base64, wanted.content_type)?;
    let header = Header { user: wanted.headers, ..Header::for_payload(&payload) };
    let mut accepted = Accepted {
        topic: topic.to_string(),
        subscribers: None,
        dropped: None,
        retained: None,
        id: None,
        number: None,
    };
    if wanted.durable {
        let options = DurableOptions { id: None, key: wanted.key, header: Some(header) };
        let put = client.publish_durable(&topic, payload, &options, limit).await?;
        (accepted.id, accepted.number) = (Some(put.id), Some(put.number));
        return Ok(accepted);
    }
    if let Some(count) = wanted.wait {
        client.wait_for_subscribers(&topic, count, limit).await?;
    }
    let expires_after = wanted.expires_ms.map(Duration::from_millis);
    let options = PublishOptions { retain: wanted.retain, expires_after, header: Some(header) };
    let Ok(published) = timeout(limit, client.publish_acknowledged(&topic, payload, options)).await else {
        let text = format!("the broker has not taken the message within {limit:?}; it may have arrived");
        return Err(ApiError::refused(504, code::TIMED_OUT, text));
    };
    let ack = published?;
    (accepted.subscribers, accepted.dropped) = (Some(ack.subscribers), Some(ack.dropped));
    accepted.retained = wanted.retain.then_some(!ack.not_retained);
    Ok(accepted)
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let text = error.to_string();
        match error {
            PublishError::TooLarge { .. } => Self::refused(413, "payload_too_large", text),
            PublishError::Denied { .. } => Self::refused(403, "denied", text),
            PublishError::Held { .. } => Self::refused(503, "held", text),
            PublishError::Full { .. } => Self::refused(503, "busy", text),
            _ => Self::refused(502, "bus", text),
        }
    }
}

impl From<WaitError> for ApiError {
    fn from(error: WaitError) -> Self {
        let text = error.to_string();
        match error {
            WaitError::TimedOut { .. } => Self::refused(504, "timed_out", text),
            WaitError::Denied { .. } => Self::refused(403, "denied", text),
            _ => Self::refused(502, "bus", text),
        }
    }
}

impl From<DurableError> for ApiError {
    fn from(error: DurableError) -> Self {
        let (code, text) = (error.code(), error.to_string());
        let status = match error {
            DurableError::NoConsumers { .. } => 409,
            DurableError::ShuttingDown => 503,
            _ => 502,
        };
        Self::refused(status, code, text)
    }
}
