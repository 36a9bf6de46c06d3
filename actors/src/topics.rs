//! The catalogue of built-in topics: what each is called, what it carries, who publishes or serves
//! it and who listens.
//!
//! Payloads are written in bincode's format; JSON is accepted wherever something is read
//! ([`read`]), also from clients that cannot say what they send, and a reply to anything but
//! bincode's format is JSON ([`Format`]). A request answered in parts ends
//! in exactly one final part, or in the bus's own error with a code from [`code`]; there is no
//! third way and no error part beside it.

mod models;
mod schemas;

use std::{fmt, str::FromStr, sync::Arc};

use interlock_bus::{CodecError, ContentType, Message, Payload, TopicFilter, TopicName, codec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use models::*;
pub use schemas::{Described, encode, register, schemas};

/// What a user said. Served (the answer streams to the requester) and subscribed to (the answer
/// is seen on the turn topics only).
pub const USER_INPUT: &str = "conversation/user/input/v1";
/// A whole list of messages, whose last words are to be answered: the list is the history. Served as [`USER_INPUT`] is.
pub const USER_CHAT: &str = "conversation/user/chat/v1";
/// A turn began: the user's text is saved.
pub const TURN_STARTED: &str = "conversation/turn/started/v1";
/// The next piece of an answer.
pub const TURN_DELTA: &str = "conversation/turn/delta/v1";
/// A turn ended with an answer.
pub const TURN_FINAL: &str = "conversation/turn/final/v1";
/// A turn ended without one.
pub const TURN_ERROR: &str = "conversation/turn/error/v1";
/// All turns of a conversation were deleted, with the conversation.
pub const TURNS_DELETED: &str = "conversation/turn/deleted/v1";
/// Ends the running turn of a conversation.
pub const CANCEL: &str = "conversation/cancel/v1";
/// Deletes a conversation with all its messages, after what goes on in it was ended.
pub const DELETE: &str = "conversation/delete/v1";
/// Asks the model to go on from a list of messages.
pub const COMPLETIONS: &str = "modelservice/completions/v1";
/// Asks which models there are.
pub const MODELS: &str = "modelservice/models/v1";
/// Asks for the vectors of texts.
pub const EMBEDDINGS: &str = "modelservice/embeddings/v1";
/// Asks how each model fares: whether it answers, how fast, and what it has done.
pub const MODEL_STATISTICS: &str = "modelservice/statistics/v1";
/// Everything about turns.
pub const TURN_ALL: &str = "conversation/turn/#";
/// Everything about conversations.
pub const CONVERSATION_ALL: &str = "conversation/#";
/// Everything that is logged: `logs/<component>/<level>`.
pub const LOGS_ALL: &str = "logs/#";
/// The log consumer says that it takes records, or that it stops.
pub const LOG_CONSUMER_STATE: &str = "log-consumer/state/v1";
/// Asks the log consumer whether it is there; it answers once its subscription is acknowledged.
pub const LOG_CONSUMER_PROBE: &str = "log-consumer/probe/v1";
/// Asks the log consumer which of some published records are not in the store.
pub const LOG_CONSUMER_CONFIRM: &str = "log-consumer/confirm/v1";
/// Everything about the log consumer.
pub const LOG_CONSUMER_ALL: &str = "log-consumer/#";

/// One line of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Topic or, where levels vary, filter.
    pub topic: &'static str,
    /// `publish` or `request`, and how it is answered.
    pub pattern: Pattern,
    /// The payload of a publish or request, as fields.
    pub payload: &'static str,
    /// Who publishes, or who asks.
    pub from: &'static str,
    /// Who listens, or who answers.
    pub to: &'static str,
}

