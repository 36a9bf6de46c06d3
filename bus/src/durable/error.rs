//! Why a message was not accepted.

use uuid::Uuid;

use super::{
    storage::{PutError, StorageError, StorageFailure},
    words::Figures,
};
use crate::{error::RequestError, topic::TopicName};

/// In front of what an error of these kinds says. On the wire its sentence travels whole.
const STORAGE: &str = "the outbox could not store the message: ";
const BUSY: &str = "the outbox is busy: ";
const INVALID: &str = "the message cannot be put: ";

/// Why a message was not accepted, or may not have been. After any of these the same message can be put again with the same
/// id: it is kept once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurableError {
    /// As many messages are unfinished as may be.
    #[error(
        "the outbox is full: {current} of {max} messages are unfinished; `interlock outbox list` shows what they wait for"
    )]
    Full {
        /// Messages that are not finished.
        current: u64,
        /// The limit.
        max: u64,
    },
    /// As many bytes are kept as may be.
    #[error(
        "the outbox is full: {current} bytes are kept and {wanted} more would be above {max}; `interlock dlq list` shows what could go"
    )]
    BytesFull {
        /// Bytes that are kept, dead letters included.
        current: u64,
        /// Bytes of this message.
        wanted: u64,
        /// The limit.
        max: u64,
    },
    /// The outbox's file system is nearly full.
    #[error(
        "the outbox's disk is low: {free} bytes are free and {floor} are left alone; free some, or lower `outbox.disk_floor`"
    )]
    DiskLow {
        /// Bytes that are free.
        free: u64,
        /// Bytes that are left alone.
        floor: u64,
    },
    /// The message is larger than the outbox takes.
    #[error("the message is {bytes} bytes long with its header; the outbox takes {limit} bytes")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Nobody is named to get it.
    #[error("nobody is named as a consumer of `{topic}`; add a route for it to `[outbox]`")]
    NoConsumers {
        /// The topic.
        topic: String,
    },
    /// Another message was accepted with this id.
    #[error("`{id}` was accepted before with another topic or payload; give each message an id of its own")]
    OtherContent {
        /// The id.
        id: Uuid,
    },
    /// The outbox is stopping.
    #[error("the outbox is stopping; try again when it runs")]
    ShuttingDown,
    /// The outbox is being started again, for example because of its configuration.
    #[error("the outbox is starting again; try again in a moment")]
    Restarting,
    /// The outbox could not store it.
    #[error("{STORAGE}{text}")]
    Storage {
        /// The kind of failure.
        kind: StorageFailure,
        /// What it says.
        text: String,
    },
    /// Too many messages are being accepted at this moment.
    #[error("{BUSY}{text}")]
    Busy {
        /// What it has in hand.
        text: String,
    },
    /// The message cannot be kept as it is, however often it is tried.
    #[error("{INVALID}{text}")]
    Invalid {
        /// What is wrong.
        text: String,
    },
    /// No outbox serves.
    #[error("no outbox serves `{topic}`; is the runtime running, and its outbox enabled?")]
    NoOutbox {
        /// The topic of the request.
        topic: TopicName,
    },
    /// The publisher may not put this topic.
    #[error(
        "publishing durably was denied ({code}): {text}; the right it takes is to request `outbox/put/...`"
    )]
    Denied {
        /// A word for programs.
        code: String,
        /// A sentence for people.
        text: String,
    },
    /// Nobody knows whether it was accepted: the answer did not come. Put it again with this id.
    #[error("whether `{id}` was accepted is not known ({reason}); publish it again with the same id")]
    Unconfirmed {
        /// The id it was sent with.
        id: Uuid,
        /// Why there is no answer.
        reason: String,
    },
    /// The outbox refused it with a word that this version does not know.
    #[error("the outbox refused the message ({code}): {text}")]
    Refused {
        /// The word.
        code: String,
        /// The sentence.
        text: String,
    },
}

