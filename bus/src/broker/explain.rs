//! One topic from all sides, and why a peer may or may not: answers in which permissions become visible.
//!
//! Everything is asked of what the data path itself asks: [`Rules::decide`], [`may_publish`], [`Hub::receiver`],
//! [`Hub::serving`]. There is no second opinion here.

mod path;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    control::{Question, publishers, rates, sizes},
    hub::{
        Hub, Lane, Matcher, Session, SessionId,
        route::{is_brokers_own, may_publish},
    },
    ledger::{Counts, RowKey},
    readiness,
};
use crate::{
    keys::{Decision, KeyState, Permissions, Right, Rules, registry::enrolment},
    native::Operation,
    peer::PeerName,
    topic::TopicName,
};

pub(super) use path::path;

/// What decides about a peer's right on a topic, and where that stands.
fn rule(hub: &Hub, peer: &PeerName, right: Right, rules: &Rules, topic: &TopicName) -> Value {
    let (list, filter) = match rules.decide(topic) {
        Decision::Deny(filter) => ("deny", Some(filter)),
        Decision::Allow(filter) => ("allow", Some(filter)),
        Decision::Default => ("default", None),
    };
    let source = hub.security.roster.source.as_ref();
    let line = source.and_then(|source| match filter {
        Some(filter) => source.line_of_rule(peer, right, list, filter),
        None => source.line_of_peer(peer),
    });
    json!({
        "decision": list,
        "filter": filter,
        "file": source.map(|source| source.path()),
        "line": line,
    })
}

/// The rule as a sentence.
fn sentence(rule: &Value, right: Right) -> String {
    let right = right.as_str();
    let place = match (rule["file"].as_str(), rule["line"].as_u64()) {
        (Some(file), Some(line)) => format!(" ({file}, line {line})"),
        (Some(file), None) => format!(" ({file})"),
        _ => String::new(),
    };
    match rule["filter"].as_str() {
        Some(filter) => {
            format!("`{right}.{}` has `{filter}`{place}", rule["decision"].as_str().unwrap_or_default())
        }
        None => format!("no filter of `{right}.allow` matches, so it is denied by default{place}"),
    }
}

/// Deny filters that leave topics out of what a lane asks for.
fn left_out<'a>(lane: &Lane, permissions: &'a Permissions) -> Vec<&'a str> {
    let right = if lane.serve { Right::Serve } else { Right::Subscribe };
    let overlaps = |deny: &crate::topic::TopicFilter| match &lane.matcher {
        Matcher::Filter(filter) => deny.overlaps(filter),
        Matcher::Prefixes(prefixes) => prefixes.iter().any(|prefix| {
            // A prefix and a filter meet unless their first levels without wildcards differ.
            let fixed = deny.as_str().split(['+', '#']).next().unwrap_or_default().as_bytes();
            let common = fixed.len().min(prefix.len());
            fixed[..common] == prefix[..common]
        }),
    };
    let deny = &permissions.rules(right).deny;
    deny.iter().filter(|filter| overlaps(filter)).map(|filter| filter.as_str()).collect()
}

fn counts(counts: &Counts) -> Value {
    json!({
        "published": counts.published,
        "delivered": counts.delivered,
        "queued": counts.queued,
        "denied": counts.denied,
        "dropped": counts.dropped.iter().sum::<u64>(),
    })
}

fn receiver(
    hub: &Hub,
    id: SessionId,
    session: &Session,
    lane: &Lane,
    topic: &TopicName,
    all: &Sums,
) -> Value {
    let right = if lane.serve { Right::Serve } else { Right::Subscribe };
    let permissions = &session.info.permissions;
    json!({
        "peer": session.info.peer,
        "session": id.to_string(),
        "kind": session.info.kind,
        "filter": lane.matcher.describe(),
        "group": lane.group,
        "overflow": lane.queue.overflow(),
        "permitted": permissions.permit(right, topic),
        "rule": rule(hub, &session.info.peer, right, permissions.rules(right), topic),
        "leaves_out": left_out(lane, permissions),
        "queued": lane.queue.depth(),
        "queued_bytes": lane.queue.depth_bytes(),
        "of_topic": counts(all.get(&session.info.peer).unwrap_or(&Counts::default())),
    })
}

