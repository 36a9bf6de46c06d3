//! A client for any OpenAI-compatible server: `/chat/completions` as a stream, and `/models`. The
//! only file that names the HTTP client.
//!
//! Dropping an answer closes its connection; the servers stop writing then.

use std::{collections::VecDeque, net::IpAddr, sync::Once, time::Duration};

use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    back_end::{BackEndError, Piece},
    config::{ModelConfig, ModelConfigError, Secret},
    event_stream::EventStream,
    limits,
};
use crate::topics::{CompletionFinal, CompletionRequest, ModelDescription, ModelList, Usage};

/// What this back end is called in messages and tables.
const NAME: &str = "openai";

/// The client of one server.
#[derive(Debug)]
pub struct OpenAiBackEnd {
    client: reqwest::Client,
    /// Without a slash at the end.
    url: String,
    key: Option<Secret>,
    config: ModelConfig,
    /// The first model that the server listed, if the configuration names none.
    first_model: Mutex<Option<String>>,
}

/// Makes *ring* the process's TLS provider, once. Building a client panics without one.
fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Checks `model.url`.
pub(super) fn check_url(text: &str) -> Result<(), ModelConfigError> {
    parse_url(text).map(|_| ())
}

fn parse_url(text: &str) -> Result<reqwest::Url, ModelConfigError> {
    let refuse = |value: String, allowed: &str| {
        Err(ModelConfigError { key: "url", value, allowed: allowed.to_owned() })
    };
    let url = match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        _ => {
            let allowed = "http:// or https://, a host, and a path, as in http://127.0.0.1:11434/v1";
            return refuse(format!("`{}`", text.rsplit('@').next().unwrap_or_default()), allowed);
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("a URL with a user".to_owned(), "a URL without user and password; use `api_key_file`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse(format!("`{text}`"), "a URL without `?` and `#`");
    }
    Ok(url)
}

/// Whether a URL stays on this machine: then no proxy stands between.
fn is_loopback(url: &reqwest::Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

fn key(config: &ModelConfig) -> Result<Option<Secret>, BackEndError> {
    let refuse = |from: String, problem: String| Err(BackEndError::Key { from, problem });
    let (from, text) = if let Some(variable) = &config.api_key_env {
        let from = format!("the environment variable `{variable}`");
        match std::env::var(variable) {
            Ok(text) => (from, Secret::new(text)),
            Err(error) => return refuse(from, error.to_string()),
        }
    } else if let Some(file) = &config.api_key_file {
        use std::io::Read as _;
        let from = format!("the file `{}`", file.display());
        let mut text = String::new();
        let limit = limits::KEY_FILE_BYTES_MAX as u64 + 1;
        match std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text)) {
            Ok(read) if read as u64 == limit => return refuse(from, "it is too long for a key".to_owned()),
            Ok(_) => (from, Secret::new(text)),
            Err(error) => return refuse(from, error.to_string()),
        }
    } else {
        return Ok(None);
    };
    let trimmed = text.expose().trim();
    if trimmed.is_empty() || !trimmed.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(from, "it is empty or holds blanks or characters that no key has".to_owned());
    }
    Ok(Some(Secret::new(trimmed)))
}