impl DurableError {
    /// The word for programs, as on the wire.
    pub fn code(&self) -> &str {
        match self {
            Self::Full { .. } => "outbox_full",
            Self::BytesFull { .. } => "bytes_full",
            Self::DiskLow { .. } => "disk_low",
            Self::TooLarge { .. } => "too_large",
            Self::NoConsumers { .. } => "no_consumers",
            Self::OtherContent { .. } => "other_content",
            Self::ShuttingDown => "shutting_down",
            Self::Restarting => "restarting",
            Self::Storage { kind: StorageFailure::Disk, .. } => "disk",
            Self::Storage { kind: StorageFailure::Busy, .. } | Self::Busy { .. } => "busy",
            Self::Storage { kind: StorageFailure::Damaged, .. } => "damaged",
            Self::Storage { kind: StorageFailure::Closed, .. } => "closed",
            Self::Invalid { .. } => "invalid",
            Self::NoOutbox { .. } => "no_outbox",
            Self::Denied { code, .. } | Self::Refused { code, .. } => code,
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let figures = |current, max| Figures { current: Some(current), max: Some(max), ..Figures::default() };
        match self {
            Self::Full { current, max } => figures(*current, *max),
            Self::BytesFull { current, wanted, max } => {
                Figures { wanted: Some(*wanted), ..figures(*current, *max) }
            }
            Self::DiskLow { free, floor } => figures(*free, *floor),
            Self::TooLarge { bytes, limit } => figures(*bytes, *limit),
            Self::OtherContent { id } => Figures { id: Some(*id), ..Figures::default() },
            _ => Figures::default(),
        }
    }

    /// What a refusal on the wire means.
    pub(crate) fn from_wire(code: String, text: String, figures: &Figures, topic: &TopicName) -> Self {
        let Figures { current, max, wanted, id } = *figures;
        let behind = |front: &str| text.strip_prefix(front).unwrap_or(&text).to_owned();
        let storage = |kind| Self::Storage { kind, text: behind(STORAGE) };
        match (code.as_str(), current.zip(max)) {
            ("outbox_full", Some((current, max))) => Self::Full { current, max },
            ("bytes_full", Some((current, max))) => {
                Self::BytesFull { current, wanted: wanted.unwrap_or(0), max }
            }
            ("disk_low", Some((free, floor))) => Self::DiskLow { free, floor },
            ("too_large", Some((bytes, limit))) => Self::TooLarge { bytes, limit },
            ("no_consumers", _) => Self::NoConsumers { topic: topic.to_string() },
            ("shutting_down", _) => Self::ShuttingDown,
            ("restarting", _) => Self::Restarting,
            ("disk", _) => storage(StorageFailure::Disk),
            ("damaged", _) => storage(StorageFailure::Damaged),
            ("closed", _) => storage(StorageFailure::Closed),
            // Of the storage and of the outbox alike.
            ("busy", _) if text.starts_with(STORAGE) => storage(StorageFailure::Busy),
            ("busy", _) => Self::Busy { text: behind(BUSY) },
            ("invalid", _) => Self::Invalid { text: behind(INVALID) },
            ("other_content", _) if id.is_some() => Self::OtherContent { id: id.unwrap_or_default() },
            _ => Self::Refused { code, text },
        }
    }

    /// How a put ended that was never answered.
    pub(crate) fn from_request(error: RequestError, id: Uuid) -> Self {
        match error {
            RequestError::NoResponders { topic } => Self::NoOutbox { topic },
            RequestError::Denied { code, text, .. } => Self::Denied { code, text },
            RequestError::Busy { text, .. } => Self::Busy { text },
            RequestError::TooLarge { bytes, limit } => {
                Self::TooLarge { bytes: bytes as u64, limit: limit as u64 }
            }
            other => Self::Unconfirmed { id, reason: other.to_string() },
        }
    }
}

impl From<PutError> for DurableError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Full { current, max } => Self::Full { current, max },
            PutError::BytesFull { current, wanted, max } => Self::BytesFull { current, wanted, max },
            PutError::DiskLow { free, floor } => Self::DiskLow { free, floor },
            PutError::OtherContent { id } => Self::OtherContent { id },
            PutError::Storage(StorageError { kind, text }) => Self::Storage { kind, text },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_the_same_sentence_on_both_sides_of_the_wire() {
        let topic: TopicName = "orders/a".parse().unwrap();
        let text = || "why".to_owned();
        let storage = |kind| DurableError::Storage { kind, text: text() };
        let refusals = [
            DurableError::Full { current: 3, max: 4 },
            DurableError::BytesFull { current: 3, wanted: 2, max: 4 },
            DurableError::DiskLow { free: 3, floor: 4 },
            DurableError::TooLarge { bytes: 3, limit: 2 },
            DurableError::NoConsumers { topic: topic.to_string() },
            DurableError::OtherContent { id: Uuid::from_u128(7) },
            DurableError::ShuttingDown,
            DurableError::Restarting,
            storage(StorageFailure::Disk),
            storage(StorageFailure::Busy),
            storage(StorageFailure::Damaged),
            storage(StorageFailure::Closed),
            DurableError::Busy { text: text() },
            DurableError::Invalid { text: text() },
        ];
        for sent in refusals {
            let (code, said) = (sent.code().to_owned(), sent.to_string());
            let heard = DurableError::from_wire(code, said, &sent.figures(), &topic);
            assert_eq!((heard.to_string(), heard), (sent.to_string(), sent));
        }
        // Of a later version, or by somebody else's hand.
        let other = DurableError::from_wire("disk".into(), "no room".into(), &Figures::default(), &topic);
        assert_eq!(other.to_string(), "the outbox could not store the message: no room");
        let unknown = DurableError::from_wire("moon".into(), "full moon".into(), &Figures::default(), &topic);
        assert_eq!(unknown.to_string(), "the outbox refused the message (moon): full moon");
    }
}
