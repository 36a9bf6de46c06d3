//! What one log line is: the payload that log transport and log consumer share, and what the store keeps.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How much a record matters. Ordered: `Trace` matters least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Steps inside a function.
    Trace = 1,
    /// For whoever works on the code.
    Debug = 2,
    /// What the program does.
    Info = 3,
    /// Something went another way than wanted.
    Warn = 4,
    /// Data was lost, or a human is needed.
    Error = 5,
}

impl Level {
    /// Every level, the least important first.
    pub const ALL: [Self; 5] = [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// The level as the last part of a `logs/<component>/<level>` topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level a stored number stands for; `None` for a number no level has.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| *level as i64 == number)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A text that names no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("level `{}` is not known; use trace, debug, info, warn or error", text.escape_debug())]
pub struct LevelError {
    text: String,
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| LevelError { text: text.chars().take(32).collect() })
    }
}

impl From<&tracing::Level> for Level {
    fn from(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::TRACE => Self::Trace,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::INFO => Self::Info,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::ERROR => Self::Error,
        }
    }
}

/// One log record.
///
/// - `id` is what makes storing it twice harmless: the store keeps one row for each id.
/// - `time_ns` counts from the Unix epoch; zero means unknown.
/// - `origin` is set by the log consumer from what the broker authenticated. What a sender writes
///   there is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// A UUIDv7, made when the event was raised.
    pub id: Uuid,
    /// When the event was raised, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// How much it matters.
    pub level: Level,
    /// The module that raised it, for example `interlock_actors::gateway`.
    pub target: String,
    /// The component it belongs to; legal as one level of a topic.
    pub component: String,
    /// The operating system's process id of the process that raised it; zero if unknown.
    pub process: u32,
    /// Which start of its component raised it, counted from one; zero if unknown.
    pub incarnation: u64,
    /// The text.
    pub message: String,
    /// The event's own fields, then those of its spans, innermost first.
    #[serde(default)]
    pub fields: Vec<(String, String)>,
    /// The names of the spans it was raised in, outermost first.
    #[serde(default)]
    pub spans: Vec<String>,
    /// Source file.
    #[serde(default)]
    pub file: Option<String>,
    /// Line in it.
    #[serde(default)]
    pub line: Option<u32>,
    /// The trace it belongs to (field `trace_id`).
    #[serde(default)]
    pub trace_id: Option<String>,
    /// The conversation it belongs to (field `conversation`).
    #[serde(default)]
    pub conversation: Option<String>,
    /// The peer that published it, as authenticated by the broker.
    #[serde(default)]
    pub origin: Option<String>,
    /// Which run of its process raised it: a random number, never the same for two processes; zero if unknown.
    #[serde(default)]
    pub run: u64,
    /// Its place in what that run has raised, counted from one; zero if unknown. Tells the order where clocks step back.
    /// A hole is what was dropped (a record says how much) or what a killed process took with it.
    #[serde(default)]
    pub number: u64,
}

impl LogRecord {
    /// A record with a fresh id and the present time. The buffer that takes it gives it run and number.
    pub fn new(level: Level, component: &str, message: impl Into<String>) -> Self {
        Self {
            id: Uuid::now_v7(),
            time_ns: interlock_bus::envelope::now_ns(),
            level,
            target: String::new(),
            component: topic_level(component),
            process: std::process::id(),
            incarnation: 0,
            message: message.into(),
            fields: Vec::new(),
            spans: Vec::new(),
            file: None,
            line: None,
            trace_id: None,
            conversation: None,
            origin: None,
            run: 0,
            number: 0,
        }
    }

    /// About how many bytes of memory it holds; what buffers count.
    pub fn memory_bytes(&self) -> usize {
        let texts = self.target.len() + self.component.len() + self.message.len();
        let fields: usize = self.fields.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
        let spans: usize = self.spans.iter().map(|span| span.len() + 24).sum();
        let options = [&self.file, &self.trace_id, &self.conversation, &self.origin];
        let options: usize = options.into_iter().flatten().map(String::len).sum();
        size_of::<Self>() + texts + fields + spans + options
    }

    /// The topic it is published under: `logs/<component>/<level>`.
    pub fn topic(&self) -> String {
        format!("logs/{}/{}", topic_level(&self.component), self.level)
    }
}

/// Payload of [`LOG_CONSUMER_STATE`](crate::topics::LOG_CONSUMER_STATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerState {
    /// Which incarnation of the consumer speaks.
    pub consumer: Uuid,
    /// Whether its subscription to `logs/#` is acknowledged; if not, it takes nothing more.
    pub ready: bool,
}

/// Payload of [`LOG_CONSUMER_PROBE`](crate::topics::LOG_CONSUMER_PROBE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Comes back in the answer.
    pub probe: Uuid,
}

/// The answer to a [`Probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// The probe's.
    pub probe: Uuid,
    /// Which incarnation of the consumer answers.
    pub consumer: Uuid,
}

/// Payload of [`LOG_CONSUMER_CONFIRM`](crate::topics::LOG_CONSUMER_CONFIRM): published records that somebody keeps
/// until they are in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// The incarnation of the consumer that answered the probe before they were published.
    pub consumer: Uuid,
    /// Their ids; at most [`CONFIRM_IDS_MAX`].
    pub ids: Vec<Uuid>,
}

/// The answer to a [`Confirm`], given when all are in the store, or when the missing ones will not come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Ids that are not in the store and must be published again.
    pub missing: Vec<Uuid>,
    /// Which incarnation of the consumer answers; nil if it does not say.
    #[serde(default)]
    pub consumer: Uuid,
}

/// Ids in one [`Confirm`]. More are refused with `bad_request`.
pub const CONFIRM_IDS_MAX: usize = 4096;

/// Longest component name in bytes: it stands in a column of `interlock logs`.
const COMPONENT_BYTES_MAX: usize = 64;

/// `name` as one legal level of a topic: what a topic forbids becomes `_`, an empty name `unknown`.
pub fn topic_level(name: &str) -> String {
    let forbidden = |character: char| {
        character.is_control() || character.is_whitespace() || "+#.*>/$".contains(character)
    };
    let mut level = String::with_capacity(name.len().min(COMPONENT_BYTES_MAX));
    for character in name.chars() {
        if level.len() + character.len_utf8() > COMPONENT_BYTES_MAX {
            break;
        }
        level.push(if forbidden(character) { '_' } else { character });
    }
    if level.is_empty() { "unknown".to_owned() } else { level }
}

#[cfg(test)]
mod tests {
    use interlock_bus::TopicName;

    use super::*;

    #[test]
    fn every_component_name_makes_a_legal_topic() {
        for name in
            ["gateway", "", "a/b", "$sys", "x+y#z", "tab\tand space", "\u{e9}", &"\u{1f600}".repeat(99)]
        {
            let record = LogRecord::new(Level::Info, name, "");
            assert!(record.topic().parse::<TopicName>().is_ok(), "{name}: {}", record.topic());
        }
    }

    #[test]
    fn a_level_is_read_back_from_its_text_and_its_number() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(Level::from_number(level as i64), Some(level));
        }
        assert!("loud".parse::<Level>().is_err());
        assert_eq!(Level::from_number(9), None);
    }

    #[test]
    fn a_record_survives_json_and_unknown_fields_are_skipped() {
        let mut record = LogRecord::new(Level::Warn, "gateway", "text");
        record.fields.push(("key".into(), "value".into()));
        let mut json: serde_json::Value = serde_json::to_value(&record).unwrap();
        json["of a later version"] = 1.into();
        assert_eq!(serde_json::from_value::<LogRecord>(json).unwrap(), record);
    }
}
