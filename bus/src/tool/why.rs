//! `bus why`

use serde_json::Value;

use super::{Failure, Output};
use crate::{blocking, client::Client, exit::Exit, inspect, keys::Right, peer::PeerName, topic::TopicName};

/// What `bus why` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus why operator publish a/b\n  bus why reader subscribe 'sensors/1' --json"
)]
pub(super) struct Arguments {
    /// Who
    peer: PeerName,
    /// Does what
    operation: Right,
    /// On which topic
    topic: TopicName,
}

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let Arguments { peer, operation, topic } = arguments;
    let answer = blocking::wait(inspect::why(client, peer, *operation, topic))?;
    let verdict = answer["verdict"].as_str().unwrap_or_default();
    if output.is_json() {
        output.json(&answer)?;
    } else {
        for step in answer["steps"].as_array().into_iter().flatten() {
            let text = |field: &str| step[field].as_str().unwrap_or_default();
            let mark = if step["ok"] == Value::Bool(true) { "ok" } else { "NO" };
            let line = output.harmless(&format!("{mark}  {:<11}  {}", text("step"), text("text")));
            output.line(&line)?;
        }
        let (can, what) = match verdict {
            "yes" => ("can", ""),
            "denied" => ("may not", ""),
            _ => ("may", ", and it would come to nothing now"),
        };
        output.line(&format!("`{peer}` {can} {} `{topic}`{what}", operation.as_str()))?;
    }
    Ok(match verdict {
        "yes" => Exit::Done,
        "denied" => Exit::Denied,
        _ => Exit::NotReady,
    })
}
