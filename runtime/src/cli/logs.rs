//! `interlock logs`: read from the encrypted store, whether the runtime runs or not.

use std::{thread, time::Duration};

use clap::Args;
use interlock_actors::{
    log_record::{Level, LogRecord},
    store::{LogQuery, Reader, StoreError, limits},
};
use interlock_bus::envelope::now_ns;
use jiff::{Timestamp, tz::TimeZone};

use super::{CliError, Global, Output};
use crate::{config::duration, exit::Exit, lifecycle::DataDir};

/// How often `--follow` looks whether something was written: one read of the database's change counter.
const FOLLOW_POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on with what is logged from now on.
    #[arg(short, long)]
    follow: bool,
    /// This level and above: trace, debug, info, warn, error.
    #[arg(long)]
    level: Option<Level>,
    /// Not older than this, for example 10m, 2h, 3d.
    #[arg(long, value_name = "DURATION", value_parser = parse)]
    since: Option<Duration>,
    /// Of this component.
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// With this text in it.
    #[arg(long)]
    text: Option<String>,
    /// Of this conversation.
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// At most so many, the newest ones.
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 1000)]
    lines: usize,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

fn parse(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .ok_or_else(|| format!("`{text}` is no duration; write a number and a unit, for example `10m`"))
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let database = data_dir.database();
    if !database.exists() {
        let text = format!(
            "nothing has been logged yet: there is no `{}`; `interlock` makes it",
            database.display()
        );
        return Err(CliError::new(Exit::Failed, text));
    }
    let key = global.data_key(&data_dir)?;
    let mut reader = Reader::open(&database, &key)?;
    let mut query = LogQuery {
        min_level: arguments.level,
        since_ns: arguments.since.map(|since| now_ns().saturating_sub(since.as_nanos() as u64)),
        components: arguments.component.iter().map(|name| name.as_str().into()).collect(),
        text: arguments.text.as_deref().map(Into::into),
        conversation: arguments.conversation.clone(),
        limit: arguments.lines.min(limits::QUERY_ROWS_MAX),
        ..LogQuery::default()
    };
    // Taken before the first read: what comes in between is in that read, and raises it.
    let mut newest = reader.newest_log_seq()?;
    let records = reader.logs(&query)?;
    let found = !records.is_empty();
    for stored in records {
        newest = newest.max(stored.seq);
        print(&stored.record, arguments.json, output)?;
    }
    if !arguments.follow {
        if !found {
            output.say("nothing was logged that matches");
        }
        return Ok(if found { Exit::Done } else { Exit::Failed });
    }
    query.limit = limits::QUERY_ROWS_MAX;
    loop {
        if !reader.has_changed()? {
            thread::sleep(FOLLOW_POLL);
            continue;
        }
        query.after_seq = Some(newest);
        for stored in reader.logs(&query)? {
            newest = newest.max(stored.seq);
            print(&stored.record, arguments.json, output)?;
        }
    }
}

/// The last records of a component up to `until`, oldest first.
pub(super) fn tail(
    global: &Global,
    data_dir: &DataDir,
    component: &str,
    until: Timestamp,
    limit: usize,
) -> Result<Vec<LogRecord>, CliError> {
    let reader = Reader::open(&data_dir.database(), &global.data_key(data_dir)?)?;
    // What the supervisor saw it saw a little after it had been logged.
    let until_ns = u64::try_from(until.as_nanosecond()).ok();
    let query = LogQuery { components: vec![component.into()], until_ns, limit, ..LogQuery::default() };
    Ok(reader.logs(&query)?.into_iter().map(|stored| stored.record).collect())
}

pub(super) fn print(record: &LogRecord, json: bool, output: &mut Output) -> Result<(), CliError> {
    if json {
        let text =
            serde_json::to_string(record).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
        return output.line(&text);
    }
    let time = Timestamp::from_nanosecond(i128::from(record.time_ns))
        .unwrap_or_default()
        .to_zoned(TimeZone::system());
    let color = match record.level {
        Level::Error => "31",
        Level::Warn => "33",
        Level::Info => "32",
        Level::Debug | Level::Trace => "2",
    };
    let level = output.colored(color, &format!("{:<5}", record.level.as_str()));
    let mut line = format!(
        "{} {level} {:<14} {}",
        time.strftime("%Y-%m-%d %H:%M:%S%.3f"),
        record.component,
        record.message
    );
    for (name, value) in &record.fields {
        line.push_str(&format!(" {name}={value}"));
    }
    output.line(&line)
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let exit = crate::site::store_exit(&error);
        Self::new(exit, error.to_string())
    }
}
