//! What the broker knows of its own health, asked over the bus.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Finding, some_of};
use crate::{
    blocking,
    client::Client,
    envelope::now_ns,
    exit::Exit,
    inspect, native,
    tool::{ask_broker, failure::Failure, table},
};

/// How far back losses and refusals count.
const RECENT_MS: u64 = 3_600_000;
/// How far the broker's clock may be from ours before deadlines and ends of keys mean something else to both.
const CLOCK_MS: u64 = 1_000;
/// How full a queue may be, in percent, before its subscriber counts as slow; and sessions before there is no room soon.
const FULL_PERCENT: u64 = 80;

/// What an answer of the broker means.
type Judge = fn(&Value) -> Finding;

pub(super) fn examine(client: &Client, info: Result<Value, Failure>) -> Vec<Finding> {
    let mut findings = vec![ping(client)];
    let info = match info {
        Ok(info) => info,
        Err(failure) => {
            let found = format!("the broker answers no questions of this peer: {failure}");
            findings.push(Finding::warn("broker.answers", found).remedy("bus --creds FILE doctor"));
            return findings;
        }
    };
    findings.push(version(&info));
    findings.extend(clock(client));
    findings.push(sessions(&info));
    findings.extend(edit_refused(&info));
    let parts: [(&str, Judge); 5] = [
        ("ledger", ledger),
        ("events", drops),
        ("refusals", refusals),
        ("subscriptions", slow),
        ("gates", gates),
    ];
    for (question, judge) in parts {
        findings.push(match ask_broker(client, question) {
            Ok(answer) => judge(&answer),
            Err(failure) => Finding::warn("broker.answers", format!("`$sys/broker/{question}`: {failure}")),
        });
    }
    if let (Ok(known), Ok(subscriptions)) =
        (ask_broker(client, "topics"), ask_broker(client, "subscriptions"))
    {
        findings.extend(one_ended(known, &subscriptions));
    }
    findings
}

fn ping(client: &Client) -> Finding {
    /// A broker that is busy with others answers within.
    const SLOW: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(10);
    match blocking::wait_until(client.ping(), Instant::now() + PATIENCE) {
        Some(Ok(time)) => {
            let found = format!("a ping came back after {:.1} ms", time.as_secs_f64() * 1e3);
            match time < SLOW {
                true => Finding::ok("broker.ping", found),
                false => Finding::warn("broker.ping", found).remedy("bus ping"),
            }
        }
        Some(Err(error)) => {
            Finding::fail("broker.ping", Exit::NotReady, error.to_string()).remedy("interlock status")
        }
        None => {
            Finding::fail("broker.ping", Exit::NotReady, format!("no answer to a ping within {PATIENCE:?}"))
                .remedy("interlock status")
        }
    }
}

fn version(info: &Value) -> Finding {
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), table::text(&info["version"]));
    let wire = format!("wire {}.{}", native::VERSION_MAJOR, native::VERSION_MINOR);
    if theirs == ours {
        return Finding::ok("versions", format!("tool and broker {ours}, {wire}"));
    }
    Finding::warn("versions", format!("this tool is {ours}, the broker {theirs}; they agree on {wire}"))
        .remedy("bus --version; interlock --version")
}

/// The broker's clock, asked between two looks at ours.
fn clock(client: &Client) -> Option<Finding> {
    let before = now_ns() / 1_000_000;
    let theirs = ask_broker(client, "info").ok()?["now_ms"].as_u64()?;
    let after = now_ns() / 1_000_000;
    let apart = before.saturating_sub(theirs).max(theirs.saturating_sub(after));
    let found = format!("the broker's clock and this one are {apart} ms apart");
    Some(match apart < CLOCK_MS {
        true => Finding::ok("clock", found),
        false => Finding::warn("clock", found).remedy("timedatectl status"),
    })
}

fn sessions(info: &Value) -> Finding {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let (open, most) = (number(&info["sessions"]), number(&info["limits"]["sessions_max"]));
    let since = table::age(&info["started_ms"]);
    let found = format!("{open} of {most} sessions, up for {since}");
    match open.saturating_mul(100) < most.saturating_mul(FULL_PERCENT) {
        true => Finding::ok("broker.sessions", found),
        false => Finding::warn("broker.sessions", found).remedy("bus peers"),
    }
}

fn edit_refused(info: &Value) -> Option<Finding> {
    let problem = info["registry_problem"]["error"].as_str()?;
    let found = format!("the last edit of the registry is not in force: {problem}");
    Some(Finding::fail("registry.in_force", Exit::Damaged, found).remedy("interlock keys list"))
}

fn rows(answer: &Value) -> &[Value] {
    answer.as_array().map_or(&[], Vec::as_slice)
}

fn ledger(answer: &Value) -> Finding {
    let unbalanced = rows(answer).iter().filter(|row| row["balances"] != true).count();
    let found = format!("{} of {} rows balance", rows(answer).len() - unbalanced, rows(answer).len());
    match unbalanced {
        0 => Finding::ok("broker.ledger", found),
        _ => {
            Finding::fail("broker.ledger", Exit::Failed, format!("{found}; that is a bug, please report it"))
                .remedy("bus audit --json")
        }
    }
}

fn is_recent(at_ms: &Value) -> bool {
    at_ms.as_u64().is_some_and(|at_ms| at_ms + RECENT_MS >= now_ns() / 1_000_000)
}