/// How a topic is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Published; whoever subscribes gets it.
    Publish,
    /// Asked; one reply of these fields.
    Request(&'static str),
    /// Asked; parts of these fields, the last one final.
    Stream(&'static str),
}

/// Every built-in topic of conversation and model.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        topic: USER_INPUT,
        pattern: Pattern::Stream("TurnPart: started | delta | final"),
        payload: "UserInput: conversation text?, turn uuid?, text text",
        from: "gateway, anyone permitted",
        to: "conversation",
    },
    Entry {
        topic: USER_CHAT,
        pattern: Pattern::Stream("TurnPart: started | delta | final"),
        payload: "ChatInput: conversation text?, turn uuid?, messages [ChatMessage], options CompletionOptions, keep bool",
        from: "gateway, anyone permitted",
        to: "conversation",
    },
    Entry {
        topic: TURN_STARTED,
        pattern: Pattern::Publish,
        payload: "TurnStarted: conversation text, turn uuid",
        from: "conversation",
        to: "anyone permitted",
    },
    Entry {
        topic: TURN_DELTA,
        pattern: Pattern::Publish,
        payload: "TurnDelta: conversation text, turn uuid, index u32, text text",
        from: "conversation",
        to: "anyone permitted",
    },
    Entry {
        topic: TURN_FINAL,
        pattern: Pattern::Publish,
        payload: "TurnFinal: conversation text, turn uuid, text text, deltas u32, completion CompletionFinal",
        from: "conversation",
        to: "anyone permitted",
    },
    Entry {
        topic: TURN_ERROR,
        pattern: Pattern::Publish,
        payload: "TurnError: conversation text, turn uuid, code text, text text",
        from: "conversation",
        to: "anyone permitted",
    },
    Entry {
        topic: TURNS_DELETED,
        pattern: Pattern::Publish,
        payload: "TurnsDeleted: conversation text",
        from: "conversation",
        to: "anyone permitted",
    },
    Entry {
        topic: CANCEL,
        pattern: Pattern::Request("ConversationOrder, when the turn has ended"),
        payload: "ConversationOrder: conversation text",
        from: "gateway, anyone permitted",
        to: "conversation",
    },
    Entry {
        topic: DELETE,
        pattern: Pattern::Request("ConversationOrder, when it is gone"),
        payload: "ConversationOrder: conversation text",
        from: "gateway, anyone permitted",
        to: "conversation",
    },
    Entry {
        topic: COMPLETIONS,
        pattern: Pattern::Stream("CompletionPart: delta | final"),
        payload: "CompletionRequest: turn uuid, messages [ChatMessage], options CompletionOptions",
        from: "conversation, anyone permitted",
        to: "model",
    },
    Entry {
        topic: MODELS,
        pattern: Pattern::Request(
            "ModelList: back_end text, notice text?, models [ModelDescription], fallback [text]",
        ),
        payload: "nothing",
        from: "gateway, anyone permitted",
        to: "model",
    },
    Entry {
        topic: EMBEDDINGS,
        pattern: Pattern::Request(
            "Embeddings: name text, model text, back_end text, vectors [[f32]], prompt_tokens u32?",
        ),
        payload: "EmbeddingsRequest: model text?, inputs [text], dimensions u32?",
        from: "gateway, anyone permitted",
        to: "model",
    },
    Entry {
        topic: MODEL_STATISTICS,
        pattern: Pattern::Request("ModelStatistics: models [ModelFigures]"),
        payload: "nothing",
        from: "gateway, anyone permitted",
        to: "model",
    },
    Entry {
        topic: LOGS_ALL,
        pattern: Pattern::Publish,
        payload: "LogRecord as JSON; text and other JSON are kept as a message",
        from: "every component",
        to: "log-consumer",
    },
    Entry {
        topic: LOG_CONSUMER_STATE,
        pattern: Pattern::Publish,
        payload: "ConsumerState: consumer uuid, ready bool",
        from: "log-consumer",
        to: "log-transport",
    },
    Entry {
        topic: LOG_CONSUMER_PROBE,
        pattern: Pattern::Request("ProbeAnswer: probe uuid, consumer uuid"),
        payload: "Probe: probe uuid",
        from: "log-transport",
        to: "log-consumer",
    },
    Entry {
        topic: LOG_CONSUMER_CONFIRM,
        pattern: Pattern::Request("Confirmed: missing [uuid]"),
        payload: "Confirm: consumer uuid, ids [uuid]",
        from: "log-transport",
        to: "log-consumer",
    },
];