impl OpenAiBackEnd {
    /// Prepares a client; connects to nothing.
    pub(super) fn new(config: &ModelConfig) -> Result<Self, BackEndError> {
        let url = parse_url(&config.url)?;
        install_tls_provider();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(config.connect_timeout)
            .read_timeout(config.read_timeout)
            // A redirect would carry the key and the conversation to somebody else.
            .redirect(reqwest::redirect::Policy::none());
        if url.scheme() == "http" {
            // No TLS is spoken, so a machine without root certificates is no reason to fail.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| BackEndError::Client { problem: reason(&error) })?;
        Ok(Self {
            client,
            url: url.as_str().trim_end_matches('/').to_owned(),
            key: key(config)?,
            config: config.clone(),
            first_model: Mutex::new(None),
        })
    }

    pub(super) fn describe(&self) -> String {
        let model = self.config.model.as_deref().unwrap_or("its first model");
        format!("openai: {model} at {}", self.url)
    }

    pub(super) async fn models(&self) -> Result<ModelList, BackEndError> {
        let names = self.model_names().await?;
        let default = self.config.model.clone().or_else(|| names.first().cloned());
        let describe = |id: String| ModelDescription { default: default.as_ref() == Some(&id), id };
        Ok(ModelList {
            back_end: NAME.to_owned(),
            notice: None,
            models: names.into_iter().map(describe).collect(),
        })
    }

    async fn model_names(&self) -> Result<Vec<String>, BackEndError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let url = format!("{}/models", self.url);
        let response = self.authorised(self.client.get(&url)).send().await;
        let response = response.map_err(|error| self.not_connected(&error))?;
        let mut response = self.accepted(response, "").await?;
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| self.broken(&error))? {
            body.extend_from_slice(&bytes);
            if body.len() > limits::BODY_BYTES_MAX {
                let problem = format!("its list of models is longer than {} bytes", limits::BODY_BYTES_MAX);
                return Err(self.protocol(problem));
            }
        }
        let list: List = serde_json::from_slice(&body)
            .map_err(|error| self.protocol(unreadable("its list of models", &error, self.key.as_ref())))?;
        Ok(list.data.into_iter().map(|entry| entry.id).collect())
    }

    async fn model_for(&self, request: &CompletionRequest) -> Result<String, BackEndError> {
        if let Some(model) = request.options.model.as_ref().or(self.config.model.as_ref()) {
            return Ok(model.clone());
        }
        let mut first = self.first_model.lock().await;
        if first.is_none() {
            *first = self.model_names().await?.into_iter().next();
        }
        first.clone().ok_or_else(|| BackEndError::NoModel { url: self.url.clone() })
    }

    /// Asks for an answer and returns when the server has begun to stream it.
    pub(super) async fn complete(&self, request: &CompletionRequest) -> Result<OpenAiAnswer, BackEndError> {
        let model = self.model_for(request).await?;
        let messages: Vec<_> = request
            .messages
            .iter()
            .map(|message| serde_json::json!({ "role": message.role.as_str(), "content": message.text }))
            .collect();
        let mut body = serde_json::json!({
            "model": model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(temperature) = request.options.temperature.or(self.config.temperature) {
            body["temperature"] = temperature.into();
        }
        if let Some(tokens) = request.options.tokens_max.or(self.config.tokens_max) {
            body["max_tokens"] = tokens.into();
        }
        let url = format!("{}/chat/completions", self.url);
        let response = self.authorised(self.client.post(&url)).json(&body).send().await;
        let response = response.map_err(|error| self.not_connected(&error))?;
        let response = match self.accepted(response, &model).await {
            Err(unknown @ BackEndError::ModelUnknown { .. }) => {
                *self.first_model.lock().await = None;
                return Err(unknown);
            }
            other => other?,
        };
        Ok(OpenAiAnswer {
            response,
            events: EventStream::default(),
            ready: VecDeque::new(),
            model,
            finish_reason: None,
            usage: None,
            url: self.url.clone(),
            key: self.key.clone(),
            read_timeout: self.config.read_timeout,
        })
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// The response if its status is a success, otherwise the error that the status stands for.
    async fn accepted(
        &self,
        mut response: reqwest::Response,
        model: &str,
    ) -> Result<reqwest::Response, BackEndError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after_s = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Vec::new();
        while let Ok(Some(bytes)) = response.chunk().await {
            let room = limits::BODY_BYTES_MAX - body.len();
            body.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if body.len() == limits::BODY_BYTES_MAX {
                break;
            }
        }
        let says = says(&body, self.key.as_ref());
        let (url, status) = (self.url.clone(), status.as_u16());
        Err(match status {
            401 | 403 => BackEndError::KeyRefused { url, status, says },
            404 if !model.is_empty() => BackEndError::ModelUnknown { url, model: model.to_owned(), says },
            429 => BackEndError::Busy { url, retry_after_s, says },
            _ => BackEndError::Failed { url, status: Some(status), says },
        })
    }

    fn protocol(&self, problem: String) -> BackEndError {
        BackEndError::Protocol { url: self.url.clone(), problem }
    }

    /// Nothing of an answer has come yet.
    fn not_connected(&self, error: &reqwest::Error) -> BackEndError {
        let url = self.url.clone();
        if error.is_connect() {
            BackEndError::Unreachable { url, problem: reason(error) }
        } else if error.is_timeout() {
            BackEndError::TimedOut { url, limit: self.config.read_timeout }
        } else {
            BackEndError::Protocol { url, problem: reason(error) }
        }
    }

    fn broken(&self, error: &reqwest::Error) -> BackEndError {
        broken(&self.url, self.config.read_timeout, error)
    }
}

fn broken(url: &str, read_timeout: Duration, error: &reqwest::Error) -> BackEndError {
    let url = url.to_owned();
    match error.is_timeout() {
        true => BackEndError::TimedOut { url, limit: read_timeout },
        false => BackEndError::Cut { url, problem: reason(error) },
    }
}

/// The innermost reason of an error, which is the one that says something.
fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What a server says in the body of an error: short, in one line, and without our key.
fn says(body: &[u8], key: Option<&Secret>) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let said = json.as_ref().and_then(|json| {
        let error = json.get("error").unwrap_or(json);
        let text = error.get("message").or_else(|| error.get("detail")).unwrap_or(error);
        text.as_str().map(str::to_owned)
    });
    let said = said.unwrap_or_else(|| text.into_owned());
    let said = without(said, key);
    let words: Vec<_> =
        said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    match words.join(" ") {
        empty if empty.is_empty() => "it gave no reason".to_owned(),
        said => said.chars().take(limits::ERROR_CHARACTERS_MAX).collect(),
    }
}

