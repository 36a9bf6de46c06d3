//! One turn as a stream of server-sent events, or of plain text for a terminal.
//!
//! A turn that began ends in exactly one `final` or `error`; one that could not begin is answered with an HTTP
//! error. A client that goes away, or takes nothing for too long, cancels its turn: the reply stream is dropped.

use std::{convert::Infallible, fmt::Write, future::Future, pin::pin, time::Duration};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use interlock_bus::{Payload, ReplyStream, RequestError, trace::Trace};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tracing::Instrument;

use super::{
    Shared,
    access::{Access, Scope},
    body,
    error::ApiError,
    hangup::Hangup,
    server::{Data, id_of, resource},
};
use crate::topics::{self, ConversationId, TurnDelta, TurnFinal, TurnPart, TurnStarted, UserInput, code};

/// Pieces that wait for a client; then the turn waits for it, which the model's credit window feels in the end.
const PIECES_WAITING: usize = 16;

/// How often a silent stream shows that it is alive, which is also when a client that went away is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Who answers turns, in errors.
pub(super) const ENGINE: &str = "conversation engine";

/// The conversation of `POST /v1/chat` when none is named.
const CHAT_CONVERSATION: &str = "chat";

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/conversations/{id}/messages", "POST").route(web::post().to(message)))
        .service(resource("/v1/chat", "POST").route(web::post().to(chat)));
}

/// Says something in a conversation, and streams the answer: events `started`, any number of `delta`, then exactly one `final`
/// or `error`. A turn that cannot begin is an error of its own; a client that goes away cancels its turn.
#[utoipa::path(
    post, path = "/v1/conversations/{id}/messages", tag = "conversations", request_body = body::NewMessage,
    params(("id" = String, Path, description = "Which conversation; it begins now if it is not there", example = "kitchen")),
    responses((status = 200, content((String = "text/event-stream"))))
)]
pub(super) async fn message(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let id = id_of(&id)?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let message: body::NewMessage = body::json(&bytes, "{\"text\":\"hello\"}")?;
    let opened = begin(&shared, id, body::text(message.text)?, &Hangup::of(&request)).await?;
    Ok(respond(&shared, opened, None, Form::Events, Hangup::of(&request)))
}

/// For `curl -N -d hello`: says something, plain text or JSON, and answers with plain text, or with the events of a turn if
/// `Accept` asks for `text/event-stream`. What fails before the first word is an error of its own.
#[utoipa::path(
    post, path = "/v1/chat", tag = "conversations",
    request_body(content((body::Chat = "application/json"), (String = "text/plain"))),
    responses((status = 200, content((String = "text/plain"), (String = "text/event-stream"))))
)]
pub(super) async fn chat(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let chat = body::chat(&request, &bytes)?;
    let conversation = match chat.conversation {
        Some(conversation) => conversation,
        None => id_of(CHAT_CONVERSATION)?,
    };
    let wants_events = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let form = if wants_events { Form::Events } else { Form::Text };
    let hangup = Hangup::of(&request);
    let mut opened = begin(&shared, conversation, body::text(chat.text)?, &hangup).await?;
    // Nothing is to be seen before the first word, so what fails until then is still an HTTP error.
    let word = match opened.first {
        Step::Started(_) => Some(hangup.during(next_step(&mut opened.replies, opened.deadline)).await?),
        _ => None,
    };
    match word {
        Some(Step::Error(error)) => Err(error),
        word => Ok(respond(&shared, opened, word, form, hangup)),
    }
}

/// How a turn is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Server-sent events.
    Events,
    /// The answer's text alone.
    Text,
}

/// What a turn says.
#[derive(Debug)]
pub(super) enum Step {
    Started(TurnStarted),
    Delta(TurnDelta),
    Final(TurnFinal),
    Error(ApiError),
}

/// A turn that has begun.
struct Opened {
    conversation: ConversationId,
    first: Step,
    replies: ReplyStream,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
}

/// Sends the user's text, and waits for the turn to begin.
async fn begin(
    shared: &Shared,
    conversation: ConversationId,
    text: String,
    hangup: &Hangup,
) -> Result<Opened, ApiError> {
    let permit = shared.stream_permit()?;
    tracing::debug!(%conversation, bytes = text.len(), "a turn is asked for");
    let deadline = Instant::now() + shared.options.turn_timeout;
    let input = UserInput { conversation: Some(conversation.clone()), turn: None, text };
    let payload = Payload::encode(&input).map_err(|error| ApiError::unsendable(&error))?;
    let mut replies = shared
        .client
        .request_stream(&topics::topic(topics::USER_INPUT), payload, shared.options.turn_timeout)
        .await
        .map_err(|error| ApiError::of_component(ENGINE, &error))?;
    let first = match hangup.during(next_step(&mut replies, deadline)).await? {
        Step::Error(error) => return Err(error),
        first => first,
    };
    Ok(Opened { conversation, first, replies, deadline, permit })
}

/// Streams a turn; `second` is its second step, if it is there already.
fn respond(
    shared: &Shared,
    opened: Opened,
    second: Option<Step>,
    form: Form,
    hangup: Hangup,
) -> HttpResponse {
    let (sink, body) = streamed(form, shared.options.write_timeout, hangup);
    let conversation = opened.conversation.clone();
    let streaming = stream_turn(opened, second, sink);
    actix_web::rt::spawn(Trace::scope(Trace::current(), streaming).in_current_span());
    let content_type = match form {
        Form::Events => "text/event-stream; charset=utf-8",
        Form::Text => "text/plain; charset=utf-8",
    };
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, content_type))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .insert_header(("X-Interlock-Conversation", conversation.as_str()))
        .streaming(body)
}

