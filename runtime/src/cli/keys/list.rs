//! `interlock keys list` and `show`: who is enrolled, with which key, until when, and what for.

use clap::Args;
use interlock_bus::{
    KeyStore, PeerName, Permissions, Rules,
    keys::{LastUse, registry::Peer},
};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use super::super::{CliError, Output, output, output::table, remote};
use crate::{
    exit::Exit,
    keys::{RIGHTS, facts, facts_with_rules, placed_rules, state},
    lifecycle::{self, DataDir},
};

#[derive(Debug, Args)]
pub(in super::super) struct List {
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct Show {
    /// Which peer.
    name: PeerName,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn list(arguments: &List, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    let registry = store.registry()?;
    let last_use = last_use(&store, output);
    let now_ms = now_ms();
    if arguments.json {
        for (name, peer) in registry.peers() {
            output.line(&output::json(&facts(name, peer, &last_use, now_ms))?)?;
        }
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        ["NAME", "STATE", "FINGERPRINT", "ISSUED", "EXPIRES", "LAST USE", "PERMISSIONS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, peer) in registry.peers() {
        rows.push(vec![
            name.to_string(),
            state(peer, now_ms).to_owned(),
            peer.key.fingerprint(),
            time(peer.issued_ms),
            time(peer.expires_ms),
            time(last_use.of_peer(name)),
            in_short(&peer.permissions),
        ]);
    }
    if rows.len() == 1 {
        output.say(&format!(
            "no peer is enrolled in `{}`; `interlock keys issue NAME --publish FILTER --subscribe FILTER` enrols one",
            store.registry_path().display()
        ));
        return Ok(Exit::Done);
    }
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

pub(super) fn show(arguments: &Show, data_dir: &DataDir, output: &mut Output) -> Result<Exit, CliError> {
    let store = KeyStore::open(&data_dir.keys())?;
    let registry = store.registry()?;
    let (name, path) = (&arguments.name, store.registry_path());
    let unknown = || interlock_bus::keys::KeyError::UnknownPeer { name: name.clone(), path: path.clone() };
    let peer = registry.peer(name).ok_or_else(unknown)?;
    let last_use = last_use(&store, output);
    let sessions = sessions(data_dir, name, output);
    let now_ms = now_ms();
    if arguments.json {
        let mut facts = facts_with_rules(&store, &registry, name, peer, &last_use, now_ms);
        facts["sessions"] = sessions.map_or(Value::Null, Value::Array);
        output.line(&output::json(&facts)?)?;
        return Ok(Exit::Done);
    }
    let line = registry.source().and_then(|source| source.line_of_peer(name));
    let mut rows = vec![
        ["name".to_owned(), name.to_string()],
        ["state".to_owned(), state(peer, now_ms).to_owned()],
        ["fingerprint".to_owned(), peer.key.fingerprint()],
        ["public key".to_owned(), peer.key.to_string()],
        ["issued".to_owned(), time(peer.issued_ms)],
        ["expires".to_owned(), time(peer.expires_ms)],
        ["last use".to_owned(), time(last_use.of_peer(name))],
        ["last use of this key".to_owned(), time(last_use.of_key(&peer.key))],
        ["enrolled in".to_owned(), place(&path.display().to_string(), line)],
    ];
    for old in &peer.old_keys {
        let ended = if old.until_ms <= now_ms { "ended" } else { "accepted until" };
        let used = time(last_use.of_key(&old.key));
        rows.push([
            "old key".to_owned(),
            format!("{}, {ended} {}, last use {used}", old.key.fingerprint(), time(Some(old.until_ms))),
        ]);
    }
    for rule in placed_rules(&registry, name, peer) {
        let place = place(&path.display().to_string(), rule.line);
        rows.push([rule.right.as_str().to_owned(), format!("{} {}  ({place})", rule.decision, rule.filter)]);
    }
    if peer.permissions.wait {
        rows.push(["wait".to_owned(), "may hold publishers up".to_owned()]);
    }
    match &sessions {
        None => rows.push(["sessions".to_owned(), "nothing runs that could have any".to_owned()]),
        Some(sessions) if sessions.is_empty() => rows.push(["sessions".to_owned(), "none now".to_owned()]),
        Some(sessions) => {
            rows.extend(sessions.iter().map(|session| ["session".to_owned(), session_text(session, peer)]))
        }
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    output.lines(&table(&rows))?;
    Ok(Exit::Done)
}

fn session_text(session: &Value, peer: &Peer) -> String {
    let text = |field: &str| session[field].as_str().unwrap_or("-").to_owned();
    let key = match session["key"].as_str() {
        None => "no key (in process)",
        Some(key) if key == peer.key.to_string() => "this key",
        Some(key) if peer.keys().any(|own| own.to_string() == key) => "an old key",
        Some(_) => "a key of its own",
    };
    let since = time(session["connected_ms"].as_u64());
    format!("{} from {} with {key}, since {since}", text("kind"), text("address"))
}

fn place(file: &str, line: Option<usize>) -> String {
    line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"))
}

/// What others wrote of the last use, or nothing: it is no reason to show nothing at all.
fn last_use(store: &KeyStore, output: &mut Output) -> LastUse {
    store.last_use().unwrap_or_else(|error| {
        output.say(&format!("the last use of keys is not known: {error}"));
        LastUse::default()
    })
}

/// The sessions of a peer; `None` if nothing runs, or it does not say.
fn sessions(data_dir: &DataDir, name: &PeerName, output: &mut Output) -> Option<Vec<Value>> {
    let instance = lifecycle::running(data_dir).ok()??;
    let topic = "$sys/broker/peers".parse().expect("a constant that is a topic");
    let answer: Result<Value, CliError> =
        remote::request(data_dir, &instance, &topic, Default::default(), remote::STATUS_TIMEOUT)
            .and_then(|answer| remote::decode(&answer));
    match answer {
        Ok(rows) => {
            let rows = rows.as_array().cloned().unwrap_or_default();
            Some(rows.into_iter().filter(|row| row["peer"] == name.as_str()).collect())
        }
        Err(error) => {
            output.say(&format!("its sessions are not known: {error}"));
            None
        }
    }
}

/// A moment in local time, as tables show one.
pub(in super::super) fn time(ms: Option<u64>) -> String {
    let moment = ms.and_then(|ms| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
    moment.map_or_else(
        || "-".to_owned(),
        |moment| moment.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

pub(in super::super) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// All rights in one cell: `publish a/#,!a/b; subscribe #`.
pub(in super::super) fn in_short(permissions: &Permissions) -> String {
    let rights = RIGHTS.iter().filter_map(|right| {
        let rules = rules(permissions.rules(*right));
        (!rules.is_empty()).then(|| format!("{} {rules}", right.as_str()))
    });
    let all: Vec<String> = rights.chain(permissions.wait.then(|| "wait".to_owned())).collect();
    if all.is_empty() { "none".to_owned() } else { all.join("; ") }
}

/// Denied filters begin with `!`.
fn rules(rules: &Rules) -> String {
    let allowed = rules.allow.iter().map(ToString::to_string);
    let denied = rules.deny.iter().map(|filter| format!("!{filter}"));
    allowed.chain(denied).collect::<Vec<_>>().join(",")
}
