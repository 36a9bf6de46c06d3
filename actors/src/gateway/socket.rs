//! `GET /v1/socket`: the bus over a WebSocket. `SOCKET.md` beside this file says what is said on it.
//!
//! One task for each socket reads, subscribes, asks and writes. While its client does not read, it takes nothing from the
//! bus: what comes then waits in the broker's bounded queue of each subscription, and what does not fit there is lost and
//! told. So a slow socket costs bounded memory, and slows nobody.

mod connection;
mod protocol;

use std::{fmt::Write, net::IpAddr, time::Duration};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, ResponseError, http::StatusCode, web};
use actix_ws::{AggregatedMessageStream, CloseCode, CloseReason, Session};
use tokio::time::timeout;
use utoipa::OpenApi;

use self::{connection::Connection, protocol::Order};
use super::{
    access::{Access, Scope},
    admit,
    error::ApiError,
    hangup::Hangup,
    server::{Data, resource},
};

/// What is spoken, as `Sec-WebSocket-Protocol` names it.
const PROTOCOL: &str = "interlock.v1";

/// How long a client may take to say who it is, if it did not say it in a header.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to answer the server's last word.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the last word may take to be written.
const LAST_WORD_WITHIN: Duration = Duration::from_millis(50);

/// Sockets whose client has not said yet who it is. Further ones are turned away.
pub(super) const UNKNOWN_SOCKETS_MAX: usize = 64;

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(socket))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(resource("/v1/socket", "GET").route(web::get().to(socket)));
}

/// Why the server closes a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Close {
    /// The client has closed it, or is gone.
    Gone,
    /// The gateway stops.
    Stopping,
    /// The client broke the protocol of the WebSocket.
    Protocol(String),
    /// It sent a message that is no text.
    Binary,
    /// It sent a message above the limit.
    TooLarge(usize),
    /// It has no valid token, or did not say it in time, or the token is good no longer.
    Unauthorized(String),
    /// Its token is not good for the bus.
    Forbidden(String),
    /// There is no room.
    Busy(String),
}

impl Close {
    /// The end that an error comes to before there is anything to say it on.
    fn of(error: &ApiError) -> Self {
        let text = error.to_string();
        match error {
            ApiError::Stopping => Self::Stopping,
            ApiError::Forbidden { .. } | ApiError::NotOnBus(_) => Self::Forbidden(text),
            _ if error.status_code() == StatusCode::UNAUTHORIZED => Self::Unauthorized(text),
            _ => Self::Busy(text),
        }
    }

    /// The code and the reason for the client.
    fn reason(&self) -> Option<CloseReason> {
        let (code, text) = match self {
            Self::Gone => return None,
            Self::Stopping => (CloseCode::Away, "the gateway is stopping".to_owned()),
            Self::Protocol(problem) => (CloseCode::Protocol, problem.clone()),
            Self::Binary => (CloseCode::Unsupported, "send JSON in text messages".to_owned()),
            Self::TooLarge(limit) => {
                (CloseCode::Size, format!("a message has at most {limit} bytes (`gateway.body_bytes_max`)"))
            }
            Self::Unauthorized(text) => (CloseCode::Other(4401), text.clone()),
            Self::Forbidden(text) => (CloseCode::Other(4403), text.clone()),
            Self::Busy(text) => (CloseCode::Again, text.clone()),
        };
        // A close frame has room for 123 bytes of text.
        let mut description = String::new();
        let _ = write!(description, "{}", &text[..text.floor_char_boundary(123)]);
        Some(CloseReason { code, description: Some(description) })
    }
}

