//! The one form in which the gateway says that something is wrong: `{"error":{"code","message"}}`.

use std::time::Duration;

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{StatusCode, header},
};
use interlock_bus::{CodecError, RequestError};
use serde::Serialize;

use super::{access::Scope, limits::Limit, openai};
use crate::{
    store::StoreError,
    topics::{code, come_back},
};

/// The list of tokens is damaged.
pub(super) const TOKENS_UNREADABLE: &str = "tokens_unreadable";

/// Why a request was not answered. Each variant is one thing the client can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error(
        "this needs the gateway's token, in the header `Authorization: Bearer TOKEN`; it is in the file `run/gateway-token` \
         of the data directory"
    )]
    Unauthorized,
    #[error(
        "the token of `{bearer}` is not good for this, which needs the scope `{scope}`; `interlock tokens issue NAME --scope {scope}` makes one that is"
    )]
    Forbidden { bearer: String, scope: Scope },
    #[error(
        "the gateway cannot read its list of tokens, so it does not know whether this one is good; `interlock check` tells \
         whoever runs it what is wrong"
    )]
    TokensUnreadable,
    #[error("the token of `{bearer}` was revoked; `interlock tokens issue NAME` makes another")]
    TokenRevoked { bearer: String },
    #[error("the token of `{bearer}` expired at {at}; `interlock tokens issue NAME` makes another")]
    TokenExpired { bearer: String, at: String },
    #[error("what the token of `{bearer}` is good for was changed; ask again")]
    TokenChanged { bearer: String },
    #[error(
        "too many requests: the allowance of this {} is used up (`{}`); try again in {retry_after} s", limit.of(), limit.setting()
    )]
    RateLimited { limit: Limit, retry_after: u64 },
    #[error("nobody here is called `{0}`; add the name to `gateway.host_names` if it is ours")]
    UnknownHost(String),
    #[error("pages of `{0}` may not ask here; add it to `gateway.allowed_origins` if they may")]
    ForeignOrigin(String),
    #[error("the bus refuses the peer of this token: {0}")]
    NotOnBus(String),
    #[error("the bus has no session for this token: {0}; try again soon")]
    NoSession(String),
    #[error("no such path `{0}`; `/openapi.json` has them all, `/docs/` shows them")]
    UnknownPath(String),
    #[error("method `{method}` is not allowed on `{path}`; allowed: {allowed}")]
    Method { method: String, path: String, allowed: String },
    #[error("no conversation `{0}`")]
    UnknownConversation(String),
    #[error("there is no {what} `{name}`")]
    Unknown { what: &'static str, name: String },
    #[error("{0}")]
    BadRequest(String),
    #[error("body is larger than {limit} bytes (`gateway.body_bytes_max`)")]
    TooLarge { limit: usize },
    #[error("the body did not come within {0:?} (`gateway.body_timeout`)")]
    BodyTimeout(Duration),
    #[error("{limit} answers are being streamed, which is the limit (`gateway.streams_max`); try again soon")]
    Busy { limit: usize },
    #[error("the gateway is stopping and takes no new turns; try again when it runs again")]
    Stopping,
    #[error("{text}")]
    Parameter { status: StatusCode, param: String, code: String, text: String },
    #[error("{text}")]
    Turn { status: StatusCode, code: String, text: String },
}

/// The body of an error.
#[derive(Debug, Serialize)]
struct Body<'a> {
    error: Content<'a>,
}

#[derive(Debug, Serialize)]
struct Content<'a> {
    code: &'a str,
    message: String,
}

