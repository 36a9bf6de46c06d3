//! Any OpenAI-compatible server: `/chat/completions` as a stream, `/embeddings` and `/models`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{
    back_end::{Embedded, Piece},
    config::ModelConfig,
    error::BackEndError,
    event_stream::EventStream,
    first_model::FirstModel,
    http::{Body, Server},
    limits,
};
use crate::topics::{CompletionFinal, CompletionRequest, EmbeddingsRequest, Usage};

/// What this back end is called in messages and tables.
pub(super) const NAME: &str = "openai";

/// The client of one server.
#[derive(Debug)]
pub struct OpenAiBackEnd {
    server: Server,
    config: ModelConfig,
    models: FirstModel,
}

/// What `/chat/completions` is asked.
#[derive(Serialize)]
struct Ask<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
}

/// A message as OpenAI and Ollama write it.
#[derive(Serialize)]
pub(super) struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// What was said, as these servers want it.
pub(super) fn messages(request: &CompletionRequest) -> Vec<Message<'_>> {
    let said = request.messages.iter();
    said.map(|said| Message { role: said.role.as_str(), content: &said.text }).collect()
}

impl OpenAiBackEnd {
    /// Prepares a client; connects to nothing.
    pub(super) fn new(config: &ModelConfig) -> Result<Self, BackEndError> {
        let server = Server::new(&config.url, config, "OpenAI-compatible")?;
        Ok(Self { server, config: config.clone(), models: FirstModel::new(config.model.clone()) })
    }

    pub(super) fn describe(&self) -> String {
        let model = self.models.describe();
        format!("openai: {model} at {}", self.server.url())
    }

    /// The models that the server lists.
    pub(super) async fn model_names(&self) -> Result<Vec<String>, BackEndError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let list: List = self.server.get("models", "its list of models").await?;
        Ok(list.data.into_iter().map(|entry| entry.id).collect())
    }

    async fn model_for(&self, wished: Option<&String>) -> Result<String, BackEndError> {
        self.models.choose(wished, self.server.url(), self.model_names()).await
    }

    /// Asks for an answer and returns when the server has begun to stream it.
    pub(super) async fn complete(&self, request: &CompletionRequest) -> Result<OpenAiAnswer, BackEndError> {
        let options = &request.options;
        let model = self.model_for(options.model.as_ref()).await?;
        let ask = Ask {
            model: &model,
            messages: messages(request),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: options.temperature.or(self.config.temperature),
            top_p: options.top_p,
            max_tokens: options.tokens_max.or(self.config.tokens_max),
            stop: &options.stop,
            seed: options.seed,
        };
        let body = self.models.heard(self.server.post("chat/completions", &ask, &model).await).await?;
        Ok(OpenAiAnswer {
            body,
            events: EventStream::default(),
            ready: VecDeque::new(),
            model,
            finish_reason: None,
            usage: None,
        })
    }

    /// The vectors of texts, in their order.
    pub(super) async fn embed(&self, request: &EmbeddingsRequest) -> Result<Embedded, BackEndError> {
        #[derive(Serialize)]
        struct Ask<'a> {
            model: &'a str,
            input: &'a [String],
            encoding_format: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            dimensions: Option<u32>,
        }
        #[derive(Deserialize)]
        struct Said {
            #[serde(default)]
            model: Option<String>,
            data: Vec<Vector>,
            #[serde(default)]
            usage: Option<Tokens>,
        }
        #[derive(Deserialize)]
        struct Vector {
            #[serde(default)]
            index: usize,
            embedding: Vec<f32>,
        }
        #[derive(Deserialize)]
        struct Tokens {
            #[serde(default)]
            prompt_tokens: u32,
        }
        let model = self.model_for(request.model.as_ref()).await?;
        let (input, dimensions) = (request.inputs.as_slice(), request.dimensions);
        let ask = Ask { model: &model, input, encoding_format: "float", dimensions };
        let asked =
            self.server.ask("embeddings", &ask, &model, "its embeddings", limits::EMBEDDINGS_BYTES_MAX);
        let mut said: Said = self.models.heard(asked.await).await?;
        said.data.sort_by_key(|vector| vector.index);
        Ok(Embedded {
            model: said.model.filter(|model| !model.is_empty()).unwrap_or(model),
            vectors: said.data.into_iter().map(|vector| vector.embedding).collect(),
            prompt_tokens: said.usage.map(|usage| usage.prompt_tokens),
            url: self.server.url().to_owned(),
            protocol: "OpenAI-compatible",
        })
    }
}

/// An answer that a server streams. Dropping it closes the connection.
#[derive(Debug)]
pub struct OpenAiAnswer {
    body: Body,
    events: EventStream,
    /// Data of events that have come and are not looked at yet.
    ready: VecDeque<String>,
    model: String,
    finish_reason: Option<String>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl OpenAiAnswer {
    pub(super) async fn next(&mut self) -> Result<Piece, BackEndError> {
        loop {
            while let Some(data) = self.ready.pop_front() {
                if let Some(piece) = self.take(&data)? {
                    return Ok(piece);
                }
            }
            match self.body.chunk().await? {
                Some(bytes) => self
                    .events
                    .push(&bytes, &mut self.ready)
                    .map_err(|error| self.body.protocol(error.to_string()))?,
                // Some servers leave out the last event; the answer is complete with its reason.
                None if self.finish_reason.is_some() => return Ok(self.end()),
                None => return Err(self.body.cut("the stream ended without `[DONE]`")),
            }
        }
    }

    fn take(&mut self, data: &str) -> Result<Option<Piece>, BackEndError> {
        if data.trim() == "[DONE]" {
            return Ok(Some(self.end()));
        }
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|error| self.body.unreadable("an event", &error))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(self.body.failed(&error));
        }
        if let Some(model) = chunk.model.filter(|model| !model.is_empty()) {
            self.model = model;
        }
        self.usage = chunk.usage.or(self.usage);
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(None) };
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        Ok(choice.delta.content.filter(|text| !text.is_empty()).map(Piece::Delta))
    }

    fn end(&mut self) -> Piece {
        Piece::Final(CompletionFinal {
            finish_reason: self.finish_reason.take().unwrap_or_else(|| "stop".to_owned()),
            back_end: NAME.to_owned(),
            model: self.model.clone(),
            usage: self.usage,
            ..CompletionFinal::default()
        })
    }
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
