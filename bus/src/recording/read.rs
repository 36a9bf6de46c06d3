//! Reading a recording, ours or anybody's.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use mcap::{
    McapError,
    records::Record,
    sans_io::{LinearReadEvent, LinearReader, LinearReaderOptions},
};

use super::{BEGINNING, END, EXTRA, Extra, GAP, RecordingError, SCHEMA_ENCODING, write::io_failure};
use crate::{
    envelope::{ContentType, Header, Payload},
    limits,
    schema::Schema,
};

/// Bytes of one record or chunk; a file that says more is damaged.
const RECORD_BYTES_MAX: usize = 4 * limits::PAYLOAD_BYTES_MAX;

/// What a recording gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Entry {
    /// A message.
    Message {
        /// Its topic, which in recordings of others need not be one of ours.
        topic: Arc<str>,
        /// Who published it; `None` in recordings of others.
        origin: Option<Arc<str>>,
        /// When it came, in nanoseconds since the Unix epoch.
        received_ns: u64,
        /// Whether it was a topic's last value, kept for whoever comes later.
        retained: bool,
        /// Its header as it was published.
        header: Box<Header>,
        /// Its payload.
        payload: Payload,
    },
    /// The schema of payloads that follow.
    Schema(Schema),
    /// Messages are missing here.
    Gap {
        /// The filter of the subscription that lost them.
        filter: String,
        /// How many; `None` if nobody knows.
        count: Option<u64>,
        /// Why.
        reason: String,
    },
}

/// A recording that is read from its beginning to its end.
pub struct Recording {
    path: PathBuf,
    file: File,
    reader: LinearReader,
    channels: HashMap<u16, Channel>,
    extra: Option<Extra>,
    messages: u64,
    has_begun: bool,
    is_ours: bool,
    has_end: bool,
    /// The end of the data has come; behind it everything is said again, for searching.
    is_over: bool,
    has_failed: bool,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recording").field("path", &self.path).finish_non_exhaustive()
    }
}

struct Channel {
    topic: Arc<str>,
    origin: Option<Arc<str>>,
    content_type: ContentType,
    schema: Option<u64>,
}

