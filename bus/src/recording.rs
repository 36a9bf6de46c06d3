//! Recordings: messages in a file that the tools of MCAP open (<https://mcap.dev/spec>). The only place that names the
//! crate of the format.
//!
//! | here | in the file |
//! |---|---|
//! | topic, origin, content type, schema | a channel; `origin`, `content_type` and `schema` in its metadata |
//! | a schema of [`crate::schema`] | a schema of the encoding `interlock.fields`, its JSON as data |
//! | payload | the message's data, byte for byte |
//! | when it came, when it was published | `log_time`, `publish_time`, nanoseconds since the Unix epoch |
//! | the rest of the header | a private record 0x80 with JSON, in front of the message |
//! | a gap in what was recorded | metadata `interlock.gap` |
//! | beginning and end in good order | metadata `interlock.recording`, `interlock.end` |
//!
//! Messages are compressed in chunks (zstd). After each [`Recorder::sync`] the file on disk is whole: whoever is killed
//! leaves a recording that every reader opens, without what came after the last one.

mod read;
mod write;

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use read::{Entry, Recording};
pub use write::{Recorder, Summary};

use crate::{envelope::Message, topic::TopicName};

/// Private record in front of a message: what MCAP's has no place for.
const EXTRA: u8 = 0x80;
/// Encoding of our schemas.
const SCHEMA_ENCODING: &str = "interlock.fields";
/// Names of metadata.
const BEGINNING: &str = "interlock.recording";
const GAP: &str = "interlock.gap";
const END: &str = "interlock.end";
/// The version of what the table above says.
const VERSION: &str = "1";

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file system refuses.
    #[error("cannot {action} the recording `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is a file of that name.
    #[error("`{}` exists, and recordings overwrite nothing; choose another name with `--output`", .0.display())]
    Exists(PathBuf),
    /// The format has room for 65,535 pairs of topic and origin.
    #[error("the recording `{}` has no room for another topic: the format ends at 65,535; record fewer topics, or begin another one", .0.display())]
    TooManyTopics(PathBuf),
    /// The file is no recording, or damaged.
    #[error("`{}` cannot be read on behind {messages} messages: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How many messages were whole.
        messages: u64,
        /// What is wrong.
        problem: String,
    },
}

/// What [`EXTRA`] holds.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Extra {
    #[serde(default, skip_serializing_if = "Uuid::is_nil")]
    id: Uuid,
    #[serde(default, skip_serializing_if = "is_default")]
    sequence: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    retained: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<TopicName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
}

impl Extra {
    fn of(message: &Message) -> Self {
        let header = &message.header;
        Self {
            id: header.id,
            sequence: message.sequence,
            retained: message.retained,
            reply_to: header.reply_to.clone(),
            correlation: header.correlation,
            traceparent: header.traceparent.clone(),
            headers: header.user.clone(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
