//! The objects that the broker answers with, as the document tells them. They are passed on as they come: the types here
//! describe them, and a test holds every answer against them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Averages over the last 1, 10 and 60 seconds.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rates {
    #[serde(rename = "1s")]
    last_1s: f64,
    #[serde(rename = "10s")]
    last_10s: f64,
    #[serde(rename = "60s")]
    last_60s: f64,
}

/// A topic with its statistics and both ends, as `bus topics --json`. What nothing ever came for has less to say.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Topic {
    /// Its name; of what nothing ever came for the filter; `(other)` for all that there was no room for.
    topic: String,
    /// Messages published since the broker started.
    messages: u64,
    /// Bytes of their payloads.
    bytes: u64,
    /// Requests asked on it.
    requests: u64,
    /// Messages that were refused.
    denied: u64,
    /// `published`, `subscribed` or `both`: which ends it has; null if neither.
    state: Option<String>,
    /// The name that was probably meant where one end is missing.
    #[serde(default)]
    did_you_mean: Option<String>,
    /// Bytes of the largest payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    largest: Option<u64>,
    /// Classes of sizes that occurred: the largest size of each in bytes, and how many there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sizes: Option<Vec<Vec<u64>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    messages_per_second: Option<Rates>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    bytes_per_second: Option<Rates>,
    /// When something came last, in milliseconds since the Unix epoch; 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_seen_ms: Option<u64>,
    /// Who has published, the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    publishers: Option<Vec<String>>,
    /// Whether there were more publishers than are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    more_publishers: Option<bool>,
    /// Who subscribes.
    subscribers: Vec<String>,
    /// Who serves requests.
    servers: Vec<String>,
}

/// Topics.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Topics {
    topics: Vec<Topic>,
}

/// One topic, as `bus info --json`: facts of it first, then everybody who has to do with it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicParts {
    parts: Vec<TopicPart>,
}

/// What there is to say in one role.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct TopicPart {
    /// `topic`, `publisher`, `subscriber` or `server`.
    role: String,
    /// Everything else that this role has: of a peer its name, rights with file and line, filter, policy, queue and counts.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// A session, as `bus peers --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    peer: String,
    /// `native`, `local`, `stock_publisher`, `stock_subscriber` or `stock_requester`.
    kind: String,
    address: Option<String>,
    /// What it says it is.
    program: String,
    /// Its public key in Z85.
    key: Option<String>,
    /// `old` if it knows the broker by a key that is being replaced.
    broker_key: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    connected_ms: u64,
    subscriptions: u64,
    published: u64,
    delivered: u64,
    dropped: u64,
    denied: u64,
    queued: u64,
    queued_bytes: u64,
}

/// Sessions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Peers {
    peers: Vec<Peer>,
}

/// A connection that was refused.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    at_ms: u64,
    address: String,
    /// Why, for programs: `unknown_key`, `revoked_key`, `handshake_timeout` and others.
    code: String,
    text: String,
    key: Option<String>,
    peer: Option<String>,
}

/// An operation of a connected peer that was refused, and how often.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Denial {
    peer: String,
    /// `publish`, `subscribe`, `serve` or `request`.
    operation: String,
    topic: String,
    code: String,
    text: String,
    count: u64,
    first_ms: u64,
    last_ms: u64,
}

/// What was refused, as `bus auth --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusals {
    /// The last connections that were refused.
    refusals: Vec<Refusal>,
    /// How many of each code, since the broker started.
    counts: BTreeMap<String, u64>,
    /// Operations of connected peers.
    denials: Vec<Denial>,
}

/// Something that the broker noticed, as `bus events --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Event {
    at_ms: u64,
    /// Under which topic it was published, for example `$peers/connected`.
    topic: String,
    /// What there is to say of it.
    event: Value,
}

/// What the broker noticed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    events: Vec<Event>,
    /// Older ones that are forgotten.
    forgotten: u64,
    /// Copies that slow subscribers of the events have lost.
    lost: u64,
}

/// A publisher that waits for its consumers, as `bus gates --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Gate {
    peer: String,
    topic: String,
    state: String,
    /// Everything else that its publisher tells.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// Publishers that wait for their consumers.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Gates {
    gates: Vec<Gate>,
}

/// A row of the ledger, as `bus audit --all --json`: published = delivered + queued + dropped + denied.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LedgerRow {
    publisher: Option<String>,
    topic: Option<String>,
    subscriber: Option<String>,
    published: u64,
    delivered: u64,
    /// Of the delivered ones, those that a stock subscriber's socket took.
    written: u64,
    queued: u64,
    denied: u64,
    /// By reason.
    dropped: BTreeMap<String, u64>,
    balances: bool,
}

/// The ledger.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    ledger: Vec<LedgerRow>,
    /// Whether every row balances. If not, that is a bug.
    balances: bool,
}

/// One step of an explanation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WhyStep {
    /// `key`, `session`, `rule`, `match`, `queue` or `last_denial`.
    step: String,
    ok: bool,
    text: String,
    /// What it is told from.
    facts: Value,
}

/// Why a peer may or may not, as `bus why --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    peer: String,
    operation: String,
    topic: String,
    /// `yes`, `denied` or `not_ready`.
    verdict: String,
    steps: Vec<WhyStep>,
}

/// How much flowed on a topic, as `bus hz --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    topic: String,
    messages: u64,
    bytes: u64,
    messages_per_second: f64,
    bytes_per_second: f64,
    /// Messages of the emptiest second.
    least: u64,
    /// Messages of the fullest second.
    most: Option<u64>,
    /// Bytes of the emptiest second.
    least_bytes: u64,
    /// Bytes of the fullest second.
    most_bytes: Option<u64>,
    mean_size: f64,
    /// Seconds without a message.
    silent_seconds: u64,
    /// How long messages took from their publisher to the broker, in microseconds: the mean of the seconds, by their
    /// messages. `null` if none said when it was published.
    delay_mean_us: Option<u64>,
    /// The mean of the slowest second.
    delay_worst_mean_us: Option<u64>,
    /// The longest.
    delay_max_us: Option<u64>,
}

/// One second of a topic.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateSecond {
    topic: String,
    /// Seconds since the Unix epoch.
    second: u64,
    messages: u64,
    bytes: u64,
    /// How long messages took from their publisher to the broker on average, in microseconds; `null` if none said when
    /// it was published.
    delay_mean_us: Option<u64>,
    /// The longest.
    delay_max_us: Option<u64>,
}

/// How much flowed when.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateList {
    rates: Vec<Rate>,
    /// Each second of each topic, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    series: Option<Vec<RateSecond>>,
    /// The broker's clock, in seconds since the Unix epoch.
    now: u64,
    /// Older seconds that did not fit into the answer.
    left_out: u64,
    /// From which second on everything is known.
    complete_from: u64,
}
