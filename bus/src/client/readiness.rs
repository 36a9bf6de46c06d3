//! Readiness: who receives a topic, whether the way to them works, and publishing only when it does.
//!
//! | proven | by |
//! |---|---|
//! | the broker is up, we are connected | [`LinkState::Ready`](super::LinkState::Ready) |
//! | a peer is connected | what the broker tells of its sessions |
//! | its subscription is in the routing table | [`Client::wait_for_subscribers`], [`Receivers`] |
//! | the path works end to end | [`Client::probe`]: a probe came back through the consumer itself |
//!
//! A probe takes its place in the consumer's queue and is answered when its application comes back for more. So
//! it proves the path, and also that all which was published before it has been taken. [`GatedPublisher`] is
//! built of these: it holds messages until each consumer it needs is proven, and forgets them when they were taken.
//!
//! | file | noun |
//! |---|---|
//! | `receivers` | who receives a topic, as the broker tells it |
//! | `gate` | when a gated publisher may send (pure) |
//! | `buffer` | what it holds: cursor, bounds, counts (pure) |
//! | `publisher` | the gated publisher and the thread that drives it |
//! | `report` | what it says of itself |
//! | `continuity` | the consumer's side: each message once and in order |

mod buffer;
mod continuity;
mod gate;
mod publisher;
mod receivers;
mod report;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

pub use buffer::GateOverflow;
pub use continuity::{Continuity, Verdict};
pub use publisher::{Accepted, GateError, GateOptions, GatedPublisher};
pub use receivers::{Receiver, Receivers};
pub use report::{Flush, GateReport, GateState, NeedReport, NeedState};

use super::Client;
use crate::{
    envelope::{Message, Payload},
    error::RequestError,
    peer::PeerName,
    topic::TopicName,
};

/// Why somebody who was waited for is not there, or cannot be proven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The deadline passed.
    #[error(
        "`{topic}` has {} of {wanted} subscribers after {after:?}: {}; start the others, or wait for fewer",
        present.len(), names(present)
    )]
    TimedOut {
        /// The topic.
        topic: TopicName,
        /// How many were waited for.
        wanted: usize,
        /// Who is there.
        present: Vec<PeerName>,
        /// The deadline.
        after: Duration,
    },
    /// The one to be probed does not subscribe to the topic.
    #[error("`{peer}` does not subscribe to `{topic}`; start it, or look at `bus topics`")]
    Absent {
        /// The topic.
        topic: TopicName,
        /// Who is not there.
        peer: PeerName,
    },
    /// It did not answer the probe: it hangs, is far behind, or is gone.
    #[error("`{peer}` did not answer a probe on `{topic}`: {reason}")]
    Unproven {
        /// The topic.
        topic: TopicName,
        /// Who did not answer.
        peer: PeerName,
        /// What happened instead.
        reason: String,
    },
    /// The broker does not tell us.
    #[error("asking who receives `{topic}` was denied: {text}")]
    Denied {
        /// The topic.
        topic: TopicName,
        /// A sentence of the broker.
        text: String,
    },
    /// There is no session with the broker, or it ended meanwhile.
    #[error("the link to the broker was lost while `{topic}` was waited for")]
    NotConnected {
        /// The topic.
        topic: TopicName,
    },
    /// The broker cannot tell: it is older, or has reached a limit.
    #[error("the broker cannot tell who receives `{topic}`: {reason}")]
    NotOffered {
        /// The topic.
        topic: TopicName,
        /// What it says.
        reason: String,
    },
}

fn names(peers: &[PeerName]) -> String {
    match peers {
        [] => "nobody".to_owned(),
        peers => peers.iter().map(PeerName::as_str).collect::<Vec<_>>().join(", "),
    }
}

/// How far the path to a consumer is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Its subscription is in the routing table; it answers no probes (a stock socket, an older client).
    Subscribed,
    /// It has answered: everything published before was taken by its application.
    Proven,
}

/// What the broker answers to a probe.
#[derive(Debug, Deserialize)]
struct Answer {
    proof: Proof,
    subscriber: Option<Receiver>,
    /// Messages of ours on the topic that were dropped for it, in total.
    dropped: u64,
}

