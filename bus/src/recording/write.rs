//! Writing a recording.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use mcap::{
    Compression, McapError, WriteOptions,
    records::{MessageHeader, Metadata},
    write::PrivateRecordOptions,
};

use super::{BEGINNING, END, EXTRA, Extra, GAP, RecordingError, SCHEMA_ENCODING, VERSION};
use crate::{
    envelope::{ContentType, Message, now_ns},
    schema::Schema,
    topic::TopicName,
};

/// Bytes of messages that are compressed together.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of messages after which the file is brought up to date without being asked.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages in the file.
    pub messages: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Places where messages are missing.
    pub gaps: u64,
    /// Messages that are missing there, as far as their number is known.
    pub missing: u64,
}

/// A recording that is being made. Dropped without [`Recorder::finish`] it is as after a kill.
pub struct Recorder {
    path: PathBuf,
    writer: mcap::Writer<Steady>,
    disk: Rc<RefCell<Disk>>,
    channels: HashMap<(TopicName, String, String, Option<u64>), u16>,
    schemas: HashMap<u64, u16>,
    unsynced_bytes: u64,
    summary: Summary,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Recorder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Begins a recording in a new file, readable by its owner only. `about` is kept in it, for people.
    ///
    /// # Errors
    /// [`RecordingError`]; a file that is there is not touched.
    pub fn create(path: &Path, about: &[(&str, String)]) -> Result<Self, RecordingError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RecordingError::Exists(path.to_owned()),
            _ => RecordingError::Io { action: "make", path: path.to_owned(), source },
        })?;
        let disk = Rc::new(RefCell::new(Disk { file, stored: 0, pending: Vec::new() }));
        let options = WriteOptions::new()
            .library(concat!("interlock/", env!("CARGO_PKG_VERSION")))
            .compression(Some(Compression::Zstd))
            .compression_threads(0)
            .chunk_size(Some(CHUNK_BYTES))
            .disable_seeking(true);
        let failed = |error| failure(path, "begin", error);
        let mut writer = options.create(Steady(Rc::clone(&disk))).map_err(failed)?;
        let mut metadata = BTreeMap::from([
            ("version".to_owned(), VERSION.to_owned()),
            ("started_ns".to_owned(), now_ns().to_string()),
        ]);
        metadata.extend(about.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        writer.write_metadata(&Metadata { name: BEGINNING.to_owned(), metadata }).map_err(failed)?;
        let mut recorder = Self {
            path: path.to_owned(),
            writer,
            disk,
            channels: HashMap::new(),
            schemas: HashMap::new(),
            unsynced_bytes: 0,
            summary: Summary::default(),
        };
        recorder.sync()?;
        Ok(recorder)
    }

    /// Whether a schema was written already.
    pub fn knows_schema(&self, fingerprint: u64) -> bool {
        self.schemas.contains_key(&fingerprint)
    }

    /// Adds a message that came at `received_ns`, nanoseconds since the Unix epoch. `schema` is that of its payload, if it
    /// is known; it counts for the first message of its kind.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn message(
        &mut self,
        received_ns: u64,
        message: &Message,
        schema: Option<&Schema>,
    ) -> Result<(), RecordingError> {
        let channel_id = self.channel(message, schema)?;
        let extra = serde_json::to_vec(&Extra::of(message)).unwrap_or_default();
        let header = MessageHeader {
            channel_id,
            // The format's is shorter than ours, which stands beside it.
            sequence: message.sequence as u32,
            log_time: received_ns,
            publish_time: match message.header.published_at_ns {
                0 => received_ns,
                published => published,
            },
        };
        let failed = |error| failure(&self.path, "write", error);
        let options = PrivateRecordOptions::IncludeInChunks.into();
        self.writer.write_private_record(EXTRA, &extra, options).map_err(failed)?;
        self.writer.write_to_known_channel(&header, &message.payload).map_err(failed)?;
        self.summary.messages += 1;
        self.summary.payload_bytes += message.payload.len() as u64;
        self.unsynced_bytes += (extra.len() + message.payload.len()) as u64;
        if self.unsynced_bytes > UNSYNCED_BYTES_MAX {
            self.bring_up_to_date()?;
        }
        Ok(())
    }

    /// Notes that messages are missing here; `None` if nobody knows how many.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn gap(&mut self, filter: &str, count: Option<u64>, reason: &str) -> Result<(), RecordingError> {
        let mut metadata = BTreeMap::from([
            ("at_ns".to_owned(), now_ns().to_string()),
            ("filter".to_owned(), filter.to_owned()),
            ("reason".to_owned(), reason.to_owned()),
        ]);
        metadata.extend(count.map(|count| ("count".to_owned(), count.to_string())));
        self.summary.gaps += 1;
        self.summary.missing += count.unwrap_or_default();
        self.metadata(GAP, metadata)
    }

    /// Brings everything so far to the disk, in a form that can be opened.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn sync(&mut self) -> Result<(), RecordingError> {
        self.bring_up_to_date()?;
        self.disk.borrow().file.sync_data().map_err(|source| io_failure(&self.path, "sync", source))
    }

    /// Ends it, with the index that lets readers search.
    ///
    /// # Errors
    /// [`RecordingError`]; what is there can be opened nevertheless.
    pub fn finish(mut self) -> Result<Summary, RecordingError> {
        let summary = self.summary.clone();
        let metadata = [
            ("messages", summary.messages),
            ("gaps", summary.gaps),
            ("missing", summary.missing),
            ("ended_ns", now_ns()),
        ];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_string()));
        self.metadata(END, BTreeMap::from(metadata))?;
        self.writer.finish().map_err(|error| failure(&self.path, "end", error))?;
        let mut disk = self.disk.borrow_mut();
        let ended = disk.store(&[]).and_then(|()| disk.file.sync_all());
        ended.map_err(|source| io_failure(&self.path, "end", source))?;
        Ok(summary)
    }

    /// What was recorded so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    fn metadata(&mut self, name: &str, metadata: BTreeMap<String, String>) -> Result<(), RecordingError> {
        let metadata = Metadata { name: name.to_owned(), metadata };
        self.writer.write_metadata(&metadata).map_err(|error| failure(&self.path, "write", error))
    }

    fn bring_up_to_date(&mut self) -> Result<(), RecordingError> {
        self.unsynced_bytes = 0;
        self.writer.flush().map_err(|error| failure(&self.path, "write", error))?;
        let stored = self.disk.borrow_mut().store(&TAIL);
        stored.map_err(|source| io_failure(&self.path, "write", source))
    }

    fn channel(&mut self, message: &Message, schema: Option<&Schema>) -> Result<u16, RecordingError> {
        let header = &message.header;
        let content_type = header.content_type.as_str().to_owned();
        let key = (message.topic.clone(), message.origin.to_string(), content_type, header.schema);
        if let Some(channel) = self.channels.get(&key) {
            return Ok(*channel);
        }
        let failed = |error| match error {
            McapError::TooManyChannels | McapError::TooManySchemas => {
                RecordingError::TooManyTopics(self.path.clone())
            }
            error => failure(&self.path, "write", error),
        };
        let schema_id = match (header.schema, schema) {
            (Some(fingerprint), Some(schema)) => {
                let body = schema.text().as_bytes();
                let added = self.writer.add_schema(schema.name(), SCHEMA_ENCODING, body);
                let id = added.map_err(failed)?;
                self.schemas.insert(fingerprint, id);
                id
            }
            (Some(fingerprint), None) => self.schemas.get(&fingerprint).copied().unwrap_or(0),
            (None, _) => 0,
        };
        let mut metadata = BTreeMap::from([
            ("origin".to_owned(), key.1.clone()),
            ("content_type".to_owned(), key.2.clone()),
        ]);
        metadata.extend(header.schema.map(|schema| ("schema".to_owned(), format!("{schema:016x}"))));
        let encoding = encoding_of(&header.content_type);
        let channel = self.writer.add_channel(schema_id, message.topic.as_str(), encoding, &metadata);
        let channel = channel.map_err(failed)?;
        self.channels.insert(key, channel);
        Ok(channel)
    }
}

