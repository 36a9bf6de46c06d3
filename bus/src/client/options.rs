//! What can be chosen when connecting, publishing, subscribing and serving.

use std::time::Duration;

use crate::{
    envelope::{Header, Payload},
    error::SubscribeError,
    keys::Credentials,
    limits,
    native::{Overflow, SubscribeSpec},
    topic::{TopicFilter, TopicName},
};

/// How the first session is made.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(crate) credentials: Credentials,
    pub(crate) timeout: Duration,
    pub(crate) waits_for_broker: bool,
    pub(crate) will: Option<(TopicName, Payload, bool)>,
}

impl ConnectOptions {
    /// These credentials, [`limits::CONNECT_TIMEOUT`], and an error at once if nothing listens.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, timeout: limits::CONNECT_TIMEOUT, waits_for_broker: false, will: None }
    }

    /// How long [`crate::Client::connect`] may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Deposits a will before [`crate::Client::connect`] returns; see [`crate::Client::set_will`].
    pub fn will(mut self, topic: TopicName, payload: Payload, retain: bool) -> Self {
        self.will = Some((topic, payload, retain));
        self
    }

    /// Tries again until the timeout while nothing listens, or a broker dies or hangs in the handshake, for programs that
    /// may start before the broker. What waiting cannot cure ends it at once: a key that is refused, another protocol.
    pub fn waits_for_broker(mut self, waits: bool) -> Self {
        self.waits_for_broker = waits;
        self
    }
}

/// How a message is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// Keep it as the topic's last value for later subscribers that ask for it. Whether there is room for it
    /// [`Ack::not_retained`] says.
    pub retain: bool,
    /// How long anybody wants it; `None` means for ever.
    pub expires_after: Option<Duration>,
    /// The header; `None` makes a fresh one for the payload. Content type and schema of the payload
    /// replace those of the header.
    pub header: Option<Header>,
}

/// The broker's answer to an acknowledged publish: the message is in the queues of all matching subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// How many subscribers have it in their queue.
    pub subscribers: u32,
    /// How many subscribers lost it, because their queue was full.
    pub dropped: u32,
    /// It was published with [`PublishOptions::retain`], and the broker has no room for it beside its other retained
    /// values (`retained_bytes_max`): the topic has no last value now.
    pub not_retained: bool,
}

/// What a subscription asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// What is lost when the broker's queue towards this subscription is full.
    pub overflow: Overflow,
    /// Bound of that queue in messages; zero for the broker's default, which is also the maximum.
    pub queue_messages_max: u32,
    /// Bound of that queue in bytes; zero for the broker's default, which is also the maximum.
    pub queue_bytes_max: u32,
    /// One member of a group gets each message.
    pub group: Option<String>,
    /// Send the retained values of matching topics first.
    pub retained: bool,
}

/// What a service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Servers of one group share the requests.
    pub group: Option<String>,
    /// Bound of the broker's queue of requests; zero for its default. A request that does not fit is answered `busy`.
    pub queue_messages_max: u32,
    /// The same in bytes.
    pub queue_bytes_max: u32,
}

impl SubscribeOptions {
    /// These options with another overflow policy.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// These options with the retained values.
    pub fn retained(mut self) -> Self {
        self.retained = true;
        self
    }

    /// These options as a member of `group`.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// These options with queue bounds of their own.
    pub fn queue(mut self, messages_max: u32, bytes_max: u32) -> Self {
        (self.queue_messages_max, self.queue_bytes_max) = (messages_max, bytes_max);
        self
    }

    pub(crate) fn spec(&self, id: u32, filter: &TopicFilter) -> Result<SubscribeSpec, SubscribeError> {
        Ok(SubscribeSpec {
            id,
            serve: false,
            retained: self.retained,
            probes: true,
            overflow: self.overflow,
            queue_messages_max: self.queue_messages_max,
            queue_bytes_max: self.queue_bytes_max,
            filter: filter.as_str().to_owned(),
            group: group_name(&self.group, filter)?,
        })
    }
}

impl ServeOptions {
    pub(crate) fn spec(&self, id: u32, filter: &TopicFilter) -> Result<SubscribeSpec, SubscribeError> {
        Ok(SubscribeSpec {
            id,
            serve: true,
            retained: false,
            probes: false,
            overflow: Overflow::DropNewest,
            queue_messages_max: self.queue_messages_max,
            queue_bytes_max: self.queue_bytes_max,
            filter: filter.as_str().to_owned(),
            group: group_name(&self.group, filter)?,
        })
    }
}

fn group_name(group: &Option<String>, filter: &TopicFilter) -> Result<String, SubscribeError> {
    let name = group.clone().unwrap_or_default();
    if name.len() > 255 || (group.is_some() && name.is_empty()) {
        return Err(SubscribeError::Option {
            filter: filter.clone(),
            option: "group",
            way_out: "use 1 to 255 bytes",
        });
    }
    Ok(name)
}