/// Where the pieces go.
#[derive(Debug)]
pub(super) struct Sink {
    sender: mpsc::Sender<Bytes>,
    form: Form,
    write_timeout: Duration,
    hangup: Hangup,
}

/// The client went away, or took nothing for too long.
pub(super) struct Gone;

/// A place for pieces, and the body of a response in which they come out.
pub(super) fn streamed(
    form: Form,
    write_timeout: Duration,
    hangup: Hangup,
) -> (Sink, impl Stream<Item = Result<Bytes, Infallible>> + 'static) {
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let body = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (Ok::<_, Infallible>(piece), receiver))
    });
    (Sink { sender, form, write_timeout, hangup }, body)
}

impl Sink {
    pub(super) async fn send(&self, piece: String) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        match timeout(self.write_timeout, self.sender.send(piece.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

/// Streams a turn to its end, or until the client is gone.
async fn stream_turn(opened: Opened, mut second: Option<Step>, sink: Sink) {
    let Opened { first: mut step, mut replies, deadline, permit: _permit, .. } = opened;
    loop {
        let is_end = matches!(step, Step::Final(_) | Step::Error(_));
        if sink.send(step.text(sink.form)).await.is_err() || is_end {
            return;
        }
        if let Some(second) = second.take() {
            step = second;
            continue;
        }
        step = match alive(&sink, next_step(&mut replies, deadline)).await {
            Ok(step) => step,
            // Dropping the replies cancels the turn.
            Err(Gone) => return,
        };
    }
}

/// Waits for `work`, noticing meanwhile whether the client is still there.
pub(super) async fn alive<T>(sink: &Sink, work: impl Future<Output = T>) -> Result<T, Gone> {
    let (mut work, mut hangup) = (pin!(work), pin!(sink.hangup.wait()));
    loop {
        tokio::select! {
            biased;
            () = sink.sender.closed() => return Err(Gone),
            () = &mut hangup => return Err(Gone),
            output = &mut work => return Ok(output),
            () = tokio::time::sleep(KEEP_ALIVE) => {
                if sink.form == Form::Events {
                    sink.send(": still at work\n\n".to_owned()).await?;
                }
            }
        }
    }
}

/// The next step of a turn. After `Final` or `Error` nothing follows.
pub(super) async fn next_step(replies: &mut ReplyStream, deadline: Instant) -> Step {
    let part = match timeout_at(deadline, replies.next()).await {
        Ok(Some(Ok(message))) => topics::read::<TurnPart>(&message),
        Ok(Some(Err(error))) => return Step::Error(ApiError::of_component(ENGINE, &error)),
        Ok(None) => return Step::Error(broken("the turn ended without a final part")),
        Err(_) => {
            let topic = topics::topic(topics::USER_INPUT);
            let after = Duration::ZERO;
            return Step::Error(match ApiError::of_request(&RequestError::TimedOut { topic, after }) {
                ApiError::Turn { status, code, .. } => ApiError::Turn {
                    status,
                    code,
                    text: "the turn took longer than `gateway.turn_timeout`".to_owned(),
                },
                other => other,
            });
        }
    };
    match part {
        Ok(TurnPart::Started(started)) => Step::Started(started),
        Ok(TurnPart::Delta(delta)) => Step::Delta(delta),
        Ok(TurnPart::Final(last)) => Step::Final(last),
        Err(error) => Step::Error(broken(&error.to_string())),
    }
}

fn broken(problem: &str) -> ApiError {
    ApiError::Turn {
        status: actix_web::http::StatusCode::BAD_GATEWAY,
        code: code::BUS.to_owned(),
        text: format!("the conversation engine broke its protocol: {problem}"),
    }
}

impl Step {
    fn text(&self, form: Form) -> String {
        match form {
            Form::Events => match self {
                Self::Started(started) => event("started", &json!(started)),
                Self::Delta(delta) => event("delta", &json!(delta)),
                Self::Final(last) => event("final", &json!(last)),
                Self::Error(error) => event("error", &error.content()),
            },
            Form::Text => match self {
                Self::Started(_) => String::new(),
                Self::Delta(delta) => delta.text.clone(),
                Self::Final(_) => "\n".to_owned(),
                Self::Error(error) => format!("\nerror ({}): {error}\n", error.code()),
            },
        }
    }
}

/// One server-sent event. JSON has no raw line break, so one data line is enough.
fn event(name: &str, data: &Value) -> String {
    let mut text = String::new();
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_name_one_line_of_data_and_an_empty_line() {
        let (conversation, turn) = ("a".parse().unwrap(), uuid::Uuid::nil());
        let step = Step::Delta(TurnDelta { conversation, turn, index: 0, text: "a\nb".to_owned() });
        let text = step.text(Form::Events);
        let data = text.strip_prefix("event: delta\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert_eq!(serde_json::from_str::<Value>(data).unwrap()["text"], "a\nb");
        assert_eq!((data.lines().count(), step.text(Form::Text).as_str()), (1, "a\nb"));
    }

    #[test]
    fn an_error_has_the_same_form_in_a_stream_as_in_a_response() {
        let step = Step::Error(broken("x"));
        let text = step.text(Form::Events);
        assert!(text.starts_with("event: error\ndata: {\"code\":\"bus\",\"message\":\""), "{text}");
    }
}
