//! `interlock keys`: who may connect, and do what. A running broker follows within a second.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use interlock_bus::{Endpoint, KeyStore, PeerName, Permissions, Rules, TopicFilter, keys::KeyState};

use super::{CliError, Global, Output, output::table};
use crate::{
    config::schema,
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
            output.say(&format!("revoked `{name}`; a running broker ends its sessions within a second"));
            Ok(Exit::Done)
        }
    }
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
        None => given,
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