impl Recording {
    /// Opens one.
    ///
    /// # Errors
    /// [`RecordingError::Io`]. What is in it shows when it is read.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let file = File::open(path).map_err(|source| io_failure(path, "open", source))?;
        let options = LinearReaderOptions::default()
            .with_skip_end_magic(true)
            .with_prevalidate_chunk_crcs(true)
            .with_validate_data_section_crc(true)
            .with_record_length_limit(RECORD_BYTES_MAX);
        Ok(Self {
            path: path.to_owned(),
            file,
            reader: LinearReader::new_with_options(options),
            channels: HashMap::new(),
            extra: None,
            messages: 0,
            has_begun: false,
            is_ours: false,
            has_end: false,
            is_over: false,
            has_failed: false,
        })
    }

    /// Whether all of it was read that was recorded: `false` for a recording that was cut off by a kill or a crash, of
    /// which at most the last second is missing. Meaningful at its end.
    pub fn is_whole(&self) -> bool {
        if self.is_ours { self.has_end } else { self.is_over }
    }

    fn read(&mut self) -> Result<Option<Entry>, RecordingError> {
        loop {
            let record = match self.reader.next_event() {
                None if !self.has_begun => Err(McapError::UnexpectedEof),
                None => return Ok(None),
                Some(Ok(LinearReadEvent::ReadRequest(bytes))) => {
                    let read = self.file.read(self.reader.insert(bytes));
                    let read = read.map_err(|source| io_failure(&self.path, "read", source))?;
                    self.reader.notify_read(read);
                    continue;
                }
                Some(Ok(LinearReadEvent::Record { opcode, data })) => {
                    if self.is_over {
                        continue;
                    }
                    mcap::parse_record(opcode, data).map(Record::into_owned)
                }
                // Killed in the middle of a write.
                Some(Err(McapError::UnexpectedEof)) if self.messages > 0 || self.is_ours => return Ok(None),
                Some(Err(error)) => Err(error),
            };
            let record = record.map_err(|error| self.damaged(error.to_string()))?;
            if let Some(entry) = self.take(record)? {
                return Ok(Some(entry));
            }
        }
    }

    fn damaged(&self, problem: String) -> RecordingError {
        RecordingError::Damaged { path: self.path.clone(), messages: self.messages, problem }
    }

    fn take(&mut self, record: Record<'_>) -> Result<Option<Entry>, RecordingError> {
        Ok(match record {
            Record::Schema { header, data } if header.encoding == SCHEMA_ENCODING => {
                let text = std::str::from_utf8(&data).map_err(|error| self.damaged(error.to_string()))?;
                let schema = Schema::parse(&header.name, text);
                Some(Entry::Schema(schema.map_err(|error| self.damaged(error.to_string()))?))
            }
            Record::Channel(channel) => {
                self.channels.insert(channel.id, Channel::from(channel));
                None
            }
            Record::Unknown { opcode: EXTRA, data } => {
                // In a recording of somebody else's it means something else.
                self.extra = serde_json::from_slice(&data).ok();
                None
            }
            Record::Message { header, data } => {
                let extra = self.extra.take().unwrap_or_default();
                let Some(channel) = self.channels.get(&header.channel_id) else {
                    return Err(
                        self.damaged(format!("a message names the unknown channel {}", header.channel_id))
                    );
                };
                self.messages += 1;
                Some(channel.message(header.log_time, header.publish_time, extra, data.into_owned().into()))
            }
            Record::Metadata(metadata) => {
                self.is_ours |= metadata.name == BEGINNING;
                self.has_end |= metadata.name == END;
                let mut of = metadata.metadata;
                (metadata.name == GAP).then(|| Entry::Gap {
                    filter: of.remove("filter").unwrap_or_default(),
                    count: of.get("count").and_then(|count| count.parse().ok()),
                    reason: of.remove("reason").unwrap_or_default(),
                })
            }
            Record::Header(_) => {
                self.has_begun = true;
                None
            }
            Record::DataEnd(_) => {
                self.is_over = true;
                None
            }
            _ => None,
        })
    }
}

/// The things in it, in their order. Behind an error there are none.
impl Iterator for Recording {
    type Item = Result<Entry, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let entry = self.read().transpose();
        self.has_failed = matches!(entry, Some(Err(_)));
        entry
    }
}

impl Channel {
    fn message(&self, received_ns: u64, published_at_ns: u64, extra: Extra, bytes: Bytes) -> Entry {
        let payload = Payload { content_type: self.content_type.clone(), bytes, schema: self.schema };
        let header = Header {
            id: extra.id,
            published_at_ns,
            reply_to: extra.reply_to,
            correlation: extra.correlation,
            traceparent: extra.traceparent,
            user: extra.headers,
            content_type: self.content_type.clone(),
            schema: self.schema,
            ..Header::absent()
        };
        Entry::Message {
            topic: Arc::clone(&self.topic),
            origin: self.origin.clone(),
            received_ns,
            retained: extra.retained,
            header: Box::new(header),
            payload,
        }
    }
}

impl From<mcap::records::Channel> for Channel {
    fn from(channel: mcap::records::Channel) -> Self {
        let mcap::records::Channel { topic, message_encoding, metadata, .. } = channel;
        let content_type = match (metadata.get("content_type"), message_encoding.as_str()) {
            (Some(content_type), _) => ContentType::parse(content_type),
            (None, "json") => ContentType::Json,
            (None, "bincode") => ContentType::Bincode,
            (None, encoding) => ContentType::parse(encoding),
        };
        let schema = metadata.get("schema").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Self {
            topic: topic.into(),
            origin: metadata.get("origin").map(|origin| origin.as_str().into()),
            content_type,
            schema,
        }
    }
}
