//! `interlock logs prune`: deletes records now, whatever the retention says.

use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use interlock_actors::{
    log_record::Level,
    store::{Prune, PruneBound, Pruner, limits},
};
use interlock_bus::envelope::now_ns;

use super::{open, size};
use crate::{
    cli::{CliError, Global, Output},
    config::duration,
    exit::Exit,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("bound").required(true))]
pub(super) struct Arguments {
    /// Delete what is older, for example 7d.
    #[arg(long, value_name = "DURATION", value_parser = duration::argument, group = "bound")]
    older_than: Option<Duration>,
    /// Keep the newest records that need so much, for example 100MB; delete the others.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, group = "bound")]
    keep_bytes: Option<u64>,
    /// Keep so many of the newest records; delete the others.
    #[arg(long, value_name = "N", group = "bound")]
    keep: Option<u64>,
    /// Of those, delete only what matters less than this level.
    #[arg(long, value_name = "LEVEL")]
    level_below: Option<Level>,
    /// Say how many records would be deleted, and delete none.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let reader = open(global, &data_dir)?;
    let bound = match (arguments.older_than, arguments.keep_bytes, arguments.keep) {
        (Some(age), ..) => {
            PruneBound::Before(now_ns().saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
        }
        (_, Some(bytes), _) => PruneBound::KeepBytes(bytes),
        (.., rows) => PruneBound::KeepRows(rows.unwrap_or(u64::MAX)),
    };
    let prune = Prune { bound, below: arguments.level_below };
    let mut pruner = Pruner::open(&data_dir.database(), &global.data_key(&data_dir)?, prune)?;
    if arguments.dry_run {
        let count = pruner.count()?;
        output.line(&format!("would delete {count} records"))?;
        return Ok(if count > 0 { Exit::Done } else { Exit::Failed });
    }
    let mut deleted = 0;
    let mut stepped = Instant::now();
    let ended = loop {
        match pruner.step() {
            Ok(Some(rows)) => {
                deleted += rows;
                stepped = Instant::now();
            }
            Ok(None) => break Ok(()),
            Err(error) if error.is_transient() && stepped.elapsed() < limits::BUSY_LIMIT => {
                std::thread::sleep(limits::BUSY_PAUSE);
            }
            Err(error) => break Err(error),
        }
    };
    // What is there now, not what was meant to be.
    let left = reader.log_summary()?;
    output.line(&format!(
        "deleted {deleted} records; {} are left ({})",
        left.rows,
        size::text(left.bytes)
    ))?;
    if deleted > 0 {
        output.say(&format!(
            "the file stays as large as it is ({}); {} in it are free for what comes next",
            size::text(left.database_bytes),
            size::text(left.free_bytes)
        ));
    }
    ended?;
    Ok(if deleted > 0 { Exit::Done } else { Exit::Failed })
}
