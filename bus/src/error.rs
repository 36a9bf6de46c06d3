//! What can go wrong for a client: one variant for each thing a caller can do about it.

use std::time::Duration;

use crate::{
    crypto::PublicKey,
    endpoint::Endpoint,
    envelope::Payload,
    limits,
    native::Operation,
    peer::PeerName,
    topic::{TopicFilter, TopicName},
    zmtp::ZmtpError,
};

/// Why [`crate::Client::connect`] has no session. If there are several endpoints, the error is that of
/// the one that came furthest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens there, or nothing can be reached.
    #[error("cannot reach the broker at `{endpoint}`: {source}; is it running, and is the endpoint right?")]
    Unreachable {
        /// Where.
        endpoint: Endpoint,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The broker there holds another key than the credentials name.
    #[error(
        "the broker at `{endpoint}` does not hold the key `{expected}`; take its present key from credentials that were issued anew"
    )]
    WrongServerKey {
        /// Where.
        endpoint: Endpoint,
        /// The broker's key in the credentials.
        expected: PublicKey,
    },
    /// The broker does not take this key: it is unknown, was revoked, or has no rights.
    #[error(
        "the broker at `{endpoint}` refuses the key of `{name}`: it is unknown, revoked, or without rights; `bus auth` on the broker's side says which, `interlock keys issue {name}` makes a new one"
    )]
    KeyRefused {
        /// Where.
        endpoint: Endpoint,
        /// The name in the credentials.
        name: PeerName,
    },
    /// The broker turned us away with another reason.
    #[error("the broker at `{endpoint}` refuses the connection: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// What it said.
        reason: String,
    },
    /// Whatever listens there does not speak ZeroMQ with CURVE as a broker does.
    #[error("what listens at `{endpoint}` is no Interlock broker: {source}")]
    NotInterlock {
        /// Where.
        endpoint: Endpoint,
        /// What it did instead.
        source: ZmtpError,
    },
    /// It speaks CURVE, but not our records, or those of another major version.
    #[error("what listens at `{endpoint}` does not speak this client's protocol: {seen}")]
    ProtocolMismatch {
        /// Where.
        endpoint: Endpoint,
        /// What was seen.
        seen: String,
    },
    /// The handshake did not end in time.
    #[error(
        "the broker at `{endpoint}` did not answer within {time:?}, while {awaited} was awaited; try a longer timeout, or look whether it hangs",
        time = rounded(*.waited)
    )]
    TimedOut {
        /// Where.
        endpoint: Endpoint,
        /// How long we waited.
        waited: Duration,
        /// What should have come.
        awaited: String,
    },
    /// The connection broke in the middle of the handshake.
    #[error("the connection to `{endpoint}` broke while {awaited} was awaited: {source}")]
    Broken {
        /// Where.
        endpoint: Endpoint,
        /// What should have come.
        awaited: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The credentials cannot be used.
    #[error("the credentials of `{name}` cannot be used: {problem}")]
    BadCredentials {
        /// The name in them.
        name: PeerName,
        /// What is wrong.
        problem: String,
    },
    /// The known-answer test failed: no service with broken cryptography.
    #[error("the cryptography does not work on this machine: {0}")]
    Crypto(#[source] crate::crypto::CryptoError),
    /// The system gave no thread, socket or poll.
    #[error("the client's thread cannot start: {0}")]
    Thread(#[source] std::io::Error),
    /// The client's thread ended without a word, which is a bug.
    #[error("the client's thread ended before it had connected; this is a bug, please report it")]
    ThreadLost,
    /// There is a session, and in it the broker did not take the will of
    /// [`ConnectOptions::will`](crate::client::ConnectOptions::will).
    #[error("the will on `{topic}` was not taken: {source}")]
    Will {
        /// Its topic.
        topic: TopicName,
        /// Why not.
        source: Box<PublishError>,
    },
}

impl ConnectError {
    /// Whether a broker that starts, stops or hangs at the moment looks like this: trying again may help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken { .. } | Self::TimedOut { .. })
    }
}

/// A time as a sentence says it: in whole milliseconds, the shortest is one.
fn rounded(time: Duration) -> Duration {
    let milliseconds = (time.as_micros() + 500) / 1000;
    let least = u128::from(!time.is_zero());
    Duration::from_millis(u64::try_from(milliseconds.max(least)).unwrap_or(u64::MAX))
}

/// Why a publish was not accepted. The payload comes back with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The payload or its header is above its limit. Nothing was sent.
    #[error("message is {bytes} bytes long; the limit is {limit} bytes")]
    TooLarge {
        /// What was to be published.
        payload: Payload,
        /// Its size, or its header's.
        bytes: usize,
        /// [`limits::PAYLOAD_BYTES_MAX`] or [`limits::HEADER_BYTES_MAX`].
        limit: usize,
    },
    /// The outgoing queue is full: the link is slower than the publisher.
    #[error(
        "outgoing queue is full ({} bytes wait for the broker); publish less, or use `publish_waiting`",
        limits::OUTGOING_BYTES
    )]
    Full {
        /// What was to be published.
        payload: Payload,
    },
    /// There is no session with the broker now. [`crate::Client::watch`] says when there is one again.
    #[error("not connected to the broker: {reason}")]
    NotConnected {
        /// What was to be published.
        payload: Payload,
        /// Why there is no session.
        reason: String,
    },
    /// A subscriber with the policy `wait` is full.
    #[error(
        "topic `{topic}` is held: a subscriber with the policy `wait` is full; try later, or use `publish_waiting`"
    )]
    Held {
        /// What was to be published.
        payload: Payload,
        /// The topic.
        topic: TopicName,
    },
    /// The broker refuses it.
    #[error("{denial}")]
    Denied {
        /// What was to be published.
        payload: Payload,
        /// What the broker says.
        denial: Box<Denial>,
    },
    /// The link was lost before the broker's answer: the message may or may not have arrived.
    #[error("link was lost before the broker acknowledged the message; it may have arrived: {reason}")]
    Unconfirmed {
        /// What was published.
        payload: Payload,
        /// Why the link was lost.
        reason: String,
    },
    /// The broker is too old for what was asked.
    #[error(
        "the broker speaks version {}.{minor} of the protocol, which has no {what}; update it",
        crate::native::VERSION_MAJOR
    )]
    NotOffered {
        /// What was to be published.
        payload: Payload,
        /// What the broker does not know.
        what: &'static str,
        /// Its minor version.
        minor: u16,
    },
}

