//! One look at the bus: what the broker and the runtime have said, as rows.

use std::collections::BTreeMap;

use serde_json::Value;

/// Everything that is shown at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Picture {
    pub(super) broker: Broker,
    pub(super) topics: Vec<TopicRow>,
    pub(super) peers: Vec<PeerRow>,
    pub(super) actors: Actors,
    pub(super) refusals: Vec<Refusal>,
}

/// The broker, and sums over all topics.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Broker {
    pub(super) version: String,
    /// Changes with each start: counters of another one cannot be compared.
    pub(super) epoch: String,
    pub(super) started_ms: u64,
    pub(super) now_ms: u64,
    pub(super) messages: u64,
    pub(super) messages_per_second: f64,
    pub(super) bytes_per_second: f64,
    /// Lost messages by reason, without those that nobody wanted, or not any more.
    pub(super) lost: BTreeMap<String, u64>,
    /// Messages for which there was no subscriber.
    pub(super) unwanted: u64,
    /// Refused connections since the start, and within the last minute.
    pub(super) refused: u64,
    pub(super) refused_recently: u64,
    /// Refused operations of peers since the start.
    pub(super) denied: u64,
    pub(super) sessions: u64,
    pub(super) requests_in_flight: u64,
    pub(super) topics_known: u64,
    /// Topics that were asked for and not told, because there are too many.
    pub(super) topics_left_out: u64,
    /// What is wrong with the file of authorised peers, if anything.
    pub(super) registry_problem: Option<String>,
    /// Messages of all topics, each over so many seconds, oldest first.
    pub(super) cells: Vec<u64>,
    pub(super) cell_seconds: u64,
}

/// One topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TopicRow {
    pub(super) topic: String,
    pub(super) messages_per_second: f64,
    pub(super) bytes_per_second: f64,
    pub(super) messages: u64,
    pub(super) subscribers: u64,
    pub(super) servers: u64,
    pub(super) lost: u64,
    pub(super) unwanted: u64,
    pub(super) denied: u64,
    pub(super) last_seen_ms: u64,
    pub(super) cells: Vec<u64>,
}

/// One peer with all its sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PeerRow {
    pub(super) peer: String,
    pub(super) state: &'static str,
    pub(super) sessions: u64,
    pub(super) subscriptions: u64,
    pub(super) published: u64,
    pub(super) delivered: u64,
    /// A second, since the look before; `None` on the first.
    pub(super) in_rate: Option<f64>,
    pub(super) out_rate: Option<f64>,
    pub(super) queued: u64,
    pub(super) queued_bytes: u64,
    /// How full its fullest queue is.
    pub(super) fill_percent: u64,
    pub(super) dropped: u64,
    pub(super) denied: u64,
    pub(super) since_ms: u64,
    /// Addresses and programs of its sessions.
    pub(super) places: Vec<String>,
}

/// What the runtime says of its components.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Actors {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// Nobody answers for a runtime on this bus.
    NoRuntime,
    /// It did not say.
    Silent(String),
    /// The state of the whole tree, and its rows.
    Tree(String, Vec<ActorRow>),
}

/// One component of the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ActorRow {
    pub(super) name: String,
    pub(super) supervisor: String,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) restarts: u64,
    pub(super) mailbox: u64,
    pub(super) since_ms: u64,
    /// Why it is as it is: what impairs it, what it waits for, its last failure, else what it says of itself.
    pub(super) reason: String,
    pub(super) last_failure: Option<String>,
}

/// A connection or an operation that was refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Refusal {
    pub(super) at_ms: u64,
    pub(super) peer: Option<String>,
    pub(super) code: String,
    pub(super) text: String,
    /// The operation and its topic; `None` if it was a connection.
    pub(super) operation: Option<(String, String)>,
    pub(super) count: u64,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Lost messages by reason, and how many nobody wanted.
fn losses(dropped: &Value) -> (BTreeMap<String, u64>, u64) {
    let mut all: BTreeMap<String, u64> = dropped
        .as_object()
        .into_iter()
        .flatten()
        .map(|(reason, count)| (reason.clone(), number(count)))
        .collect();
    let unwanted = all.remove("no_subscriber").unwrap_or_default();
    // What its policy, or its own end, does not want is not lost.
    all.remove("replaced");
    all.remove("unsubscribed");
    (all, unwanted)
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().into_iter().flatten().map(number).collect()
}

