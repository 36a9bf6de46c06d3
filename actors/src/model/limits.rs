//! Every limit of the model service: unit, reason, and what happens when it is hit.

use std::time::Duration;

/// Completions that run at once, unless configured. Further ones wait. A local server answers a
/// few at a time anyway and queues the rest itself.
pub const CONCURRENT: usize = 32;

/// Largest configurable number of completions at once.
pub const CONCURRENT_MAX: usize = 1024;

/// Completions that wait for their turn, unless configured. A further one is answered `busy`.
pub const WAITING: usize = 256;

/// Largest configurable number of waiting completions.
pub const WAITING_MAX: usize = 65_536;

/// Messages in one completion request. More are refused with `bad_request`.
pub const REQUEST_MESSAGES_MAX: usize = 4096;

/// Bytes of one completion request. More are refused with `bad_request`.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Texts before which an answer ends, in one request. More are refused with `bad_request`; OpenAI takes 4.
pub const STOPS_MAX: usize = 16;

/// Bytes of one such text. A longer one is refused with `bad_request`.
pub const STOP_BYTES_MAX: usize = 256;

/// Texts of one request for embeddings, as many as OpenAI takes. More are refused with `bad_request`.
pub const EMBEDDING_INPUTS_MAX: usize = 2048;

/// Bytes read of a server's embeddings: 2,048 vectors of 1,536 numbers as text, and the 64 MiB of a message of the bus
/// hold them. A longer answer is refused.
pub const EMBEDDINGS_BYTES_MAX: usize = 64 << 20;

/// Configured models. More are refused.
pub const MODELS_MAX: usize = 64;

/// Times that a server is asked again before a completion has begun, unless configured.
pub const RETRIES: u32 = 2;

/// Largest configurable number of such times.
pub const RETRIES_MAX: u32 = 10;

/// Pause before the first of these; it doubles with each, and a random half of it is left out.
pub const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Longest such pause. A server that wants to be left alone for longer is not asked again.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a model may have nothing to do before its server is asked whether it is there.
pub const PROBE_AFTER: Duration = Duration::from_secs(30);

/// The same after it has failed.
pub const PROBE_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How long such a question may take. It never takes longer than the timeouts of the model allow either.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long connecting to an OpenAI-compatible server may take, unless configured.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long such a server may be silent, unless configured. Then the completion ends as `timed_out`.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest configurable timeout towards a server: more is surely a mistake.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Bytes of one server-sent event. A longer one ends the completion as `back_end_protocol`: no
/// server puts more than a few words into one.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Bytes read of an error's body or of a list of models; of an error the rest is ignored, a list
/// that is longer is refused.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Characters of a server's own words that are passed on in an error.
pub const ERROR_CHARACTERS_MAX: usize = 400;

/// Bytes of a file with an API key. A larger one is no key and is refused.
pub const KEY_FILE_BYTES_MAX: usize = 4096;

/// Bytes of a script file. A larger one is refused.
pub const SCRIPT_BYTES_MAX: usize = 1 << 20;

/// Rules of one keyword of a script. More are refused.
pub const SCRIPT_RULES_MAX: usize = 100;

/// Texts in one list of a script. More are refused.
pub const SCRIPT_ANSWERS_MAX: usize = 100;

/// Newest messages that the script engine replays; older ones are forgotten.
pub const SCRIPT_MESSAGES_MAX: usize = 200;

/// Bytes of the newest messages that the script engine replays; older ones are forgotten.
pub const SCRIPT_HISTORY_BYTES_MAX: usize = 64 << 10;

/// Words of one message that the script engine looks at; the rest is ignored.
pub const SCRIPT_WORDS_MAX: usize = 1024;

/// Words of one clause; a longer one is cut in two.
pub const SCRIPT_CLAUSE_WORDS_MAX: usize = 64;

/// Characters of one word; the rest of it is ignored.
pub const SCRIPT_WORD_CHARACTERS_MAX: usize = 64;

/// Facts that the script engine keeps of one conversation; the oldest is forgotten first.
pub const SCRIPT_FACTS_MAX: usize = 32;

/// Texts that the script engine sets aside for later; further ones are not.
pub const SCRIPT_LATER_MAX: usize = 8;

/// Longest configurable pause between two words of the script.
pub const SCRIPT_PAUSE_MAX: Duration = Duration::from_secs(10);
