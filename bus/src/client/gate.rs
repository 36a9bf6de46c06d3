//! What a publisher may not send now: topics held by a full subscriber, topics the broker refuses.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::lane::lock;
use crate::{
    envelope::Payload,
    error::{Denial, PublishError},
    native::Operation,
    topic::TopicName,
};

/// Refusals kept. The one that is longest ago is forgotten first.
const DENIALS_KEPT: usize = 1024;

/// How long a refusal answers for the broker. Permissions change while sessions live, and the broker
/// does not say when, so it must be asked again.
const DENIAL_VALID_FOR: Duration = Duration::from_secs(1);

/// Judges publishes before they are queued. Costs one atomic read while nothing is held or refused.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_shut_somewhere: AtomicBool,
    shut: Mutex<Shut>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Shut {
    held: HashSet<String>,
    denials: HashMap<(Operation, String), (Instant, Denial)>,
}

impl Gate {
    /// Lets the payload through or says why not.
    pub(crate) fn pass(&self, topic: &TopicName, payload: Payload) -> Result<Payload, PublishError> {
        if !self.is_shut_somewhere.load(Ordering::Acquire) {
            return Ok(payload);
        }
        let mut shut = lock(&self.shut);
        if shut.held.contains(topic.as_str()) {
            return Err(PublishError::Held { payload, topic: topic.clone() });
        }
        let key = (Operation::Publish, topic.as_str().to_owned());
        match shut.denials.get_mut(&key) {
            Some((at, denial)) if denial.code == "not_permitted" && at.elapsed() < DENIAL_VALID_FOR => {
                denial.count += 1;
                Err(PublishError::Denied { payload, denial: Box::new(denial.clone()) })
            }
            _ => Ok(payload),
        }
    }

    /// The topic may not be published until it is released.
    pub(crate) fn hold(&self, topic: String) {
        lock(&self.shut).held.insert(topic);
        self.is_shut_somewhere.store(true, Ordering::Release);
    }

    /// The topic may be published again.
    pub(crate) fn release(&self, topic: &str) {
        lock(&self.shut).held.remove(topic);
        self.released.notify_waiters();
    }

    /// The session is over, and with it what it held.
    pub(crate) fn release_all(&self) {
        lock(&self.shut).held.clear();
        self.released.notify_waiters();
    }

    /// Told when a topic is released.
    pub(crate) fn released(&self) -> &Notify {
        &self.released
    }

    /// Notes a refusal. `unasked` ones have nobody who is told; they are logged once for each topic.
    pub(crate) fn deny(&self, denial: Denial, unasked: bool) {
        let mut shut = lock(&self.shut);
        let key = (denial.operation, denial.topic.clone());
        if let Some((at, known)) = shut.denials.get_mut(&key) {
            *at = Instant::now();
            *known = Denial { count: known.count + 1, ..denial };
            return;
        }
        if shut.denials.len() >= DENIALS_KEPT {
            let oldest = shut.denials.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            oldest.and_then(|key| shut.denials.remove(&key));
        }
        if unasked {
            tracing::warn!(
                operation = denial.operation.as_str(),
                topic = denial.topic,
                code = denial.code,
                reason = denial.text,
                "the broker refuses this client's messages"
            );
        }
        shut.denials.insert(key, (Instant::now(), denial));
        drop(shut);
        self.is_shut_somewhere.store(true, Ordering::Release);
    }

    /// Refusals so far, in order of topic.
    pub(crate) fn denials(&self) -> Vec<Denial> {
        let mut denials: Vec<_> =
            lock(&self.shut).denials.values().map(|(_, denial)| denial.clone()).collect();
        denials.sort_by(|one, other| one.topic.cmp(&other.topic));
        denials
    }
}
