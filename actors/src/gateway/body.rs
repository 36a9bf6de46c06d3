//! Reading a request's body: bounded in size and time, before anything looks at it.

use actix_web::{HttpRequest, http::header, web};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{Options, error::ApiError};
use crate::topics::ConversationId;

/// Bytes of a body with a secret in it.
const SECRET_BYTES_MAX: usize = 8 << 10;

/// Body of `POST /v1/conversations/{id}/messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMessage {
    /// What the user says.
    #[schema(min_length = 1, example = "hello")]
    pub(super) text: String,
}

/// JSON body of `POST /v1/chat`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Chat {
    /// What the user says.
    #[schema(min_length = 1, example = "hello")]
    pub(super) text: String,
    /// In which conversation; in `chat` if it is left out.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub(super) conversation: Option<ConversationId>,
}

/// Reads the whole body.
pub(super) async fn read(
    request: &HttpRequest,
    payload: web::Payload,
    options: &Options,
) -> Result<BytesMut, ApiError> {
    let mut body = BytesMut::new();
    collect(request, payload, options, options.body_bytes_max, |part| body.extend_from_slice(part)).await?;
    Ok(body)
}

/// Reads a body that has a secret in it: what is kept of it here is wiped when it is dropped.
pub(super) async fn read_secret(
    request: &HttpRequest,
    payload: web::Payload,
    options: &Options,
) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let limit = SECRET_BYTES_MAX.min(options.body_bytes_max);
    // Its whole length from the start: what grows leaves copies.
    let mut body = Zeroizing::new(Vec::with_capacity(limit));
    let read = collect(request, payload, options, limit, |part| body.extend_from_slice(part)).await;
    read.map_err(|error| match error {
        ApiError::TooLarge { .. } => ApiError::refused(
            413,
            error.code(),
            format!("body is larger than {limit} bytes; a passphrase has at most 1024"),
        ),
        error => error,
    })?;
    Ok(body)
}

/// Reads a body part by part, at most so much of it.
async fn collect(
    request: &HttpRequest,
    mut payload: web::Payload,
    options: &Options,
    limit: usize,
    mut keep: impl FnMut(&[u8]),
) -> Result<(), ApiError> {
    let too_large = || ApiError::TooLarge { limit };
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > limit) {
        return Err(too_large());
    }
    let mut length = 0;
    let reading = async {
        while let Some(part) = payload.next().await {
            let part =
                part.map_err(|error| ApiError::BadRequest(format!("the body cannot be read: {error}")))?;
            length += part.len();
            if length > limit {
                return Err(too_large());
            }
            keep(&part);
        }
        Ok(())
    };
    match tokio::time::timeout(options.body_timeout, reading).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::BodyTimeout(options.body_timeout)),
    }
}

/// Reads JSON; the error names the place and what is wrong.
pub(super) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], example: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::BadRequest(format!("body is not as expected: {error}; send, for example, {example}"))
    })
}

/// Reads JSON that has a secret in it; the error says where it is wrong, and repeats nothing but names of fields. An empty body
/// is one with nothing in it.
pub(super) fn secret_json<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        let what = match ["unknown field", "missing field", "duplicate field"].iter().any(|known| text.starts_with(known)) {
            true => text,
            false => format!(
                "not the JSON that is wanted at line {} column {}; the text is not shown, it may hold a passphrase",
                error.line(),
                error.column()
            ),
        };
        ApiError::BadRequest(format!("body is not as expected: {what}"))
    })
}

/// Text that says something.
pub(super) fn text(text: String) -> Result<String, ApiError> {
    if text.trim().is_empty() {
        return Err(ApiError::BadRequest("`text` is empty; say something".to_owned()));
    }
    Ok(text)
}

/// What `POST /v1/chat` was given: JSON if it says so, or else plain text as it is, whatever `curl -d` calls it.
pub(super) fn chat(request: &HttpRequest, body: &[u8]) -> Result<Chat, ApiError> {
    let is_json =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(
            |value| {
                value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
            },
        );
    if is_json {
        return json(body, "{\"text\":\"hello\"}");
    }
    match std::str::from_utf8(body) {
        Ok(text) => Ok(Chat { text: text.to_owned(), conversation: None }),
        Err(error) => {
            Err(ApiError::BadRequest(format!("body is not UTF-8 text after byte {}", error.valid_up_to())))
        }
    }
}
