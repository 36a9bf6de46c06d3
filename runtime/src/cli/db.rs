//! `interlock db`: make the database, look at it, check it, mend it. One file for each.

mod check;
mod init;
mod repair;
mod status;

use clap::{Args, Subcommand};
use interlock_actors::store::StoreError;
use jiff::{Timestamp, tz::TimeZone};

use super::{CliError, Global, Output, output::json};
use crate::{exit::Exit, lifecycle::DataDir};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make the database and its key, or bring it up to date; the first run does the same.
    Init(Form),
    /// Show where the database is, its versions and its size; also while the runtime runs.
    Status(Form),
    /// Read every page and check seal, structure, references and schema; also while the runtime runs.
    Check(Form),
    /// Mend what can be mended, with the runtime stopped; what would lose something only on request.
    Repair(repair::Arguments),
}

#[derive(Debug, Args)]
pub(super) struct Form {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(verb: &Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    match verb {
        Verb::Init(form) => init::run(form, global, &data_dir, output),
        Verb::Status(form) => status::run(form, global, &data_dir, output),
        Verb::Check(form) => check::run(form, global, &data_dir, output),
        Verb::Repair(arguments) => repair::run(arguments, global, &data_dir, output),
    }
}

/// Refuses a verb that needs a database where there is none: nothing is made, and no key is asked for.
pub(super) fn initialised(data_dir: &DataDir) -> Result<(), CliError> {
    match std::fs::metadata(data_dir.database()) {
        Ok(about) if about.len() > 0 => Ok(()),
        _ => Err(StoreError::NotInitialised { path: data_dir.database() }.into()),
    }
}

/// A time for people.
pub(super) fn time(nanoseconds: i128) -> String {
    let time = Timestamp::from_nanosecond(nanoseconds).unwrap_or_default();
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
