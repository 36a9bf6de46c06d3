//! What travels: header, payload, and the message a receiver sees.

mod message_id;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    codec::{self, CodecError},
    peer::PeerName,
    topic::TopicName,
    trace::Trace,
};

/// What the bytes of a payload are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContentType {
    /// Bytes without a declared meaning.
    #[default]
    Bytes,
    /// A serde type in bincode's format (`bincode` 1 and `legacy()` of 2).
    Bincode,
    /// `application/json`.
    Json,
    /// `text/plain; charset=utf-8`.
    Text,
    /// Any other media type.
    Other(String),
}

impl ContentType {
    /// The media type as text; empty for [`ContentType::Bytes`].
    pub fn as_str(&self) -> &str {
        match self {
            Self::Bytes => "",
            Self::Bincode => "application/x-bincode",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Other(text) => text,
        }
    }

    /// The content type a media type names.
    pub fn parse(text: &str) -> Self {
        match text.split(';').next().unwrap_or_default().trim() {
            "" | "application/octet-stream" => Self::Bytes,
            "application/x-bincode" => Self::Bincode,
            "application/json" => Self::Json,
            "text/plain" => Self::Text,
            _ => Self::Other(text.to_owned()),
        }
    }
}

/// The place of a message in the stream of a gated publisher, by which its consumers know what they have seen and
/// what will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMark {
    /// The stream: one for each life of a publisher.
    pub stream: Uuid,
    /// The message's number in it. Rises by one with each message the publisher has accepted.
    pub sequence: u64,
    /// The number of the message before it. Those between the two will not come: they were dropped by the publisher.
    pub previous: u64,
    /// Up to here every consumer that the publisher needs has taken all that will come; it is sent no more.
    pub taken: u64,
    /// It was sent before, and may have been seen.
    pub again: bool,
}

/// What the outbox says about one attempt to deliver a message; see [`crate::durable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryMark {
    /// The message's place in the order of acceptance; the same at every attempt.
    pub number: u64,
    /// Which attempt this is, counting from 1.
    pub attempt: u32,
    /// When the message was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// Who published it.
    pub origin: PeerName,
}

/// What stands in the header of a message on its way through an outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableFacts {
    /// Messages with the same key keep their order. `None` stands for the topic.
    pub key: Option<String>,
    /// What the outbox says about this attempt; only its own word counts.
    pub delivery: Option<DeliveryMark>,
}

/// What the publisher says about a message. The broker does not read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message id, a UUIDv7; nil if a stock client sent the message.
    pub id: Uuid,
    /// When it was published, in nanoseconds since the Unix epoch; zero if unknown.
    pub published_at_ns: u64,
    /// What the payload is.
    pub content_type: ContentType,
    /// Where an answer is expected, if anywhere.
    pub reply_to: Option<TopicName>,
    /// The id of the message this one belongs to.
    pub correlation: Option<Uuid>,
    /// Fingerprint of the payload's schema; `None` if unregistered.
    pub schema: Option<u64>,
    /// W3C `traceparent`.
    pub traceparent: Option<Box<str>>,
    /// Its place in a gated publisher's stream.
    pub stream: Option<Box<StreamMark>>,
    /// What there is to say on the way through an outbox.
    pub durable: Option<Box<DurableFacts>>,
    /// The user's own headers, in order.
    pub user: Vec<(String, String)>,
}

impl Header {
    /// A header with a fresh id and the present time.
    pub fn new() -> Self {
        let published_at_ns = now_ns();
        Self { id: message_id::message_id(published_at_ns), published_at_ns, ..Self::absent() }
    }

    /// The header of a message that carried none (stock clients send topic and payload only).
    pub fn absent() -> Self {
        Self {
            id: Uuid::nil(),
            published_at_ns: 0,
            content_type: ContentType::Bytes,
            reply_to: None,
            correlation: None,
            schema: None,
            traceparent: None,
            stream: None,
            durable: None,
            user: Vec::new(),
        }
    }

    /// Its ordering key on the way through an outbox, if it names one.
    pub fn key(&self) -> Option<&str> {
        self.durable.as_ref()?.key.as_deref()
    }

    /// What an outbox says about this attempt to deliver it; `None` if it is none.
    pub fn delivery(&self) -> Option<&DeliveryMark> {
        self.durable.as_ref()?.delivery.as_ref()
    }

    /// The header as part of the trace that is worked for, unless it names one.
    #[must_use]
    pub fn traced(mut self) -> Self {
        if self.traceparent.is_none() {
            self.traceparent = Trace::current().map(|trace| trace.to_string().into());
        }
        self
    }

    /// A header for `payload` with an id that is there already.
    pub fn with_id(id: Uuid, payload: &Payload) -> Self {
        let (content_type, schema) = (payload.content_type.clone(), payload.schema);
        Self { id, published_at_ns: now_ns(), content_type, schema, ..Self::absent() }
    }

    /// A fresh header for `payload`.
    pub fn for_payload(payload: &Payload) -> Self {
        Self { content_type: payload.content_type.clone(), schema: payload.schema, ..Self::new() }
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

/// Nanoseconds since the Unix epoch; zero if the clock stands before it.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Bytes to send and what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// What the bytes are.
    pub content_type: ContentType,
    /// The bytes; may be empty.
    pub bytes: Bytes,
    /// Fingerprint of their schema; `None` if unregistered.
    pub schema: Option<u64>,
}

impl Payload {
    /// Bytes without a declared meaning.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self { content_type: ContentType::Bytes, bytes: bytes.into(), schema: None }
    }

    /// UTF-8 text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content_type: ContentType::Text, bytes: Bytes::from(text.into()), schema: None }
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// [`CodecError::Json`]: it has no form in JSON.
    pub fn json(value: &(impl serde::Serialize + ?Sized)) -> Result<Self, CodecError> {
        Ok(Self { content_type: ContentType::Json, bytes: codec::to_json(value)?, schema: None })
    }

    /// A value in bincode's format.
    ///
    /// # Errors
    /// [`CodecError::Encode`]: it has no form in the format.
    pub fn encode(value: &(impl serde::Serialize + ?Sized)) -> Result<Self, CodecError> {
        Ok(Self { content_type: ContentType::Bincode, bytes: codec::to_bytes(value)?, schema: None })
    }
}

/// A message as a receiver sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What it was published under.
    pub topic: TopicName,
    /// Who published it, as authenticated by the broker; never taken from the sender.
    pub origin: PeerName,
    /// The broker's number for it: rises by at least one per message within a broker epoch.
    pub sequence: u64,
    /// What the publisher says about it.
    pub header: Header,
    /// The bytes; several frames of a stock message are joined.
    pub payload: Bytes,
    /// Whether it is the topic's retained value, sent because of a new subscription.
    pub retained: bool,
}

impl Message {
    /// Decodes a serde payload: JSON if the header says so, otherwise bincode's format.
    ///
    /// # Errors
    /// [`CodecError`]: it is not a `T`, or not in the form that its header names.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, CodecError> {
        match self.header.content_type {
            ContentType::Json | ContentType::Text => codec::from_json(&self.payload),
            _ => codec::from_bytes(&self.payload),
        }
    }

    /// The payload as text, or `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.payload).ok()
    }
}
