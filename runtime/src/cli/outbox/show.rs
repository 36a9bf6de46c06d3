//! `interlock outbox show` and `interlock dlq show`.

use clap::Args;
use interlock_actors::store::outbox::{
    desk::{Message, MessageId},
    shown::{Shown, look},
};

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
        true => output.line(&json(&message.as_json(limit))?)?,
        false => as_text(&message, limit, output)?,
    }
    Ok(if message.damage.is_some() { Exit::Damaged } else { Exit::Done })
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
