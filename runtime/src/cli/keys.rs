//! `interlock keys`: who may connect, and do what. A running broker follows at once.

mod passphrase;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use interlock_bus::{Endpoint, KeyStore, PeerName, Permissions, Rules, TopicFilter, keys::KeyState};

use super::{CliError, Global, Output, output::table};
use crate::{
    config::{duration, schema},
    exit::Exit,
    lifecycle::{self, DataDir},
    peers,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Enrol a peer with a new key and write its credentials file.
    Issue(Issue),
    /// List all peers, their state and their rights.
    List {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Revoke the key of a peer; its sessions end at once.
    Revoke {
        /// Which peer.
        name: PeerName,
    },
    /// Give the broker a new key; the old one is accepted for a while longer.
    RotateBroker {
        /// How long, for example `12h` or `30d`.
        #[arg(long, value_name = "DURATION", default_value = DEFAULT_OVERLAP, value_parser = overlap)]
        overlap: Duration,
        /// No overlap: after a leak. Every old key ends at once.
        #[arg(long, conflicts_with = "overlap")]
        now: bool,
    },
    /// Seal the data key under a passphrase, under another one, or under none; the database stays as it is.
    Passphrase(passphrase::Passphrase),
    /// Put the broker's current key into credentials files, wherever they lie.
    Renew {
        /// Which files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Long enough to reach the owners of stock clients over a weekend.
const DEFAULT_OVERLAP: &str = "7d";

fn overlap(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("`{text}` is no duration; write for example `12h` or `30d`"))
}

#[derive(Debug, Args)]
pub(super) struct Issue {
    /// Name of the peer.
    name: PeerName,
    /// What it may publish, for example 'greetings/#'; may be repeated.
    #[arg(long, value_name = "FILTER")]
    publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    #[arg(long, value_name = "FILTER")]
    subscribe: Vec<TopicFilter>,
    /// What it may serve.
    #[arg(long, value_name = "FILTER")]
    serve: Vec<TopicFilter>,
    /// What it may request.
    #[arg(long, value_name = "FILTER")]
    request: Vec<TopicFilter>,
    /// Credentials file to write; by default NAME.toml in the key store.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(verb: Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    match verb {
        Verb::Issue(issue) => {
            let endpoints = endpoints(&loaded.config, &data_dir)?;
            run_issue(issue, &endpoints, &data_dir, output)
        }
        Verb::List { json } => list(json, &data_dir, output),
        Verb::Revoke { name } => {
            KeyStore::open(&data_dir.keys())?.revoke(&name)?;
            output.say(&format!("revoked `{name}`; a running broker ends its sessions at once"));
            Ok(Exit::Done)
        }
        Verb::RotateBroker { overlap, now } => {
            rotate_broker(if now { Duration::ZERO } else { overlap }, &data_dir, output)
        }
        Verb::Passphrase(arguments) => passphrase::run(&arguments, global, &data_dir, output),
        Verb::Renew { files } => {
            let store = KeyStore::open(&data_dir.keys())?;
            for file in files {
                let changed = store.renew(&file)?;
                let state = if changed { "names the broker's current key now" } else { "was up to date" };
                output.say(&format!("`{}` {state}", file.display()));
            }
            Ok(Exit::Done)
        }
    }
}

fn rotate_broker(overlap: Duration, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let rotation = KeyStore::open(&data_dir.keys())?.rotate_broker_keys(overlap)?;
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

/// Where the broker listens: as the running instance says, or else as configured.
fn endpoints(config: &crate::config::Config, data_dir: &DataDir) -> Result<Vec<Endpoint>, CliError> {
    match lifecycle::running(data_dir) {
        Ok(Some(instance)) => Ok(instance.endpoints),
        Ok(None) | Err(_) => Ok(config.bus_endpoints(&data_dir.run())?),
    }
}

fn run_issue(
    issue: Issue,
    endpoints: &[Endpoint],
    data_dir: &DataDir,
    output: &mut Output,
) -> Result<Exit, CliError> {
    data_dir.create()?;
    let (store, _) = KeyStore::open_or_create(&data_dir.keys())?;
    let given = Permissions {
        publish: Rules::allowing(issue.publish),
        subscribe: Rules::allowing(issue.subscribe),
        serve: Rules::allowing(issue.serve),
        request: Rules::allowing(issue.request),
        ..Permissions::default()
    };
    let permissions = match built_in(&issue.name) {
        None => peers::with_letters(&issue.name, &given),
        // A built-in peer whose key was revoked gets a new one; its rights are not for the command line to choose.
        Some(Some(rights)) if given.is_empty() && is_revoked(&store, &issue.name)? => rights,
        Some(_) => {
            let text = format!(
                "`{}` is the name of a built-in component; choose another, or revoke it first and give no rights to replace its key",
                issue.name
            );
            return Err(CliError::new(Exit::Misuse, text));
        }
    };
    if permissions.is_empty() {
        output.say("no right was given: the peer can connect only once it has one in `authorized.toml`");
    }
    store.issue(&issue.name, &permissions, endpoints, issue.out.as_deref())?;
    let path =
        issue.out.unwrap_or_else(|| interlock_bus::Credentials::path_in(&data_dir.keys(), &issue.name));
    output.line(&path.display().to_string())?;
    Ok(Exit::Done)
}

/// `Some` for a name that components have taken, with its rights if it is a peer.
fn built_in(name: &PeerName) -> Option<Option<Permissions>> {
    let of_peer = peers::permissions().into_iter().find(|(peer, _)| *peer == name.as_str());
    schema::NAMES_TAKEN.contains(&name.as_str()).then(|| of_peer.map(|(_, rights)| rights))
}

fn is_revoked(store: &KeyStore, name: &PeerName) -> Result<bool, CliError> {
    Ok(store.registry()?.peer(name).is_some_and(|peer| peer.state == KeyState::Revoked))
}

fn list(json: bool, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let registry = KeyStore::open(&data_dir.keys())?.registry()?;
    let mut peers: Vec<_> = registry.peers().collect();
    peers.sort_by_key(|(name, _)| (*name).clone());
    if json {
        for (name, peer) in peers {
            let line = serde_json::json!({
                "name": name, "state": peer.state, "public_key": peer.key.to_string(), "permissions": &*peer.permissions,
            });
            output.line(&line.to_string())?;
        }
        return Ok(Exit::Done);
    }
    if peers.is_empty() {
        let registry = data_dir.keys().join("authorized.toml");
        output.say(&format!(
            "no peer is enrolled in `{}`; `interlock keys issue NAME --publish FILTER --subscribe FILTER` enrols one",
            registry.display()
        ));
        return Ok(Exit::Done);
    }
    let mut rows =
        vec![["NAME", "STATE", "PUBLISH", "SUBSCRIBE", "SERVE", "REQUEST"].map(str::to_owned).to_vec()];
    for (name, peer) in peers {
        let state = if peer.state == KeyState::Active { "active" } else { "revoked" };
        let rights = &peer.permissions;
        let mut row = vec![name.to_string(), state.to_owned()];
        row.extend([&rights.publish, &rights.subscribe, &rights.serve, &rights.request].map(rules));
        rows.push(row);
    }
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

/// Rules in one cell: denied filters begin with `!`.
fn rules(rules: &Rules) -> String {
    let allowed = rules.allow.iter().map(ToString::to_string);
    let denied = rules.deny.iter().map(|filter| format!("!{filter}"));
    let all: Vec<String> = allowed.chain(denied).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}
