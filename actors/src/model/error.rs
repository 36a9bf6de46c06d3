//! Why a back end cannot be used, or did not finish an answer, and what may be done about it.

use std::time::Duration;

use super::{config::ModelConfigError, script::ScriptError};
use crate::topics::{code, come_back};

/// Why a back end cannot be used, or did not finish an answer. Texts never hold a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackEndError {
    /// The configuration is impossible.
    #[error(transparent)]
    Config(#[from] ModelConfigError),
    /// The script is impossible.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The API key cannot be had from where the configuration says.
    #[error("the API key cannot be read from {from}: {problem}")]
    Key {
        /// Which variable or file.
        from: String,
        /// Why.
        problem: String,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be made: {problem}")]
    Client {
        /// Why.
        problem: String,
    },
    /// No message of a user.
    #[error("the request holds no message of the role `user`; there is nothing to answer")]
    NothingToAnswer,
    /// The back end makes no embeddings.
    #[error("model `{model}` makes no embeddings{}", embedding_models(able))]
    NoEmbeddings {
        /// Which model was asked.
        model: String,
        /// Those that do.
        able: Vec<String>,
    },
    /// No connection.
    #[error("`{url}` cannot be reached: {problem}; is the server running, and is `model.url` right?")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        problem: String,
    },
    /// Status 401 or 403.
    #[error(
        "`{url}` refuses the API key with status {status}: {says}; set `model.api_key_file` or `model.api_key_env`"
    )]
    KeyRefused {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        says: String,
    },
    /// Status 404.
    #[error(
        "`{url}` does not know the model `{model}`: {says}; set `model.model` to one that it has, or leave it empty"
    )]
    ModelUnknown {
        /// Where.
        url: String,
        /// Which model was asked for.
        model: String,
        /// The server's words.
        says: String,
    },
    /// No configured model has this name.
    #[error("no model `{model}` is configured; there {}", there_are(known))]
    NotConfigured {
        /// Which model was asked for.
        model: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The server lists no model and none is configured.
    #[error("`{url}` lists no model; load one there, or set `model.model`")]
    NoModel {
        /// Where.
        url: String,
    },
    /// Status 429, or 503 with a time after which to try again.
    #[error("`{url}` has too much to do: {says}; {}", wait(*retry_after_s))]
    Busy {
        /// Where.
        url: String,
        /// Seconds to wait, if the server said so.
        retry_after_s: Option<u64>,
        /// The server's words.
        says: String,
    },
    /// Status 400 or 422: the server finds fault with the request itself.
    #[error("`{url}` refuses the request with status {status}: {says}")]
    Refused {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        says: String,
    },
    /// Another status, or an error in the middle of the stream.
    #[error("`{url}` failed{}: {says}", with_status(*status))]
    Failed {
        /// Where.
        url: String,
        /// HTTP status; `None` in the middle of a stream.
        status: Option<u16>,
        /// The server's words.
        says: String,
    },
    /// Something that is not the protocol.
    #[error("`{url}` does not answer as {} server: {problem}", with_article(protocol))]
    Protocol {
        /// Where.
        url: String,
        /// Which protocol was expected.
        protocol: &'static str,
        /// What was odd.
        problem: String,
    },
    /// The connection ended before the answer did.
    #[error("`{url}` broke off in the middle of the answer: {problem}")]
    Cut {
        /// Where.
        url: String,
        /// How.
        problem: String,
    },
    /// Silence for too long.
    #[error("`{url}` was silent for {limit:?}; a larger `model.read_timeout` allows for slower servers")]
    TimedOut {
        /// Where.
        url: String,
        /// The limit.
        limit: Duration,
    },
}

fn wait(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "try again later".to_owned(), come_back::words)
}

fn with_status(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!(" with status {status}"))
}

fn with_article(protocol: &str) -> String {
    format!("an {protocol}")
}

fn names(models: &[String]) -> String {
    models.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn there_are(known: &[String]) -> String {
    match known {
        [one] => format!("is `{one}`"),
        known => format!("are {}", names(known)),
    }
}

fn embedding_models(able: &[String]) -> String {
    match able {
        [] => "; configure one that does, with the back end `openai` or `ollama` and `embeddings = true`"
            .to_owned(),
        able => format!("; {} can", names(able)),
    }
}

impl BackEndError {
    /// The word for programs, from [`code`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::NothingToAnswer | Self::Refused { .. } => code::BAD_REQUEST,
            Self::NoEmbeddings { .. } => code::NO_EMBEDDINGS,
            Self::Unreachable { .. } => code::BACK_END_UNREACHABLE,
            Self::KeyRefused { .. } | Self::Key { .. } => code::BACK_END_KEY_REFUSED,
            Self::ModelUnknown { .. } | Self::NotConfigured { .. } | Self::NoModel { .. } => {
                code::BACK_END_MODEL_UNKNOWN
            }
            Self::Busy { .. } => code::BACK_END_BUSY,
            Self::Config(_) | Self::Script(_) | Self::Client { .. } | Self::Failed { .. } => {
                code::BACK_END_FAILED
            }
            Self::Protocol { .. } => code::BACK_END_PROTOCOL,
            Self::Cut { .. } => code::BACK_END_CUT,
            Self::TimedOut { .. } => code::TIMED_OUT,
        }
    }

    /// Whether the request itself is at fault, so that no other model would do better and the back end is well.
    pub fn is_of_the_request(&self) -> bool {
        matches!(
            self,
            Self::NothingToAnswer
                | Self::Refused { .. }
                | Self::NoEmbeddings { .. }
                | Self::NotConfigured { .. }
        )
    }

    /// The seconds that a busy server wants to be left alone, if it said so.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Busy { retry_after_s, .. } => *retry_after_s,
            _ => None,
        }
    }

    /// Whether the same server may be asked once more because it has not begun to work on the request, and the
    /// seconds that it wants to be left alone.
    pub fn may_be_retried(&self) -> Option<Option<u64>> {
        match self {
            Self::Unreachable { .. } => Some(None),
            Self::Busy { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }
}
