//! `interlock keys`: who may connect, and do what. A running broker follows at once.

mod archive;
mod enrolment;
mod issue;
mod list;
mod passphrase;
mod rotate;

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use interlock_bus::{Endpoint, KeyStore, PeerName};
use serde_json::json;

use super::{CliError, Global, Output, output};
use crate::{
    config::duration,
    exit::Exit,
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
    /// Put the broker's current key into credentials files, wherever they lie.
    Renew {
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
        Verb::Renew { files, json } => renew(&files, json, &data_dir, output),
    }
}

fn revoke(name: &PeerName, json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    store.revoke(name)?;
    if json {
        let registry = store.registry()?;
        let key = registry.peer(name).map(|peer| peer.key);
        let fingerprint = key.map(|key| key.fingerprint());
        let line = json!({ "name": name, "state": "revoked", "public_key": key, "fingerprint": fingerprint });
        output.line(&output::json(&line)?)?;
    } else {
        output.say(&format!("revoked `{name}`; a running broker ends its sessions at once"));
    }
    Ok(Exit::Done)
}

fn renew(files: &[PathBuf], json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    for file in files {
        let changed = store.renew(file)?;
        if json {
            output.line(&output::json(&json!({ "file": file, "changed": changed }))?)?;
            continue;
        }
        let state = if changed { "names the broker's current key now" } else { "was up to date" };
        output.say(&format!("`{}` {state}", file.display()));
    }
    Ok(Exit::Done)
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
fn time_to_live(text: &str) -> Result<Duration, String> {
    match lasting(text)? {
        Duration::ZERO => {
            Err("a key that expires at once is of no use; write for example `12h` or `30d`".to_owned())
        }
        lasting => Ok(lasting),
    }
}

/// The end of something that lasts so long from now, Unix milliseconds.
fn end_ms(lasting: Duration) -> u64 {
    list::now_ms().saturating_add(u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX))
}