/// Why JSON of a server cannot be read. The parser quotes it, and it may quote our key.
fn unreadable(what: &str, error: &serde_json::Error, key: Option<&Secret>) -> String {
    let why: String = without(error.to_string(), key).chars().take(limits::ERROR_CHARACTERS_MAX).collect();
    format!("{what} cannot be read: {why}")
}

/// What a server said, without our key.
fn without(said: String, key: Option<&Secret>) -> String {
    match key {
        Some(key) => said.replace(key.expose(), "(key)"),
        None => said,
    }
}

/// An answer that a server streams. Dropping it closes the connection.
#[derive(Debug)]
pub struct OpenAiAnswer {
    response: reqwest::Response,
    events: EventStream,
    /// Data of events that have come and are not looked at yet.
    ready: VecDeque<String>,
    model: String,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    url: String,
    key: Option<Secret>,
    read_timeout: Duration,
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
            match self.response.chunk().await {
                Ok(Some(bytes)) => self
                    .events
                    .push(&bytes, &mut self.ready)
                    .map_err(|error| self.protocol(error.to_string()))?,
                // Some servers leave out the last event; the answer is complete with its reason.
                Ok(None) if self.finish_reason.is_some() => return Ok(self.end()),
                Ok(None) => {
                    let problem = "the stream ended without `[DONE]`".to_owned();
                    return Err(BackEndError::Cut { url: self.url.clone(), problem });
                }
                Err(error) => return Err(broken(&self.url, self.read_timeout, &error)),
            }
        }
    }

    fn take(&mut self, data: &str) -> Result<Option<Piece>, BackEndError> {
        if data.trim() == "[DONE]" {
            return Ok(Some(self.end()));
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|error| self.protocol(unreadable("an event", &error, self.key.as_ref())))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let says = says(error.to_string().as_bytes(), self.key.as_ref());
            return Err(BackEndError::Failed { url: self.url.clone(), status: None, says });
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
            notice: None,
            usage: self.usage,
        })
    }

    fn protocol(&self, problem: String) -> BackEndError {
        BackEndError::Protocol { url: self.url.clone(), problem }
    }
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
