//! What the `bus` program does: one module per verb, [`output::Output`] the only printer.
//!
//! `bus/src/bin/bus/main.rs` is a shim over [`main`], so that tests can run verbs in their own process.

mod audit;
mod auth;
mod bandwidth;
mod bench;
mod broker;
mod condition;
mod decode;
mod delay;
mod doctor;
mod events;
mod failure;
mod gates;
mod histogram;
mod info;
mod keygen;
mod locate;
pub mod output;
mod peers;
mod ping;
mod publish;
mod rate;
mod record;
mod replay;
mod request;
mod serve;
mod signals;
mod subscribe;
mod table;
mod top;
mod topics;
mod trace;
mod why;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{CommandFactory, Parser, Subcommand};

use self::{failure::Failure, output::Output, signals::Signals};
use crate::{
    blocking,
    client::{Client, ConnectOptions},
    exit::Exit,
    inspect,
    manual::{Completions, Manual, Pages},
};

/// Looks into the message bus of Interlock, and sends on it.
///
/// Finds the running instance by itself; --data-dir and --creds choose another.
#[derive(Debug, Parser)]
#[command(name = "bus", version, max_term_width = 100, after_help = Exit::help())]
struct Arguments {
    /// Credentials of the peer to act as, instead of the instance's operator
    #[arg(long, global = true, value_name = "FILE")]
    creds: Option<PathBuf>,
    /// Data directory of the instance
    #[arg(long, global = true, value_name = "DIR", env = "INTERLOCK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for the broker, for example 500ms, 5s, 2m
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Prints messages as they come
    Sub(subscribe::Arguments),
    /// Publishes a message
    Pub(publish::Arguments),
    /// Asks, and prints the parts of the answer as they come
    Request(request::Arguments),
    /// Answers requests, by a command for each
    Serve(serve::Arguments),
    /// Lists topics: how much flows, who publishes, who subscribes, who serves
    Topics(topics::Arguments),
    /// Shows the bus live on a terminal: topics, peers, actors, messages, and what was lost or refused
    #[command(
        after_help = "Examples:\n  bus top\n  bus top --interval 5s --all\n  bus top --once --json | jq 'select(.kind == \"peer\")'"
    )]
    Top(top::Arguments),
    /// Shows a topic from all sides: who may and does publish, get and serve it, and what waits or was lost
    Info(info::Arguments),
    /// Follows one message from its publisher by way of the broker to each subscriber, or a request and its replies
    #[command(
        after_help = "Examples:\n  bus trace sensors/heat 21\n  bus trace sensors/heat --dry\n  bus trace 'sensors/#' --next\n  bus trace modelservice/models/v1 --request --json"
    )]
    Trace(trace::Arguments),
    /// Says why a peer can or cannot publish, subscribe, serve or request a topic
    Why(why::Arguments),
    /// Shows how much flowed when: rates of the last seconds, up to an hour
    Hz(rate::Arguments),
    /// Shows how many bytes flowed when, and how large messages are
    Bw(bandwidth::Arguments),
    /// Shows how long messages take from their publisher to the broker, or measures to a subscriber
    Delay(delay::Arguments),
    /// Lists who is connected
    #[command(after_help = "Examples:\n  bus peers\n  bus peers --json | jq .peer")]
    Peers,
    /// Lists publishers that wait for their consumers: for whom, and what they hold
    #[command(after_help = "Examples:\n  bus gates\n  bus gates --json")]
    Gates,
    /// Lists connections and operations that were refused, and why
    #[command(after_help = "Examples:\n  bus auth\n  bus auth --json | jq 'select(.peer)'")]
    Auth,
    /// Prints what the broker noticed: who came and went, refusals, slow subscribers, held topics
    Events(events::Arguments),
    /// Prints the rows of the drop ledger that do not balance; there must be none
    Audit(audit::Arguments),
    /// Looks for what keeps the bus from working, also without a broker, and says what to do
    Doctor(doctor::Arguments),
    /// Records messages into an MCAP file, which survives a crash
    Record(record::Arguments),
    /// Publishes what was recorded, as far apart as it was
    Replay(replay::Arguments),
    /// Measures how long the broker takes to answer
    Ping(ping::Arguments),
    /// Measures throughput, fan-out, latency and requests
    Bench(bench::Arguments),
    /// Makes keys: enrols a peer and writes its credentials, or prints a pair
    Keygen(keygen::Arguments),
    /// Runs a broker of its own, without the rest of the runtime
    Broker(broker::Arguments),
    /// Prints what teaches a shell to complete verbs and flags
    #[command(
        after_help = "Examples:\n  bus completions bash > ~/.local/share/bash-completion/completions/bus\n  bus completions fish > ~/.config/fish/completions/bus.fish"
    )]
    Completions(Completions),
    /// Prints the manual page of a verb, or writes those of all verbs
    #[command(after_help = "Examples:\n  bus man sub | man -l -\n  bus man --to ~/.local/share/man/man1")]
    Man(Manual),
}

