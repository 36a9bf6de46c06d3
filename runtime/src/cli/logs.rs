//! `interlock logs`: read from the encrypted store, whether the runtime runs or not.

mod columns;
mod export;
mod filter;
mod follow;
mod level;
pub(super) mod moment;
mod prune;
mod size;
mod stat;

use clap::{Args, Subcommand, ValueEnum};
use interlock_actors::{
    log_record::LogRecord,
    store::{DataKey, LogQuery, Reader, Store, StoreError, StoreOptions, limits},
};
use interlock_bus::keys::Audit;
use jiff::Timestamp;

use super::{CliError, Global, Output, output::json};
use crate::{
    exit::Exit,
    lifecycle::{self, DataDir},
};
use filter::Filter;

/// Records shown unless told otherwise; when following, what peers show first.
const LINES: usize = 1000;
const LINES_FOLLOWING: usize = 10;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    filter: Filter,
    /// Go on with what is logged from now on, until interrupted. Begins with the newest 10, or what -n says.
    #[arg(short, long)]
    follow: bool,
    /// At most so many, the newest ones; 1000 unless told otherwise.
    #[arg(short = 'n', long = "lines", visible_alias = "limit", value_name = "N")]
    lines: Option<usize>,
    /// The newest first.
    #[arg(short, long, conflicts_with = "follow")]
    reverse: bool,
    /// How to show a record.
    #[arg(short, long, value_enum, default_value_t = Layout::Columns, value_name = "LAYOUT")]
    output: Layout,
    /// One JSON object per line; the same as --output json.
    #[arg(long)]
    json: bool,
}

/// How a record is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Time, level, component, message, fields.
    Columns,
    /// And target, process, incarnation, spans, place in the source, trace and conversation.
    Wide,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write records to a file or standard output, in the order of arrival, however many there are.
    Export(Box<export::Arguments>),
    /// Show how much is in the log, of whom, and what was deleted.
    Stat(stat::Arguments),
    /// Delete records, beside a running runtime or without one.
    Prune(prune::Arguments),
    /// Show or change which records are kept of whom, for a while, without a restart.
    Level(level::Arguments),
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    match &arguments.verb {
        Some(Verb::Export(arguments)) => return export::run(arguments, global, output),
        Some(Verb::Stat(arguments)) => return stat::run(arguments, global, output),
        Some(Verb::Prune(arguments)) => return prune::run(arguments, global, output),
        Some(Verb::Level(arguments)) => return level::run(arguments, global, output),
        None => {}
    }
    let layout = if arguments.json { Layout::Json } else { arguments.output };
    let lines = match (arguments.filter.last_lines(), arguments.follow) {
        (Some(lines), _) => lines,
        (None, true) => LINES_FOLLOWING,
        (None, false) => LINES,
    };
    if arguments.lines == Some(0) && !arguments.follow {
        let text = "`--lines 0` shows nothing; give a number from 1 on, or `--follow` for what comes";
        return Err(CliError::new(Exit::Misuse, text));
    }
    let limit = arguments.lines.unwrap_or(lines).min(limits::QUERY_ROWS_MAX);
    let query = LogQuery { limit, ..arguments.filter.query()? };
    if arguments.follow {
        return follow::run(query, layout, global, output);
    }
    let reader = open(global, &global.data_dir()?)?;
    let mut found = reader.search_logs(&query)?;
    if arguments.reverse {
        found.records.reverse();
    }
    for log in &found.records {
        show(&log.record, layout, output)?;
    }
    if found.cut {
        output.say(&format!(
            "given up after {} records that do not match: there may be more; narrow it, for example with --since",
            limits::SCAN_ROWS_MAX
        ));
    }
    if found.records.is_empty() {
        output.say("nothing was logged that matches");
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// A connection to the log that is there.
fn open(global: &Global, data_dir: &DataDir) -> Result<Reader, CliError> {
    let database = data_dir.database();
    if !database.exists() {
        let text = format!(
            "nothing has been logged yet: there is no `{}`; `interlock` makes it",
            database.display()
        );
        return Err(CliError::new(Exit::Failed, text));
    }
    let key = global.data_key(data_dir)?;
    take_over_audit(global, data_dir, &key);
    Ok(Reader::open(&database, &key)?)
}

/// Brings changes of keys that were made while nothing ran into the log, where somebody looks for them now. A running
/// runtime does it itself, and so does the next start: what does not work here is no reason to show nothing.
fn take_over_audit(global: &Global, data_dir: &DataDir, key: &DataKey) {
    let audit = Audit::of(&data_dir.keys());
    let is_there = audit.to_take_over().is_ok_and(|takeover| !takeover.entries.is_empty());
    if !is_there || !matches!(lifecycle::running(data_dir), Ok(None)) {
        return;
    }
    let Ok(loaded) = global.load() else { return };
    let options = StoreOptions { logs: loaded.config.logs.retention(), ..StoreOptions::default() };
    if let Ok(store) = Store::open(&data_dir.database(), key, options) {
        let _ = super::remote::block_on(crate::audit::take_over(&audit, &store));
        store.close();
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

/// Prints a record in columns.
pub(super) fn print(record: &LogRecord, output: &mut Output) -> Result<(), CliError> {
    show(record, Layout::Columns, output)
}

fn show(record: &LogRecord, layout: Layout, output: &mut Output) -> Result<(), CliError> {
    match layout {
        Layout::Json => output.line(&json(record)?),
        Layout::Columns => output.line(&columns::line(record, false, output)),
        Layout::Wide => output.line(&columns::line(record, true, output)),
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let exit = crate::site::store_exit(&error);
        Self::new(exit, error.to_string())
    }
}