impl ApiError {
    /// The word for programs.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::TokensUnreadable => TOKENS_UNREADABLE,
            Self::TokenRevoked { .. } => "token_revoked",
            Self::TokenExpired { .. } => "token_expired",
            Self::TokenChanged { .. } => "token_changed",
            Self::RateLimited { .. } => "rate_limited",
            Self::UnknownHost(_) => "unknown_host",
            Self::ForeignOrigin(_) => "foreign_origin",
            Self::NotOnBus(_) => "denied",
            Self::NoSession(_) => code::BUS,
            Self::UnknownPath(_) => "unknown_path",
            Self::Method { .. } => "method_not_allowed",
            Self::UnknownConversation(_) => code::UNKNOWN_CONVERSATION,
            Self::Unknown { .. } => "unknown",
            Self::BadRequest(_) => code::BAD_REQUEST,
            Self::TooLarge { .. } => "body_too_large",
            Self::BodyTimeout(_) => "body_timeout",
            Self::Busy { .. } => code::BUSY,
            Self::Stopping => code::STOPPING,
            Self::Parameter { code, .. } | Self::Turn { code, .. } => code,
        }
    }

    /// Whose token it is about, if that is known.
    pub(super) fn bearer(&self) -> Option<&str> {
        match self {
            Self::Forbidden { bearer, .. }
            | Self::TokenRevoked { bearer }
            | Self::TokenExpired { bearer, .. }
            | Self::TokenChanged { bearer } => Some(bearer),
            _ => None,
        }
    }

    /// How a question of the gateway's own making to one of the components failed. That it was not understood is no fault of
    /// whoever asked the gateway.
    pub(super) fn of_component(who: &'static str, error: &RequestError) -> Self {
        match error {
            RequestError::Failed { code, text } if code == code::UNREADABLE => {
                tracing::error!(by = who, %text, "a question of the gateway was not understood");
                let text = format!(
                    "the {who} does not understand what the gateway asks: one of them is of another version; the log says more"
                );
                Self::refused(502, "not_understood", text)
            }
            RequestError::Damaged { problem, .. } => Self::bad_answer(who, problem),
            error => Self::of_request(error),
        }
    }

    /// What the gateway itself has made cannot be sent.
    pub(super) fn unsendable(error: &CodecError) -> Self {
        Self::refused(500, "internal", format!("the gateway cannot put this into a message: {error}"))
    }

    /// How a request on the bus failed that somebody has written himself.
    pub(super) fn of_request(error: &RequestError) -> Self {
        let (status, code) = match error {
            RequestError::NoResponders { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_responders"),
            RequestError::Denied { .. } => (StatusCode::FORBIDDEN, "denied"),
            RequestError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, code::TIMED_OUT),
            RequestError::ServerGone => (StatusCode::BAD_GATEWAY, "server_gone"),
            RequestError::Failed { code, text } => {
                let status = match code.as_str() {
                    code::BAD_REQUEST => StatusCode::BAD_REQUEST,
                    code::UNREADABLE => StatusCode::BAD_REQUEST,
                    code::BACK_END_BUSY => StatusCode::TOO_MANY_REQUESTS,
                    code::BUSY | code::STOPPING => StatusCode::SERVICE_UNAVAILABLE,
                    code::TIMED_OUT => StatusCode::GATEWAY_TIMEOUT,
                    // What the runtime says to orders.
                    "unknown_component" => StatusCode::NOT_FOUND,
                    code::UNKNOWN_CONVERSATION => StatusCode::NOT_FOUND,
                    "not_by_itself" | code::NOT_RUNNING => StatusCode::CONFLICT,
                    "supervisor_down" | "full" => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::BAD_GATEWAY,
                };
                return Self::Turn { status, code: code.clone(), text: text.clone() };
            }
            RequestError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, code::BUSY),
            RequestError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            RequestError::Cancelled => (StatusCode::BAD_GATEWAY, code::CANCELLED),
            RequestError::Disconnected => (StatusCode::BAD_GATEWAY, code::BUS),
            _ => (StatusCode::BAD_GATEWAY, code::BUS),
        };
        Self::Turn { status, code: code.to_owned(), text: error.to_string() }
    }

    /// What has no variant of its own: the status, a word for programs, a sentence for people.
    pub(super) fn refused(status: u16, code: &str, text: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        Self::Turn { status, code: code.to_owned(), text: text.into() }
    }

    /// Somebody has answered what cannot be read.
    pub(super) fn bad_answer(who: &str, problem: &impl std::fmt::Display) -> Self {
        Self::refused(502, "bad_answer", format!("the answer of the {who} cannot be read: {problem}"))
    }

    /// There is no store at the moment.
    pub(super) fn store_is_closed() -> Self {
        Self::refused(503, code::STORE, "the store is not open yet; try again soon")
    }

    /// How reading the store failed.
    pub(super) fn of_store(error: &StoreError) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::Turn { status, code: code::STORE.to_owned(), text: error.to_string() }
    }

    /// The answer on `path`: the same, but for OpenAI's paths in OpenAI's form.
    pub(super) fn on_path(&self, path: &str) -> HttpResponse {
        match openai::is_path(path) {
            true => self.response().json(openai::error_body(self)),
            false => self.error_response(),
        }
    }

    /// When a busy back end wants to be asked again, in seconds from now.
    fn come_back_s(&self) -> Option<u64> {
        match self {
            Self::Turn { code, text, .. } if code == code::BACK_END_BUSY => come_back::seconds(text),
            _ => None,
        }
    }

    /// The error as JSON, for an event of a stream, which has no headers.
    pub(super) fn content(&self) -> serde_json::Value {
        let mut content = serde_json::json!({ "code": self.code(), "message": self.to_string() });
        if let Some(seconds) = self.come_back_s() {
            content["retry_after_s"] = seconds.into();
        }
        content
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Unauthorized
            | Self::TokenRevoked { .. }
            | Self::TokenExpired { .. }
            | Self::TokenChanged { .. } => StatusCode::UNAUTHORIZED,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownHost(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Forbidden { .. } | Self::ForeignOrigin(_) | Self::NotOnBus(_) => StatusCode::FORBIDDEN,
            Self::UnknownPath(_) | Self::UnknownConversation(_) | Self::Unknown { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Busy { .. } | Self::Stopping | Self::NoSession(_) | Self::TokensUnreadable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Parameter { status, .. } | Self::Turn { status, .. } => *status,
        }
    }

    fn error_response(&self) -> HttpResponse {
        self.response().json(Body { error: Content { code: self.code(), message: self.to_string() } })
    }
}

