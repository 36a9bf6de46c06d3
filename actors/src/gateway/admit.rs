//! The way into every handler: who is let in, and the trace under which it is done.

use actix_web::{
    HttpMessage, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderName, HeaderValue},
    middleware::Next,
};
use interlock_bus::trace::Trace;
use tracing::Instrument;

use super::{error::ApiError, page, server::Data};

/// The trace of a request and of its answer (W3C Trace Context).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a path asks of whoever wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing: the page's files, liveness, the interface's description.
    Open,
    /// A token, in the header or in the first message, which is the handler's affair.
    Later,
    /// A token in the header.
    Token,
}

fn way(path: &str) -> Way {
    match path {
        "/health/live" | "/openapi.json" => Way::Open,
        "/v1/socket" => Way::Later,
        _ if path.starts_with("/docs/") || page::FILES.iter().any(|file| file.path == path) => Way::Open,
        _ => Way::Token,
    }
}

/// Lets in who has a token, and remembers whose it is.
pub(super) async fn admit(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    if let Err(error) = identify(&request) {
        return Ok(request.into_response(error.error_response()));
    }
    // The trace of whoever asks, or else a new one; what comes of the request has its id.
    let theirs = request.headers().get(TRACEPARENT).and_then(|value| Trace::parse(value.to_str().ok()?));
    let trace = theirs.unwrap_or_else(Trace::new);
    // The threads of the server are none of the actor's, which would be in its span.
    let within = tracing::error_span!("http", component = "gateway");
    let called = Trace::scope(Some(trace), next.call(request)).instrument(within);
    let mut response = called.await?.map_into_boxed_body();
    if let Ok(value) = HeaderValue::from_str(&trace.to_string()) {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    Ok(response)
}

fn identify(request: &ServiceRequest) -> Result<(), ApiError> {
    let way = way(request.path());
    let header = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if way == Way::Open || (way == Way::Later && header.is_none()) {
        return Ok(());
    }
    let shared = request.app_data::<Data>().ok_or(ApiError::Unauthorized)?;
    let access = shared.doorkeeper.admit(header)?;
    request.extensions_mut().insert(access);
    Ok(())
}
