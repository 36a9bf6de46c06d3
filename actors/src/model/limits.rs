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
