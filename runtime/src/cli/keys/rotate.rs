//! `interlock keys rotate`: a new key for a peer, the broker, or the seal of the data key.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use interlock_actors::store::{DataKey, KeyWrap, StoreError, key::NewWrap, schema_version};
use interlock_bus::{
    Endpoint, KeyStore, PeerName,
    keys::{Audit, audit::Act},
};
use serde_json::json;

use super::super::{CliError, Global, Output, output};
use crate::{config::duration, exit::Exit, keys::check_rotation, lifecycle::DataDir};

/// Long enough to reach the owners of stock clients over a weekend.
const DEFAULT_OVERLAP: &str = "7d";

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["name", "broker", "wrap"]))]
pub(in super::super) struct Rotate {
    /// Which peer.
    name: Option<PeerName>,
    /// The broker's key.
    #[arg(long)]
    broker: bool,
    /// The wrapping key under which the data key is sealed.
    #[arg(long, conflicts_with_all = ["overlap", "now"])]
    wrap: bool,
    /// How long the old key is accepted, for example `12h` or `30d`.
    #[arg(long, value_name = "DURATION", default_value = DEFAULT_OVERLAP, value_parser = super::lasting)]
    overlap: Duration,
    /// No overlap: after a leak. Every old key ends at once.
    #[arg(long, conflicts_with = "overlap")]
    now: bool,
    /// Until when the peer's keys work, from now; by default their end stays as it is.
    #[arg(long, value_name = "DURATION", value_parser = super::time_to_live, requires = "name")]
    expires: Option<Duration>,
    /// Another credentials file of the peer to write; that in the key store is replaced if there is one.
    #[arg(long, value_name = "FILE", requires = "name")]
    out: Option<PathBuf>,
    /// What was done, as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &Rotate,
    endpoints: impl FnOnce() -> Result<Vec<Endpoint>, CliError>,
    global: &Global,
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let overlap = if arguments.now { Duration::ZERO } else { arguments.overlap };
    match &arguments.name {
        Some(name) => peer(name, overlap, arguments, &endpoints()?, data_dir, output),
        None if arguments.broker => broker(overlap, arguments.json, data_dir, output),
        None => wrap(arguments.json, global, data_dir, output),
    }
}

fn peer(
    name: &PeerName,
    overlap: Duration,
    arguments: &Rotate,
    endpoints: &[Endpoint],
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    check_rotation(name, arguments.expires.is_some())?;
    let store = KeyStore::open(&data_dir.keys())?;
    let expires_ms = arguments.expires.map(super::end_ms);
    let rotation = store.rotate(name, overlap, expires_ms, endpoints, arguments.out.as_deref())?;
    let (key, file) = (rotation.credentials.keys.public, &rotation.credentials.file);
    if arguments.json {
        let line = json!({
            "name": name, "file": file, "public_key": key, "fingerprint": key.fingerprint(),
            "before": rotation.before, "before_until_ms": rotation.before_until_ms, "expires_ms": rotation.expires_ms,
        });
        output.line(&output::json(&line)?)?;
        return Ok(Exit::Done);
    }
    if let Some(file) = file {
        output.line(&file.display().to_string())?;
    }
    let before = rotation.before.fingerprint();
    output.say(&match rotation.before_until_ms {
        None => format!(
            "the old key `{before}` of `{name}` is not accepted any more; its sessions end at once, and native clients come \
             back by themselves if this is the file they were started with"
        ),
        Some(_) => format!(
            "the old key `{before}` of `{name}` is accepted for {} longer; sessions that began with it end then, and native \
             clients come back by themselves if this is the file they were started with",
            duration::text(overlap)
        ),
    });
    Ok(Exit::Done)
}

fn broker(overlap: Duration, json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let rotation = KeyStore::open(&data_dir.keys())?.rotate_broker_keys(overlap)?;
    if json {
        let line = json!({
            "public_key": rotation.key, "fingerprint": rotation.key.fingerprint(), "before": rotation.before,
            "before_until_ms": (!overlap.is_zero()).then(|| super::end_ms(overlap)),
            "renewed": rotation.renewed, "failed": rotation.failed,
        });
        output.line(&output::json(&line)?)?;
        return Ok(if rotation.failed.is_empty() { Exit::Done } else { Exit::Io });
    }
    output.line(&rotation.key.to_string())?;
    output.say(&match overlap {
        Duration::ZERO => format!("the broker's key `{}` is not accepted any more", rotation.before),
        _ => format!(
            "the broker's key `{}` is accepted for {} longer; `bus peers` names the sessions that began with it",
            rotation.before,
            duration::text(overlap)
        ),
    });
    output.say(&format!(
        "{} credentials files in the key store were renewed; connected native clients learn the new key in their session",
        rotation.renewed.len()
    ));
    output.say(
        "files that stock clients hold elsewhere: `interlock keys renew FILE`, or set `broker_key` in them",
    );
    for problem in &rotation.failed {
        output.say(&format!("not renewed: {problem}"));
    }
    Ok(if rotation.failed.is_empty() { Exit::Done } else { Exit::Io })
}

fn wrap(json: bool, global: &Global, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    match DataKey::wrap(&data_dir.keys())? {
        None => {
            // There is no key: with a database it is missing, without one it was never made.
            DataKey::load(&data_dir.keys(), &data_dir.database())?;
            return Err(StoreError::NotInitialised { path: data_dir.database() }.into());
        }
        Some(KeyWrap::Passphrase { .. }) => {
            let text = "the data key is sealed under a passphrase, not under a wrapping key; \
                        `interlock keys passphrase` gives it another";
            return Err(CliError::new(Exit::Misuse, text));
        }
        Some(_) => {}
    }
    let mut key = global.vault(data_dir).open()?;
    // A key that opens something else is not worth a seal; a database that is not there yet is no obstacle.
    schema_version(&data_dir.database(), &key)?;
    Audit::of(&data_dir.keys())
        .around(Act::new("rotate-wrap"), || Ok::<_, CliError>(key.reseal(&NewWrap::KeyStore)?))?;
    if json {
        let line = json!({ "wrapping_key_file": data_dir.keys().join(interlock_actors::store::key::WRAPPING_KEY_FILE) });
        output.line(&output::json(&line)?)?;
    } else {
        output.say(
            "the data key is sealed under a new wrapping key; whoever runs notices nothing, and copies of the two files made \
             before still open as they did",
        );
    }
    Ok(Exit::Done)
}
