//! `interlock outbox`: what is published durably and not finished, whether the runtime runs or not.

mod edit;
mod filter;
mod list;
mod put;
mod show;
mod stats;

use std::time::Duration;

use clap::Subcommand;
use interlock_actors::store::outbox::{DeliveryState, Desk};
use interlock_bus::{
    Payload,
    durable::{
        storage::{StorageError, StorageFailure},
        words,
    },
    envelope::now_ns,
};
use jiff::{Timestamp, tz::TimeZone};

use super::{CliError, Global, Output, output::json, remote};
use crate::{
    config::duration,
    exit::Exit,
    lifecycle::{self, DataDir},
};

/// How long the running outbox may take to say that it will look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Publish a message durably through the running instance: when this ends well, it is on disk.
    Put(put::Arguments),
    /// Show what waits, the oldest first.
    List(list::Arguments),
    /// Show one message whole, with what was tried.
    Show(show::Arguments),
    /// Let what waits be tried now.
    Retry(edit::Retry),
    /// Give up what waits: it is sent no more, and is no dead letter.
    Drop(edit::Drop),
    /// Show how much there is, of whom, since when, and why it waits.
    Stats(stats::Arguments),
}

/// The same questions of dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum DeadVerb {
    /// Show dead letters, the oldest first.
    List(list::Arguments),
    /// Show one message whole, with what was tried.
    Show(show::Arguments),
    /// Send dead letters again, with the same id and no attempts counted.
    Retry(edit::Retry),
    /// Give up dead letters for good.
    Drop(edit::Drop),
    /// Show how many there are, of whom, since when, and why.
    Stats(stats::Arguments),
}

/// Which deliveries a verb is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Those that wait or are under way.
    Open,
    /// Dead letters.
    Dead,
}

impl Scope {
    fn states(self) -> Vec<DeliveryState> {
        match self {
            Self::Open => vec![DeliveryState::Pending, DeliveryState::Leased],
            Self::Dead => vec![DeliveryState::Dead],
        }
    }

    /// The verb that is about it.
    fn verb(self) -> &'static str {
        match self {
            Self::Open => "outbox",
            Self::Dead => "dlq",
        }
    }

    fn nothing(self) -> &'static str {
        match self {
            Self::Open => "nothing waits that matches",
            Self::Dead => "there is no dead letter that matches",
        }
    }
}

pub(super) fn run(verb: &Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let scope = Scope::Open;
    match verb {
        Verb::Put(arguments) => put::run(arguments, global, output),
        Verb::List(arguments) => list::run(arguments, scope, global, output),
        Verb::Show(arguments) => show::run(arguments, global, output),
        Verb::Retry(arguments) => edit::retry(arguments, scope, global, output),
        Verb::Drop(arguments) => edit::drop(arguments, scope, global, output),
        Verb::Stats(arguments) => stats::run(arguments, scope, global, output),
    }
}

pub(super) fn run_dead(verb: &DeadVerb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let scope = Scope::Dead;
    match verb {
        DeadVerb::List(arguments) => list::run(arguments, scope, global, output),
        DeadVerb::Show(arguments) => show::run(arguments, global, output),
        DeadVerb::Retry(arguments) => edit::retry(arguments, scope, global, output),
        DeadVerb::Drop(arguments) => edit::drop(arguments, scope, global, output),
        DeadVerb::Stats(arguments) => stats::run(arguments, scope, global, output),
    }
}

/// A desk at the outbox that is there; otherwise says that there is none.
fn desk(global: &Global, data_dir: &DataDir, output: &mut Output) -> Result<Option<Desk>, CliError> {
    let none = |output: &mut Output| {
        output.say("nothing was ever published durably here; `[[outbox.topics]]` in the configuration names who is to get what");
        Ok(None)
    };
    if !data_dir.outbox().exists() {
        return none(output);
    }
    match Desk::open(&data_dir.outbox(), &global.data_key(data_dir)?)? {
        Some(desk) => Ok(Some(desk)),
        None => none(output),
    }
}

/// Tells the outbox that runs, if one does, that something was changed.
fn nudge(data_dir: &DataDir, output: &mut Output) {
    let Ok(Some(instance)) = lifecycle::running(data_dir) else {
        return output.say("nothing runs here; it counts from the next start on");
    };
    let topic = words::LOOK.parse().expect("a constant that is a topic");
    let asked = remote::request(data_dir, &instance, &topic, Payload::bytes(Vec::new()), LOOK_TIMEOUT);
    if let Err(error) = asked {
        output.say(&format!("the running outbox was not told ({error}); it sees by itself at its next look"));
    }
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// How long ago, for a table.
fn age(since_ms: u64) -> String {
    duration::brief(Duration::from_millis(now_ms().saturating_sub(since_ms)))
}

/// A time as people read it.
fn moment(ms: u64) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let zoned = timestamp.unwrap_or_default().to_zoned(TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

impl From<StorageError> for CliError {
    fn from(error: StorageError) -> Self {
        let exit = match error.kind {
            StorageFailure::Disk => Exit::Io,
            StorageFailure::Busy => Exit::Busy,
            StorageFailure::Damaged => Exit::Damaged,
            _ => Exit::Failed,
        };
        Self::new(exit, error.text)
    }
}
