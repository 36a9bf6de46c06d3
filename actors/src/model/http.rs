//! HTTP towards the servers of models. The only file that names the HTTP client.
//!
//! Dropping a [`Body`] closes its connection; the servers stop writing then.

use std::{net::IpAddr, sync::Once, time::Duration};

use jiff::{Timestamp, fmt::rfc2822};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    config::{ModelConfig, ModelConfigError},
    error::BackEndError,
    key::{self, Secret},
    limits,
};

/// The client of one server.
#[derive(Debug)]
pub(super) struct Server {
    client: reqwest::Client,
    /// Without a slash at the end.
    url: String,
    key: Option<Secret>,
    read_timeout: Duration,
    /// What it is expected to be, as in "an OpenAI-compatible server".
    protocol: &'static str,
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
        Err(ModelConfigError { model: None, key: "url", value, allowed: allowed.to_owned() })
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

impl Server {
    /// Prepares a client; connects to nothing.
    pub(super) fn new(url: &str, config: &ModelConfig, protocol: &'static str) -> Result<Self, BackEndError> {
        let url = parse_url(url)?;
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
            key: key::read(config)?,
            read_timeout: config.read_timeout,
            protocol,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What `path` says, as JSON of at most [`limits::BODY_BYTES_MAX`]. `what` names it in errors.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, BackEndError> {
        let body = self.begun(self.client.get(self.at(path)), "").await?;
        self.read(body, what, limits::BODY_BYTES_MAX).await
    }

    /// What `path` answers to `body`, as JSON of at most `bytes_max`.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        model: &str,
        what: &str,
        bytes_max: usize,
    ) -> Result<T, BackEndError> {
        let body = self.post(path, body, model).await?;
        self.read(body, what, bytes_max).await
    }

    /// Sends `body` and returns when the server has begun to answer well. `model` is who is asked.
    pub(super) async fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        model: &str,
    ) -> Result<Body, BackEndError> {
        self.begun(self.client.post(self.at(path)).json(body), model).await
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    async fn begun(&self, request: reqwest::RequestBuilder, model: &str) -> Result<Body, BackEndError> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.not_connected(&error))?;
        let response = self.accepted(response, model).await?;
        Ok(Body {
            response,
            url: self.url.clone(),
            key: self.key.clone(),
            read_timeout: self.read_timeout,
            protocol: self.protocol,
        })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        mut body: Body,
        what: &str,
        bytes_max: usize,
    ) -> Result<T, BackEndError> {
        let mut all = Vec::new();
        while let Some(bytes) = body.chunk().await? {
            all.extend_from_slice(&bytes);
            if all.len() > bytes_max {
                return Err(body.protocol(format!("{what} is longer than {bytes_max} bytes")));
            }
        }
        serde_json::from_slice(&all).map_err(|error| body.unreadable(what, &error))
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
            .and_then(|value| retry_after(value.to_str().ok()?, Timestamp::now()));
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
            400 | 422 => BackEndError::Refused { url, status, says },
            429 => BackEndError::Busy { url, retry_after_s, says },
            503 if retry_after_s.is_some() => BackEndError::Busy { url, retry_after_s, says },
            _ => BackEndError::Failed { url, status: Some(status), says },
        })
    }

    /// Nothing of an answer has come yet.
    fn not_connected(&self, error: &reqwest::Error) -> BackEndError {
        let url = self.url.clone();
        if error.is_connect() {
            BackEndError::Unreachable { url, problem: reason(error) }
        } else if error.is_timeout() {
            BackEndError::TimedOut { url, limit: self.read_timeout }
        } else {
            BackEndError::Protocol { url, protocol: self.protocol, problem: reason(error) }
        }
    }
}

/// An answer on its way. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Body {
    response: reqwest::Response,
    url: String,
    key: Option<Secret>,
    read_timeout: Duration,
    protocol: &'static str,
}

impl Body {
    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, BackEndError> {
        self.response.chunk().await.map_err(|error| {
            let url = self.url.clone();
            match error.is_timeout() {
                true => BackEndError::TimedOut { url, limit: self.read_timeout },
                false => BackEndError::Cut { url, problem: reason(&error) },
            }
        })
    }

    /// What it says is not the protocol.
    pub(super) fn protocol(&self, problem: String) -> BackEndError {
        BackEndError::Protocol { url: self.url.clone(), protocol: self.protocol, problem }
    }

    /// It ended before the answer did.
    pub(super) fn cut(&self, problem: &str) -> BackEndError {
        BackEndError::Cut { url: self.url.clone(), problem: problem.to_owned() }
    }

    /// The server says in the middle that it failed.
    pub(super) fn failed(&self, error: &serde_json::Value) -> BackEndError {
        let says = says(error.to_string().as_bytes(), self.key.as_ref());
        BackEndError::Failed { url: self.url.clone(), status: None, says }
    }

    /// Why JSON of a server cannot be read. The parser quotes it, and it may quote our key.
    pub(super) fn unreadable(&self, what: &str, error: &serde_json::Error) -> BackEndError {
        let why = without(error.to_string(), self.key.as_ref());
        let why: String = why.chars().take(limits::ERROR_CHARACTERS_MAX).collect();
        self.protocol(format!("{what} cannot be read: {why}"))
    }
}

/// The seconds of a `Retry-After`, which gives them or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<u64> {
    let value = value.trim();
    value.parse().ok().or_else(|| {
        let date = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
        u64::try_from(date.duration_since(now).as_secs()).ok()
    })
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

/// What a server said, without our key.
fn without(said: String, key: Option<&Secret>) -> String {
    match key {
        Some(key) => said.replace(key.expose(), "(key)"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_back_is_seconds_or_a_date() {
        let now = "2026-01-31T08:00:00Z".parse().unwrap();
        for (value, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sat, 31 Jan 2026 08:01:30 GMT", Some(90)),
            ("Sat, 31 Jan 2026 07:59:59 GMT", None),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(retry_after(value, now), seconds, "{value}");
        }
    }
}
