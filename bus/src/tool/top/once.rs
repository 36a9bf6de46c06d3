//! `bus top --once`: one look, as tables or as an object a line.

use serde_json::{Value, json};

use super::picture::{ActorRow, Actors, Broker, PeerRow, Picture, TopicRow};
use crate::{
    exit::Exit,
    tool::{Failure, Output, table},
};

const TOPICS: &[table::Column] = &[
    ("TOPIC", |row| table::text(&row["topic"])),
    ("MSG/S", |row| table::rate(&row["messages_per_second"])),
    ("B/S", |row| table::bytes(&row["bytes_per_second"])),
    ("TOTAL", |row| table::text(&row["messages"])),
    ("SUBSCRIBERS", |row| table::text(&row["subscribers"])),
    ("SERVERS", |row| table::text(&row["servers"])),
    ("LOST", |row| table::text(&row["lost"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("LAST", |row| table::age(&row["last_seen_ms"])),
];

const PEERS: &[table::Column] = &[
    ("PEER", |row| table::text(&row["peer"])),
    ("STATE", |row| table::text(&row["state"])),
    ("SESSIONS", |row| table::text(&row["sessions"])),
    ("PUBLISHED", |row| table::text(&row["published"])),
    ("DELIVERED", |row| table::text(&row["delivered"])),
    ("QUEUED", |row| table::text(&row["queued"])),
    ("FULL", |row| format!("{}%", table::text(&row["fill_percent"]))),
    ("LOST", |row| table::text(&row["lost"])),
    ("DENIED", |row| table::text(&row["denied"])),
    ("SINCE", |row| table::age(&row["since_ms"])),
];

const ACTORS: &[table::Column] = &[
    ("ACTOR", |row| table::text(&row["actor"])),
    ("STATE", |row| table::text(&row["state"])),
    ("RESTARTS", |row| table::text(&row["restarts"])),
    ("MAILBOX", |row| table::text(&row["mailbox"])),
    ("SINCE", |row| table::age(&row["since_ms"])),
    ("REASON", |row| table::text(&row["reason"])),
];

fn broker_row(broker: &Broker) -> Value {
    json!({
        "kind": "broker", "version": broker.version, "epoch": broker.epoch, "started_ms": broker.started_ms,
        "now_ms": broker.now_ms, "sessions": broker.sessions, "requests_in_flight": broker.requests_in_flight,
        "topics": broker.topics_known, "messages": broker.messages,
        "messages_per_second": broker.messages_per_second, "bytes_per_second": broker.bytes_per_second,
        "lost": broker.lost, "no_subscriber": broker.unwanted, "denied": broker.denied, "refused": broker.refused,
        "refused_last_minute": broker.refused_recently, "registry_problem": broker.registry_problem,
    })
}

fn topic_row(row: &TopicRow) -> Value {
    json!({
        "kind": "topic", "topic": row.topic, "messages_per_second": row.messages_per_second,
        "bytes_per_second": row.bytes_per_second, "messages": row.messages, "subscribers": row.subscribers,
        "servers": row.servers, "lost": row.lost, "no_subscriber": row.unwanted, "denied": row.denied,
        "last_seen_ms": row.last_seen_ms,
    })
}

fn peer_row(row: &PeerRow) -> Value {
    json!({
        "kind": "peer", "peer": row.peer, "state": row.state, "sessions": row.sessions,
        "subscriptions": row.subscriptions, "published": row.published, "delivered": row.delivered,
        "queued": row.queued, "queued_bytes": row.queued_bytes, "fill_percent": row.fill_percent,
        "lost": row.dropped, "denied": row.denied, "since_ms": row.since_ms, "places": row.places,
    })
}

fn actor_row(row: &ActorRow) -> Value {
    json!({
        "kind": "actor", "actor": row.name, "supervisor": row.supervisor, "program": row.kind, "state": row.state,
        "restarts": row.restarts, "mailbox": row.mailbox, "since_ms": row.since_ms, "reason": row.reason,
        "last_failure": row.last_failure,
    })
}

pub(super) fn print(picture: &Picture, output: &mut Output) -> Result<Exit, Failure> {
    let topics: Vec<Value> = picture.topics.iter().map(topic_row).collect();
    let peers: Vec<Value> = picture.peers.iter().map(peer_row).collect();
    let actors: Vec<Value> = picture.actors.rows().iter().map(actor_row).collect();
    let broker = broker_row(&picture.broker);
    if output.is_json() {
        output.json(&broker)?;
        topics.iter().chain(&peers).chain(&actors).try_for_each(|row| output.json(row))?;
    } else {
        summary(&picture.broker, output)?;
        for (rows, columns) in [(&topics, TOPICS), (&peers, PEERS), (&actors, ACTORS)] {
            output.line("")?;
            table::print(rows, columns, output)?;
        }
    }
    let left_out = picture.broker.topics_left_out;
    if left_out > 0 {
        output.note(&format!("{left_out} topics that are less busy are left out; `bus topics` lists all"));
    }
    match &picture.actors {
        Actors::NoRuntime => output.note("no runtime answers on this bus, so there are no actors to show"),
        Actors::Silent(reason) => {
            output.note(&format!("the runtime did not say how its actors are: {reason}"))
        }
        Actors::Unknown | Actors::Tree(..) => {}
    }
    Ok(Exit::Done)
}

fn summary(broker: &Broker, output: &mut Output) -> Result<(), Failure> {
    let line = format!(
        "broker {}  up {}  {} sessions  {} topics  {:.1} msg/s  {}/s  {} messages",
        broker.version,
        table::age(&json!(broker.started_ms)),
        broker.sessions,
        broker.topics_known,
        broker.messages_per_second,
        table::bytes(&json!(broker.bytes_per_second)),
        broker.messages,
    );
    output.line(&output.harmless(&line))?;
    let lost: Vec<String> = broker.lost.iter().map(|(reason, lost)| format!("{reason} {lost}")).collect();
    let lost = if lost.is_empty() { "0".to_owned() } else { lost.join(", ") };
    let (denied, refused, recently) = (broker.denied, broker.refused, broker.refused_recently);
    output.line(&format!("lost {lost}  denied {denied}  refused {refused} ({recently} in the last minute)"))
}
