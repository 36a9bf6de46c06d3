//! What every back end does: list its models, answer in pieces, and turn texts into vectors.

use super::{
    config::{BackEndKind, ModelConfig},
    error::BackEndError,
    limits,
    ollama::{self, OllamaAnswer, OllamaBackEnd},
    openai::{self, OpenAiAnswer, OpenAiBackEnd},
    script::{self, ScriptAnswer, ScriptBackEnd},
};
use crate::topics::{CompletionFinal, CompletionOptions, CompletionRequest, EmbeddingsRequest};

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
    /// A server of Ollama.
    Ollama(OllamaBackEnd),
}

/// The vectors of texts, in their order.
#[derive(Debug)]
pub(super) struct Embedded {
    /// Who made them, as the back end calls it.
    pub(super) model: String,
    pub(super) vectors: Vec<Vec<f32>>,
    /// Tokens read, where the back end counts them.
    pub(super) prompt_tokens: Option<u32>,
    pub(super) url: String,
    pub(super) protocol: &'static str,
}

impl Embedded {
    /// Whether there is one vector for each of `count` texts, all of one length and of numbers.
    fn checked(self, count: usize) -> Result<Self, BackEndError> {
        let length = self.vectors.first().map_or(0, Vec::len);
        let is_whole = self.vectors.len() == count
            && self.vectors.iter().all(|vector| vector.len() == length)
            && self.vectors.iter().flatten().all(|number| number.is_finite());
        if is_whole && length > 0 {
            return Ok(self);
        }
        let problem = format!(
            "{count} texts were to get a vector each, of one length; it sent {}, the first of {length} numbers",
            self.vectors.len()
        );
        Err(BackEndError::Protocol { url: self.url, protocol: self.protocol, problem })
    }
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
            BackEndKind::Ollama => OllamaBackEnd::new(config).map(Self::Ollama),
        }
    }

    /// Its name in messages and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Script(_) => script::NAME,
            Self::OpenAi(_) => openai::NAME,
            Self::Ollama(_) => ollama::NAME,
        }
    }

    /// What people should know of it, for example that it is no language model.
    pub fn notice(&self) -> Option<&'static str> {
        matches!(self, Self::Script(_)).then_some(script::NOTICE)
    }

    /// One line for `status` and logs: what answers, honestly.
    pub fn describe(&self) -> String {
        match self {
            Self::Script(_) => script::NOTICE.to_owned(),
            Self::OpenAi(server) => server.describe(),
            Self::Ollama(server) => server.describe(),
        }
    }

    /// Which models there are; asks the server.
    pub async fn model_names(&self) -> Result<Vec<String>, BackEndError> {
        match self {
            Self::Script(script) => Ok(vec![script.model().to_owned()]),
            Self::OpenAi(server) => server.model_names().await,
            Self::Ollama(server) => server.model_names().await,
        }
    }

    /// Begins an answer. Dropping it, or this future, stops the work and closes any connection.
    pub async fn complete(&self, request: &CompletionRequest) -> Result<Answer, BackEndError> {
        match self {
            Self::Script(script) => script.complete(request).map(Answer::Script),
            Self::OpenAi(server) => server.complete(request).await.map(Box::new).map(Answer::OpenAi),
            Self::Ollama(server) => server.complete(request).await.map(Box::new).map(Answer::Ollama),
        }
    }

    /// The vectors of texts.
    pub(super) async fn embed(&self, request: &EmbeddingsRequest) -> Result<Embedded, BackEndError> {
        let embedded = match self {
            Self::Script(script) => {
                let model = script.model().to_owned();
                return Err(BackEndError::NoEmbeddings { model, able: Vec::new() });
            }
            Self::OpenAi(server) => server.embed(request).await?,
            Self::Ollama(server) => server.embed(request).await?,
        };
        embedded.checked(request.inputs.len())
    }
}

/// An answer on its way.
#[derive(Debug)]
pub enum Answer {
    /// Of the embedded script.
    Script(ScriptAnswer),
    /// Of an OpenAI-compatible server.
    OpenAi(Box<OpenAiAnswer>),
    /// Of a server of Ollama.
    Ollama(Box<OllamaAnswer>),
}

impl Answer {
    /// The next piece. After [`Piece::Final`] or an error there is none: drop the answer.
    pub async fn next(&mut self) -> Result<Piece, BackEndError> {
        match self {
            Self::Script(answer) => Ok(answer.next().await),
            Self::OpenAi(answer) => answer.next().await,
            Self::Ollama(answer) => answer.next().await,
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
    check_options(&request.options)
}

fn check_options(options: &CompletionOptions) -> Result<(), String> {
    match options.temperature {
        Some(temperature) if !(0.0..=2.0).contains(&temperature) => {
            return Err(format!("temperature is {temperature}; allowed is 0 to 2"));
        }
        _ => {}
    }
    match options.top_p {
        Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
            return Err(format!("top_p is {top_p}; allowed is more than 0, to 1"));
        }
        _ => {}
    }
    if options.tokens_max == Some(0) {
        return Err("tokens_max is 0; allowed is 1 and more".to_owned());
    }
    let is_stop = |stop: &String| (1..=limits::STOP_BYTES_MAX).contains(&stop.len());
    if options.stop.len() > limits::STOPS_MAX || !options.stop.iter().all(is_stop) {
        let (count, bytes) = (limits::STOPS_MAX, limits::STOP_BYTES_MAX);
        return Err(format!(
            "stop has {} texts; allowed are {count} of 1 to {bytes} bytes",
            options.stop.len()
        ));
    }
    Ok(())
}

/// Checks which texts a stranger wants vectors of.
pub(super) fn check_inputs(request: &EmbeddingsRequest) -> Result<(), String> {
    let (count, most) = (request.inputs.len(), limits::EMBEDDING_INPUTS_MAX);
    if !(1..=most).contains(&count) {
        return Err(format!("request has {count} texts; allowed are 1 to {most}"));
    }
    if let Some(index) = request.inputs.iter().position(String::is_empty) {
        return Err(format!("text {index} is empty; an empty text has no vector"));
    }
    let bytes: usize = request.inputs.iter().map(String::len).sum();
    if bytes > limits::REQUEST_BYTES_MAX {
        return Err(format!("request has {bytes} bytes of text; the limit is {}", limits::REQUEST_BYTES_MAX));
    }
    if request.dimensions == Some(0) {
        return Err("dimensions is 0; allowed is 1 and more".to_owned());
    }
    Ok(())
}
