//! `bus ping`

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Failure, Output};
use crate::{blocking, client::Client, exit::Exit};

/// What `bus ping` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  bus ping\n  bus ping --count 100 --json")]
pub(super) struct Arguments {
    /// How often
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    timeout: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut times = Vec::new();
    for number in 1..=arguments.count {
        let time = blocking::wait_until(client.ping(), Instant::now() + timeout).ok_or_else(|| {
            Failure::new(Exit::NotReady, format!("the broker did not answer within {timeout:?}"))
        })??;
        let milliseconds = milliseconds(time);
        match output.is_json() {
            true => output.json(&json!({ "number": number, "milliseconds": milliseconds }))?,
            false => output.line(&format!("{number}  {milliseconds:.3} ms"))?,
        }
        times.push(time);
    }
    let sum: Duration = times.iter().sum();
    let text = |time: Duration| format!("{:.3} ms", milliseconds(time));
    let ends = times.iter().min().zip(times.iter().max());
    if let Some((shortest, longest)) = ends.filter(|_| times.len() > 1) {
        let mean = text(sum / arguments.count);
        output.note(&format!("min {}, mean {mean}, max {}", text(*shortest), text(*longest)));
    }
    Ok(Exit::Done)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