/// What the ledger says of a topic, by subscriber.
type Sums = BTreeMap<PeerName, Counts>;

fn sums(hub: &Hub, topic: &TopicName, of: impl Fn(&RowKey) -> Option<&PeerName>) -> Sums {
    let mut sums = Sums::new();
    for (key, counts) in hub.ledger.rows().filter(|(key, _)| key.topic.as_ref() == Some(topic)) {
        if let Some(peer) = of(&key) {
            sums.entry(peer.clone()).or_default().add(&counts);
        }
    }
    sums
}

/// One topic: its statistics, and everybody who has to do with it.
pub(super) fn topic(hub: &Hub, topic: &TopicName) -> Result<Value, String> {
    let found = hub.statistics.find(topic);
    let statistics = found.map(|(id, row)| {
        let [messages_per_second, bytes_per_second] = rates(&hub.statistics.rates(hub.now_ms)[id.0 as usize]);
        json!({
            "messages": row.messages, "bytes": row.bytes, "requests": row.requests, "denied": row.denied,
            "largest": row.largest, "sizes": sizes(row), "last_seen_ms": row.last_seen_ms,
            "messages_per_second": messages_per_second, "bytes_per_second": bytes_per_second,
        })
    });
    let by_publisher = sums(hub, topic, |key| key.publisher.as_ref());
    let by_subscriber = sums(hub, topic, |key| key.subscriber.as_ref());
    let mut names: Vec<&PeerName> = by_publisher.keys().collect();
    names.extend(found.into_iter().flat_map(|(_, row)| publishers(hub, row)));
    names.sort_unstable();
    names.dedup();
    let publishers = names.into_iter().map(|peer| {
        let session = hub.each_session().find(|(_, session)| session.info.peer == *peer).map(|(_, session)| session);
        let registered = hub.security.roster.peers.get(peer).map(|peer| &peer.permissions);
        let permissions = session.map(|session| &session.info.permissions).or(registered);
        json!({
            "peer": peer,
            "connected": session.is_some(),
            "permitted": permissions.map(|permissions| may_publish(permissions, topic)),
            "rule": permissions.map(|permissions| rule(hub, peer, Right::Publish, &permissions.publish, topic)),
            "of_topic": by_publisher.get(peer).map(counts),
        })
    });
    let publishers: Value = publishers.collect();
    let receivers = |serve: bool| -> Value {
        let sessions = hub.each_session().flat_map(|(id, session)| {
            let matching = move |lane: &&Lane| lane.serve == serve && lane.matches(topic);
            session.lanes.iter().filter(matching).map(move |lane| (id, session, lane))
        });
        sessions.map(|(id, session, lane)| receiver(hub, id, session, lane, topic, &by_subscriber)).collect()
    };
    let retained = hub.retained.get(topic).map(|block| {
        json!({
            "payload_bytes": block.payload_bytes(), "sequence": block.sequence,
            "publisher": hub.peer_of_origin(block.origin),
        })
    });
    Ok(json!({
        "topic": topic, "statistics": statistics, "retained": retained, "held": hub.is_topic_held(topic),
        "publishers": publishers, "subscribers": receivers(false), "servers": receivers(true),
    }))
}

/// The steps of an explanation, in the order in which the broker takes them.
#[derive(Default)]
struct Steps {
    steps: Vec<Value>,
    /// `denied` if any step says so; else the first step that failed decides.
    verdict: Option<&'static str>,
}

impl Steps {
    fn add(&mut self, step: &str, failed: Option<&'static str>, text: String, facts: Value) {
        self.verdict = failed.filter(|failed| *failed == "denied").or(self.verdict).or(failed);
        self.steps.push(json!({ "step": step, "ok": failed.is_none(), "text": text, "facts": facts }));
    }
}

