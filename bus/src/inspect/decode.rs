//! Payloads looked into: through registered schemas, as JSON, as text, or left as bytes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::ask;
use crate::{
    client::Client,
    envelope::{ContentType, Message},
    schema::Schema,
};

/// How long an unknown fingerprint stays unknown before the broker is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A payload that was looked into.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// JSON, or what a schema made of the bytes.
    Json(Value),
    /// Text.
    Text(String),
    /// Neither.
    Bytes,
}

/// The schemas of one broker, as far as they are known.
#[derive(Debug, Default)]
pub struct Schemas {
    schemas: HashMap<u64, Schema>,
    asked_at: Option<Instant>,
}

impl Schemas {
    /// Looks into a payload. `client` is asked for a schema that is not known yet; whoever may not ask sees bytes.
    pub async fn decode(&mut self, client: &Client, message: &Message) -> Decoded {
        if let Some(fingerprint) = message.header.schema.filter(|fingerprint| self.may_ask_for(*fingerprint))
        {
            self.look_for(client, fingerprint).await;
        }
        self.decode_known(message)
    }

    /// Looks into a payload with what is known.
    pub fn decode_known(&self, message: &Message) -> Decoded {
        let payload = &message.payload;
        if let Some(schema) = message.header.schema.and_then(|fingerprint| self.schemas.get(&fingerprint))
            && let Ok(value) = schema.decode(payload)
        {
            return Decoded::Json(value);
        }
        let parsed = || serde_json::from_slice(payload).map(Decoded::Json).ok();
        let text = || message.text().map(|text| Decoded::Text(text.to_owned()));
        let decoded = match &message.header.content_type {
            ContentType::Json => parsed().or_else(text),
            ContentType::Text => text(),
            // Stock clients cannot say what they send.
            ContentType::Bytes => text().filter(is_readable),
            ContentType::Other(media_type) if media_type.starts_with("text/") => text(),
            ContentType::Other(media_type) if media_type.ends_with("json") => parsed().or_else(text),
            _ => None,
        };
        decoded.unwrap_or(Decoded::Bytes)
    }

    /// Whether the broker is to be asked for this one now.
    pub fn may_ask_for(&self, fingerprint: u64) -> bool {
        let is_due = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_AGAIN_AFTER);
        is_due && !self.schemas.contains_key(&fingerprint)
    }

    /// A schema, if the broker knows it and tells.
    pub async fn look_for(&mut self, client: &Client, fingerprint: u64) -> Option<&Schema> {
        if self.may_ask_for(fingerprint) {
            self.asked_at = Some(Instant::now());
            if let Ok(answer) = ask(client, "schemas", &Value::Null).await {
                self.learn(&answer);
            }
        }
        self.schemas.get(&fingerprint)
    }

    fn learn(&mut self, answer: &Value) {
        for row in answer.as_array().into_iter().flatten().filter(|row| row["format"] == "fields") {
            if let (Some(fingerprint), Some(name)) = (row["fingerprint"].as_u64(), row["name"].as_str())
                && let Ok(schema) = Schema::from_value(name, &row["body"])
            {
                self.schemas.insert(fingerprint, schema);
            }
        }
    }
}

fn is_readable(decoded: &Decoded) -> bool {
    matches!(decoded, Decoded::Text(text) if !text.chars().any(|character| character.is_control() && !character.is_whitespace()))
}