/// Opens a WebSocket with the subprotocol `interlock.v1`, on which JSON messages subscribe, publish and ask; see the guide.
/// Who cannot send the header `Authorization` says `{"op":"hello","token":"..."}` first, within ten seconds.
#[utoipa::path(
    get, path = "/v1/socket", tag = "bus", security((), ("token" = [])),
    responses((status = 101, description = "The WebSocket is open")),
    extensions(("x-example-status" = json!(400)))
)]
async fn socket(shared: Data, request: HttpRequest, body: web::Payload) -> Result<HttpResponse, ApiError> {
    let access = request.extensions().get::<Access>().cloned();
    let unknown = match &access {
        Some(access) => {
            access.require(Scope::Bus)?;
            None
        }
        None => {
            let busy =
                |_| ApiError::refused(503, "busy", format!("{UNKNOWN_SOCKETS_MAX} sockets wait for a token"));
            Some(std::sync::Arc::clone(&shared.unknown_sockets).try_acquire_owned().map_err(busy)?)
        }
    };
    let opened = actix_ws::handle_with_protocols(&request, body, &[PROTOCOL]);
    let (response, session, stream) = opened.map_err(|error| {
        ApiError::BadRequest(format!("this is a WebSocket, and the request does not open one: {error}"))
    })?;
    let limit = shared.options.body_bytes_max;
    let hangup = Hangup::of(&request);
    let address = request.peer_addr().map(|address| address.ip());
    let stream = stream.max_frame_size(limit).aggregate_continuations().max_continuation_size(limit);
    actix_web::rt::spawn(async move {
        let mut socket = Socket { session, stream, limit, address };
        let access = match access {
            Some(access) => Ok(access),
            None => socket.hello(&shared).await,
        };
        drop(unknown);
        let close = match access {
            Ok(access) => Connection::run(shared, access, &mut socket).await,
            Err(close) => close,
        };
        tracing::debug!(?close, "a socket ends");
        socket.close(&close, &hangup).await;
    });
    Ok(response)
}

/// A WebSocket and its largest message.
struct Socket {
    session: Session,
    stream: AggregatedMessageStream,
    limit: usize,
    /// Where its client is.
    address: Option<IpAddr>,
}

impl Socket {
    /// The next text of the client. Pings are answered on the way.
    async fn next_text(&mut self) -> Result<String, Close> {
        use actix_ws::AggregatedMessage as Message;
        loop {
            match self.stream.recv().await {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Ping(bytes))) => {
                    self.session.pong(&bytes).await.map_err(|_closed| Close::Gone)?;
                }
                // It is alive; whoever waits for that sees it by the time that we return.
                Some(Ok(Message::Pong(_))) => return Ok(String::new()),
                Some(Ok(Message::Binary(_))) => return Err(Close::Binary),
                Some(Ok(Message::Close(_))) | None => return Err(Close::Gone),
                Some(Err(actix_ws::ProtocolError::Overflow)) => return Err(Close::TooLarge(self.limit)),
                Some(Err(actix_ws::ProtocolError::Io(_))) => return Err(Close::Gone),
                Some(Err(error)) => return Err(Close::Protocol(error.to_string())),
            }
        }
    }

    /// Says the last word and ends the connection, which the server would keep for a while.
    async fn close(mut self, close: &Close, hangup: &Hangup) {
        // Whoever is not there any more need not be told; who has closed it waits for the same word.
        if self.session.close(close.reason()).await.is_ok() && *close != Close::Gone {
            let theirs = async {
                while let Some(Ok(message)) = self.stream.recv().await {
                    if matches!(message, actix_ws::AggregatedMessage::Close(_)) {
                        return;
                    }
                }
            };
            let _ = timeout(CLOSE_TIMEOUT, theirs).await;
        }
        // The word is written by the connection's own task, on this thread.
        tokio::time::sleep(LAST_WORD_WITHIN).await;
        hangup.end();
    }

    /// Waits for the first message, which says who the client is.
    async fn hello(&mut self, shared: &Data) -> Result<Access, Close> {
        let late = || Close::Unauthorized(format!("no `hello` came within {HELLO_TIMEOUT:?}"));
        let first = tokio::select! {
            () = shared.stopped() => return Err(Close::Stopping),
            first = timeout(HELLO_TIMEOUT, self.next_text()) => first.map_err(|_| late())??,
        };
        let Ok((_, Order::Hello { token })) = protocol::read(&first) else {
            let text = "the first message has to be {\"op\":\"hello\",\"token\":\"...\"}";
            return Err(Close::Unauthorized(text.to_owned()));
        };
        let admitted = admit::hello(shared, token.as_bytes(), self.address);
        admitted.map_err(|error| Close::of(&error))
    }
}