/// Why a peer may or may not publish, receive, serve or request a topic: key, session, rule, match, queue, refusal.
pub(super) fn why(hub: &Hub, question: &Question) -> Result<Value, String> {
    let (peer, right, topic) = (question.peer()?, question.right()?, question.topic()?);
    let mut steps = Steps::default();
    explain_key(hub, &peer, &mut steps);
    let sessions: Vec<(SessionId, &Session)> =
        hub.each_session().filter(|(_, session)| session.info.peer == peer).collect();
    explain_session(hub, &peer, &sessions, &mut steps);
    let registered = hub.security.roster.peers.get(&peer).map(|peer| &*peer.permissions);
    let none = Permissions::default();
    let permissions =
        sessions.first().map(|(_, session)| &*session.info.permissions).or(registered).unwrap_or(&none);
    explain_rule(hub, &peer, right, permissions, &topic, &mut steps);
    match right {
        Right::Publish => explain_receivers(hub, &topic, &mut steps),
        Right::Request => explain_servers(hub, &topic, &mut steps),
        Right::Subscribe | Right::Serve => {
            explain_own_lanes(&sessions, right == Right::Serve, &topic, &mut steps)
        }
    }
    let operation = match right {
        Right::Publish => Operation::Publish,
        Right::Subscribe => Operation::Subscribe,
        Right::Serve => Operation::Serve,
        Right::Request => Operation::Request,
    };
    let denials = hub.denials.all();
    let last = denials.into_iter().find(|denial| {
        denial.peer == peer && denial.operation == operation && denial.topic == topic.as_str()
    });
    if let Some(denial) = last {
        let text =
            format!("was denied {} times, the last time as {}: {}", denial.count, denial.code, denial.text);
        steps.add("last_denial", None, text, json!(denial));
    }
    Ok(json!({
        "peer": peer, "operation": right, "topic": topic,
        "verdict": steps.verdict.unwrap_or("yes"), "steps": steps.steps,
    }))
}

fn explain_key(hub: &Hub, peer: &PeerName, steps: &mut Steps) {
    let file = hub.security.roster.source.as_ref().map(|source| source.path().display().to_string());
    let file = file.unwrap_or_else(|| "the registry".to_owned());
    match hub.security.roster.peers.get(peer) {
        None => {
            let text = format!("`{peer}` is not in {file}; {}", enrolment(peer));
            steps.add("key", Some("denied"), text, Value::Null);
        }
        Some(registered) => {
            let has_expired = registered.has_expired(hub.now_ms);
            let text = match registered.state {
                KeyState::Revoked => {
                    format!("the key of `{peer}` is revoked; {}", enrolment(peer))
                }
                KeyState::Active if has_expired => format!(
                    "the key of `{peer}` has expired; give it another with `interlock keys rotate {peer} --expires 30d`"
                ),
                KeyState::Active => format!("`{peer}` has an active key in {file}"),
            };
            let facts = json!({
                "key": registered.key.to_string(), "state": registered.state, "expires_ms": registered.expires_ms,
            });
            let is_denied = registered.state == KeyState::Revoked || has_expired;
            steps.add("key", is_denied.then_some("denied"), text, facts);
        }
    }
}

fn explain_session(hub: &Hub, peer: &PeerName, sessions: &[(SessionId, &Session)], steps: &mut Steps) {
    if sessions.is_empty() {
        let refusal = hub.refusals.last().find(|event| event.peer.as_deref() == Some(peer.as_str()));
        let text = match refusal {
            Some(event) => {
                format!("it has no session; its last attempt was refused as {}: {}", event.code, event.text)
            }
            None => "it has no session, and no attempt of it was refused; is it running?".to_owned(),
        };
        return steps.add("session", Some("not_ready"), text, json!(refusal));
    }
    let facts: Value = sessions
        .iter()
        .map(|(id, session)| {
            json!({
                "session": id.to_string(), "kind": session.info.kind, "address": session.info.address,
                "program": session.program, "connected_ms": session.opened_ms,
            })
        })
        .collect();
    let plural = if sessions.len() == 1 { "" } else { "s" };
    steps.add("session", None, format!("it has {} session{plural}", sessions.len()), facts);
}

fn explain_rule(
    hub: &Hub,
    peer: &PeerName,
    right: Right,
    permissions: &Permissions,
    topic: &TopicName,
    steps: &mut Steps,
) {
    let rules = permissions.rules(right);
    let decided = rule(hub, peer, right, rules, topic);
    let (mut may, mut text) = (rules.permit(topic), sentence(&decided, right));
    match right {
        Right::Publish => {
            may = may_publish(permissions, topic);
            if is_brokers_own(topic) {
                text = "only the broker publishes below `$sys` and `$peers`".to_owned();
            }
        }
        Right::Request if !may && readiness::Question::of(topic).is_some() => {
            let forbidden = matches!(rules.decide(topic), Decision::Deny(_));
            (may, text) = (
                !forbidden,
                format!("{text}; whoever may publish the topic that it asks about may ask, unless denied"),
            );
        }
        _ => {}
    }
    steps.add("rule", (!may).then_some("denied"), text, decided);
}