/// Codes of errors that end a turn or a completion; programs may act on them, the text beside
/// them is for people.
pub mod code {
    /// The turn was sent before, and has been answered.
    pub const DUPLICATE: &str = "duplicate";
    /// The request could not be read, or holds something impossible.
    pub const BAD_REQUEST: &str = "bad_request";
    /// The request is not in the form that its topic has.
    pub const UNREADABLE: &str = "unreadable";
    /// A queue is full; try again later.
    pub const BUSY: &str = "busy";
    /// Nothing goes on that could be ended.
    pub const NOT_RUNNING: &str = "not_running";
    /// There is no such conversation.
    pub const UNKNOWN_CONVERSATION: &str = "unknown_conversation";
    /// Whoever asked has cancelled.
    pub const CANCELLED: &str = "cancelled";
    /// Nobody serves the model's topic.
    pub const MODEL_ABSENT: &str = "model_absent";
    /// The model service went away in the middle.
    pub const MODEL_GONE: &str = "model_gone";
    /// The model service broke its own protocol.
    pub const MODEL_PROTOCOL: &str = "model_protocol";
    /// A part of the answer did not come in time.
    pub const TIMED_OUT: &str = "timed_out";
    /// The answer is longer than the limit.
    pub const TOO_LONG: &str = "too_long";
    /// The store could not save or read.
    pub const STORE: &str = "store";
    /// The component is stopping.
    pub const STOPPING: &str = "stopping";
    /// The bus did not let the request through.
    pub const BUS: &str = "bus";
    /// The server of the language model cannot be reached.
    pub const BACK_END_UNREACHABLE: &str = "back_end_unreachable";
    /// It refuses the API key, or demands one.
    pub const BACK_END_KEY_REFUSED: &str = "back_end_key_refused";
    /// It does not know the model.
    pub const BACK_END_MODEL_UNKNOWN: &str = "back_end_model_unknown";
    /// It has too much to do.
    pub const BACK_END_BUSY: &str = "back_end_busy";
    /// It failed by its own account.
    pub const BACK_END_FAILED: &str = "back_end_failed";
    /// It does not speak the protocol.
    pub const BACK_END_PROTOCOL: &str = "back_end_protocol";
    /// Its answer stopped before the end.
    pub const BACK_END_CUT: &str = "back_end_cut";
    /// The model makes no embeddings.
    pub const NO_EMBEDDINGS: &str = "no_embeddings";
}

/// When a busy back end wants to be asked again: the last words of an error with the code [`code::BACK_END_BUSY`], which is
/// how it crosses the bus.
pub mod come_back {
    const BEFORE: &str = "try again in ";
    const BEHIND: &str = " s";

    /// The words.
    pub fn words(seconds: u64) -> String {
        format!("{BEFORE}{seconds}{BEHIND}")
    }

    /// The seconds, if a text ends with the words.
    pub fn seconds(text: &str) -> Option<u64> {
        text.strip_suffix(BEHIND)?.rsplit_once(BEFORE)?.1.parse().ok()
    }
}

/// The topic name of a catalogue constant.
pub fn topic(name: &'static str) -> TopicName {
    name.parse().expect("names in the catalogue are valid; a test parses each")
}

/// The filter of a catalogue constant.
pub fn filter(name: &'static str) -> TopicFilter {
    name.parse().expect("names in the catalogue are valid; a test parses each")
}

/// Reads a payload in bincode's format or JSON. A message without a content type (stock ZeroMQ
/// clients cannot give one) is read as JSON if it begins with `{`, and as bincode's format if that fails.
pub fn read<T: serde::de::DeserializeOwned>(message: &Message) -> Result<T, CodecError> {
    let may_be_json = message.header.content_type == ContentType::Bytes
        && message.payload.trim_ascii_start().starts_with(b"{");
    match may_be_json.then(|| codec::from_json(&message.payload)) {
        Some(Ok(value)) => Ok(value),
        Some(Err(not_json)) => message.decode().map_err(|_| not_json),
        None => message.decode(),
    }
}

/// How a reply is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bincode's format.
    Bincode,
    /// JSON.
    Json,
}

impl Format {
    /// The format of replies to `request`: bincode's if it came in that, JSON for everybody else.
    pub fn of_reply_to(request: &Message) -> Self {
        match request.header.content_type {
            ContentType::Bincode => Self::Bincode,
            _ => Self::Json,
        }
    }

    /// A value in this format.
    pub fn encode(self, value: &impl Described) -> Result<Payload, CodecError> {
        match self {
            Self::Bincode => encode(value),
            Self::Json => Payload::json(value),
        }
    }
}

/// Longest conversation id in bytes: it stands in topics' payloads, URLs and tables.
pub const CONVERSATION_ID_BYTES_MAX: usize = 64;

/// Which conversation. Chosen by whoever begins it.
///
/// Invariants: 1 to [`CONVERSATION_ID_BYTES_MAX`] characters of `a-z`, `A-Z`, `0-9`, `-` and `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConversationId(Arc<str>);

/// Why a text is not a [`ConversationId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "conversation id `{}` is not allowed; use 1 to 64 characters of a-z, A-Z, 0-9, `-` and `_`",
    text.escape_debug()
)]
pub struct ConversationIdError {
    text: String,
}