impl Picture {
    /// From the broker's answer to `overview`.
    pub(super) fn read(overview: &Value, actors: Actors) -> Self {
        let rows = |name: &str| overview[name].as_array().map_or(&[][..], Vec::as_slice);
        let mut refusals: Vec<Refusal> = rows("refused").iter().map(Refusal::of_connection).collect();
        refusals.extend(rows("denied").iter().map(Refusal::of_operation));
        refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.at_ms));
        Self {
            broker: Broker::read(overview),
            topics: rows("topics").iter().map(TopicRow::read).collect(),
            peers: peers(rows("sessions"), rows("absent")),
            actors,
            refusals,
        }
    }

    /// Fills in what follows from the look before, so many seconds ago.
    pub(super) fn compare(&mut self, before: &Self, seconds: f64) {
        if before.broker.epoch != self.broker.epoch || seconds <= 0.0 {
            return;
        }
        let known: BTreeMap<&str, &PeerRow> =
            before.peers.iter().map(|peer| (peer.peer.as_str(), peer)).collect();
        for peer in &mut self.peers {
            let Some(before) = known.get(peer.peer.as_str()) else { continue };
            // Fewer than before: one of its sessions has ended.
            let rate = |now: u64, then: u64| Some(now.checked_sub(then)? as f64 / seconds);
            peer.in_rate = rate(peer.published, before.published);
            peer.out_rate = rate(peer.delivered, before.delivered);
        }
    }
}

impl Broker {
    fn read(overview: &Value) -> Self {
        let totals = &overview["totals"];
        let (lost, unwanted) = losses(&totals["dropped"]);
        Self {
            version: text(&overview["version"]),
            epoch: text(&overview["epoch"]),
            started_ms: number(&overview["started_ms"]),
            now_ms: number(&overview["now_ms"]),
            messages: number(&totals["messages"]),
            messages_per_second: totals["messages_per_second"]["1s"].as_f64().unwrap_or_default(),
            bytes_per_second: totals["bytes_per_second"]["1s"].as_f64().unwrap_or_default(),
            lost,
            unwanted,
            refused: number(&totals["refused"]),
            refused_recently: number(&totals["refused_recently"]),
            denied: number(&totals["denied"]),
            sessions: number(&totals["sessions"]),
            requests_in_flight: number(&totals["requests_in_flight"]),
            topics_known: number(&overview["topics_known"]),
            topics_left_out: number(&overview["topics_left_out"]),
            registry_problem: overview["registry_problem"].as_str().map(str::to_owned),
            cells: numbers(&overview["cells"]),
            cell_seconds: number(&overview["cell_seconds"]).max(1),
        }
    }

    pub(super) fn lost_in_all(&self) -> u64 {
        self.lost.values().sum()
    }
}

impl TopicRow {
    fn read(row: &Value) -> Self {
        let (lost, unwanted) = losses(&row["dropped"]);
        Self {
            topic: text(&row["topic"]),
            messages_per_second: row["messages_per_second"]["1s"].as_f64().unwrap_or_default(),
            bytes_per_second: row["bytes_per_second"]["1s"].as_f64().unwrap_or_default(),
            messages: number(&row["messages"]),
            subscribers: number(&row["subscribers"]),
            servers: number(&row["servers"]),
            lost: lost.values().sum(),
            unwanted,
            denied: number(&row["denied"]),
            last_seen_ms: number(&row["last_seen_ms"]),
            cells: numbers(&row["cells"]),
        }
    }
}