impl Client {
    /// Waits until `count` sessions that may receive `topic` are in the broker's routing table, and says
    /// who they are. What is published afterwards reaches their queues.
    ///
    /// Asks the broker once, and is told: nothing is polled. Whoever may publish the topic may ask.
    ///
    /// # Errors
    /// [`WaitError`]; at the deadline it names who is there.
    pub async fn wait_for_subscribers(
        &self,
        topic: &TopicName,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<PeerName>, WaitError> {
        let question = json!({ "topic": topic, "at_least": count });
        let mut parts = self
            .request_stream(
                &question_topic("receivers"),
                Payload::json(&question).unwrap_or_default(),
                deadline,
            )
            .await
            .map_err(|error| wait_error(topic, error))?;
        let mut present = Vec::new();
        loop {
            match parts.next().await {
                None => return Ok(present),
                Some(Ok(part)) => present = peers_of(&part),
                Some(Err(RequestError::TimedOut { .. })) => {
                    let topic = topic.clone();
                    return Err(WaitError::TimedOut { topic, wanted: count, present, after: deadline });
                }
                Some(Err(error)) => return Err(wait_error(topic, error)),
            }
        }
    }

    /// Sends a probe on `topic` through `peer` and waits until it is back. [`Proof::Proven`] says that all that this
    /// client has published there before was taken by the peer's application.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn probe(
        &self,
        topic: &TopicName,
        peer: &PeerName,
        deadline: Duration,
    ) -> Result<Proof, WaitError> {
        let unproven =
            |reason: String| WaitError::Unproven { topic: topic.clone(), peer: peer.clone(), reason };
        match send_probe(self, topic, peer, None, deadline).await {
            Ok(answer) => Ok(answer.proof),
            Err(RequestError::NoResponders { .. }) => {
                Err(WaitError::Absent { topic: topic.clone(), peer: peer.clone() })
            }
            Err(RequestError::TimedOut { after, .. }) => {
                Err(unproven(format!("nothing came within {after:?}")))
            }
            Err(
                error @ (RequestError::ServerGone | RequestError::Failed { .. } | RequestError::Busy { .. }),
            ) => Err(unproven(error.to_string())),
            Err(error) => Err(wait_error(topic, error)),
        }
    }

    /// Who receives `topic`, now and from now on. `peers` are those of whom it also tells whether they are
    /// connected at all.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn receivers(&self, topic: &TopicName, peers: &[PeerName]) -> Result<Receivers, WaitError> {
        let question = json!({ "topic": topic, "peers": peers });
        let question = Payload::json(&question).unwrap_or_default();
        let parts = self.request_stream(&question_topic("receivers"), question, Duration::MAX).await;
        Ok(Receivers::new(topic.clone(), parts.map_err(|error| wait_error(topic, error))?))
    }
}

/// The broker's topic for one of its questions.
fn question_topic(question: &str) -> TopicName {
    format!("$sys/broker/{question}").parse().expect("the broker's questions are topic names")
}

async fn send_probe(
    client: &Client,
    topic: &TopicName,
    peer: &PeerName,
    session: Option<&str>,
    deadline: Duration,
) -> Result<Answer, RequestError> {
    let asked = question_topic("probe");
    let question = json!({ "topic": topic, "peer": peer, "session": session });
    let answer = client.request(&asked, Payload::json(&question).unwrap_or_default(), deadline).await?;
    answer.decode().map_err(|error| RequestError::Damaged { topic: asked, problem: error.to_string() })
}

fn peers_of(part: &Message) -> Vec<PeerName> {
    let value: Value = part.decode().unwrap_or_default();
    let subscribers = value["subscribers"].as_array().map(Vec::as_slice).unwrap_or_default();
    subscribers.iter().filter_map(|subscriber| subscriber["peer"].as_str()?.parse().ok()).collect()
}

fn wait_error(topic: &TopicName, error: RequestError) -> WaitError {
    let topic = topic.clone();
    match error {
        RequestError::Denied { text, .. } => WaitError::Denied { topic, text },
        RequestError::Disconnected => WaitError::NotConnected { topic },
        error => WaitError::NotOffered { topic, reason: error.to_string() },
    }
}
