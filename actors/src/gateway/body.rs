//! Reading a request's body: bounded in size and time, before anything looks at it.

use actix_web::{HttpRequest, http::header, web};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Options, error::ApiError};
use crate::topics::ConversationId;

/// Body of `POST /v1/conversations/{id}/messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMessage {
    /// What the user says.
    #[schema(example = "hello")]
    pub(super) text: String,
}

/// JSON body of `POST /v1/chat`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Chat {
    /// What the user says.
    #[schema(example = "hello")]
    pub(super) text: String,
    /// In which conversation; in `chat` if it is left out.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub(super) conversation: Option<ConversationId>,
}

/// Reads the whole body.
pub(super) async fn read(
    request: &HttpRequest,
    mut payload: web::Payload,
    options: &Options,
) -> Result<BytesMut, ApiError> {
    let limit = options.body_bytes_max;
    let too_large = || ApiError::TooLarge { limit };
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    let reading = async {
        while let Some(part) = payload.next().await {
            let part =
                part.map_err(|error| ApiError::BadRequest(format!("the body cannot be read: {error}")))?;
            if body.len() + part.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&part);
        }
        Ok(())
    };
    match tokio::time::timeout(options.body_timeout, reading).await {
        Ok(outcome) => outcome.map(|()| body),
        Err(_) => Err(ApiError::BodyTimeout(options.body_timeout)),
    }
}

/// Reads JSON; the error names the place and what is wrong.
pub(super) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], example: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::BadRequest(format!("body is not as expected: {error}; send, for example, {example}"))
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