/// The most frequent of some counted things, and how many there are in all.
fn most(counts: &BTreeMap<String, u64>) -> (u64, Option<&str>) {
    let first = counts.iter().max_by_key(|(_, count)| **count).map(|(what, _)| what.as_str());
    (counts.values().sum(), first)
}

/// Losses of the last hour, as far back as the broker remembers.
fn drops(answer: &Value) -> Finding {
    const CHECK: &str = "broker.drops";
    let last = rows(&answer["last"]);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut topic = None;
    for row in last.iter().filter(|row| row["topic"] == "$sys/dropped" && is_recent(&row["at_ms"])) {
        let event = &row["event"];
        let text = |name: &str| table::text(&event[name]);
        let what = format!("`{}` to `{}` ({})", text("topic"), text("subscriber"), text("reason"));
        *counts.entry(what).or_default() += event["count"].as_u64().unwrap_or_default();
        topic = event["topic"].as_str().or(topic);
    }
    let is_whole = answer["count"].as_u64() <= Some(last.len() as u64)
        || last.first().is_some_and(|oldest| !is_recent(&oldest["at_ms"]));
    let at_least = if is_whole { "" } else { "at least " };
    match most(&counts) {
        (0, _) => Finding::ok(CHECK, "nothing was dropped in the last hour"),
        (all, first) => {
            let found = format!(
                "{at_least}{all} messages dropped in the last hour, most {}",
                first.unwrap_or_default()
            );
            let remedy =
                topic.map_or_else(|| "bus audit --all".to_owned(), |topic| format!("bus info {topic}"));
            Finding::warn(CHECK, found).remedy(remedy)
        }
    }
}

fn refusals(answer: &Value) -> Finding {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows(&answer["last"]).iter().filter(|row| is_recent(&row["at_ms"])) {
        let who = row["peer"].as_str().or(row["address"].as_str()).unwrap_or_default();
        *counts.entry(format!("`{}` of {who}", table::text(&row["code"]))).or_default() += 1;
    }
    match most(&counts) {
        (0, _) => Finding::ok("broker.refusals", "no connection was refused in the last hour"),
        (all, first) => {
            let found =
                format!("{all} connections refused in the last hour, most {}", first.unwrap_or_default());
            Finding::warn("broker.refusals", found).remedy("bus auth")
        }
    }
}

/// Subscribers whose queue is nearly full now.
fn slow(answer: &Value) -> Finding {
    let is_full = |row: &Value, what: &str, most: &str| {
        let number = |field: &str| row[field].as_u64().unwrap_or_default();
        number(most) > 0 && number(what).saturating_mul(100) >= number(most).saturating_mul(FULL_PERCENT)
    };
    let slow: Vec<String> = rows(answer)
        .iter()
        .filter(|row| {
            is_full(row, "queued", "queue_messages_max") || is_full(row, "queued_bytes", "queue_bytes_max")
        })
        .map(|row| format!("{} on {}", table::text(&row["peer"]), table::text(&row["filter"])))
        .collect();
    match slow.is_empty() {
        true => Finding::ok(
            "broker.slow",
            format!("{} subscriptions, none with a full queue", rows(answer).len()),
        ),
        false => Finding::warn("broker.slow", format!("queues that are nearly full: {}", some_of(&slow)))
            .remedy("bus events '$sys/slow'"),
    }
}

fn gates(answer: &Value) -> Finding {
    let is_closed = |row: &&Value| !matches!(row["state"].as_str(), Some("open" | "flushing"));
    let closed: Vec<String> = rows(answer)
        .iter()
        .filter(is_closed)
        .map(|row| {
            format!(
                "{} on {} ({})",
                table::text(&row["peer"]),
                table::text(&row["topic"]),
                table::text(&row["state"])
            )
        })
        .collect();
    match closed.is_empty() {
        true => Finding::ok("broker.gates", format!("{} gated publishers, none waits", rows(answer).len())),
        false => Finding::warn(
            "broker.gates",
            format!("publishers that wait for their consumers: {}", some_of(&closed)),
        )
        .remedy("bus gates"),
    }
}

/// Topics with a publisher and nobody to hear it, and filters for which nothing comes.
fn one_ended(known: Value, subscriptions: &Value) -> [Finding; 2] {
    let judged = inspect::judged(known, rows(subscriptions));
    ["published", "subscribed"].map(|state| {
        let (check, none, some) = match state {
            "published" => {
                ("topics.unheard", "each topic has somebody who gets it", "published, and nobody subscribes")
            }
            _ => (
                "topics.silent",
                "each subscription gets something",
                "subscribed or served, and nothing came yet",
            ),
        };
        let of_state: Vec<&Value> = judged.iter().filter(|row| row["state"] == state).collect();
        let name = |row: &&Value| match row["did_you_mean"].as_str() {
            Some(other) => format!("{} (did you mean {other}?)", table::text(&row["topic"])),
            None => table::text(&row["topic"]),
        };
        // What was meant for somebody stands first.
        let (meant, others): (Vec<&Value>, Vec<&Value>) =
            of_state.into_iter().partition(|row| row["did_you_mean"].is_string());
        let names: Vec<String> = meant.iter().chain(&others).map(name).collect();
        if names.is_empty() {
            return Finding::ok(check, none);
        }
        let found = format!("{some}: {}", some_of(&names));
        // Nobody has to listen, and nothing has to come; only a name that is nearly another one is a mistake.
        match meant.is_empty() {
            true => Finding::ok(check, found),
            false => Finding::warn(check, found).remedy(format!("bus topics --only {state}")),
        }
    })
}
