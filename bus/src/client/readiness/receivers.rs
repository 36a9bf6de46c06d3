//! Who receives a topic, as the broker tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::{Context, Poll},
};

use serde::Deserialize;

use super::{WaitError, wait_error};
use crate::{client::ReplyStream, envelope::Message, native::Overflow, peer::PeerName, topic::TopicName};

/// A session that gets what is published on a topic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Receiver {
    /// Who it is.
    pub peer: PeerName,
    /// Which session of it, in the broker's words.
    pub session: String,
    /// The subscription whose queue takes the messages.
    pub subscription: u32,
    /// Its queue group, if it is a member of one.
    pub group: Option<String>,
    /// What is lost when its queue is full.
    pub overflow: Overflow,
    /// Whether it answers probes.
    pub probes: bool,
}

/// One word of the broker: everything, or what has changed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    subscribers: Option<Vec<Receiver>>,
    joined: Vec<Receiver>,
    left: Vec<Receiver>,
    connected: Vec<PeerName>,
    disconnected: Vec<PeerName>,
}

/// Receivers by session, and who else is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) receivers: BTreeMap<String, Receiver>,
    pub(super) connected: BTreeSet<PeerName>,
}

impl Present {
    pub(super) fn apply(&mut self, change: Change) {
        if let Some(all) = change.subscribers {
            self.receivers.clear();
            self.connected.clear();
            self.receivers.extend(all.into_iter().map(|receiver| (receiver.session.clone(), receiver)));
        }
        for receiver in change.left {
            self.receivers.remove(&receiver.session);
        }
        self.receivers.extend(change.joined.into_iter().map(|receiver| (receiver.session.clone(), receiver)));
        self.connected.extend(change.connected);
        for peer in change.disconnected {
            self.connected.remove(&peer);
        }
    }
}

/// The receivers of a topic and every change of them, as long as the session with the broker lives.
#[derive(Debug)]
pub struct Receivers {
    topic: TopicName,
    parts: ReplyStream,
    present: Present,
}

impl Receivers {
    pub(super) fn new(topic: TopicName, parts: ReplyStream) -> Self {
        Self { topic, parts, present: Present::default() }
    }

    /// Waits for the next change and gives all who receive the topic after it. The first call gives those
    /// of the beginning.
    ///
    /// # Errors
    /// [`WaitError`]: the broker tells no more.
    pub async fn next(&mut self) -> Result<Vec<Receiver>, WaitError> {
        let change = std::future::poll_fn(|context| self.poll_change(context)).await?;
        self.present.apply(change);
        Ok(self.present.receivers.values().cloned().collect())
    }

    pub(super) fn poll_change(&mut self, context: &mut Context<'_>) -> Poll<Result<Change, WaitError>> {
        self.parts.poll_next(context).map(|part| match part {
            Some(Ok(part)) => self.read(&part),
            Some(Err(error)) => Err(wait_error(&self.topic, error)),
            None => Err(WaitError::NotOffered {
                topic: self.topic.clone(),
                reason: "it has ended its answer".to_owned(),
            }),
        })
    }

    fn read(&self, part: &Message) -> Result<Change, WaitError> {
        part.decode().map_err(|error| WaitError::NotOffered {
            topic: self.topic.clone(),
            reason: format!("its answer cannot be read: {error}"),
        })
    }
}
