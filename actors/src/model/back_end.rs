//! What every back end does: list its models, and answer in pieces.

use super::{
    config::{BackEndKind, ModelConfig, ModelConfigError},
    limits,
    openai::{OpenAiAnswer, OpenAiBackEnd},
    script::{ScriptAnswer, ScriptBackEnd, ScriptError},
};
use crate::topics::{CompletionFinal, CompletionRequest, ModelList, code};

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
    /// The server lists no model and none is configured.
    #[error("`{url}` lists no model; load one there, or set `model.model`")]
    NoModel {
        /// Where.
        url: String,
    },
    /// Status 429.
    #[error("`{url}` has too much to do: {says}; try again{}", wait(*retry_after_s))]
    Busy {
        /// Where.
        url: String,
        /// Seconds to wait, if the server said so.
        retry_after_s: Option<u64>,
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
    #[error("`{url}` does not answer as an OpenAI-compatible server: {problem}")]
    Protocol {
        /// Where.
        url: String,
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
        limit: std::time::Duration,
    },
}

fn wait(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| " later".to_owned(), |seconds| format!(" in {seconds} s"))
}

fn with_status(status: Option<u16>) -> String {
    status.map_or_else(String::new, |status| format!(" with status {status}"))
}

impl BackEndError {
    /// The word for programs, from [`code`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::NothingToAnswer => code::BAD_REQUEST,
            Self::Unreachable { .. } => code::BACK_END_UNREACHABLE,
            Self::KeyRefused { .. } | Self::Key { .. } => code::BACK_END_KEY_REFUSED,
            Self::ModelUnknown { .. } | Self::NoModel { .. } => code::BACK_END_MODEL_UNKNOWN,
            Self::Busy { .. } => code::BACK_END_BUSY,
            Self::Config(_) | Self::Script(_) | Self::Client { .. } | Self::Failed { .. } => {
                code::BACK_END_FAILED
            }
            Self::Protocol { .. } => code::BACK_END_PROTOCOL,
            Self::Cut { .. } => code::BACK_END_CUT,
            Self::TimedOut { .. } => code::TIMED_OUT,
        }
    }
}

/// A piece of an answer as it comes from a back end.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// More text; never empty.
    Delta(String),
    /// The end.
    Final(CompletionFinal),
}

/// What answers.
#[derive(Debug)]
pub enum BackEnd {
    /// The embedded script.
    Script(ScriptBackEnd),
    /// An OpenAI-compatible server.
    OpenAi(OpenAiBackEnd),
}

impl BackEnd {
    /// The back end that the configuration names. Reads script and key; connects to nothing.
    pub fn new(config: &ModelConfig) -> Result<Self, BackEndError> {
        config.validate()?;
        match config.back_end {
            BackEndKind::Script => {
                let script = ScriptBackEnd::new(config.script.as_deref(), config.script_pause)?;
                Ok(Self::Script(script))
            }
            BackEndKind::OpenAi => OpenAiBackEnd::new(config).map(Self::OpenAi),
        }
    }

    /// One line for `status` and logs: what answers, honestly.
    pub fn describe(&self) -> String {
        match self {
            Self::Script(_) => super::script::NOTICE.to_owned(),
            Self::OpenAi(server) => server.describe(),
        }
    }

    /// Which models there are.
    pub async fn models(&self) -> Result<ModelList, BackEndError> {
        match self {
            Self::Script(script) => Ok(script.models()),
            Self::OpenAi(server) => server.models().await,
        }
    }

    /// Begins an answer. Dropping it, or this future, stops the work and closes any connection.
    pub async fn complete(&self, request: &CompletionRequest) -> Result<Answer, BackEndError> {
        match self {
            Self::Script(script) => script.complete(&request.messages).map(Answer::Script),
            Self::OpenAi(server) => server.complete(request).await.map(Box::new).map(Answer::OpenAi),
        }
    }
}

/// An answer on its way.
#[derive(Debug)]
pub enum Answer {
    /// Of the embedded script.
    Script(ScriptAnswer),
    /// Of a server.
    OpenAi(Box<OpenAiAnswer>),
}

impl Answer {
    /// The next piece. After [`Piece::Final`] or an error there is none: drop the answer.
    pub async fn next(&mut self) -> Result<Piece, BackEndError> {
        match self {
            Self::Script(answer) => Ok(answer.next().await),
            Self::OpenAi(answer) => answer.next().await,
        }
    }
}

/// Checks what a stranger asks for.
pub(super) fn check(request: &CompletionRequest) -> Result<(), String> {
    let count = request.messages.len();
    if count > limits::REQUEST_MESSAGES_MAX {
        return Err(format!("request has {count} messages; the limit is {}", limits::REQUEST_MESSAGES_MAX));
    }
    let bytes: usize = request.messages.iter().map(|message| message.text.len()).sum();
    if bytes > limits::REQUEST_BYTES_MAX {
        return Err(format!("request has {bytes} bytes of text; the limit is {}", limits::REQUEST_BYTES_MAX));
    }
    match request.options.temperature {
        Some(temperature) if !(0.0..=2.0).contains(&temperature) => {
            Err(format!("temperature is {temperature}; allowed is 0 to 2"))
        }
        _ => Ok(()),
    }
}
