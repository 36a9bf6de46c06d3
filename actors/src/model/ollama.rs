//! A server of Ollama by its own API: `/api/chat` as lines of JSON, `/api/embed` and `/api/tags`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    back_end::{Embedded, Piece},
    config::ModelConfig,
    error::BackEndError,
    first_model::FirstModel,
    http::{Body, Server},
    limits,
    lines::Lines,
    openai::{Message, messages},
};
use crate::topics::{CompletionFinal, CompletionRequest, EmbeddingsRequest, Usage};

/// What this back end is called in messages and tables.
pub(super) const NAME: &str = "ollama";

/// What it is expected to be.
const PROTOCOL: &str = "Ollama";

/// The client of one server.
#[derive(Debug)]
pub struct OllamaBackEnd {
    server: Server,
    config: ModelConfig,
    models: FirstModel,
}

/// What `/api/chat` is asked.
#[derive(Serialize)]
struct Ask<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    stream: bool,
    options: Options<'a>,
}

#[derive(Serialize)]
struct Options<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_predict: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
}

impl OllamaBackEnd {
    /// Prepares a client; connects to nothing. A `/v1` at the end of the URL, which belongs to Ollama's other API, is
    /// left out.
    pub(super) fn new(config: &ModelConfig) -> Result<Self, BackEndError> {
        let url = config.url.trim_end_matches('/');
        let server = Server::new(url.strip_suffix("/v1").unwrap_or(url), config, PROTOCOL)?;
        Ok(Self { server, config: config.clone(), models: FirstModel::new(config.model.clone()) })
    }

    pub(super) fn describe(&self) -> String {
        let model = self.models.describe();
        format!("ollama: {model} at {}", self.server.url())
    }

    /// The models that the server has.
    pub(super) async fn model_names(&self) -> Result<Vec<String>, BackEndError> {
        #[derive(Deserialize)]
        struct List {
            models: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            name: String,
        }
        let list: List = self.server.get("api/tags", "its list of models").await?;
        Ok(list.models.into_iter().map(|entry| entry.name).collect())
    }

    async fn model_for(&self, wished: Option<&String>) -> Result<String, BackEndError> {
        self.models.choose(wished, self.server.url(), self.model_names()).await
    }

    /// Asks for an answer and returns when the server has begun to stream it.
    pub(super) async fn complete(&self, request: &CompletionRequest) -> Result<OllamaAnswer, BackEndError> {
        let wishes = &request.options;
        let model = self.model_for(wishes.model.as_ref()).await?;
        let options = Options {
            temperature: wishes.temperature.or(self.config.temperature),
            top_p: wishes.top_p,
            num_predict: wishes.tokens_max.or(self.config.tokens_max),
            stop: &wishes.stop,
            seed: wishes.seed,
        };
        let ask = Ask { model: &model, messages: messages(request), stream: true, options };
        let body = self.models.heard(self.server.post("api/chat", &ask, &model).await).await?;
        Ok(OllamaAnswer { body, lines: Lines::default(), ready: VecDeque::new(), model, has_ended: false })
    }

    /// The vectors of texts, in their order.
    pub(super) async fn embed(&self, request: &EmbeddingsRequest) -> Result<Embedded, BackEndError> {
        #[derive(Serialize)]
        struct Ask<'a> {
            model: &'a str,
            input: &'a [String],
            /// A text that is too long is an error, not cut in silence.
            truncate: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            dimensions: Option<u32>,
        }
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            model: Option<String>,
            embeddings: Vec<Vec<f32>>,
            #[serde(default)]
            prompt_eval_count: Option<u32>,
        }
        let model = self.model_for(request.model.as_ref()).await?;
        let (input, dimensions) = (request.inputs.as_slice(), request.dimensions);
        let ask = Ask { model: &model, input, truncate: false, dimensions };
        let asked =
            self.server.ask("api/embed", &ask, &model, "its embeddings", limits::EMBEDDINGS_BYTES_MAX);
        let said: Said = self.models.heard(asked.await).await?;
        Ok(Embedded {
            model: said.model.filter(|model| !model.is_empty()).unwrap_or(model),
            vectors: said.embeddings,
            prompt_tokens: said.prompt_eval_count,
            url: self.server.url().to_owned(),
            protocol: PROTOCOL,
        })
    }
}

/// An answer that a server streams. Dropping it closes the connection.
#[derive(Debug)]
pub struct OllamaAnswer {
    body: Body,
    lines: Lines,
    /// Lines that have come and are not looked at yet.
    ready: VecDeque<String>,
    model: String,
    has_ended: bool,
}

/// One line of an answer.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    message: Said,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default)]
    prompt_eval_count: Option<u32>,
    #[serde(default)]
    eval_count: Option<u32>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct Said {
    #[serde(default)]
    content: String,
}

impl OllamaAnswer {
    pub(super) async fn next(&mut self) -> Result<Piece, BackEndError> {
        loop {
            while let Some(line) = self.ready.pop_front() {
                if let Some(piece) = self.take(&line)? {
                    return Ok(piece);
                }
            }
            let unusable = |error: super::lines::LinesError, body: &Body| body.protocol(error.to_string());
            match self.body.chunk().await? {
                Some(bytes) => {
                    self.lines.push(&bytes, &mut self.ready).map_err(|error| unusable(error, &self.body))?
                }
                None => match self.lines.end().map_err(|error| unusable(error, &self.body))? {
                    Some(line) if !self.has_ended => self.ready.push_back(line),
                    _ => return Err(self.body.cut("the stream ended before `done`")),
                },
            }
        }
    }

    fn take(&mut self, line: &str) -> Result<Option<Piece>, BackEndError> {
        let chunk: Chunk =
            serde_json::from_str(line).map_err(|error| self.body.unreadable("a line", &error))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(self.body.failed(&error));
        }
        if let Some(model) = chunk.model.filter(|model| !model.is_empty()) {
            self.model = model;
        }
        if chunk.done && chunk.message.content.is_empty() {
            self.has_ended = true;
            return Ok(Some(Piece::Final(CompletionFinal {
                finish_reason: chunk.done_reason.unwrap_or_else(|| "stop".to_owned()),
                back_end: NAME.to_owned(),
                model: self.model.clone(),
                usage: chunk.eval_count.map(|completion_tokens| Usage {
                    // It leaves out what it had read before.
                    prompt_tokens: chunk.prompt_eval_count.unwrap_or(0),
                    completion_tokens,
                }),
                ..CompletionFinal::default()
            })));
        }
        if chunk.done {
            // The last words stand in the line of the end: the end comes after them.
            let mut end: serde_json::Value =
                serde_json::from_str(line).map_err(|error| self.body.unreadable("a line", &error))?;
            end["message"]["content"] = "".into();
            self.ready.push_front(end.to_string());
        }
        Ok(Some(chunk.message.content).filter(|text| !text.is_empty()).map(Piece::Delta))
    }
}

#[cfg(test)]
#[path = "ollama_tests.rs"]
mod tests;