impl ConversationId {
    /// A fresh one.
    pub fn new() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ConversationId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for ConversationId {
    type Err = ConversationIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text.is_empty() || text.len() > CONVERSATION_ID_BYTES_MAX || !text.bytes().all(legal) {
            let text = text.chars().take(CONVERSATION_ID_BYTES_MAX + 1).collect();
            return Err(ConversationIdError { text });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for ConversationId {
    type Error = ConversationIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ConversationId> for String {
    fn from(id: ConversationId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for ConversationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", &*self.0)
    }
}

/// Payload of [`USER_INPUT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserInput {
    /// Which conversation; `None` begins a new one.
    #[serde(default)]
    pub conversation: Option<ConversationId>,
    /// Id of the turn, unlike any other; `None` takes the id of the message.
    #[serde(default)]
    pub turn: Option<Uuid>,
    /// What the user said.
    pub text: String,
}

/// Payload of [`USER_CHAT`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatInput {
    /// Under which conversation it is seen on the turn topics, and kept; `None` begins a new one.
    #[serde(default)]
    pub conversation: Option<ConversationId>,
    /// Id of the turn, unlike any other; `None` takes the id of the message.
    #[serde(default)]
    pub turn: Option<Uuid>,
    /// What was said so far, oldest first. The model is shown this, and nothing that is in the store.
    pub messages: Vec<ChatMessage>,
    /// Wishes.
    #[serde(default)]
    pub options: CompletionOptions,
    /// Whether the user's last message and the answer are kept in the conversation.
    #[serde(default)]
    pub keep: bool,
}

/// Payload of [`CANCEL`] and [`DELETE`], and of their answers, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversationOrder {
    /// Which conversation.
    pub conversation: ConversationId,
}

/// Payload of [`TURN_STARTED`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnStarted {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn.
    pub turn: Uuid,
}

/// Payload of [`TURN_DELTA`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnDelta {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn.
    pub turn: Uuid,
    /// Position of this piece: 0, 1, 2 and so on, without a hole.
    pub index: u32,
    /// The piece; never text that was sent before.
    pub text: String,
}

/// Payload of [`TURN_FINAL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnFinal {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn.
    pub turn: Uuid,
    /// The whole answer, as saved: what all deltas together say.
    pub text: String,
    /// How many deltas there were.
    pub deltas: u32,
    /// How the answer came about.
    pub completion: CompletionFinal,
}

/// Payload of [`TURNS_DELETED`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnsDeleted {
    /// Which conversation is no more.
    pub conversation: ConversationId,
}

/// Payload of [`TURN_ERROR`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnError {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn.
    pub turn: Uuid,
    /// A word for programs, from [`code`].
    pub code: String,
    /// A sentence for people.
    pub text: String,
}

/// One part of the reply to [`USER_INPUT`]. A failed turn ends with the bus's error instead of a
/// final part, with the code and text that [`TURN_ERROR`] carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnPart {
    /// The first part.
    Started(TurnStarted),
    /// A piece of the answer.
    Delta(TurnDelta),
    /// The last part.
    Final(TurnFinal),
}

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word for it that OpenAI-compatible servers and the store use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation, as a model sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into() }
    }
}

/// What a requester may wish of a completion; `None` leaves it to the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompletionOptions {
    /// Which model of the back end.
    pub model: Option<String>,
    /// Randomness, 0 to 2.
    pub temperature: Option<f32>,
    /// Longest answer in tokens.
    pub tokens_max: Option<u32>,
    /// Only the most likely tokens that together have this probability, more than 0, to 1.
    pub top_p: Option<f32>,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// The same seed gives the same answer, where the back end can do that.
    pub seed: Option<i64>,
}

/// Payload of [`COMPLETIONS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletionRequest {
    /// Which turn asks; for logs, and so that nothing can be mixed up.
    #[serde(default = "Uuid::now_v7")]
    pub turn: Uuid,
    /// What was said so far, oldest first; the last one is the user's.
    pub messages: Vec<ChatMessage>,
    /// Wishes.
    #[serde(default)]
    pub options: CompletionOptions,
}

/// One part of the reply to [`COMPLETIONS`]; a failed one ends with the bus's error instead of a
/// final part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompletionPart {
    /// A piece of the answer.
    Delta(CompletionDelta),
    /// The last part.
    Final(CompletionFinal),
}

/// A piece of a completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionDelta {
    /// Position of this piece: 0, 1, 2 and so on, without a hole.
    pub index: u32,
    /// The piece; never text that was sent before.
    pub text: String,
}

