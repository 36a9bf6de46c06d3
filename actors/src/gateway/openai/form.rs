//! Errors as OpenAI's clients read them: `{"error":{"message","type","param","code"}}`.

use actix_web::{ResponseError, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::error::ApiError;
use crate::topics::code;

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiFailure)]
pub(in crate::gateway) struct Failure {
    error: Content,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct Content {
    /// A sentence for people: what, which value, and the way out.
    message: String,
    /// `invalid_request_error`, `permission_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Which parameter of the request, if it is one.
    param: Option<String>,
    /// A word for programs.
    code: String,
}

/// The body for an error.
pub(in crate::gateway) fn body(error: &ApiError) -> Failure {
    let kind = match error.status_code() {
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let param = match error {
        ApiError::Parameter { param, .. } => Some(param.clone()),
        _ => None,
    };
    let code = match error {
        ApiError::Unauthorized => "invalid_api_key",
        ApiError::UnknownPath(_) => "unknown_url",
        other => other.code(),
    };
    Failure { error: Content { message: error.to_string(), kind, param, code: code.to_owned() } }
}

/// What an error of a turn, or of the model service, is to a client of OpenAI's.
pub(super) fn of_turn(error: ApiError) -> ApiError {
    let ApiError::Turn { status, code, text } = error else { return error };
    let of_parameter = |param: &str, status, code: &str| ApiError::Parameter {
        status,
        param: param.to_owned(),
        code: code.to_owned(),
        text: text.clone(),
    };
    match code.as_str() {
        code::BACK_END_MODEL_UNKNOWN => of_parameter("model", StatusCode::NOT_FOUND, "model_not_found"),
        code::NO_EMBEDDINGS => of_parameter("model", StatusCode::BAD_REQUEST, code::NO_EMBEDDINGS),
        code::BUSY | code::BACK_END_BUSY => {
            ApiError::Turn { status: StatusCode::TOO_MANY_REQUESTS, code, text }
        }
        _ => ApiError::Turn { status, code, text },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_error_has_the_form_and_status_that_the_clients_turn_into_their_exceptions() {
        let turn = |code: &str| ApiError::Turn {
            status: StatusCode::BAD_GATEWAY,
            code: code.to_owned(),
            text: "why".to_owned(),
        };
        for (error, status, kind, param, code) in [
            (ApiError::Unauthorized, 401, "invalid_request_error", json!(null), "invalid_api_key"),
            (
                turn(code::BACK_END_MODEL_UNKNOWN),
                404,
                "invalid_request_error",
                json!("model"),
                "model_not_found",
            ),
            (turn(code::BUSY), 429, "rate_limit_error", json!(null), "busy"),
            (turn(code::BACK_END_BUSY), 429, "rate_limit_error", json!(null), "back_end_busy"),
            (turn(code::BACK_END_CUT), 502, "server_error", json!(null), "back_end_cut"),
            (
                ApiError::UnknownPath("/v1/x".to_owned()),
                404,
                "invalid_request_error",
                json!(null),
                "unknown_url",
            ),
        ] {
            let error = of_turn(error);
            let body = serde_json::to_value(body(&error)).unwrap();
            let said = &body["error"];
            assert_eq!(error.status_code().as_u16(), status, "{body}");
            assert_eq!((&said["type"], &said["param"], &said["code"]), (&json!(kind), &param, &json!(code)));
            assert!(!said["message"].as_str().unwrap().is_empty());
        }
    }
}