fn explain_receivers(hub: &Hub, topic: &TopicName, steps: &mut Steps) {
    let mut receiving = Vec::new();
    let mut left_out = Vec::new();
    for (id, session) in hub.each_session() {
        if !session.lanes.iter().any(|lane| !lane.serve && lane.matches(topic)) {
            continue;
        }
        match hub.receiver(id, topic) {
            Some(receiver) => receiving.push((receiver, session)),
            None => left_out.push(session.info.peer.to_string()),
        }
    }
    let names: Vec<&str> = receiving.iter().map(|(receiver, _)| receiver.peer.as_str()).collect();
    let mut text = match names.is_empty() {
        true => format!("nobody receives `{topic}`; what is published is counted as dropped (no_subscriber)"),
        false => format!("received by {}", names.join(", ")),
    };
    if !left_out.is_empty() {
        text = format!("{text}; left out, because they may not have it: {}", left_out.join(", "));
    }
    let facts = json!({
        "receivers": receiving.iter().map(|(receiver, _)| receiver).collect::<Vec<_>>(), "left_out": left_out,
    });
    steps.add("match", names.is_empty().then_some("not_ready"), text, facts);
    let full: Vec<String> = receiving
        .iter()
        .filter_map(|(receiver, session)| {
            let lane = session.lanes.iter().find(|lane| lane.id == receiver.subscription)?;
            let queued = lane.queue.depth();
            (!lane.queue.has_room())
                .then(|| format!("{} ({queued} queued, {})", receiver.peer, lane.queue.overflow().as_str()))
        })
        .collect();
    let text = match (full.is_empty(), hub.is_topic_held(topic)) {
        (_, true) => format!("publishers are held until there is room again: {}", full.join(", ")),
        (false, false) => format!("more than half full: {}", full.join(", ")),
        (true, false) => "every queue has room".to_owned(),
    };
    steps.add("queue", hub.is_topic_held(topic).then_some("not_ready"), text, json!(full));
}

fn explain_servers(hub: &Hub, topic: &TopicName, steps: &mut Steps) {
    if let Some(rest) = topic.as_str().strip_prefix("$sys/broker/") {
        return steps.add("match", None, format!("the broker itself answers `{rest}`"), Value::Null);
    }
    let servers: Vec<String> = hub.serving(topic).into_iter().map(|(.., peer)| peer.to_string()).collect();
    let text = match servers.is_empty() {
        true => format!("nobody serves `{topic}`; a request is answered at once with no_responders"),
        false => format!("served by {}", servers.join(", ")),
    };
    steps.add("match", servers.is_empty().then_some("not_ready"), text, json!(servers));
}

/// Whether the peer has asked for the topic at all.
fn explain_own_lanes(sessions: &[(SessionId, &Session)], serve: bool, topic: &TopicName, steps: &mut Steps) {
    let lanes = || sessions.iter().flat_map(|(_, session)| &session.lanes).filter(|lane| lane.serve == serve);
    let matching: Vec<&Lane> = lanes().filter(|lane| lane.matches(topic)).collect();
    let verb = if serve { "serves" } else { "subscribes to" };
    if matching.is_empty() {
        let filters: Vec<String> = lanes().map(|lane| lane.matcher.describe()).collect();
        let has = if filters.is_empty() { "nothing".to_owned() } else { filters.join(", ") };
        let text = format!("it {verb} {has}, which does not match `{topic}`");
        return steps.add("match", Some("not_ready"), text, json!(filters));
    }
    let filters: Vec<String> = matching.iter().map(|lane| lane.matcher.describe()).collect();
    steps.add("match", None, format!("it {verb} {}", filters.join(", ")), json!(filters));
    let queued: u64 = matching.iter().map(|lane| lane.queue.depth()).sum();
    let has_room = matching.iter().all(|lane| lane.queue.has_room());
    let room = if has_room { "there is room" } else { "a queue is more than half full" };
    steps.add("queue", None, format!("{queued} messages are queued or not credited; {room}"), json!(queued));
}
