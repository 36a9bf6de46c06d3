//! What a gated publisher says of itself: to its owner, to the broker, and so to the tool.

use serde::Serialize;

use crate::{peer::PeerName, topic::TopicName};

/// Where a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GateState {
    /// Not connected to the broker.
    NoLink,
    /// Connected; the broker is asked who receives the topic.
    Asking,
    /// A consumer that is needed has not subscribed.
    Waiting,
    /// All have; a probe is on its way through each.
    Probing,
    /// Open; what had gathered is being sent.
    Flushing,
    /// Open, and nothing of what had gathered is left.
    Open,
    /// The broker refuses it; the next publish asks again.
    Refused,
    /// It has ended.
    Closed,
}

/// How far a consumer that is needed is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NeedState {
    /// The broker has not told yet.
    Unknown,
    /// It is not connected.
    Absent,
    /// It is connected and does not subscribe to the topic.
    Connected,
    /// Its subscription is in the routing table.
    Subscribed,
    /// The same, and it cannot be proven further: a stock socket, or an older client.
    AnswersNoProbes,
    /// A probe came back through it.
    Proven,
}

/// One consumer that is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NeedReport {
    /// Who.
    pub peer: PeerName,
    /// How far.
    pub state: NeedState,
}

/// What an opening has flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flush {
    /// Messages that had gathered and were taken by every consumer since.
    pub flushed: u64,
    /// Messages dropped since the flush before.
    pub dropped: u64,
}

/// Where a gated publisher stands. `accepted = flushed + dropped + buffered`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GateReport {
    /// The stream's id, which its messages carry.
    pub gate: uuid::Uuid,
    /// What it publishes on.
    pub topic: TopicName,
    /// Where it stands.
    pub state: GateState,
    /// Why, if there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who is needed, and how far each is proven.
    pub needs: Vec<NeedReport>,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages held: not sent, or sent and not known to be taken.
    pub buffered: usize,
    /// Their bytes.
    pub buffered_bytes: usize,
    /// The sequence up to which every consumer has taken all that was not dropped.
    pub cursor: u64,
    /// Messages every consumer has taken.
    pub flushed: u64,
    /// Accepted messages that made room for others, by the policy `drop_oldest`.
    pub dropped: u64,
    /// Messages that were not accepted, because there was no room.
    pub refused: u64,
    /// Messages sent again, marked so, because it was not known whether they had been taken.
    pub again: u64,
    /// How often it has opened.
    pub openings: u64,
    /// What the last opening has flushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_flush: Option<Flush>,
}
