//! `interlock outbox show` and `interlock dlq show`.

use clap::Args;
use interlock_actors::store::outbox::desk::{Message, MessageId};
use interlock_bus::{ContentType, codec};
use serde_json::{Value, json as object};

use super::{CliError, Global, Output, age, desk, json, moment};
use crate::exit::Exit;

/// Bytes of a payload that are shown unless all are asked for.
const SHOWN_BYTES: usize = 4096;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The message: its number or its id, as `list` shows them.
    message: MessageId,
    /// The whole payload, however long it is.
    #[arg(long)]
    full: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let Some(desk) = desk(global, &data_dir, output)? else { return Ok(Exit::Failed) };
    let Some(message) = desk.message(&arguments.message)? else {
        output.say("there is no such message; it was never accepted, or was finished and is forgotten");
        return Ok(Exit::Failed);
    };
    let limit = if arguments.full { usize::MAX } else { SHOWN_BYTES };
    match arguments.json {
        true => output.line(&json(&as_json(&message, limit))?)?,
        false => as_text(&message, limit, output)?,
    }
    Ok(if message.damage.is_some() { Exit::Damaged } else { Exit::Done })
}

/// A payload as people can read it.
enum Shown {
    Json(Value),
    Text(String),
    Hex(String),
}

/// Looks into a payload; the second is whether something was cut off.
fn look(header: &[u8], payload: &[u8], limit: usize) -> (Shown, bool) {
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

fn as_json(message: &Message, limit: usize) -> Value {
    let first = message.deliveries.first();
    let payload = message.body.as_ref().map(|(header, payload)| {
        let (shown, cut) = look(header, payload, limit);
        let mut payload = match shown {
            Shown::Json(value) => object!({ "json": value }),
            Shown::Text(text) => object!({ "text": text }),
            Shown::Hex(digits) => object!({ "hex": digits }),
        };
        payload["cut"] = cut.into();
        payload
    });
    object!({
        "number": first.map(|delivery| delivery.number),
        "id": first.map(|delivery| delivery.id),
        "topic": first.map(|delivery| &delivery.topic),
        "key": first.map(|delivery| &delivery.key),
        "origin": first.map(|delivery| &delivery.origin),
        "bytes": first.map(|delivery| delivery.bytes),
        "accepted_ms": first.map(|delivery| delivery.accepted_ms),
        "finished_ms": message.finished_ms,
        "payload": payload,
        "damage": message.damage,
        "deliveries": message.deliveries,
        "attempts": message.attempts,
    })
}

fn as_text(message: &Message, limit: usize, output: &mut Output) -> Result<(), CliError> {
    let Some(first) = message.deliveries.first() else { return Ok(()) };
    let mut line = |name: &str, value: &str| output.line(&format!("{name:<12} {value}"));
    line("number", &first.number.to_string())?;
    line("id", &first.id.to_string())?;
    line("topic", &first.topic)?;
    line("key", &first.key)?;
    line("from", &first.origin)?;
    line("bytes", &first.bytes.to_string())?;
    line("accepted", &format!("{}, {} ago", moment(first.accepted_ms), age(first.accepted_ms)))?;
    if let Some(finished_ms) = message.finished_ms {
        line("finished", &format!("{}, {} ago", moment(finished_ms), age(finished_ms)))?;
    }
    for delivery in &message.deliveries {
        let state = delivery.state.as_str();
        let attempts = delivery.attempts;
        line(
            "to",
            &format!(
                "{}: {state} after {attempts} attempts, for {}",
                delivery.consumer,
                age(delivery.changed_ms)
            ),
        )?;
        for attempt in message.attempts.iter().filter(|attempt| attempt.consumer == delivery.consumer) {
            let (begun, number, reason) = (moment(attempt.begun_ms), attempt.attempt, &attempt.reason);
            line("", &format!("{begun} attempt {number}: {reason}"))?;
        }
    }
    match (&message.body, &message.damage) {
        (Some((header, payload)), _) => {
            let (shown, cut) = look(header, payload, limit);
            let text = match shown {
                Shown::Json(value) => json(&value)?,
                Shown::Text(text) => text,
                Shown::Hex(digits) => digits,
            };
            line("payload", &text)?;
            if cut {
                output.say(&format!("the payload has {} bytes; --full shows them all", payload.len()));
            }
        }
        (None, Some(damage)) => line("payload", &format!("cannot be read: {damage}"))?,
        (None, None) => line("payload", "gone: the message is finished")?,
    }
    Ok(())
}
