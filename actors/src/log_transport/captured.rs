//! What the layer keeps of an event: as little work as possible for whoever logs. It becomes a record when it is taken
//! out of the buffer, on the thread of the drain.

use std::{
    cell::Cell,
    fmt::{self, Write},
    sync::Arc,
};

use interlock_bus::trace::Trace;
use smallvec::SmallVec;
use tracing::{
    Metadata,
    field::{Field, Visit},
};
use uuid::Uuid;

use super::layer::Identity;
use crate::log_record::{Level, LogRecord, topic_level};

/// Bytes of one message or field; the rest is cut off and marked so.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Fields of one event or span, and of one record with those of its spans; more are left out.
const FIELDS_MAX: usize = 128;
/// Fields that need no memory of their own.
const FIELDS_INLINE: usize = 6;
/// Spans that need no memory of their own.
const SPANS_INLINE: usize = 3;
/// What a thread keeps for its next event; a longer text is given back.
const SCRATCH_BYTES_MAX: usize = 16 << 10;
/// What stands behind a text that was cut off.
const CUT_OFF: &str = "... (cut off)";

thread_local! {
    /// Where this thread's values are written one after another.
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// An event as it was raised.
#[derive(Debug)]
pub(super) struct Captured {
    /// Nanoseconds since the Unix epoch.
    pub(super) time_ns: u64,
    metadata: &'static Metadata<'static>,
    identity: Arc<Identity>,
    trace: Option<Trace>,
    values: Values,
    /// Innermost first.
    spans: SmallVec<[Arc<SpanValues>; SPANS_INLINE]>,
}

/// A span as it was entered, shared by the events inside it.
#[derive(Debug)]
pub(super) struct SpanValues {
    name: &'static str,
    values: Values,
}

/// Names, and one text with all values.
#[derive(Clone, Debug, Default)]
struct Values {
    text: Box<str>,
    /// Each name, and where its value ends in the text.
    ends: SmallVec<[(&'static str, u32); FIELDS_INLINE]>,
}

impl Captured {
    /// An event of now. `record` hands its values to the visitor, `spans` are those around it, innermost first.
    pub(super) fn new(
        identity: Arc<Identity>,
        metadata: &'static Metadata<'static>,
        record: impl FnOnce(&mut dyn Visit),
        spans: impl Iterator<Item = Arc<SpanValues>>,
    ) -> Self {
        let time_ns = interlock_bus::envelope::now_ns();
        let trace = Trace::current();
        Self { time_ns, metadata, identity, trace, values: Values::new(record), spans: spans.collect() }
    }

    /// How much it matters.
    pub(super) fn level(&self) -> Level {
        Level::from(self.metadata.level())
    }

    /// The component it belongs to, as it was named.
    pub(super) fn component(&self) -> &str {
        let of_spans = self.spans.iter().flat_map(|span| span.values.iter());
        let named = self.values.iter().chain(of_spans).find(|(name, _)| *name == "component");
        named.map_or(&self.identity.component, |(_, component)| component)
    }

    /// About how many bytes of memory it holds, without those of spans, which it shares.
    pub(super) fn memory_bytes(&self) -> usize {
        let spilled = |is_spilled, count, each| if is_spilled { count * each } else { 0 };
        size_of::<Self>()
            + self.values.text.len()
            + spilled(self.values.ends.spilled(), self.values.ends.len(), size_of::<(&str, u32)>())
            + spilled(self.spans.spilled(), self.spans.len(), size_of::<usize>())
    }

    /// The record of it. Fields of the event or of a span around it that have a meaning of their own are `message`,
    /// `component`, `incarnation`, `conversation` and `trace_id`; the innermost wins. Without the last it is of the trace
    /// that the caller worked for.
    pub(super) fn into_record(self, random: &mut RandomBytes) -> LogRecord {
        let of_spans = self.spans.iter().flat_map(|span| span.values.iter());
        let mut fields = Fields(
            self.values
                .iter()
                .chain(of_spans)
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        );
        let component = fields.take("component");
        let incarnation = fields.take("incarnation").and_then(|number| number.parse().ok());
        let own_incarnation = if component.is_some() { 0 } else { self.identity.incarnation };
        let mut record = LogRecord {
            id: random.id_at(self.time_ns),
            time_ns: self.time_ns,
            level: self.level(),
            target: self.metadata.target().to_owned(),
            component: component.map_or_else(|| self.identity.component.clone(), |name| topic_level(&name)),
            process: random.process,
            run: 0,
            number: 0,
            incarnation: incarnation.unwrap_or(own_incarnation),
            message: fields.take("message").unwrap_or_default(),
            fields: Vec::new(),
            spans: self.spans.iter().rev().map(|span| span.name.to_owned()).collect(),
            file: self.metadata.file().map(str::to_owned),
            line: self.metadata.line(),
            trace_id: fields.take("trace_id").or_else(|| self.trace.map(|trace| trace.id())),
            conversation: fields.take("conversation"),
            origin: None,
        };
        fields.0.truncate(FIELDS_MAX);
        record.fields = fields.0;
        record
    }
}

impl SpanValues {
    /// A new span.
    pub(super) fn new(name: &'static str, record: impl FnOnce(&mut dyn Visit)) -> Self {
        Self { name, values: Values::new(record) }
    }

    /// The span with values that came later; of one name, the later value comes first.
    pub(super) fn with(&self, record: impl FnOnce(&mut dyn Visit)) -> Self {
        let later = Values::new(record);
        let values = Values::collect(|into| {
            for (name, value) in later.iter().chain(self.values.iter()) {
                into.put(name, |text| text.write_str(value));
            }
        });
        Self { name: self.name, values }
    }
}

impl Values {
    fn new(record: impl FnOnce(&mut dyn Visit)) -> Self {
        Self::collect(|into| record(into))
    }

    fn collect(fill: impl FnOnce(&mut Collector)) -> Self {
        // Taken, not borrowed: a value that logs while it is formatted comes here again, and finds an empty one.
        let mut collector = Collector { text: SCRATCH.take(), ends: SmallVec::new() };
        collector.text.clear();
        fill(&mut collector);
        let values = Self { text: collector.text.as_str().into(), ends: collector.ends };
        if collector.text.capacity() <= SCRATCH_BYTES_MAX {
            SCRATCH.set(collector.text);
        }
        values
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.ends.iter().scan(0, |start, (name, end)| {
            let value = self.text.get(*start..*end as usize).unwrap_or_default();
            *start = *end as usize;
            Some((*name, value))
        })
    }
}

/// Fields in the order in which they came.
struct Fields(Vec<(String, String)>);

impl Fields {
    /// The first value of this name; every value of it is taken out.
    fn take(&mut self, name: &str) -> Option<String> {
        if !self.0.iter().any(|(key, _)| key == name) {
            return None;
        }
        let mut found = None;
        self.0.retain_mut(|(key, value)| {
            let other = key != name;
            if !other && found.is_none() {
                found = Some(std::mem::take(value));
            }
            other
        });
        found
    }
}

/// Writes values one after another.
struct Collector {
    text: String,
    ends: SmallVec<[(&'static str, u32); FIELDS_INLINE]>,
}

impl Collector {
    fn put(&mut self, name: &'static str, write: impl FnOnce(&mut Bounded<'_>) -> fmt::Result) {
        if self.ends.len() >= FIELDS_MAX {
            return;
        }
        let room = TEXT_BYTES_MAX;
        let mut bounded = Bounded { text: &mut self.text, room, is_cut: false };
        // A value that cannot be formatted is kept as far as it came.
        let _ = write(&mut bounded);
        if bounded.is_cut {
            self.text.push_str(CUT_OFF);
        }
        self.ends.push((name, u32::try_from(self.text.len()).unwrap_or(u32::MAX)));
    }
}

/// A text that takes so many bytes more, and lets the rest go.
struct Bounded<'a> {
    text: &'a mut String,
    room: usize,
    is_cut: bool,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.is_cut {
            return Ok(());
        }
        let fits = if part.len() <= self.room { part.len() } else { part.floor_char_boundary(self.room) };
        self.is_cut = fits < part.len();
        self.room -= fits;
        self.text.push_str(&part[..fits]);
        Ok(())
    }
}

impl Visit for Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), |text| write!(text, "{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), |text| text.write_str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut whole = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors repeat their source in their own text.
            if !whole.contains(&cause_text) {
                whole.push_str(": ");
                whole.push_str(&cause_text);
            }
            source = cause.source();
        }
        self.put(field.name(), |text| text.write_str(&whole));
    }
}

/// Random bytes for ids, many from one question to the system, and the number of this process.
pub(super) struct RandomBytes {
    bytes: [u8; Self::BYTES],
    used: usize,
    process: u32,
}

impl RandomBytes {
    /// Of one id.
    const ID_BYTES: usize = 10;
    const BYTES: usize = 64 * Self::ID_BYTES;

    pub(super) fn new() -> Self {
        Self { bytes: [0; Self::BYTES], used: Self::BYTES, process: std::process::id() }
    }

    /// A UUIDv7 (RFC 9562, 5.7) of this time.
    fn id_at(&mut self, time_ns: u64) -> Uuid {
        if self.used == Self::BYTES {
            self.bytes = interlock_bus::crypto::random();
            self.used = 0;
        }
        let mut bytes = [0; Self::ID_BYTES];
        bytes.copy_from_slice(&self.bytes[self.used..self.used + Self::ID_BYTES]);
        self.used += Self::ID_BYTES;
        uuid::Builder::from_unix_timestamp_millis(time_ns / 1_000_000, &bytes).into_uuid()
    }
}