impl PublishError {
    /// The payload that was not published.
    pub fn into_payload(self) -> Payload {
        match self {
            Self::TooLarge { payload, .. }
            | Self::Full { payload }
            | Self::NotConnected { payload, .. }
            | Self::Held { payload, .. }
            | Self::Denied { payload, .. }
            | Self::Unconfirmed { payload, .. }
            | Self::NotOffered { payload, .. } => payload,
        }
    }
}

/// An operation that the broker refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} on `{topic}` was denied ({code}): {text}", operation.as_str())]
pub struct Denial {
    /// Which operation.
    pub operation: Operation,
    /// The topic or filter.
    pub topic: String,
    /// A word for programs, for example `not_permitted`.
    pub code: String,
    /// A sentence for people.
    pub text: String,
    /// How often it was refused since the client was made.
    pub count: u64,
}

/// Why a subscription or a service could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The broker refuses it.
    #[error("subscription to `{filter}` was denied ({code}): {text}")]
    Denied {
        /// What was asked for.
        filter: TopicFilter,
        /// A word for programs, for example `not_permitted` or `too_many`.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// There is no session with the broker, or it ended before the answer.
    #[error("not connected to the broker: {reason}")]
    NotConnected {
        /// Why not.
        reason: String,
    },
    /// An option has no form on the wire.
    #[error("subscription to `{filter}` has an impossible {option}; {way_out}")]
    Option {
        /// What was asked for.
        filter: TopicFilter,
        /// Which option.
        option: &'static str,
        /// What would be right.
        way_out: &'static str,
    },
}

/// How a request ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody serves the topic.
    #[error("nobody serves `{topic}`; start what serves it, `bus topics` lists what is there")]
    NoResponders {
        /// The topic.
        topic: TopicName,
    },
    /// The requester may not request this topic.
    #[error("request on `{topic}` was denied ({code}): {text}")]
    Denied {
        /// The topic.
        topic: TopicName,
        /// A word for programs.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// The deadline passed.
    #[error(
        "request on `{topic}` was not answered within {time:?}; give it a longer deadline, or look at the server",
        time = rounded(*.after)
    )]
    TimedOut {
        /// The topic.
        topic: TopicName,
        /// The deadline it was given.
        after: Duration,
    },
    /// The server's session ended before the request did.
    #[error("the server was lost before it had answered")]
    ServerGone,
    /// The server says that it failed.
    #[error("the server failed ({code}): {text}")]
    Failed {
        /// The server's word for programs.
        code: String,
        /// The server's sentence for people.
        text: String,
    },
    /// The requester cancelled it.
    #[error("the request was cancelled")]
    Cancelled,
    /// A limit of requests or bytes is reached.
    #[error("request on `{topic}` was turned away ({code}): {text}")]
    Busy {
        /// The topic.
        topic: TopicName,
        /// A word for programs.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// There is no session with the broker, or it ended before the answer.
    #[error("the link to the broker was lost before the answer")]
    Disconnected,
    /// The payload is above its limit. Nothing was sent.
    #[error("request is {bytes} bytes long; the limit is {limit} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The broker sent an answer that cannot be read.
    #[error("the answer on `{topic}` cannot be read: {problem}")]
    Damaged {
        /// The topic.
        topic: TopicName,
        /// What is wrong.
        problem: String,
    },
}

/// Why a part of an answer could not be sent. The requester does not wait for it any more, or will
/// learn that the server is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The requester cancelled, is gone, or its deadline has passed.
    #[error("the requester wants no more")]
    Cancelled,
    /// The link to the broker was lost; the requester is told `server_gone`.
    #[error("the link to the broker was lost")]
    Disconnected,
    /// The part is above its limit. Nothing was sent.
    #[error("reply is {bytes} bytes long; the limit is {limit} bytes")]
    TooLarge {
        /// Its size, or its header's.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why [`crate::Subscription::next_blocking`] has no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NextError {
    /// Nothing came before the deadline.
    #[error("nothing came before the deadline")]
    TimedOut,
    /// The subscription has ended.
    #[error("the subscription has ended")]
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_errors_are_rounded_to_milliseconds() {
        let said = |after| RequestError::TimedOut { topic: "q".parse().unwrap(), after }.to_string();
        for (nanoseconds, text) in
            [(999_939, "1ms"), (17, "1ms"), (1_499_600_000, "1.5s"), (9_999_999_999, "10s")]
        {
            let said = said(Duration::from_nanos(nanoseconds));
            assert!(said.contains(&format!("within {text};")) && said.is_ascii(), "{said}");
        }
    }
}
