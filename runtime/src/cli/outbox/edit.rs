//! `retry` and `drop`, of what waits and of dead letters.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use interlock_actors::{
    log_record::{Level, LogRecord},
    store::{
        Store, StoreOptions,
        outbox::{
            KeepFinished, OutboxLimits, OutboxStore,
            desk::{Delivery, Edit, MessageId},
        },
    },
};

use super::{CliError, Global, Output, Scope, desk, filter::Filter, nudge};
use crate::{cli::remote::block_on, exit::Exit, lifecycle::DataDir};

/// Deliveries changed in one transaction, so that nobody waits long for it.
const BATCH: usize = 200;

#[derive(Debug, Args)]
pub(in super::super) struct Retry {
    #[command(flatten)]
    which: Which,
    /// At most so many in a second, so that a consumer that has just come back is not overrun.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

#[derive(Debug, Args)]
pub(in super::super) struct Drop {
    #[command(flatten)]
    which: Which,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Which deliveries are changed.
#[derive(Debug, Args)]
struct Which {
    /// Messages by number or id, as `list` shows them.
    #[arg(value_name = "MESSAGE")]
    messages: Vec<MessageId>,
    /// All that the filters leave, or all there are.
    #[arg(long, conflicts_with = "messages")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

pub(super) fn retry(
    arguments: &Retry,
    scope: Scope,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let Some(found) = find(&arguments.which, scope, global, &data_dir, output)? else {
        return Ok(Exit::Failed);
    };
    let pace = arguments.rate.map(|rate| Duration::from_secs(1) / rate);
    change(Edit::Retry, &found, pace, scope, global, &data_dir, output)
}

pub(super) fn drop(
    arguments: &Drop,
    scope: Scope,
    global: &Global,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let data_dir = global.data_dir()?;
    let Some(found) = find(&arguments.which, scope, global, &data_dir, output)? else {
        return Ok(Exit::Failed);
    };
    if !arguments.yes && !is_confirmed(found.len(), output)? {
        return Ok(Exit::Failed);
    }
    change(Edit::Drop, &found, None, scope, global, &data_dir, output)
}

/// What is to be changed, if there is something.
fn find(
    which: &Which,
    scope: Scope,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Option<Vec<Delivery>>, CliError> {
    if which.messages.is_empty() && !which.all {
        let text = "name messages by number or id, or say --all, with filters for some of them";
        return Err(CliError::new(Exit::Misuse, text));
    }
    let Some(desk) = desk(global, data_dir, output)? else { return Ok(None) };
    let question = which.filter.question(scope);
    let found = if which.all {
        desk.list(&question)?
    } else {
        let states = &question.states;
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for id in &which.messages {
            let deliveries = desk.message(id)?.map(|message| message.deliveries).unwrap_or_default();
            let before = found.len();
            let is_said_twice = deliveries.first().is_some_and(|one| !seen.insert(one.number));
            if is_said_twice {
                continue;
            }
            found.extend(deliveries.into_iter().filter(|one| states.contains(&one.state)));
            if found.len() == before {
                output.say(&format!("message {id}: {}", scope.nothing()));
            }
        }
        if !which.filter.is_empty() {
            let wanted = desk.list(&question)?;
            found.retain(|one| {
                wanted.iter().any(|other| (other.number, &other.consumer) == (one.number, &one.consumer))
            });
        }
        found
    };
    if found.is_empty() {
        output.say(scope.nothing());
        return Ok(None);
    }
    Ok(Some(found))
}

fn is_confirmed(count: usize, output: &mut Output) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        let text = format!("{count} deliveries would be dropped for good; say --yes to do that");
        return Err(CliError::new(Exit::Misuse, text));
    }
    // A question is no line of its own.
    let mut question = io::stderr();
    let asked = write!(question, "interlock: drop {count} deliveries for good? [y/N] ")
        .and_then(|()| question.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| CliError::new(Exit::of_io(&error), format!("cannot ask: {error}")))?;
    let yes = matches!(answer.trim(), "y" | "Y" | "yes");
    if !yes {
        output.say("nothing was dropped");
    }
    Ok(yes)
}

fn change(
    edit: Edit,
    found: &[Delivery],
    pace: Option<Duration>,
    scope: Scope,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    // Forgetting is for whoever has the configuration of the running instance.
    let keep = KeepFinished { age_max: Duration::MAX, messages_max: u64::MAX };
    let key = global.data_key(data_dir)?;
    let store = OutboxStore::open(&data_dir.outbox(), &key, OutboxLimits::default(), keep)?;
    let by = user();
    let (mut changed, began) = (0, Instant::now());
    let size = if pace.is_some() { 1 } else { BATCH };
    for (place, batch) in found.chunks(size).enumerate() {
        if let Some(pace) = pace {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            thread::sleep((began + pace.saturating_mul(place)).saturating_duration_since(Instant::now()));
        }
        let ids = batch.iter().map(|one| (one.number, one.consumer.clone(), one.state)).collect();
        let now = block_on(store.edit(edit, ids, by.clone()))??;
        if now > 0 && pace.is_some() {
            nudge(data_dir, output);
        }
        changed += now;
    }
    store.close();
    let (done, level) = match edit {
        Edit::Retry => ("retried", Level::Info),
        Edit::Drop => ("dropped", Level::Warn),
    };
    let text = format!("{changed} of {} deliveries were {done} by `interlock {}`", found.len(), scope.verb());
    if changed > 0 {
        if pace.is_none() {
            nudge(data_dir, output);
        }
        note(level, text, found, &by, &key, data_dir, output);
    }
    output.line(&format!("{done} {changed} of {}", found.len()))?;
    Ok(if changed > 0 { Exit::Done } else { Exit::Failed })
}

/// Who did it.
fn user() -> String {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    format!("`{}` (uid {uid})", name.as_deref().unwrap_or("?"))
}

/// Writes what was done into the log, where people look for it. Beside each delivery it stands already.
fn note(
    level: Level,
    text: String,
    found: &[Delivery],
    by: &str,
    key: &interlock_actors::store::DataKey,
    data_dir: &DataDir,
    output: &mut Output,
) {
    let mut record = LogRecord::new(level, "outbox", text);
    let numbers: Vec<String> = found.iter().take(20).map(|one| one.number.to_string()).collect();
    record.fields = vec![("by".to_owned(), by.to_owned()), ("numbers".to_owned(), numbers.join(" "))];
    let mut options = StoreOptions::default();
    // Nothing is to be deleted by a passer-by.
    options.logs.rows_max = u64::MAX;
    options.logs.bytes_max = u64::MAX;
    options.logs.age_max = Duration::MAX;
    let noted = Store::open(&data_dir.database(), key, options).map_err(CliError::from).and_then(|store| {
        let appended = block_on(store.append(vec![record]))?;
        store.close();
        appended.map(|_stored| ()).map_err(|refused| CliError::from(refused.error))
    });
    if let Err(error) = noted {
        output.say(&format!("it is done, and could not be written into the log: {error}"));
    }
}