/// Runs the program on this process's arguments, streams and environment.
pub fn main() -> Exit {
    // Every verb has a peer's key in its memory.
    crate::keys::keep_memory_private();
    run(std::env::args_os(), Output::of_process())
}

/// Runs the program. Never panics on input, never ends the process.
pub fn run(arguments: impl IntoIterator<Item = OsString>, mut output: Output) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, &mut output),
    };
    output.set_json(arguments.json);
    match dispatch(&arguments, &mut output) {
        Ok(exit) => exit,
        Err(failure) => failure.tell(&mut output),
    }
}

fn usage(error: &clap::Error, output: &mut Output) -> Exit {
    let text = error.render().to_string();
    if error.use_stderr() {
        output.note(text.trim_end().trim_start_matches("error: "));
        return Exit::Misuse;
    }
    // Asked for with --help or --version.
    match output.line(text.trim_end()) {
        Ok(()) => Exit::Done,
        Err(failure) => failure.tell(output),
    }
}

fn dispatch(arguments: &Arguments, output: &mut Output) -> Result<Exit, Failure> {
    if let Verb::Broker(verb) = &arguments.verb {
        return broker::run(verb, arguments.data_dir.as_deref(), output);
    }
    if let Verb::Keygen(verb) = &arguments.verb {
        return keygen::run(verb, arguments.data_dir.as_deref(), output);
    }
    if let Verb::Completions(verb) = &arguments.verb {
        let script = verb.script(Arguments::command());
        return output.bytes(script.as_bytes()).map(|()| Exit::Done);
    }
    if let Verb::Man(verb) = &arguments.verb {
        return manual(verb, output);
    }
    if let Verb::Doctor(verb) = &arguments.verb {
        let (creds, data_dir) = (arguments.creds.as_deref(), arguments.data_dir.as_deref());
        return doctor::run(verb, creds, data_dir, arguments.timeout, output);
    }
    // Misuse is misuse whether or not an instance runs.
    let prepared = match &arguments.verb {
        Verb::Pub(verb) => Some(publish::prepare(verb)?),
        Verb::Sub(verb) => verb.check().map(|()| None)?,
        Verb::Request(verb) => verb.check().map(|()| None)?,
        Verb::Bench(verb) => verb.check().map(|()| None)?,
        Verb::Top(verb) => verb.check(output).map(|()| None)?,
        Verb::Trace(verb) => verb.check().map(|()| None)?,
        _ => None,
    };
    let credentials = || locate::credentials(arguments.creds.as_deref(), arguments.data_dir.as_deref());
    if let Verb::Bench(verb) = &arguments.verb {
        return bench::run(verb, credentials, arguments.timeout, output);
    }
    if let Verb::Replay(verb) = &arguments.verb
        && verb.is_offline()
    {
        return replay::list(verb, output);
    }
    let mut signals = match &arguments.verb {
        Verb::Delay(_) | Verb::Record(_) | Verb::Replay(_) | Verb::Serve(_) => Signals::take()?,
        Verb::Top(verb) => verb.signals()?,
        _ => Signals::none(),
    };
    let options = ConnectOptions::new(credentials()?).timeout(arguments.timeout);
    let client = Client::connect_blocking(options)?;
    let outcome = match &arguments.verb {
        Verb::Sub(verb) => subscribe::run(verb, &client, output),
        Verb::Pub(_) => match prepared {
            Some(prepared) => publish::run(prepared, &client, arguments.timeout, output),
            None => Ok(Exit::Done),
        },
        Verb::Request(verb) => request::run(verb, &client, output),
        Verb::Serve(verb) => serve::run(verb, &client, &mut signals, output),
        Verb::Topics(verb) => topics::run(verb, &client, output),
        Verb::Top(verb) => top::run(verb, &client, signals, output),
        Verb::Trace(verb) => trace::run(verb, &client, output),
        Verb::Info(verb) => info::run(verb, &client, output),
        Verb::Why(verb) => why::run(verb, &client, output),
        Verb::Hz(verb) => rate::run(verb, &client, output),
        Verb::Bw(verb) => bandwidth::run(verb, &client, output),
        Verb::Delay(verb) => delay::run(verb, &client, &mut signals, output),
        Verb::Peers => peers::run(&client, output),
        Verb::Gates => gates::run(&client, output),
        Verb::Auth => auth::run(&client, output),
        Verb::Events(verb) => events::run(verb, &client, output),
        Verb::Audit(verb) => audit::run(verb, &client, output),
        Verb::Record(verb) => record::run(verb, &client, &mut signals, output),
        Verb::Replay(verb) => replay::run(verb, &client, arguments.timeout, &mut signals, output),
        Verb::Ping(verb) => ping::run(verb, &client, arguments.timeout, output),
        // These have ended above.
        Verb::Bench(_)
        | Verb::Broker(_)
        | Verb::Keygen(_)
        | Verb::Doctor(_)
        | Verb::Completions(_)
        | Verb::Man(_) => Ok(Exit::Done),
    };
    client.close_blocking();
    outcome
}