/// Sessions by peer, and behind them registered peers that have none.
fn peers(sessions: &[Value], absent: &[Value]) -> Vec<PeerRow> {
    let mut rows: BTreeMap<String, PeerRow> = BTreeMap::new();
    for session in sessions {
        let name = text(&session["peer"]);
        let row = rows.entry(name.clone()).or_insert_with(|| PeerRow {
            peer: name,
            state: "ok",
            ..PeerRow::default()
        });
        row.sessions += 1;
        row.subscriptions += number(&session["subscriptions"]);
        row.published += number(&session["published"]);
        row.delivered += number(&session["delivered"]);
        row.queued += number(&session["queued"]);
        row.queued_bytes += number(&session["queued_bytes"]);
        row.fill_percent = row.fill_percent.max(number(&session["fill_percent"]));
        row.dropped += number(&session["dropped"]);
        row.denied += number(&session["denied"]);
        let connected_ms = number(&session["connected_ms"]);
        row.since_ms = if row.since_ms == 0 { connected_ms } else { row.since_ms.min(connected_ms) };
        let about = [&session["kind"], &session["address"], &session["program"]].map(text);
        row.places.push(about.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  "));
        if session["slow"] == true {
            row.state = "slow";
        } else if number(&session["held_topics"]) > 0 && row.state == "ok" {
            row.state = "held";
        }
    }
    for peer in absent {
        let name = text(&peer["peer"]);
        let state = match (peer["key"] == "revoked", peer["expired"] == true) {
            (true, _) => "revoked",
            (false, true) => "expired",
            (false, false) => "absent",
        };
        rows.insert(name.clone(), PeerRow { peer: name, state, ..PeerRow::default() });
    }
    rows.into_values().collect()
}

/// Unix milliseconds of a time as the runtime writes it; zero if it is none.
fn milliseconds(time: &Value) -> u64 {
    let time = time.as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or_default()
}

impl Actors {
    /// From the runtime's answer.
    pub(super) fn read(status: &Value) -> Self {
        let rows = status["tree"]["children"].as_array().into_iter().flatten().map(ActorRow::read);
        Self::Tree(text(&status["tree"]["state"]), rows.collect())
    }

    pub(super) fn rows(&self) -> &[ActorRow] {
        match self {
            Self::Tree(_, rows) => rows,
            _ => &[],
        }
    }
}

impl ActorRow {
    fn read(child: &Value) -> Self {
        let last_failure = child["last_failure"]["reason"].as_str().map(str::to_owned);
        let unmet = child["unmet"].as_array().into_iter().flatten().filter_map(|need| need["words"].as_str());
        let unmet: Vec<&str> = unmet.collect();
        let state = text(&child["state"]);
        let reason = match child["impaired"].as_str() {
            Some(impaired) => impaired.to_owned(),
            None if !unmet.is_empty() => format!("waits for {}", unmet.join(", ")),
            None if state != "running" && last_failure.is_some() => last_failure.clone().unwrap_or_default(),
            None => text(&child["status"]),
        };
        Self {
            name: text(&child["name"]),
            supervisor: text(&child["supervisor"]),
            kind: text(&child["kind"]),
            state,
            restarts: number(&child["restarts"]),
            mailbox: number(&child["queued"]),
            since_ms: milliseconds(&child["since"]),
            reason,
            last_failure,
        }
    }
}

impl Refusal {
    fn of_connection(row: &Value) -> Self {
        Self {
            at_ms: number(&row["at_ms"]),
            peer: row["peer"].as_str().map(str::to_owned),
            code: text(&row["code"]),
            text: text(&row["text"]),
            operation: None,
            count: 1,
        }
    }

    fn of_operation(row: &Value) -> Self {
        Self {
            at_ms: number(&row["last_ms"]),
            peer: row["peer"].as_str().map(str::to_owned),
            code: text(&row["code"]),
            text: text(&row["text"]),
            operation: Some((text(&row["operation"]), text(&row["topic"]))),
            count: number(&row["count"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sessions_of_one_peer_are_one_row_and_the_rate_is_what_came_between_two_looks() {
        let session = |peer: &str, published: u64, slow: bool| {
            json!({
                "peer": peer, "published": published, "delivered": 0, "queued": 3, "fill_percent": 10 * published,
                "connected_ms": 50 - published, "slow": slow, "dropped": u64::from(slow), "kind": "native",
            })
        };
        let overview = |published: u64| {
            json!({
                "epoch": "e", "sessions": [session("ada", published, false), session("ada", 2, true), session("bob", 1, false)],
                "absent": [{ "peer": "carl", "key": "active" }, { "peer": "dora", "key": "revoked" }],
            })
        };
        let before = Picture::read(&overview(1), Actors::NoRuntime);
        let mut now = Picture::read(&overview(5), Actors::NoRuntime);
        now.compare(&before, 2.0);
        let told: Vec<_> =
            now.peers.iter().map(|row| (row.peer.as_str(), row.state, row.sessions, row.in_rate)).collect();
        let expected = [
            ("ada", "slow", 2, Some(2.0)),
            ("bob", "ok", 1, Some(0.0)),
            ("carl", "absent", 0, Some(0.0)),
            ("dora", "revoked", 0, Some(0.0)),
        ];
        assert_eq!(told, expected);
        assert_eq!((now.peers[0].queued, now.peers[0].fill_percent, now.peers[0].since_ms), (6, 50, 45));
    }

    #[test]
    fn what_nobody_wanted_and_what_was_replaced_is_not_lost() {
        let (lost, unwanted) = losses(&json!({ "no_subscriber": 4, "replaced": 2, "slow_consumer": 1 }));
        assert_eq!((lost, unwanted), (BTreeMap::from([("slow_consumer".to_owned(), 1)]), 4));
    }

    #[test]
    fn an_actor_says_first_what_is_wrong_with_it() {
        let reason = |child: Value| ActorRow::read(&child).reason;
        let failure = json!({ "reason": "connection refused" });
        assert_eq!(
            reason(json!({ "state": "error", "last_failure": failure, "status": "x" })),
            "connection refused"
        );
        assert_eq!(
            reason(json!({ "state": "running", "last_failure": failure, "status": "serving" })),
            "serving"
        );
        assert_eq!(reason(json!({ "state": "running", "impaired": "no disk", "status": "x" })), "no disk");
        let unmet = json!([{ "words": "`store` to be ready" }]);
        assert_eq!(reason(json!({ "state": "starting", "unmet": unmet })), "waits for `store` to be ready");
    }
}
