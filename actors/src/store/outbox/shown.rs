//! A message of the outbox as people and programs can read it.

use interlock_bus::{ContentType, codec};
use serde_json::{Value, json};

use super::desk::Message;

/// A payload as people can read it.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// JSON.
    Json(Value),
    /// Text.
    Text(String),
    /// The hexadecimal digits of what is neither.
    Hex(String),
}

/// Looks into a payload, at most `limit` bytes of it; the second is whether something was cut off.
pub fn look(header: &[u8], payload: &[u8], limit: usize) -> (Shown, bool) {
    let content_type = codec::header(header).map(|header| header.content_type).unwrap_or_default();
    let cut = payload.len() > limit;
    let text = || {
        let mut text = std::str::from_utf8(payload).ok()?;
        text = &text[..text.floor_char_boundary(limit)];
        Some(Shown::Text(text.to_owned()))
    };
    let readable = |shown: &Shown| match shown {
        Shown::Text(text) => {
            !text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\t'))
        }
        Shown::Json(_) | Shown::Hex(_) => true,
    };
    let parsed = || if cut { None } else { serde_json::from_slice(payload).map(Shown::Json).ok() };
    let shown = match &content_type {
        ContentType::Json => parsed().or_else(text),
        ContentType::Text => text(),
        // Stock clients cannot say what they send.
        ContentType::Bytes => text().filter(readable),
        ContentType::Other(kind) if kind.starts_with("text/") => text(),
        ContentType::Other(kind) if kind.ends_with("json") => parsed().or_else(text),
        _ => None,
    };
    let hex = || {
        let bytes = &payload[..payload.len().min(limit)];
        Shown::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    };
    (shown.unwrap_or_else(hex), cut)
}

impl Message {
    /// All of it as one JSON object, with at most `limit` bytes of the payload.
    pub fn as_json(&self, limit: usize) -> Value {
        let first = self.deliveries.first();
        let payload = self.body.as_ref().map(|(header, payload)| {
            let (shown, cut) = look(header, payload, limit);
            let mut payload = match shown {
                Shown::Json(value) => json!({ "json": value }),
                Shown::Text(text) => json!({ "text": text }),
                Shown::Hex(digits) => json!({ "hex": digits }),
            };
            payload["cut"] = cut.into();
            payload
        });
        json!({
            "number": first.map(|delivery| delivery.number),
            "id": first.map(|delivery| delivery.id),
            "topic": first.map(|delivery| &delivery.topic),
            "key": first.map(|delivery| &delivery.key),
            "origin": first.map(|delivery| &delivery.origin),
            "bytes": first.map(|delivery| delivery.bytes),
            "accepted_ms": first.map(|delivery| delivery.accepted_ms),
            "finished_ms": self.finished_ms,
            "payload": payload,
            "damage": self.damage,
            "deliveries": self.deliveries,
            "attempts": self.attempts,
        })
    }
}
