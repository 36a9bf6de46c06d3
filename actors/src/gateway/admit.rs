//! The way into every handler: who is let in, and the trace under which it is done.

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
};
use interlock_bus::trace::Trace;
use tracing::Instrument;

use super::{access::Access, error::ApiError, guarded::guard, page, server::Data};

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
        note_refusal(request.request(), &error);
        return Ok(request.into_response(HttpResponse::from_error(error)));
    }
    let response = serve(request, next).await?;
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    if let Some(error) = error {
        note_refusal(response.request(), error);
    }
    Ok(response)
}

/// Has the request answered.
async fn serve(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    // The trace of whoever asks, or else a new one; what comes of the request has its id.
    let theirs = request.headers().get(TRACEPARENT).and_then(|value| Trace::parse(value.to_str().ok()?));
    let trace = theirs.unwrap_or_else(Trace::new);
    // The threads of the server are none of the actor's, which would be in its span.
    let within = tracing::error_span!("http", component = "gateway");
    let called = Trace::scope(Some(trace), next.call(request)).instrument(within);
    let (request, mut response) = called.await?.map_into_boxed_body().into_parts();
    let access = request.extensions().get::<Access>().cloned();
    if let Some(access) = access {
        response = guard(response, &access);
    }
    if let Ok(value) = HeaderValue::from_str(&trace.to_string()) {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    Ok(ServiceResponse::new(request, response))
}

/// Writes down that somebody was refused, if that is what the error says.
fn note_refusal(request: &HttpRequest, error: &ApiError) {
    if !matches!(error.status_code(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return;
    }
    if let Some(shared) = request.app_data::<Data>() {
        let address = request.peer_addr().map(|address| address.ip());
        shared.refusals.note(error.code(), error.bearer(), address);
    }
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
