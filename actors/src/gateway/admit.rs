//! The way into every handler: who is let in, and the trace under which it is done. What is refused here never reaches one.

use std::{net::IpAddr, time::Instant};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse, ResponseError,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderName, HeaderValue},
    },
    middleware::Next,
};
use interlock_bus::trace::Trace;
use tracing::Instrument;

use super::{
    Shared,
    access::{Access, Scope},
    boundary::{Checked, preflight},
    error::ApiError,
    guarded::guard,
    page,
    server::Data,
};

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
        _ if path == "/docs"
            || path.starts_with("/docs/")
            || page::FILES.iter().any(|file| file.path == path) =>
        {
            Way::Open
        }
        _ => Way::Token,
    }
}

/// Lets in who may come in, has the request answered, and counts.
pub(super) async fn admit(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let begun = Instant::now();
    let Some(shared) = request.app_data::<Data>().cloned() else {
        return Ok(request.into_response(HttpResponse::from_error(ApiError::Unauthorized)));
    };
    let _in_flight = shared.traffic.begin();
    let path = request.path().to_owned();
    let head_only = take_for_get(&mut request);
    let (mut response, checked) = match shared.options.boundary.check(&request) {
        Err(error) => (refuse(request, &shared, error), Checked::default()),
        Ok(checked) => {
            let response = if let Some(preflight) = preflight(&request, &checked) {
                request.into_response(preflight)
            } else if let Err(error) = identify(&request, &shared) {
                refuse(request, &shared, error)
            } else {
                let response = serve(request, next).await?;
                if let Some(error) = response.response().error().and_then(|error| error.as_error()) {
                    note(address_of(response.request()), &shared, error);
                }
                response
            };
            (response, checked)
        }
    };
    response = in_its_form(response, &path);
    if head_only {
        response = without_stream(response);
    }
    let request = response.request();
    let (route, method) = (request.match_pattern(), request.method().to_string());
    shared.traffic.answered(route, &method, response.status().as_u16(), begun.elapsed());
    shared.options.boundary.dress(response.headers_mut(), &path, &checked);
    Ok(response)
}

/// Has `HEAD` answered as `GET` is, whose body the server then leaves out. A WebSocket is no answer with a body.
fn take_for_get(request: &mut ServiceRequest) -> bool {
    let is_head = request.method() == Method::HEAD && !request.headers().contains_key(header::UPGRADE);
    if is_head {
        request.head_mut().method = Method::GET;
    }
    is_head
}

/// A stream would be waited for, although nobody gets it.
fn without_stream(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    match response.response().body().size() {
        BodySize::Stream => response.map_body(|_, _| BoxBody::new(())),
        _ => response,
    }
}

/// An error in the form of its path, which its handler does not know. The trace stays.
fn in_its_form(response: ServiceResponse<BoxBody>, path: &str) -> ServiceResponse<BoxBody> {
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    let Some(answer) = error.map(|error| error.on_path(path)) else { return response };
    let trace = response.headers().get(TRACEPARENT).cloned();
    let mut response = response.into_response(answer);
    if let Some(trace) = trace {
        response.headers_mut().insert(TRACEPARENT, trace);
    }
    response
}

fn refuse(request: ServiceRequest, shared: &Shared, error: ApiError) -> ServiceResponse<BoxBody> {
    note(address_of(request.request()), shared, &error);
    let answer = error.on_path(request.path());
    request.into_response(answer)
}

fn address_of(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|address| address.ip())
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
        response = guard(response, request.path(), &access);
    }
    if let Ok(value) = HeaderValue::from_str(&trace.to_string()) {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    Ok(ServiceResponse::new(request, response))
}

/// Counts a refusal, and writes down who was refused.
fn note(address: Option<IpAddr>, shared: &Shared, error: &ApiError) {
    let status = error.status_code();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {}
        // A model that has too much to do turns nobody away for who they are.
        StatusCode::TOO_MANY_REQUESTS if !matches!(error, ApiError::RateLimited { .. }) => {
            return shared.traffic.rejected(error.code());
        }
        StatusCode::MISDIRECTED_REQUEST | StatusCode::TOO_MANY_REQUESTS => {}
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => {
            return shared.traffic.rejected(error.code());
        }
        _ => return,
    }
    shared.traffic.rejected(error.code());
    if let ApiError::RateLimited { limit, .. } = error {
        shared.traffic.limited(limit.as_str());
    }
    shared.refusals.note(error.code(), error.bearer(), address);
}

/// Finds out whose token it is, and whether there is something left of its allowance and of the address's.
fn identify(request: &ServiceRequest, shared: &Shared) -> Result<(), ApiError> {
    let path = request.path();
    if path == "/health/live" {
        // Whoever watches over us is never turned away.
        return Ok(());
    }
    let is_health = path.starts_with("/health");
    let address = request.peer_addr().map(|address| address.ip());
    if !is_health {
        shared.addresses.request(address)?;
    }
    let limit = shared.options.body_bytes_max;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.is_some_and(|bytes| bytes.parse::<u64>().is_ok_and(|bytes| bytes > limit as u64)) {
        return Err(ApiError::TooLarge { limit });
    }
    let way = way(path);
    let header = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if way == Way::Open || (way == Way::Later && header.is_none()) {
        return Ok(());
    }
    let access = shared.doorkeeper.admit(header).map_err(|error| match header {
        // Who has none at all is only asked for one.
        None => error,
        Some(_) => counted(error, shared, address),
    })?;
    access.take(is_health)?;
    request.extensions_mut().insert(access);
    Ok(())
}

/// A refused token, which counts for its address; over the limit that is what is said. One that the gateway cannot know is no
/// wrong one.
fn counted(error: ApiError, shared: &Shared, address: Option<IpAddr>) -> ApiError {
    match error {
        ApiError::TokensUnreadable => error,
        error => shared.addresses.failure(address).err().unwrap_or(error),
    }
}

/// Lets in who says its token in the first message of a socket, as others do in the header.
pub(super) fn hello(shared: &Shared, token: &[u8], address: Option<IpAddr>) -> Result<Access, ApiError> {
    let admitted = shared.doorkeeper.admit_token(token).map_err(|error| counted(error, shared, address));
    let admitted = admitted.and_then(|access| {
        access.take(false)?;
        access.require(Scope::Bus)?;
        Ok(access)
    });
    admitted.inspect_err(|error| note(address, shared, error))
}