impl ApiError {
    /// Status and headers.
    fn response(&self) -> HttpResponseBuilder {
        let mut response = HttpResponseBuilder::new(self.status_code());
        match self {
            Self::Unauthorized => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"interlock\""));
            }
            Self::TokenRevoked { .. } | Self::TokenExpired { .. } | Self::TokenChanged { .. } => {
                let challenge = "Bearer realm=\"interlock\", error=\"invalid_token\"";
                response.insert_header((header::WWW_AUTHENTICATE, challenge));
            }
            Self::RateLimited { retry_after, .. } => {
                response.insert_header((header::RETRY_AFTER, retry_after.to_string()));
            }
            Self::Turn { .. } => {
                if let Some(seconds) = self.come_back_s() {
                    response.insert_header((header::RETRY_AFTER, seconds.to_string()));
                }
            }
            Self::Method { allowed, .. } => {
                response.insert_header((header::ALLOW, allowed.as_str()));
            }
            Self::Busy { .. } | Self::Stopping | Self::NoSession(_) => {
                response.insert_header((header::RETRY_AFTER, "1"));
            }
            // What is left of the body is not read: the connection cannot be used again.
            Self::TooLarge { .. } | Self::BodyTimeout(_) => {
                response.force_close();
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_component_does_not_understand_of_the_gateway_is_no_fault_of_whoever_asks() {
        let failed = |code: &str| RequestError::Failed {
            code: code.to_owned(),
            text: "7 bytes are not a `UserInput` in bincode's format".to_owned(),
        };
        let inner = ApiError::of_component("conversation engine", &failed(code::UNREADABLE));
        assert_eq!((inner.status_code(), inner.code()), (StatusCode::BAD_GATEWAY, "not_understood"));
        let said = inner.to_string();
        assert!(said.contains("the conversation engine") && !said.contains("UserInput"), "{said}");
        let refused = ApiError::of_component("conversation engine", &failed(code::BAD_REQUEST));
        assert_eq!(refused.status_code(), StatusCode::BAD_REQUEST);
        // Whoever has written the message himself is told what is wrong with it.
        let own = ApiError::of_request(&failed(code::UNREADABLE));
        assert_eq!(own.status_code(), StatusCode::BAD_REQUEST);
        assert!(own.to_string().contains("UserInput"));
    }

    #[test]
    fn a_busy_back_end_is_told_as_such_with_the_time_to_come_back() {
        for (text, seconds) in [
            ("`u` has too much to do: x; try again in 7 s", Some("7")),
            ("`u` has too much to do: try again in 9 s; try again later", None),
        ] {
            let failed = RequestError::Failed { code: code::BACK_END_BUSY.to_owned(), text: text.to_owned() };
            let response = ApiError::of_request(&failed).error_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            let told = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(told, seconds);
        }
    }
}
