//! What the broker answers about the way from a publisher to everybody on a topic.

use std::collections::BTreeMap;

use serde_json::Value;

/// One look.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    pub(super) permitted: bool,
    pub(super) may_request: bool,
    pub(super) rule: Value,
    pub(super) request_rule: Value,
    /// Publishers wait for a full subscriber.
    pub(super) held: bool,
    pub(super) subscribers: Vec<Receiver>,
    pub(super) servers: Vec<Receiver>,
    /// By subscriber; the one for nobody under the empty name.
    ledger: BTreeMap<String, Row>,
}

/// One subscription or service that matches the topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Receiver {
    pub(super) peer: String,
    pub(super) session: String,
    pub(super) subscription: u64,
    pub(super) filter: String,
    pub(super) group: Option<String>,
    pub(super) overflow: String,
    pub(super) kind: String,
    pub(super) permitted: bool,
    /// Whether the session's copy goes through it; else another subscription of the session shares its own.
    pub(super) has_queue: bool,
    /// Messages in its queue, of anybody.
    pub(super) queued: u64,
    pub(super) rule: Value,
    pub(super) is_server: bool,
}

/// What the ledger says of one subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) published: u64,
    pub(super) delivered: u64,
    pub(super) queued: u64,
    pub(super) denied: u64,
    pub(super) dropped: BTreeMap<String, u64>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

impl Path {
    pub(super) fn read(answer: &Value) -> Self {
        let rows = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
        let receivers =
            |name: &str| rows(name).iter().map(|row| Receiver::read(row, name == "servers")).collect();
        Self {
            permitted: answer["permitted"] == true,
            may_request: answer["may_request"] == true,
            rule: answer["rule"].clone(),
            request_rule: answer["request_rule"].clone(),
            held: answer["held"] == true,
            subscribers: receivers("subscribers"),
            servers: receivers("servers"),
            ledger: rows("ledger").iter().map(|row| (text(&row["subscriber"]), Row::read(row))).collect(),
        }
    }

    /// Those who get a message, or a request.
    pub(super) fn receivers(&self, is_request: bool) -> impl Iterator<Item = &Receiver> {
        if is_request { self.servers.iter() } else { self.subscribers.iter() }
    }

    /// What the ledger says of a subscriber; nothing stands for zeros.
    pub(super) fn row(&self, peer: &str) -> Row {
        self.ledger.get(peer).cloned().unwrap_or_default()
    }
}

impl Receiver {
    fn read(row: &Value, is_server: bool) -> Self {
        Self {
            peer: text(&row["peer"]),
            session: text(&row["session"]),
            subscription: number(&row["subscription"]),
            filter: text(&row["filter"]),
            group: row["group"].as_str().map(str::to_owned),
            overflow: text(&row["overflow"]),
            kind: text(&row["kind"]),
            permitted: row["permitted"] == true,
            has_queue: row["has_queue"] == true,
            queued: number(&row["queued"]),
            rule: row["rule"].clone(),
            is_server,
        }
    }
}

impl Row {
    fn read(row: &Value) -> Self {
        let dropped = row["dropped"].as_object().into_iter().flatten();
        Self {
            published: number(&row["published"]),
            delivered: number(&row["delivered"]),
            queued: number(&row["queued"]),
            denied: number(&row["denied"]),
            dropped: dropped.map(|(reason, count)| (reason.clone(), number(count))).collect(),
        }
    }

    /// What came since another look at the same row.
    pub(super) fn since(&self, before: &Self) -> Self {
        let more = |reason: &String, count: u64| {
            count.saturating_sub(before.dropped.get(reason).copied().unwrap_or(0))
        };
        let dropped = self.dropped.iter().map(|(reason, count)| (reason.clone(), more(reason, *count)));
        Self {
            published: self.published.saturating_sub(before.published),
            delivered: self.delivered.saturating_sub(before.delivered),
            queued: self.queued,
            denied: self.denied.saturating_sub(before.denied),
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
