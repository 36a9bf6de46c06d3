//! `interlock keys issue`: a peer, its key and its credentials file.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use interlock_bus::{
    Credentials, Endpoint, KeyStore, PeerName, Permissions, Rules, TopicFilter, keys::KeyState,
};
use serde_json::json;

use super::super::{CliError, Output, output};
use crate::{config::schema, exit::Exit, lifecycle::DataDir, peers};

#[derive(Debug, Args)]
pub(in super::super) struct Issue {
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
    /// Until when the key works, from now, for example `12h` or `30d`; by default it has no end.
    #[arg(long, value_name = "DURATION", value_parser = super::time_to_live)]
    expires: Option<Duration>,
    /// Credentials file to write; by default NAME.toml in the key store.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the credentials as one line, which holds the secret key: `interlock keys accept` takes it from standard
    /// input, in another shell or on another machine, and writes the file there.
    #[arg(long)]
    print: bool,
    /// What was done, as one JSON object without the secret.
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

pub(super) fn run(
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
    let expires_ms = issue.expires.map(super::end_ms);
    let permissions = match built_in(&issue.name) {
        None => peers::with_implied(&issue.name, &given),
        Some(_) if expires_ms.is_some() => return Err(no_end_for_built_in(&issue.name)),
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
    let credentials =
        store.issue_until(&issue.name, &permissions, expires_ms, endpoints, issue.out.as_deref())?;
    let path = issue.out.unwrap_or_else(|| Credentials::path_in(&data_dir.keys(), &issue.name));
    if issue.print {
        output.say(&format!("`{}` is written, too", path.display()));
        super::enrolment::print(&credentials, output)?;
    } else if issue.json {
        let line = json!({
            "name": issue.name, "file": path, "public_key": credentials.keys.public,
            "fingerprint": credentials.keys.public.fingerprint(), "expires_ms": expires_ms,
        });
        output.line(&output::json(&line)?)?;
    } else {
        output.line(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

/// `Some` for a name that components have taken, with its rights if it is a peer.
fn built_in(name: &PeerName) -> Option<Option<Permissions>> {
    let of_peer = peers::permissions().into_iter().find(|(peer, _)| *peer == name.as_str());
    schema::NAMES_TAKEN.contains(&name.as_str()).then(|| of_peer.map(|(_, rights)| rights))
}

/// A key that ended by itself would end the runtime with it.
pub(super) fn no_end_for_built_in(name: &PeerName) -> CliError {
    let text = format!(
        "`{name}` is a built-in component, and its key must not end by itself; leave out `--expires`"
    );
    CliError::new(Exit::Misuse, text)
}

/// Whether the runtime needs this peer.
pub(super) fn is_built_in(name: &PeerName) -> bool {
    built_in(name).is_some()
}

fn is_revoked(store: &KeyStore, name: &PeerName) -> Result<bool, CliError> {
    Ok(store.registry()?.peer(name).is_some_and(|peer| peer.state == KeyState::Revoked))
}
