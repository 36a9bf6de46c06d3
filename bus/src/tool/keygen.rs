//! `bus keygen`

use std::path::{Path, PathBuf};

use serde_json::json;
use zeroize::Zeroizing;

use super::{Failure, Output, locate};
use crate::{
    crypto::KeyPair,
    endpoint::Endpoint,
    exit::Exit,
    keys::{Credentials, KeyError, KeyStore, Permissions, Rules, private_file},
    peer::PeerName,
    topic::TopicFilter,
};

/// What `bus keygen` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bus keygen\n  bus keygen thermometer --publish 'sensors/#'\n  bus keygen reader --subscribe '#' --output reader.toml"
)]
pub(super) struct Arguments {
    /// The peer to enrol in the key store of the data directory; without a name a pair of keys is printed and belongs to nobody
    name: Option<PeerName>,
    /// What it may publish, for example 'greetings/#'; may be given several times
    #[arg(long, value_name = "FILTER", requires = "name")]
    publish: Vec<TopicFilter>,
    /// What it may subscribe to
    #[arg(long, value_name = "FILTER", requires = "name")]
    subscribe: Vec<TopicFilter>,
    /// What it may serve
    #[arg(long, value_name = "FILTER", requires = "name")]
    serve: Vec<TopicFilter>,
    /// What it may request
    #[arg(long, value_name = "FILTER", requires = "name")]
    request: Vec<TopicFilter>,
    /// Where the broker listens; by default as in the operator's credentials
    #[arg(long, value_name = "ENDPOINT", requires = "name")]
    endpoint: Vec<Endpoint>,
    /// The new file, readable by its owner only; by default NAME.toml in the key store, or standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(
    arguments: &Arguments,
    data_dir: Option<&Path>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    match &arguments.name {
        Some(name) => enrol(arguments, name, data_dir, output),
        None => pair(arguments.output.as_deref(), output),
    }
}

/// Makes a peer known to the broker of this data directory, which takes it over while it runs.
fn enrol(
    arguments: &Arguments,
    name: &PeerName,
    data_dir: Option<&Path>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let store = KeyStore::open(&locate::data_directory(data_dir)?.join("keys"))?;
    let operator: PeerName = "operator".parse().map_err(|error| Failure::new(Exit::Misuse, error))?;
    let endpoints = match &arguments.endpoint[..] {
        [] => store.endpoints_of(&operator),
        chosen => chosen.to_vec(),
    };
    if endpoints.is_empty() {
        let text = "nobody knows where this broker listens; start it once, or name `--endpoint tcp://127.0.0.1:5555`";
        return Err(Failure::new(Exit::Misuse, text));
    }
    let rules = |filters: &[TopicFilter]| Rules::allowing(filters.to_vec());
    let permissions = Permissions {
        publish: rules(&arguments.publish),
        subscribe: rules(&arguments.subscribe),
        serve: rules(&arguments.serve),
        request: rules(&arguments.request),
        ..Permissions::default()
    };
    if permissions.is_empty() {
        output.note("no right was given: the peer can connect only once it has one in `authorized.toml`");
    }
    let issued = store.issue(name, &permissions, &endpoints, arguments.output.as_deref())?;
    let path = issued.file.unwrap_or_else(|| Credentials::path_in(store.directory(), name));
    if output.is_json() {
        let public = issued.keys.public;
        output.json(
            &json!({ "name": name, "file": path, "public_key": public, "fingerprint": public.fingerprint() }),
        )?;
    } else {
        let line = output.harmless(&path.display().to_string());
        output.line(&line)?;
    }
    Ok(Exit::Done)
}

/// A pair of keys as ZeroMQ's programs take them, in Z85.
fn pair(path: Option<&Path>, output: &mut Output) -> Result<Exit, Failure> {
    let keys = KeyPair::generate();
    let public = keys.public.to_string();
    let secret = keys.secret.expose_z85();
    // Its whole length from the start: what grows leaves copies.
    let mut text = Zeroizing::new(String::with_capacity(256));
    let parts: [&str; 5] = match output.is_json() && path.is_none() {
        true => ["{\"public_key\":\"", &public, "\",\"secret_key\":\"", &secret, "\"}\n"],
        false => ["public_key = \"", &public, "\"\nsecret_key = \"", &secret, "\"\n"],
    };
    parts.into_iter().for_each(|part| text.push_str(part));
    let Some(path) = path else {
        output.bytes(text.as_bytes())?;
        return Ok(Exit::Done);
    };
    if path.symlink_metadata().is_ok() {
        return Err(KeyError::Exists { path: path.to_owned() }.into());
    }
    private_file::replace(path, text.as_bytes())?;
    match output.is_json() {
        true => output.json(&json!({ "file": path, "public_key": public }))?,
        false => output.line(&public)?,
    }
    Ok(Exit::Done)
}
