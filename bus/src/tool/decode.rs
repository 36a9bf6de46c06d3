//! Payloads as people can read them: JSON and text as such, bincode through registered schemas,
//! anything else as hexadecimal digits.

use serde_json::Value;

use super::output::Output;
use crate::{
    blocking,
    client::Client,
    envelope::Message,
    inspect::{Decoded, Schemas},
    schema::{Schema, hex},
};

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
    schemas: Schemas,
}

impl Decoder {
    /// Looks into a payload. `client` is asked for schemas that are not known yet.
    pub(super) fn show(&mut self, client: &Client, message: &Message) -> Shown {
        if let Some(fingerprint) = message.header.schema {
            self.schema(client, fingerprint);
        }
        match self.schemas.decode_known(message) {
            Decoded::Json(value) => Shown::Json(value),
            Decoded::Text(text) => Shown::Text(text),
            Decoded::Bytes => Shown::Hex(hex(&message.payload)),
        }
    }

    /// A schema, if the broker knows it and tells.
    pub(super) fn schema(&mut self, client: &Client, fingerprint: u64) -> Option<&Schema> {
        blocking::wait(self.schemas.look_for(client, fingerprint))
    }
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
