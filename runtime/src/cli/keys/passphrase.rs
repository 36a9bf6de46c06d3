//! `interlock keys passphrase`: what the data key is sealed under. The database itself is not touched.

use std::path::PathBuf;

use clap::Args;
use interlock_actors::store::{DataKey, KeyWrap, StoreError, key::NewWrap, schema_version};
use interlock_bus::{
    crypto::PassphraseCost,
    keys::{Audit, audit::Act},
};

use super::super::{CliError, Global, Output};
use crate::{exit::Exit, lifecycle::DataDir};

#[derive(Debug, Args)]
pub(in super::super) struct Passphrase {
    /// File with the new passphrase, mode 0600; by default it is asked for twice at the terminal.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// No passphrase any more: the data key is sealed under a key in the key store again.
    #[arg(long, conflicts_with = "new_passphrase_file")]
    remove: bool,
    /// What was done, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &Passphrase,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let Some(was) = DataKey::wrap(&data_dir.keys())? else {
        // There is no key: with a database it is missing, without one it was never made.
        DataKey::load(&data_dir.keys(), &data_dir.database())?;
        return Err(StoreError::NotInitialised { path: data_dir.database() }.into());
    };
    let change = !(arguments.remove && was == KeyWrap::KeyStore);
    let now = if change { seal(arguments, global, data_dir)? } else { was };
    if arguments.json {
        let line = serde_json::json!({
            "key_file": data_dir.keys().join(interlock_actors::store::key::KEY_FILE),
            "was": was.as_str(),
            "wrap": now.as_str(),
            "changed": change,
        });
        output.line(&line.to_string())?;
        return Ok(Exit::Done);
    }
    output.say(match (change, now) {
        (false, _) => "the data key is not sealed under a passphrase; nothing was changed",
        (true, KeyWrap::Passphrase { .. }) => {
            "the data key is sealed under the new passphrase; without it nobody can read the database, and it cannot be \
             reset. Copies of the key file made before still open as they did"
        }
        (true, _) => "the data key is sealed under a key in the key store; no passphrase is asked for any more",
    });
    Ok(Exit::Done)
}

fn seal(arguments: &Passphrase, global: &Global, data_dir: &DataDir) -> Result<KeyWrap, CliError> {
    // The one that counts now first: who does not have it is not asked for another.
    let (mut key, audit) = (global.vault(data_dir).open()?, Audit::of(&data_dir.keys()));
    // A key that opens something else is not worth a seal; a database that is not there yet is no obstacle.
    schema_version(&data_dir.database(), &key)?;
    if arguments.remove {
        audit.around(Act::new("passphrase").with("removed".to_owned()), || {
            Ok::<_, CliError>(key.reseal(&NewWrap::KeyStore)?)
        })?;
    } else {
        let file = arguments.new_passphrase_file.as_deref();
        let passphrase = global.passphrase_sources().ask_new(file).map_err(StoreError::from)?;
        audit.around(Act::new("passphrase").with("set".to_owned()), || {
            Ok::<_, CliError>(key.reseal(&NewWrap::Passphrase(&passphrase, PassphraseCost::DEFAULT))?)
        })?;
    }
    // As it is on the disk.
    Ok(DataKey::wrap(&data_dir.keys())?.unwrap_or(KeyWrap::Bare))
}