fn manual(verb: &Manual, output: &mut Output) -> Result<Exit, Failure> {
    let pages = verb.pages(Arguments::command());
    match pages.map_err(|error| Failure::new(Exit::from(&error), error))? {
        Pages::Text(text) => output.bytes(text.as_bytes())?,
        Pages::Written(paths) => paths.iter().try_for_each(|path| {
            let path = path.display().to_string();
            match output.is_json() {
                true => output.json(&serde_json::json!({ "page": path })),
                false => {
                    let line = output.harmless(&path);
                    output.line(&line)
                }
            }
        })?,
    }
    Ok(Exit::Done)
}

/// Asks the broker about itself.
fn ask_broker(client: &Client, what: &str) -> Result<serde_json::Value, Failure> {
    Ok(blocking::wait(inspect::ask(client, what, &serde_json::Value::Null))?)
}

/// Asks the broker about something in particular.
fn ask_broker_about(
    client: &Client,
    what: &str,
    question: &serde_json::Value,
) -> Result<serde_json::Value, Failure> {
    Ok(blocking::wait(inspect::ask(client, what, question))?)
}

/// Reads `500ms`, `10s`, `2m`, `1h`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: Option<u64> = number.parse().ok();
    let milliseconds = match unit {
        "ms" => number,
        "" | "s" => number.and_then(|number| number.checked_mul(1_000)),
        "m" => number.and_then(|number| number.checked_mul(60_000)),
        "h" => number.and_then(|number| number.checked_mul(3_600_000)),
        _ => None,
    };
    milliseconds
        .filter(|milliseconds| *milliseconds <= 366 * 24 * 3_600_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a time; write for example 500ms, 10s, 2m or 1h"))
}

#[cfg(test)]
mod tests;
