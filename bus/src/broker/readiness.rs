//! What the broker keeps for those who wait for others: who watches the receivers of a topic, which
//! probes wait for room in a full queue, what gates say of themselves. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    hub::{SessionId, SessionKind},
    requests::RequestKey,
};
use crate::{envelope::Payload, limits, native::Overflow, peer::PeerName, topic::TopicName};

/// A request that the broker answers when something has come to pass, not at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Who receives a topic, now and from now on.
    Receivers,
    /// Whether a receiver has taken what came before.
    Probe,
    /// No question: a gate tells how it stands, and hears when it may tell again.
    Gate,
}

impl Question {
    /// The question that requests on `topic` are.
    pub(super) fn of(topic: &TopicName) -> Option<Self> {
        match topic.as_str().strip_prefix("$sys/broker/")? {
            "receivers" => Some(Self::Receivers),
            "probe" => Some(Self::Probe),
            "gate" => Some(Self::Gate),
            _ => None,
        }
    }
}

/// What the payload of a question says.
#[derive(Debug)]
pub(super) struct Asked {
    /// The topic it is about.
    pub(super) topic: TopicName,
    /// Receivers: answer once there are so many; `None` tells every change.
    pub(super) at_least: Option<usize>,
    /// Receivers: tell also whether these are connected.
    pub(super) peers: BTreeSet<PeerName>,
    /// Probe: whom; `None` if a session is named.
    pub(super) peer: Option<PeerName>,
    /// Probe: which session of it; `None` for the first.
    pub(super) session: Option<String>,
    /// Gate: which, among those of its session.
    pub(super) gate: Uuid,
    /// Gate: whether it tells nothing more.
    pub(super) is_last: bool,
    /// All of it.
    pub(super) value: Value,
}

impl Asked {
    /// Reads a payload. The error is a sentence.
    pub(super) fn read(payload: &[u8]) -> Result<Self, String> {
        if payload.len() > limits::QUESTION_BYTES_MAX {
            return Err(format!(
                "the question has {} bytes; the limit is {} bytes",
                payload.len(),
                limits::QUESTION_BYTES_MAX
            ));
        }
        let value: Value = serde_json::from_slice(payload)
            .map_err(|error| format!("the question is not JSON: {error}; write `{{\"topic\": \"a/b\"}}`"))?;
        let text = |name: &str| value[name].as_str();
        let topic = text("topic").ok_or("the question names no `topic`")?;
        let topic = topic.parse().map_err(|error: crate::topic::TopicError| error.to_string())?;
        let name = |text: &str| text.parse::<PeerName>().map_err(|error| error.to_string());
        let peers = value["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let peers = peers
            .iter()
            .map(|peer| name(peer.as_str().unwrap_or_default()))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let gate = text("gate")
            .map(|text| text.parse::<Uuid>().map_err(|error| format!("gate `{text}` is no UUID: {error}")));
        Ok(Self {
            topic,
            at_least: value["at_least"].as_u64().map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            peers,
            peer: text("peer").map(name).transpose()?,
            session: text("session").map(str::to_owned),
            gate: gate.transpose()?.unwrap_or_default(),
            is_last: value["last"] == true,
            value,
        })
    }
}

/// A session that gets what is published on a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Receiver {
    pub(super) peer: PeerName,
    /// Which session, in the broker's words: names the same one as long as the broker lives.
    pub(super) session: String,
    pub(super) kind: SessionKind,
    /// The subscription whose queue takes the topic's messages.
    pub(super) subscription: u32,
    pub(super) group: Option<String>,
    pub(super) overflow: Overflow,
    /// Whether it answers probes.
    pub(super) probes: bool,
}

/// One who wants to know who receives a topic.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) requester: SessionId,
    pub(super) requester_id: u64,
    pub(super) topic: TopicName,
    pub(super) at_least: Option<usize>,
    pub(super) receivers: BTreeMap<SessionId, Receiver>,
    /// Those whose presence is told, and whether they are there.
    pub(super) peers: BTreeMap<PeerName, bool>,
    /// Parts that may go out before the requester has taken any.
    window: u64,
    parts: u64,
    credited: u64,
    /// A change could not be told for want of credit: everything is told again.
    is_behind: bool,
}

impl Watch {
    pub(super) fn new(requester: SessionId, requester_id: u64, window: u32, asked: Asked) -> Self {
        Self {
            requester,
            requester_id,
            topic: asked.topic,
            at_least: asked.at_least,
            receivers: BTreeMap::new(),
            peers: asked.peers.into_iter().map(|peer| (peer, false)).collect(),
            window: window.into(),
            parts: 0,
            credited: 0,
            is_behind: false,
        }
    }

