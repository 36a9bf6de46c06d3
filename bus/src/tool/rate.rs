//! `bus hz`: how much flowed when, from the broker's own statistics. It subscribes to nothing.

use std::time::Duration;

use serde_json::json;

use super::{Failure, Output, table};
use crate::{
    blocking,
    client::Client,
    exit::Exit,
    inspect::{self, Flow},
    topic::TopicFilter,
};

/// What `bus hz` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus hz\n  bus hz 'logs/#' a/b --since 10m\n  bus hz a/b --series --json"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    span: Span,
    /// Print each second of each topic instead of one line for each
    #[arg(long)]
    series: bool,
}

/// Which topics, and how far back.
#[derive(Debug, clap::Args)]
pub(super) struct Span {
    /// Topics: `+` is one level, `#` the rest
    #[arg(default_value = "#")]
    filters: Vec<TopicFilter>,
    /// How far back, up to an hour, for example 30s, 10m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::duration)]
    since: Duration,
}

const SERIES: &[table::Column] = &[
    ("SECOND", |row| table::time(&json!(row["second"].as_u64().unwrap_or_default() * 1000))),
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MSG/S", |row| table::text(&row["messages"])),
    ("B/S", |row| table::bytes(&row["bytes"])),
];

const SUMMARY: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MESSAGES", |row| table::text(&row["messages"])),
    ("MSG/S", |row| table::rate(&row["messages_per_second"])),
    ("MIN", |row| table::text(&row["least"])),
    ("MAX", |row| table::text(&row["most"])),
    ("BYTES", |row| table::bytes(&row["bytes"])),
    ("B/S", |row| table::bytes(&row["bytes_per_second"])),
    ("SIZE", |row| table::bytes(&row["mean_size"])),
    ("SILENT", |row| format!("{}s", table::text(&row["silent_seconds"]))),
];

pub(super) fn run(arguments: &Arguments, client: &Client, output: &mut Output) -> Result<Exit, Failure> {
    let flow = arguments.span.flow(client, output)?;
    match arguments.series {
        true => table::print(&flow.series, SERIES, output)?,
        false => table::print(&flow.summary(), SUMMARY, output)?,
    }
    Ok(if flow.series.is_empty() { Exit::Failed } else { Exit::Done })
}

impl Span {
    /// Which topics.
    pub(super) fn filters(&self) -> &[TopicFilter] {
        &self.filters
    }

    /// Asks the broker, and says what it does not know, or that nothing flowed.
    pub(super) fn flow(&self, client: &Client, output: &mut Output) -> Result<Flow, Failure> {
        let seconds = self.since.as_secs().max(1);
        let flow = blocking::wait(inspect::rates(client, &self.filters, seconds))?;
        if flow.left_out > 0 {
            let left_out = flow.left_out;
            output.note(&format!("{left_out} older rows are left out; name fewer topics or a shorter time"));
        }
        if flow.is_cut() {
            let from = table::time(&json!(flow.complete_from * 1000));
            output.note(&format!(
                "what is known begins at {from}; before that nothing was counted, or it is forgotten"
            ));
        }
        if flow.series.is_empty() {
            let filters: Vec<String> = self.filters.iter().map(|filter| format!("`{filter}`")).collect();
            output.note(&format!("nothing flowed on {} within {seconds} s", filters.join(", ")));
        }
        Ok(flow)
    }
}
