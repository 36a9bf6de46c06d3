//! A message of the bus in JSON, and a payload out of JSON.

use base64::{Engine, prelude::BASE64_STANDARD};
use interlock_bus::{ContentType, Message, Payload, inspect::Decoded};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::gateway::error::ApiError;

/// How a payload is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum Encoding {
    /// `payload` is JSON: what was sent, or what a registered schema made of the bytes.
    Json,
    /// `payload` is a text.
    Text,
    /// `payload_base64` has the bytes.
    Base64,
}

/// A payload that was looked into.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::gateway) struct Shown {
    encoding: Encoding,
    /// JSON or text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Value>,
    /// Bytes that are neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    payload_base64: Option<String>,
}

impl Shown {
    pub(in crate::gateway) fn new(decoded: Decoded, message: &Message) -> Self {
        let (encoding, payload, payload_base64) = match decoded {
            Decoded::Json(value) => (Encoding::Json, Some(value), None),
            Decoded::Text(text) => (Encoding::Text, Some(Value::String(text)), None),
            Decoded::Bytes => (Encoding::Base64, None, Some(BASE64_STANDARD.encode(&message.payload))),
        };
        Self { encoding, payload, payload_base64 }
    }
}

/// A message that was published.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::gateway) struct Published {
    topic: String,
    /// Who published it, as the broker knows.
    origin: String,
    /// The broker's number of it.
    sequence: u64,
    /// When it was published; of stock clients, which do not say it, null.
    #[schema(value_type = Option<String>, format = "date-time")]
    at: Option<Timestamp>,
    /// Whether it is the topic's last value from before the subscription.
    retained: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, format = "uuid")]
    id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    traceparent: Option<String>,
    content_type: String,
    /// The publisher's own headers.
    headers: Vec<(String, String)>,
    #[serde(flatten)]
    shown: Shown,
}

impl Published {
    pub(in crate::gateway) fn new(message: &Message, decoded: Decoded) -> Self {
        let header = &message.header;
        let at = Some(header.published_at_ns).filter(|ns| *ns > 0);
        Self {
            topic: message.topic.to_string(),
            origin: message.origin.to_string(),
            sequence: message.sequence,
            at: at.and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok()),
            retained: message.retained,
            id: Some(header.id).filter(|id| !id.is_nil()),
            traceparent: header.traceparent.as_deref().map(str::to_owned),
            content_type: header.content_type.as_str().to_owned(),
            headers: header.user.clone(),
            shown: Shown::new(decoded, message),
        }
    }
}

/// What a web client sends: `payload`, as text if it is one and else as JSON, or bytes.
pub(in crate::gateway) fn payload(
    value: Option<Value>,
    base64: Option<String>,
    content_type: Option<String>,
) -> Result<Payload, ApiError> {
    let mut payload = match (value, base64) {
        (Some(_), Some(_)) => {
            let text = "`payload` and `payload_base64` are both there; send one of them";
            return Err(ApiError::BadRequest(text.to_owned()));
        }
        (None, None) => Payload::default(),
        (Some(Value::String(text)), None) => Payload::text(text),
        (Some(value), None) => {
            Payload::json(&value).map_err(|error| ApiError::BadRequest(format!("`payload`: {error}")))?
        }
        (None, Some(base64)) => {
            let bytes = BASE64_STANDARD.decode(base64);
            Payload::bytes(bytes.map_err(|error| ApiError::BadRequest(format!("`payload_base64`: {error}")))?)
        }
    };
    if let Some(content_type) = content_type {
        if content_type.chars().any(char::is_control) {
            let text =
                format!("`content_type` is `{}`, which has control characters", content_type.escape_debug());
            return Err(ApiError::BadRequest(text));
        }
        payload.content_type = ContentType::parse(&content_type);
    }
    Ok(payload)
}
