//! `interlock keys issue`: a peer, its key and its credentials file.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use interlock_bus::{Credentials, Endpoint, KeyStore, PeerName, Permissions, Rules, TopicFilter};
use serde_json::json;

use super::super::{CliError, Output, output};
use crate::{exit::Exit, keys, lifecycle::DataDir};

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
    let permissions = keys::rights_of_new(&store, &issue.name, &given, expires_ms.is_some())?;
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
