//! `interlock outbox put`.

use std::{io::Read, time::Duration};

use clap::Args;
use interlock_bus::{Client, ContentType, Payload, TopicName, durable::DurableOptions};
use serde_json::json as object;
use uuid::Uuid;

use super::{CliError, Global, Output, json};
use crate::{cli::remote, config::duration, exit::Exit};

/// Bytes of a payload that are read from standard input; the outbox takes fewer.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// Topic to publish on; `[[outbox.topics]]` names its consumers.
    topic: TopicName,
    /// The payload; `-` reads it from standard input; empty if left out.
    payload: Option<String>,
    /// Messages with the same key keep their order; the topic, unless told otherwise.
    #[arg(short, long)]
    key: Option<String>,
    /// The message's id. Published again with the same one it is kept once.
    #[arg(long)]
    id: Option<Uuid>,
    /// How long to wait for it to be on disk.
    #[arg(long, value_name = "DURATION", value_parser = duration::argument, default_value = "10s")]
    timeout: Duration,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let payload = payload(arguments.payload.as_deref())?;
    let instance = remote::instance(&data_dir)?;
    let options =
        DurableOptions { id: arguments.id, key: arguments.key.clone(), ..DurableOptions::default() };
    let put = async |client: Client| {
        client.publish_durable(&arguments.topic, payload, &options, arguments.timeout).await
    };
    let accepted = remote::with_client(&data_dir, &instance, put)?;
    let accepted = accepted.map_err(|error| CliError::new(Exit::from(&error), error.to_string()))?;
    if arguments.json {
        let text = json(&object!({ "id": accepted.id, "number": accepted.number, "again": accepted.again }))?;
        output.line(&text)?;
    } else {
        let again = if accepted.again { " (it had been accepted before)" } else { "" };
        output.line(&format!("accepted {} as number {}{again}", accepted.id, accepted.number))?;
    }
    Ok(Exit::Done)
}

fn payload(text: Option<&str>) -> Result<Payload, CliError> {
    let bytes = match text {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().take(PAYLOAD_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| {
                CliError::new(
                    Exit::of_io(&error),
                    format!("cannot read the payload from standard input: {error}"),
                )
            })?;
            bytes
        }
        Some(text) => text.as_bytes().to_vec(),
        None => Vec::new(),
    };
    let content_type = match std::str::from_utf8(&bytes) {
        Ok(_) if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() => ContentType::Json,
        Ok(_) => ContentType::Text,
        Err(_) => ContentType::Bytes,
    };
    Ok(Payload { content_type, ..Payload::bytes(bytes) })
}
