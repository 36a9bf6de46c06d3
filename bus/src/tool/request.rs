//! `bus request`

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Failure, Output, decode::Decoder, publish::payload};
use crate::{blocking, client::Client, exit::Exit, topic::TopicName};

/// What `bus request` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Topic to ask on
    topic: String,
    /// The question; `-` reads it from standard input; empty if left out
    payload: Option<String>,
    /// Send the question as JSON, after checking that it is JSON
    #[arg(long)]
    json_payload: bool,
    /// How long the answer may take, for example 500ms, 60s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    deadline: Duration,
    /// Print the payloads as they are, each with a line feed
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl Arguments {
    /// Whether the topic is one.
    pub(super) fn check(&self) -> Result<(), Failure> {
        Ok(self.topic.parse::<TopicName>().map(drop)?)
    }
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let topic: TopicName = arguments.topic.parse()?;
    let question = payload(arguments.payload.as_deref(), arguments.json_payload)?;
    let mut decoder = Decoder::default();
    let mut stream = blocking::wait(client.request_stream(&topic, question, arguments.deadline))?;
    while let Some(part) = blocking::wait(stream.next()) {
        let part = part?;
        if arguments.raw {
            output.bytes(&[&part.payload[..], b"\n"].concat())?;
            continue;
        }
        let shown = decoder.show(client, &part);
        if output.is_json() {
            let (name, value) = shown.value();
            let row = [("part".to_owned(), json!(part.sequence)), (name.to_owned(), value)];
            output.json(&Value::Object(Map::from_iter(row)))?;
        } else {
            let line = shown.line(output);
            output.line(&line)?;
        }
    }
    Ok(Exit::Done)
}
