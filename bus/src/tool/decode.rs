//! Payloads as people can read them: JSON and text as such, bincode through registered schemas,
//! anything else as hexadecimal digits.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{ask_broker, output::Output};
use crate::{
    client::Client,
    envelope::{ContentType, Message},
    schema::{Schema, hex},
};

/// How long an unknown fingerprint stays unknown before the broker is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A payload that was looked into.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    Json(Value),
    Text(String),
    Hex(String),
}

/// Knows the schemas of one broker.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    schemas: HashMap<u64, Schema>,
    asked_at: Option<Instant>,
}

impl Decoder {
    /// Looks into a payload. `client` is asked for schemas that are not known yet.
    pub(super) fn show(&mut self, client: &Client, message: &Message) -> Shown {
        let payload = &message.payload;
        if let Some(fingerprint) = message.header.schema
            && let Some(value) =
                self.schema(client, fingerprint).and_then(|schema| schema.decode(payload).ok())
        {
            return Shown::Json(value);
        }
        let parsed = || serde_json::from_slice(payload).map(Shown::Json).ok();
        let text = || message.text().map(|text| Shown::Text(text.to_owned()));
        let shown = match &message.header.content_type {
            ContentType::Json => parsed().or_else(text),
            ContentType::Text => text(),
            // Stock clients cannot say what they send.
            ContentType::Bytes => text().filter(is_readable),
            ContentType::Other(media_type) if media_type.starts_with("text/") => text(),
            ContentType::Other(media_type) if media_type.ends_with("json") => parsed().or_else(text),
            _ => None,
        };
        shown.unwrap_or_else(|| Shown::Hex(hex(payload)))
    }

    /// A schema, if the broker knows it and tells.
    pub(super) fn schema(&mut self, client: &Client, fingerprint: u64) -> Option<&Schema> {
        let may_ask = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_AGAIN_AFTER);
        if !self.schemas.contains_key(&fingerprint) && may_ask {
            self.asked_at = Some(Instant::now());
            // Whoever may not ask sees hexadecimal digits.
            if let Ok(answer) = ask_broker(client, "schemas") {
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

fn is_readable(shown: &Shown) -> bool {
    matches!(shown, Shown::Text(text) if !text.chars().any(|character| character.is_control() && !character.is_whitespace()))
}

impl Shown {
    /// On one line.
    pub(super) fn line(&self, output: &Output) -> String {
        match self {
            Self::Json(value) => output.harmless(&value.to_string()),
            Self::Text(text) => output.harmless(text),
            Self::Hex(digits) => format!("0x{digits}"),
        }
    }

    /// What stands at a path like `turn.parts.0` in it; `None` if it has no such place.
    pub(super) fn at(&self, path: &str) -> Option<&Value> {
        let Self::Json(value) = self else { return None };
        path.split('.').try_fold(value, |value, step| match value {
            Value::Array(values) => values.get(step.parse::<usize>().ok()?),
            value => value.get(step),
        })
    }

    /// Only what stands at these paths: the value at a single one, else an object with each that is there.
    pub(super) fn fields(&self, paths: &[String]) -> Self {
        if let [path] = paths {
            return match self.at(path) {
                Some(Value::String(text)) => Self::Text(text.clone()),
                value => Self::Json(value.cloned().unwrap_or(Value::Null)),
            };
        }
        let found = paths.iter().filter_map(|path| Some((path.clone(), self.at(path)?.clone())));
        Self::Json(Value::Object(found.collect()))
    }

    /// As a value in JSON; hexadecimal digits under a name of their own.
    pub(super) fn value(self) -> (&'static str, Value) {
        match self {
            Self::Json(value) => ("payload", value),
            Self::Text(text) => ("payload", Value::String(text)),
            Self::Hex(digits) => ("payload_hex", Value::String(digits)),
        }
    }
}
