//! `interlock keys`: who may connect, and do what. A running broker follows at once.

mod archive;
mod enrolment;
mod issue;
mod list;
mod passphrase;
mod rotate;

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use interlock_bus::{
    Endpoint, KeyStore, PeerName,
    keys::{KeyError, moved::moved_here},
};
use serde_json::json;

pub(super) use self::list::{in_short, time};
use super::{CliError, Global, Output, output};
use crate::{
    config::duration,
    exit::Exit,
    keys::{self, KeyOrderError},
    lifecycle::{self, DataDir},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List all peers: their key, until when it works, when it was used, what it may do.
    List(list::List),
    /// Show one peer: each right and where it stands, its keys, its sessions now.
    Show(list::Show),
    /// Enrol a peer with a new key and write its credentials file.
    Issue(issue::Issue),
    /// Write the credentials file of an enrolment line (`issue --print`) that comes from standard input.
    Accept(enrolment::Accept),
    /// Revoke the key of a peer; its sessions end at once.
    Revoke {
        /// Which peer.
        name: PeerName,
        /// What was done, as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give a peer, the broker or the seal of the data key a new key.
    Rotate(rotate::Rotate),
    /// Seal the data key under a passphrase, under another one, or under none; the database stays as it is.
    Passphrase(passphrase::Passphrase),
    /// Write peers and their keys, or all of them and the broker's, to a file sealed under a passphrase.
    Export(archive::Export),
    /// Take in what `export` has written, also into a data directory that is not there yet.
    Import(archive::Import),
    /// Put the broker's current key, and where it listens, into credentials files, wherever they lie.
    Renew {
        /// Put the endpoints of this installation into them, whatever they name. Without this only files that name the
        /// socket of another data directory get them: those that were restored or moved.
        #[arg(long)]
        endpoints: bool,
        /// Which files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// One JSON object per file.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    if let Verb::Accept(arguments) = verb {
        return enrolment::accept(&arguments, output);
    }
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    match verb {
        Verb::List(arguments) => list::list(&arguments, &data_dir, output),
        Verb::Show(arguments) => list::show(&arguments, &data_dir, output),
        Verb::Issue(arguments) => {
            issue::run(arguments, &endpoints(&loaded.config, &data_dir)?, &data_dir, output)
        }
        Verb::Accept(arguments) => enrolment::accept(&arguments, output),
        Verb::Revoke { name, json } => revoke(&name, json, &data_dir, output),
        Verb::Rotate(arguments) => {
            let endpoints = || endpoints(&loaded.config, &data_dir);
            rotate::run(&arguments, endpoints, global, &data_dir, output)
        }
        Verb::Passphrase(arguments) => passphrase::run(&arguments, global, &data_dir, output),
        Verb::Export(arguments) => archive::export(&arguments, global, &data_dir, output),
        Verb::Import(arguments) => archive::import(&arguments, global, &data_dir, output),
        Verb::Renew { files, endpoints: all, json } => {
            let now = known(endpoints(&loaded.config, &data_dir)?);
            renew(&files, now, all, json, &data_dir, output)
        }
    }
}

fn revoke(name: &PeerName, json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    let unsaid = keys::revoke(&store, name)?;
    if json {
        let registry = store.registry()?;
        let key = registry.peer(name).map(|peer| peer.key);
        let fingerprint = key.map(|key| key.fingerprint());
        let line = json!({
            "name": name, "state": "revoked", "public_key": key, "fingerprint": fingerprint,
            "undone": unsaid.map(|error| error.to_string()),
        });
        output.line(&output::json(&line)?)?;
    } else {
        output.say(&format!("revoked `{name}`; a running broker ends its sessions at once"));
        unsaid.iter().for_each(|error| output.say(&self::unsaid(error)));
    }
    Ok(Exit::Done)
}

/// What there is to say of a token that was revoked while the list of tokens could not be changed.
pub(super) fn unsaid(error: &KeyError) -> String {
    match error {
        KeyError::Damaged { .. } => format!(
            "the list of tokens says so, which the gateway goes by; the registry does not, so mend that and revoke it again: {error}"
        ),
        _ => format!(
            "its peer is revoked, which the gateway goes by; the list of tokens does not say so: {error}"
        ),
    }
}

fn renew(
    files: &[PathBuf],
    now: Vec<Endpoint>,
    all: bool,
    json: bool,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    if all && now.is_empty() {
        let text =
            "nobody knows where the broker listens before it runs: the system chooses a port. Start it first";
        return Err(CliError::new(Exit::NotReady, text));
    }
    let store = KeyStore::open(&data_dir.keys())?;
    for file in files {
        let renewed = store.renew(file, |named| match all {
            true => Some(now.clone()),
            false => moved_here(named, &now),
        })?;
        if json {
            let line = json!({
                "file": file, "changed": renewed.is_changed(), "broker_key": renewed.broker,
                "endpoints": renewed.endpoints_before.is_some(),
            });
            output.line(&output::json(&line)?)?;
            continue;
        }
        let shown = file.display();
        if renewed.broker {
            output.say(&format!("`{shown}` names the broker's current key now"));
        }
        if let Some(before) = &renewed.endpoints_before {
            output.say(&format!(
                "`{shown}` names {} now, no longer {}",
                listed(&renewed.endpoints),
                listed(before)
            ));
        }
        if !renewed.is_changed() {
            output.say(&format!("`{shown}` was up to date"));
        }
    }
    Ok(Exit::Done)
}

fn listed(endpoints: &[Endpoint]) -> String {
    let quoted: Vec<String> = endpoints.iter().map(|endpoint| format!("`{endpoint}`")).collect();
    quoted.join(", ")
}

/// None of them, if the system is still to choose a port: that would be worth nothing in a file.
fn known(endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let is_open = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Tcp { port: 0, .. });
    if endpoints.iter().any(is_open) { Vec::new() } else { endpoints }
}

/// Where the broker listens: as the running instance says, or else as configured.
fn endpoints(config: &crate::config::Config, data_dir: &DataDir) -> Result<Vec<Endpoint>, CliError> {
    match lifecycle::running(data_dir) {
        Ok(Some(instance)) => Ok(instance.endpoints),
        Ok(None) | Err(_) => Ok(config.bus_endpoints(&data_dir.run())?),
    }
}

/// Reads how long something is to last.
fn lasting(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is no duration; write for example `12h` or `30d`"))
}

/// The same for something that must last at all.
pub(super) fn time_to_live(text: &str) -> Result<Duration, String> {
    match lasting(text)? {
        Duration::ZERO => {
            Err("a key that expires at once is of no use; write for example `12h` or `30d`".to_owned())
        }
        lasting => Ok(lasting),
    }
}

/// The end of something that lasts so long from now, Unix milliseconds.
pub(super) fn end_ms(lasting: Duration) -> u64 {
    list::now_ms().saturating_add(u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX))
}

impl From<KeyOrderError> for CliError {
    fn from(error: KeyOrderError) -> Self {
        match error {
            KeyOrderError::Keys(error) => error.into(),
            KeyOrderError::Token(error) => error.into(),
            error => Self::new(Exit::Misuse, error.to_string()),
        }
    }
}
