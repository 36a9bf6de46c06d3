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

/// Reads a JSON object; the error names the place and what is wrong.
pub(super) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], example: &str) -> Result<T, ApiError> {
    let refuse = |problem: String| {
        ApiError::BadRequest(format!("body is not as expected: {problem}; send, for example, {example}"))
    };
    // A list would be taken for the fields in the order of our code.
    if matches!(body.trim_ascii_start().first(), Some(b'[')) {
        return Err(refuse("it is a list, and has to be an object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| refuse(in_words(&error)))
}

/// What serde says is wrong, without the names that types have in our code.
pub(super) fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // What stands before is of the body, and may hold these words, too.
    let Some((found, expected)) = text.rsplit_once(", expected ") else { return text };
    let found = [("sequence", "a list"), ("map", "an object"), ("unit value", "nothing"), ("null", "null")]
        .into_iter()
        .find_map(|(theirs, ours)| Some(format!("{}{ours}", found.strip_suffix(theirs)?)))
        .unwrap_or_else(|| found.to_owned());
    let (wanted, place) = match expected.rfind(" at line ") {
        Some(at) => expected.split_at(at),
        None => (expected, ""),
    };
    let wanted = match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        wanted if wanted.starts_with("struct ") || wanted.starts_with("internally tagged") => "an object",
        wanted if wanted.starts_with("enum ") => "one of a few words",
        wanted if wanted.starts_with("a tuple") => "a list of another length",
        wanted => wanted,
    };
    format!("{found}, expected {wanted}{place}")
}

/// Reads a JSON object that has a secret in it; the error says where it is wrong, and repeats nothing of it. An empty body is
/// one with nothing in it.
pub(super) fn secret_json<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let refuse = |what: String| {
        let text = "the text is not shown, it may hold a passphrase";
        ApiError::BadRequest(format!("body is not as expected: {what}; {text}"))
    };
    // A list would be taken for the fields in the order of our code, and a passphrase in it for a name.
    if matches!(body.trim_ascii_start().first(), Some(b'[')) {
        return Err(refuse("it is a list, and has to be an object".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        // The name may be what was meant for a value; those that are expected are ours.
        let expected = text.strip_prefix("unknown field").and_then(|rest| rest.rsplit_once(", expected "));
        refuse(match expected.and_then(|(_, expected)| expected.split(" at line ").next()) {
            Some(expected) => format!("an unknown field {place}, expected {expected}"),
            None => format!("not the JSON that is wanted {place}"),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_body_is_said_without_names_of_our_code() {
        for (body, says) in [
            ("[]", "it is a list, and has to be an object"),
            (" [\"x\"]", "it is a list, and has to be an object"),
            ("1", "invalid type: integer `1`, expected an object at line 1"),
            ("null", "invalid type: null, expected an object at line 1"),
            ("{\"text\":[]}", "invalid type: a list, expected a string at line 1"),
            ("{\"text\":{}}", "invalid type: an object, expected a string at line 1"),
            ("{\"txt\":\"\"}", "unknown field `txt`, expected `text` at line 1"),
            ("{", "EOF while parsing an object at line 1"),
        ] {
            let error = json::<NewMessage>(body.as_bytes(), "{}").unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("NewMessage"), "{body}: {error}");
        }
        let number = serde_json::from_str::<u64>("-1").unwrap_err();
        assert_eq!(
            in_words(&number),
            "invalid value: integer `-1`, expected a whole number from 0 on at line 1 column 2"
        );
    }
}