/// The end of a recording that goes on: "no more data", a footer without an index, MCAP's last eight bytes. What comes
/// next overwrites it.
const TAIL: [u8; 50] = {
    let mut tail = [0; 50];
    (tail[0], tail[1]) = (0x0f, 4);
    (tail[13], tail[14]) = (0x02, 20);
    let (mut at, magic) = (42, mcap::MAGIC);
    while at < 50 {
        tail[at] = magic[at - 42];
        at += 1;
    }
    tail
};

/// The file, and what is to be written into it next.
struct Disk {
    file: File,
    /// Bytes of the recording in the file, without its tail.
    stored: u64,
    pending: Vec<u8>,
}

impl Disk {
    /// Writes what is pending, and `tail` behind it, at once: a kill leaves the tail of before or the new one, unless it
    /// hits the system call.
    fn store(&mut self, tail: &[u8]) -> io::Result<()> {
        let bytes = self.pending.len();
        self.pending.extend_from_slice(tail);
        let written = self.file.write_all_at(&self.pending, self.stored);
        self.pending.truncate(bytes);
        written?;
        self.stored += bytes as u64;
        self.pending.clear();
        Ok(())
    }
}

/// What the format's writer writes into.
struct Steady(Rc<RefCell<Disk>>);

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// [`Disk::store`] knows when.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Steady {
    /// Tells the position; nothing behind it is changed.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let disk = self.0.borrow();
        let position = disk.stored + disk.pending.len() as u64;
        match to {
            SeekFrom::Current(0) | SeekFrom::End(0) => Ok(position),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// MCAP's word for what a payload is (<https://mcap.dev/spec/registry>); where it has none, ours.
pub(super) fn encoding_of(content_type: &ContentType) -> &str {
    match content_type {
        ContentType::Json => "json",
        ContentType::Text => "text/plain",
        ContentType::Bincode => "bincode",
        ContentType::Bytes => "application/octet-stream",
        ContentType::Other(media_type) => match media_type.as_str() {
            "application/cbor" => "cbor",
            "application/msgpack" => "msgpack",
            "application/x-protobuf" => "protobuf",
            other => other,
        },
    }
}

pub(super) fn failure(path: &Path, action: &'static str, error: McapError) -> RecordingError {
    let source = match error {
        McapError::Io(source) => source,
        other => io::Error::other(other),
    };
    io_failure(path, action, source)
}

pub(super) fn io_failure(path: &Path, action: &'static str, source: io::Error) -> RecordingError {
    RecordingError::Io { action, path: path.to_owned(), source }
}
