//! `bus delay`: how long messages take, from the broker's own statistics or, on request, by a subscription.

mod end_to_end;

use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, Output, rate::Span, signals::Signals, table};
use crate::{client::Client, exit::Exit};

/// How long a subscription measures without being told.
const DURATION: Duration = Duration::from_secs(10);

/// What `bus delay` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "From the time that the publisher wrote into the header to the broker's turn in which the message was \
    read; of each batch of a topic the broker looks at the message that waited longest. `--end-to-end` subscribes instead, \
    measures to the arrival here, and knows percentiles. Clocks of other machines are in both.\n\nExamples:\n  bus delay\n  \
    bus delay 'conversation/#' --since 10m --series\n  bus delay a/b --end-to-end --count 1000 --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    span: Span,
    /// Print each second of each topic instead of one line for each
    #[arg(long, conflicts_with = "end_to_end")]
    series: bool,
    /// Subscribe, and measure to the arrival here
    #[arg(long, conflicts_with = "since")]
    end_to_end: bool,
    /// How long to measure, for example 10s, 5m; by default 10s
    #[arg(long, value_name = "TIME", requires = "end_to_end", value_parser = super::duration)]
    duration: Option<Duration>,
    /// End after this many messages
    #[arg(long, requires = "end_to_end", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

const SUMMARY: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MEAN MS", |row| milliseconds(&row["mean_ms"])),
    ("SLOWEST SECOND", |row| milliseconds(&row["slowest_second_ms"])),
    ("MAX", |row| milliseconds(&row["max_ms"])),
];

const SERIES: &[table::Column] = &[
    ("SECOND", |row| table::time(&json!(row["second"].as_u64().unwrap_or_default() * 1000))),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MEAN MS", |row| milliseconds(&row["mean_ms"])),
    ("MAX", |row| milliseconds(&row["max_ms"])),
];

fn milliseconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |milliseconds| format!("{milliseconds:.3}"))
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if arguments.end_to_end {
        let until = (arguments.duration.unwrap_or(DURATION), arguments.count);
        return end_to_end::run(arguments.span.filters(), until, client, signals, output);
    }
    let flow = arguments.span.flow(client, output)?;
    let rows: Vec<Value> = match arguments.series {
        true => flow.series.iter().map(second).collect(),
        false => flow.summary().iter().map(summary).collect(),
    };
    let untimed = rows.iter().filter(|row| row["mean_ms"].is_null()).count();
    if untimed > 0 {
        output.note(&format!(
            "{untimed} of {} rows have no delay: their messages do not say when they were published, as those of stock \
             sockets, or are ahead of the broker's clock",
            rows.len()
        ));
    }
    table::print(&rows, if arguments.series { SERIES } else { SUMMARY }, output)?;
    Ok(if rows.is_empty() { Exit::Failed } else { Exit::Done })
}

fn in_ms(microseconds: &Value) -> Option<f64> {
    microseconds.as_f64().map(|microseconds| microseconds / 1e3)
}

fn second(row: &Value) -> Value {
    json!({
        "topic": row["topic"], "measured_by": "broker", "second": row["second"], "messages": row["messages"],
        "mean_ms": in_ms(&row["delay_mean_us"]), "max_ms": in_ms(&row["delay_max_us"]),
    })
}

fn summary(row: &Value) -> Value {
    json!({
        "topic": row["topic"], "measured_by": "broker", "messages": row["messages"],
        "mean_ms": in_ms(&row["delay_mean_us"]), "slowest_second_ms": in_ms(&row["delay_worst_mean_us"]),
        "max_ms": in_ms(&row["delay_max_us"]),
    })
}
