//! `interlock keys export` and `import`: keys on their way to another place, sealed under a passphrase.

use std::path::PathBuf;

use clap::Args;
use interlock_actors::store::{Passphrase, PassphraseSources, StoreError, passphrase::PassphraseOf};
use interlock_bus::{KeyStore, PeerName, crypto::PassphraseCost};
use serde_json::json;

use super::super::{CliError, Global, Output, output, terminal};
use crate::{exit::Exit, lifecycle::DataDir};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["names", "all"]))]
pub(in super::super) struct Export {
    /// Which peers.
    #[arg(value_name = "NAME")]
    names: Vec<PeerName>,
    /// All peers and the broker's keys. The data key is not among them: it goes with its database.
    #[arg(long)]
    all: bool,
    /// File to write; one that is there is not written over.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// File with the passphrase to seal it under, mode 0600; by default it is asked for twice at the terminal.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// What was done, as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct Import {
    /// What `export` has written. `--passphrase-file` names its passphrase; else INTERLOCK_KEYS_PASSPHRASE_FILE, the
    /// systemd credential interlock.keys-passphrase, or the terminal.
    file: PathBuf,
    /// Give those who have another key here the one of the file.
    #[arg(long)]
    replace: bool,
    /// What was done, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn export(
    arguments: &Export,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    let file = arguments.new_passphrase_file.as_deref();
    let passphrase = global.passphrase_sources().ask_new(file).map_err(StoreError::from)?;
    let names = (!arguments.all).then_some(arguments.names.as_slice());
    let done = store.export(names, passphrase.bytes(), PassphraseCost::DEFAULT, &arguments.to)?;
    if arguments.json {
        let line = json!({
            "file": arguments.to, "peers": done.peers, "without_secret": done.without_secret, "broker": arguments.all,
        });
        output.line(&output::json(&line)?)?;
        return Ok(Exit::Done);
    }
    output.say(&format!(
        "{} peers{} are in `{}`; without the passphrase nobody can read it, and it cannot be reset",
        done.peers.len() + done.without_secret.len(),
        if arguments.all { " and the broker's keys" } else { "" },
        arguments.to.display()
    ));
    for name in &done.without_secret {
        output.say(&format!("`{name}` without its secret key: its credentials file is not in the key store"));
    }
    Ok(Exit::Done)
}

pub(super) fn import(
    arguments: &Import,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let passphrase = passphrase_of(arguments, global)?;
    let done = KeyStore::import(&data_dir.keys(), &arguments.file, passphrase.bytes(), arguments.replace)?;
    if arguments.json {
        let line = json!({
            "added": done.added, "replaced": done.replaced, "same": done.same, "broker": done.broker,
        });
        output.line(&output::json(&line)?)?;
        return Ok(Exit::Done);
    }
    for (what, names) in [("added", &done.added), ("replaced", &done.replaced), ("unchanged", &done.same)] {
        for name in names {
            output.line(&format!("{what}  {name}"))?;
        }
    }
    if done.broker {
        output.say("the broker has the keys of the file; one that runs follows at once");
    }
    Ok(Exit::Done)
}

/// That of the file, not that of the data key: variable and credential are its own.
fn passphrase_of(arguments: &Import, global: &Global) -> Result<Passphrase, CliError> {
    let given = PassphraseSources::of(PassphraseOf::Keys, global.passphrase_file.clone());
    let sources = PassphraseSources { prompt: terminal::prompt(), ..given };
    let asked = sources.ask(&format!("passphrase of `{}`: ", arguments.file.display()));
    Ok(asked.map_err(StoreError::from)?)
}