/// The end of a completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionFinal {
    /// Why it ended: `stop`, `length`, or what the back end says.
    pub finish_reason: String,
    /// Which back end answered: `script`, `openai` or `ollama`.
    pub back_end: String,
    /// Which model of it, as it calls it.
    pub model: String,
    /// What people should know of this back end, for example that it is no language model.
    pub notice: Option<String>,
    /// Tokens, where the back end counts them.
    pub usage: Option<Usage>,
    /// The configured name of the model that answered.
    pub name: String,
    /// Models that were asked before and did not begin to answer; empty if the first one answered.
    pub fallback: Vec<Fallback>,
}

/// Tokens of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read.
    pub prompt_tokens: u32,
    /// Written.
    pub completion_tokens: u32,
}

#[cfg(test)]
mod tests {
    use interlock_bus::Header;

    use super::*;

    fn message(payload: Payload) -> Message {
        Message {
            topic: topic(USER_INPUT),
            origin: "gateway".parse().unwrap(),
            sequence: 1,
            header: Header::for_payload(&payload),
            payload: payload.bytes,
            retained: false,
        }
    }

    #[test]
    fn every_name_of_the_catalogue_is_a_topic_or_a_filter_and_stands_once() {
        for entry in CATALOGUE {
            entry.topic.parse::<TopicFilter>().unwrap();
            assert_eq!(CATALOGUE.iter().filter(|other| other.topic == entry.topic).count(), 1);
        }
        for name in [
            USER_INPUT,
            USER_CHAT,
            TURN_STARTED,
            TURN_DELTA,
            TURN_FINAL,
            TURN_ERROR,
            TURNS_DELETED,
            COMPLETIONS,
            MODELS,
            EMBEDDINGS,
        ]
        .map(topic)
        {
            assert!(CATALOGUE.iter().any(|entry| entry.topic == name.as_str()), "{name}");
        }
        assert!(filter(CONVERSATION_ALL).matches(&topic(TURN_DELTA)));
        assert_eq!(filter(LOGS_ALL).as_str(), "logs/#");
    }

    #[test]
    fn payloads_survive_bincode_and_json() {
        let final_part = TurnPart::Final(TurnFinal {
            conversation: "kitchen".parse().unwrap(),
            turn: Uuid::from_bytes([7; 16]),
            text: "gr\u{fc}n".to_owned(),
            deltas: 3,
            completion: CompletionFinal {
                finish_reason: "stop".to_owned(),
                back_end: "script".to_owned(),
                model: "small-talk".to_owned(),
                usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2 }),
                ..CompletionFinal::default()
            },
        });
        for payload in [Payload::encode(&final_part).unwrap(), Payload::json(&final_part).unwrap()] {
            assert_eq!(read::<TurnPart>(&message(payload)).unwrap(), final_part);
        }
        let request = CompletionRequest {
            turn: Uuid::nil(),
            messages: vec![ChatMessage::new(Role::User, "hello")],
            options: CompletionOptions { temperature: Some(0.5), ..Default::default() },
        };
        let payload = Payload::encode(&request).unwrap();
        assert_eq!(read::<CompletionRequest>(&message(payload)).unwrap(), request);
    }

    #[test]
    fn a_stock_client_may_send_json_without_saying_so() {
        let input = read::<UserInput>(&message(Payload::bytes(&br#" {"text":"hello"}"#[..]))).unwrap();
        assert_eq!(input, UserInput { conversation: None, turn: None, text: "hello".to_owned() });
        let input: UserInput =
            read(&message(Payload::bytes(Payload::encode(&input).unwrap().bytes))).unwrap();
        assert_eq!(input.text, "hello");
    }

    #[test]
    fn who_asks_in_bincode_gets_bincode_and_everybody_else_json() {
        let format = |payload| Format::of_reply_to(&message(payload));
        assert_eq!(format(Payload::encode(&1u8).unwrap()), Format::Bincode);
        for other in [Payload::default(), Payload::json(&1).unwrap(), Payload::text("{}")] {
            assert_eq!(format(other), Format::Json);
        }
        assert_eq!(Format::Json.encode(&Role::User).unwrap(), Payload::json("user").unwrap());
    }

    #[test]
    fn a_misspelt_field_or_a_bad_conversation_id_is_refused() {
        for (bad, says) in [
            (r#"{"text":"hi","conversaton":"a"}"#, "conversaton"),
            (r#"{"text":"hi","conversation":"a/b"}"#, "a/b"),
            (r#"{"text":"hi","conversation":""}"#, "1 to 64"),
        ] {
            let payload = Payload { content_type: ContentType::Json, bytes: bad.into(), schema: None };
            let error = read::<UserInput>(&message(payload)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(read::<UserInput>(&message(Payload::bytes(vec![0xff; 40]))).is_err());
    }
}