    /// Everything it is told.
    pub(super) fn state(&self) -> Value {
        let connected: Vec<_> =
            self.peers.iter().filter_map(|(peer, is_there)| is_there.then_some(peer)).collect();
        json!({
            "topic": self.topic,
            "subscribers": self.receivers.values().collect::<Vec<_>>(),
            "connected": connected,
        })
    }

    /// Whether there are as many as were asked for.
    pub(super) fn is_satisfied(&self) -> bool {
        self.at_least.is_some_and(|count| self.receivers.len() >= count)
    }

    /// How far it has come, for people.
    pub(super) fn progress(&self) -> String {
        let names: Vec<_> = self.receivers.values().map(|receiver| receiver.peer.as_str()).collect();
        let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        match self.at_least {
            Some(count) => {
                format!("{} of {count} subscribers of `{}`: {names}", self.receivers.len(), self.topic)
            }
            None => format!("subscribers of `{}`: {names}", self.topic),
        }
    }

    /// Takes a change: what to send now, if anything.
    pub(super) fn tell(&mut self, change: Value) -> Option<Value> {
        if self.at_least.is_some() {
            return None;
        }
        if self.parts - self.credited >= self.window {
            self.is_behind = true;
            return None;
        }
        self.parts += 1;
        Some(change)
    }

    /// The requester has taken `parts` in total: what to send now, if anything.
    pub(super) fn credit(&mut self, parts: u64) -> Option<Value> {
        self.credited = self.credited.max(parts.min(self.parts));
        if !self.is_behind || self.parts - self.credited >= self.window {
            return None;
        }
        self.is_behind = false;
        self.parts += 1;
        Some(self.state())
    }
}

/// What a gate said of itself last.
#[derive(Debug)]
pub(super) struct GateRow {
    pub(super) report: Value,
    /// The request that is answered when it may tell again.
    pub(super) key: Option<RequestKey>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// In the order in which they came, so that who has several hears of a change in that order.
    pub(super) watches: BTreeMap<RequestKey, Watch>,
    /// Probes that found their queue full, in the order in which they came.
    pub(super) waiting: Vec<RequestKey>,
    pub(super) gates: BTreeMap<(SessionId, Uuid), GateRow>,
}

impl Readiness {
    /// A request has ended, however.
    pub(super) fn forget(&mut self, key: RequestKey) {
        self.watches.remove(&key);
        self.waiting.retain(|waiting| *waiting != key);
    }

    /// The requests of gates that may tell again.
    pub(super) fn take_told(&mut self) -> Vec<RequestKey> {
        self.gates.values_mut().filter_map(|gate| gate.key.take()).collect()
    }

    /// The part that says `value`.
    pub(super) fn part(value: &Value) -> (bytes::Bytes, bytes::Bytes) {
        let payload = Payload::json(value).unwrap_or_default();
        let mut header = Vec::new();
        crate::codec::put_header(&crate::envelope::Header::for_payload(&payload), &mut header);
        (header.into(), payload.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(at_least: Option<u64>) -> Watch {
        let question = json!({ "topic": "a/b", "at_least": at_least }).to_string();
        Watch::new(SessionId::nobody(), 1, 5, Asked::read(question.as_bytes()).unwrap())
    }

    #[test]
    fn a_watcher_without_credit_is_told_everything_once_it_has_some() {
        let mut watch = watch(None);
        for number in 0..5 {
            assert_eq!(watch.tell(json!(number)), Some(json!(number)));
        }
        assert_eq!(watch.tell(json!("lost")), None);
        assert_eq!(watch.credit(0), None);
        assert_eq!(watch.credit(1), Some(watch.state()));
        assert_eq!(watch.credit(2), None, "it is not behind any more");
    }

    #[test]
    fn a_question_that_cannot_be_read_says_what_is_wrong() {
        for (question, problem) in [
            ("", "is not JSON"),
            ("{}", "names no `topic`"),
            (r#"{"topic": "a//b"}"#, "empty level"),
            (r#"{"topic": "a", "peers": [7]}"#, "peer"),
            (r#"{"topic": "a", "gate": "x"}"#, "gate `x` is no UUID"),
        ] {
            let error = Asked::read(question.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "`{question}`: {error}");
        }
    }
}
