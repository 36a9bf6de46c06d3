//! How an outbox stands.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::peer::PeerName;

/// How an outbox stands: derived from its parts whenever it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutboxReport {
    /// In a word.
    pub state: OutboxState,
    /// Why it is impaired, or what it waits for; empty if nothing is wrong.
    pub reasons: Vec<String>,
    /// Those who have or are named to get messages.
    pub consumers: BTreeMap<PeerName, ConsumerReport>,
    /// What happened since it was started.
    pub counts: OutboxCounts,
}

/// The state of an outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutboxState {
    /// It does not serve yet.
    #[default]
    Starting,
    /// It takes messages; another process sends.
    Waiting,
    /// It takes messages and sends.
    Running,
    /// It does what it can: the storage fails, the link to the broker is lost, or rights are missing.
    Impaired,
    /// It takes nothing new and finishes what it has in hand.
    Stopping,
    /// It has ended.
    Stopped,
}

/// How it stands with one consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConsumerReport {
    /// Deliveries that wait, in all states but "in flight".
    pub waiting: u64,
    /// Deliveries of which an attempt is under way.
    pub in_flight: u64,
    /// Since when nobody serves, in milliseconds since the Unix epoch.
    pub absent_since_ms: Option<u64>,
    /// Why an attempt failed last; `None` since one went well.
    pub last_reason: Option<String>,
}

/// What happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutboxCounts {
    /// Messages accepted.
    pub accepted: u64,
    /// Messages that had been accepted before.
    pub accepted_again: u64,
    /// Messages refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// Puts that wait for room at this moment.
    pub puts_waiting: u64,
    /// Attempts that were sent.
    pub attempts: u64,
    /// Deliveries that a consumer has acknowledged.
    pub acknowledged: u64,
    /// Attempts that failed and will be followed by another one.
    pub retried: u64,
    /// Deliveries that became dead letters.
    pub dead: u64,
    /// Leases that were taken back without an attempt: the consumer was absent, or one before it in its lane failed.
    pub unsent: u64,
    /// Leases that an earlier holder had left behind.
    pub taken_back: u64,
    /// Steps of the storage that failed.
    pub storage_failures: u64,
}

impl OutboxReport {
    /// Deliveries that are not finished.
    pub fn open(&self) -> u64 {
        self.consumers.values().map(|consumer| consumer.waiting + consumer.in_flight).sum()
    }
}
