//! `bus pub`

use std::{io::Read, time::Duration};

use serde_json::json;

use super::{Failure, Output};
use crate::{
    blocking,
    client::{Ack, Client, PublishOptions},
    envelope::{ContentType, Payload},
    exit::Exit,
    limits,
    topic::TopicName,
};

/// What `bus pub` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Topic to publish on
    topic: String,
    /// The payload; `-` reads it from standard input; empty if left out
    payload: Option<String>,
    /// Send the payload as JSON, after checking that it is JSON
    #[arg(long)]
    json_payload: bool,
    /// How often
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Keep it as the topic's last value. That there is no room for it is an error, unless --acknowledged is false
    #[arg(long)]
    retain: bool,
    /// Wait for the broker's word, and print how many subscribers got it
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    acknowledged: bool,
    /// Wait until this many subscribers are there, as long as --timeout says
    #[arg(long, value_name = "SUBSCRIBERS")]
    wait: Option<usize>,
}

/// What is to be published, found to be legal before anybody is connected to.
pub(super) struct Prepared<'a> {
    arguments: &'a Arguments,
    topic: TopicName,
    payload: Payload,
}

pub(super) fn prepare(arguments: &Arguments) -> Result<Prepared<'_>, Failure> {
    let topic = arguments.topic.parse()?;
    let payload = payload(arguments.payload.as_deref(), arguments.json_payload)?;
    Ok(Prepared { arguments, topic, payload })
}

pub(super) fn run(
    prepared: &Prepared<'_>,
    client: &Client,
    timeout: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let Prepared { arguments, topic, payload } = prepared;
    if let Some(count) = arguments.wait {
        blocking::wait(client.wait_for_subscribers(topic, count, timeout))?;
    }
    let options = PublishOptions { retain: arguments.retain, ..PublishOptions::default() };
    let mut fewest: Option<Ack> = None;
    for _ in 0..arguments.count {
        if !arguments.acknowledged {
            blocking::wait(client.publish_waiting(topic, payload.clone(), &options))?;
            continue;
        }
        let ack = blocking::wait(client.publish_acknowledged(topic, payload.clone(), options.clone()))?;
        let dropped = fewest.map_or(0, |fewest| fewest.dropped).saturating_add(ack.dropped);
        let subscribers = fewest.map_or(ack.subscribers, |fewest| fewest.subscribers.min(ack.subscribers));
        // Each is the last value anew: how the last one ended is how the topic stands.
        fewest = Some(Ack { subscribers, dropped, not_retained: ack.not_retained });
    }
    let Some(Ack { subscribers, dropped, not_retained }) = fewest else { return Ok(Exit::Done) };
    if output.is_json() {
        let mut row = json!({
            "topic": topic, "messages": arguments.count, "subscribers": subscribers, "dropped": dropped,
        });
        if arguments.retain {
            row["retained"] = (!not_retained).into();
        }
        output.json(&row)?;
    } else {
        let plural = if subscribers == 1 { "" } else { "s" };
        output.line(&format!("{subscribers} subscriber{plural}"))?;
    }
    if dropped > 0 {
        output.note(&format!("{dropped} copies were dropped because a subscriber's queue was full"));
    }
    if not_retained {
        output.note(&format!(
            "`{topic}` was delivered and not retained: the broker has no room for {} bytes beside its other retained \
             values; raise `retained_bytes_max`, or take a value away with `bus pub --retain TOPIC \"\"`",
            payload.bytes.len()
        ));
    }
    Ok(if dropped > 0 || not_retained { Exit::Full } else { Exit::Done })
}

/// The payload of an argument. Text if it is UTF-8, else bytes.
pub(super) fn payload(argument: Option<&str>, is_json: bool) -> Result<Payload, Failure> {
    let bytes = match argument {
        None => Vec::new(),
        Some("-") => {
            let mut bytes = Vec::new();
            let limit = limits::PAYLOAD_BYTES_MAX as u64 + 1;
            let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
            read.map_err(|error| {
                Failure::new(Exit::Io, format!("cannot read the payload from standard input: {error}"))
            })?;
            bytes
        }
        Some(text) => text.as_bytes().to_vec(),
    };
    if is_json {
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
            .map_err(|error| Failure::new(Exit::Misuse, format!("payload is not JSON: {error}")))?;
        return Ok(Payload { content_type: ContentType::Json, ..Payload::bytes(bytes) });
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Payload::text(text),
        Err(error) => Payload::bytes(error.into_bytes()),
    })
}
