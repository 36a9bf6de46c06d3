//! `interlock logs stat`: how much is in the log, of whom, what is kept, what was deleted.

use clap::Args;
use interlock_actors::{
    log_record::Level,
    store::{LogRetention, LogSummary},
};
use jiff::{Timestamp, tz::TimeZone};

use super::{open, size};
use crate::{
    cli::{
        CliError, Global, Output,
        output::{self, table},
    },
    config::duration,
    exit::Exit,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let kept = global.load()?.config.logs.retention();
    let reader = open(global, &global.data_dir()?)?;
    let summary = reader.log_summary()?;
    if arguments.json {
        output.line(&output::json(&summary.as_json(&kept, &duration::text(kept.age_max)))?)?;
    } else {
        output.lines(&as_text(&summary, &kept))?;
    }
    Ok(Exit::Done)
}

fn as_text(summary: &LogSummary, retention: &LogRetention) -> String {
    let time = |ns: Option<u64>| match ns {
        Some(ns) => Timestamp::from_nanosecond(i128::from(ns))
            .unwrap_or_default()
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S%.3f")
            .to_string(),
        None => "-".to_owned(),
    };
    let mut facts = vec![
        ("records", summary.rows.to_string()),
        ("bytes", format!("{} with their index, about", size::text(summary.bytes))),
        ("oldest", time(summary.oldest_ns)),
        ("newest", time(summary.newest_ns)),
        ("not indexed yet", summary.unindexed.to_string()),
        ("dropped before they came here", summary.dropped.to_string()),
        (
            "kept",
            format!(
                "{} records, {}, {}",
                retention.rows_max,
                size::text(retention.bytes_max),
                duration::text(retention.age_max)
            ),
        ),
    ];
    let deleted = summary.deleted;
    for (reason, count) in [
        ("deleted because of age", deleted.by_age),
        ("deleted because of number", deleted.by_rows),
        ("deleted because of size", deleted.by_bytes),
        ("deleted by hand", deleted.by_hand),
    ] {
        facts.extend((count > 0).then(|| (reason, count.to_string())));
    }
    let free = format!(
        "{}, of which {} are free",
        size::text(summary.database_bytes),
        size::text(summary.free_bytes)
    );
    facts.push(("database", free));
    let facts: Vec<Vec<String>> =
        facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut rows = vec![vec!["COMPONENT".to_owned()]];
    rows[0].extend(Level::ALL.iter().rev().map(|level| level.as_str().to_uppercase()));
    let row = |name: &str, counts: &[u64; 5]| {
        let counts = counts.iter().rev().map(ToString::to_string);
        std::iter::once(name.to_owned()).chain(counts).collect()
    };
    rows.extend(summary.counts.iter().map(|(component, counts)| row(component, counts)));
    rows.push(row("all", &summary.sums()));
    format!("{}\n{}", table(&facts), table(&rows))
}
