//! Topics, codes and answers of durable delivery as they stand on the wire; `bus/WIRE.md`, "Durable delivery".

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    envelope::Payload,
    peer::PeerName,
    topic::{TopicError, TopicFilter, TopicName},
};

/// The registered name of the outbox, unless said otherwise: whose deliveries a consumer takes.
pub const OUTBOX: &str = "outbox";

/// In front of the topic of a message that is to be accepted.
pub const PUT: &str = "outbox/put/";

/// On which a consumer says that it serves.
pub const CONSUME: &str = "outbox/consume/v1";

/// On which the outbox is told that somebody else has changed its storage.
pub const LOOK: &str = "outbox/look/v1";

/// In front of consumer and topic of a delivery.
pub const INBOX: &str = "inbox/";

/// The code with which a consumer refuses a message for ever.
pub const REJECTED: &str = "rejected";

/// The code with which a consumer asks for another attempt.
pub const RETRY: &str = "retry";

/// Where a message is put.
pub(crate) fn put_topic(topic: &TopicName) -> Result<TopicName, TopicError> {
    format!("{PUT}{topic}").parse()
}

/// Where a message is delivered.
pub(crate) fn inbox_topic(consumer: &PeerName, topic: &TopicName) -> Result<TopicName, TopicError> {
    format!("{INBOX}{consumer}/{topic}").parse()
}

/// What a consumer serves.
pub(crate) fn inbox_filter(consumer: &PeerName, filter: &TopicFilter) -> Result<TopicFilter, TopicError> {
    format!("{INBOX}{consumer}/{filter}").parse()
}

/// Everything that is delivered to a consumer: what it has to be permitted to serve.
pub fn inbox_of(consumer: &PeerName) -> TopicFilter {
    filter(&format!("{INBOX}{consumer}/#"))
}

/// A topic of the list above.
pub(crate) fn topic(text: &str) -> TopicName {
    text.parse().expect("the constants of this file are topic names; a test reads them")
}

/// A constant of this file, or one with a peer's name behind it, as a filter.
///
/// # Panics
/// It is none.
pub fn filter(text: &str) -> TopicFilter {
    text.parse().expect("the constants of this file are filters; a test reads them")
}

/// A message was accepted: it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its id: the publisher's, or a fresh one.
    pub id: Uuid,
    /// Its place in the order of acceptance.
    pub number: u64,
    /// It had been accepted before, with the same id and content.
    pub again: bool,
}

/// Figures of a refusal, for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wanted: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<Uuid>,
}

impl Figures {
    pub(crate) fn payload(&self) -> Payload {
        Payload::json(self).expect("numbers and an id have a form in JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_are_topics_and_a_name_that_is_too_long_is_none() {
        let (alice, orders) = ("alice".parse().unwrap(), "orders/new".parse().unwrap());
        assert_eq!(put_topic(&orders).unwrap().as_str(), "outbox/put/orders/new");
        assert_eq!(inbox_topic(&alice, &orders).unwrap().as_str(), "inbox/alice/orders/new");
        let all = inbox_filter(&alice, &"#".parse().unwrap()).unwrap();
        assert_eq!(all.as_str(), "inbox/alice/#");
        let longest = "x".repeat(255).parse().unwrap();
        assert!(put_topic(&longest).is_err() && inbox_topic(&alice, &longest).is_err());
        let _ = [topic(CONSUME), topic(LOOK)];
        let _ = filter(&format!("{PUT}#"));
    }
}
