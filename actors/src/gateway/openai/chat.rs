//! `POST /v1/chat/completions`: a turn, whole or in pieces. A client that goes away cancels it.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use interlock_bus::{Payload, ReplyStream, trace::Trace};
use serde::Serialize;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::Instrument;

use super::{
    chunk::{Completion, Frame},
    form::{self, Failure},
    request::{self, ChatRequest, Wanted},
};
use crate::{
    gateway::{
        access::{Access, Scope},
        body,
        error::ApiError,
        hangup::Hangup,
        server::Data,
        turn::{ENGINE, Form, Gone, Sink, Step, alive, next_step, streamed},
    },
    topics::{self, ConversationId, TurnFinal, TurnStarted, code},
};

/// Names the conversation in which a turn is kept, and in the answer the one under which it is seen on the bus.
const CONVERSATION: &str = "X-Interlock-Conversation";

/// Asks a model to go on from a list of messages, through the conversation engine.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest,
    params(("X-Interlock-Conversation" = Option<String>, Header, description = "Keeps the turn in this conversation")),
    responses(
        (status = 200, description = "The answer; with `stream`, pieces as server-sent events, then `[DONE]`", body = Completion),
        (status = "4XX", description = "The request is refused", body = Failure),
        (status = "5XX", description = "It cannot be answered", body = Failure),
    )
)]
pub(super) async fn completions(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let asked: ChatRequest = request::json(&bytes)?;
    drop(bytes);
    let header = request.headers().get(CONVERSATION).and_then(|value| value.to_str().ok());
    let (model, asker) = (asked.model.clone().unwrap_or_default(), asked.asker().map(str::to_owned));
    let (input, wanted) = asked.into_input(header)?;
    tracing::debug!(model, asker, messages = input.messages.len(), "a chat is asked for");
    let permit = shared.stream_permit()?;
    let hangup = Hangup::of(&request);
    let deadline = Instant::now() + shared.options.turn_timeout;
    let payload = Payload::encode(&input).map_err(|error| ApiError::unsendable(&error))?;
    drop(input);
    let begin = async {
        let topic = topics::topic(topics::USER_CHAT);
        let asked = shared.client.request_stream(&topic, payload, shared.options.turn_timeout).await;
        let mut replies = asked.map_err(|error| form::of_turn(ApiError::of_component(ENGINE, &error)))?;
        match next_step(&mut replies, deadline).await {
            Step::Started(started) => Ok((replies, started)),
            Step::Error(error) => Err(form::of_turn(error)),
            Step::Delta(_) | Step::Final(_) => Err(broken("the turn did not begin with its beginning")),
        }
    };
    let (mut replies, started) = hangup.during(begin).await??;
    let TurnStarted { conversation, turn } = started;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let with_usage = wanted == Wanted::Pieces { with_usage: true };
    let frame = Frame { id: format!("chatcmpl-{turn}"), created, model, with_usage };
    if wanted == Wanted::Whole {
        let end = hangup.during(whole(&mut replies, deadline)).await??;
        let mut response = HttpResponse::Ok();
        return Ok(response.insert_header((CONVERSATION, conversation.as_str())).json(frame.whole(&end)));
    }
    // An error before the first word is still an HTTP error.
    let first = hangup.during(next_step(&mut replies, deadline)).await?;
    if let Step::Error(error) = first {
        return Err(form::of_turn(error));
    }
    Ok(pieces(&shared, hangup, replies, first, frame, &conversation, deadline, permit))
}

async fn whole(replies: &mut ReplyStream, deadline: Instant) -> Result<TurnFinal, ApiError> {
    loop {
        match next_step(replies, deadline).await {
            Step::Started(_) | Step::Delta(_) => {}
            Step::Final(end) => return Ok(end),
            Step::Error(error) => return Err(form::of_turn(error)),
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "they are what a stream consists of, and go to it as they are")]
fn pieces(
    shared: &Data,
    hangup: Hangup,
    replies: ReplyStream,
    first: Step,
    frame: Frame,
    conversation: &ConversationId,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
) -> HttpResponse {
    let (sink, body) = streamed(Form::Events, shared.options.write_timeout, hangup);
    let streaming = stream(replies, first, frame, sink, deadline, permit);
    actix_web::rt::spawn(Trace::scope(Trace::current(), streaming).in_current_span());
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .insert_header((CONVERSATION, conversation.as_str()))
        .streaming(body)
}

/// Writes a turn to its end, or until the client is gone.
async fn stream(
    mut replies: ReplyStream,
    first: Step,
    frame: Frame,
    sink: Sink,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
) {
    let mut step = first;
    let mut text = event(&frame.first());
    loop {
        let is_end = matches!(step, Step::Final(_) | Step::Error(_));
        match step {
            Step::Started(_) => {}
            Step::Delta(delta) => text.push_str(&event(&frame.more(delta.text))),
            Step::Final(end) => {
                frame.last(&end).iter().for_each(|chunk| text.push_str(&event(chunk)));
                text.push_str("data: [DONE]\n\n");
            }
            Step::Error(error) => text.push_str(&last_event(&form::of_turn(error))),
        }
        if sink.send(std::mem::take(&mut text)).await.is_err() || is_end {
            return;
        }
        step = match alive(&sink, next_step(&mut replies, deadline)).await {
            Ok(step) => step,
            // Dropping the replies cancels the turn.
            Err(Gone) => return,
        };
    }
}

/// What a stream that failed in the middle ends with, as OpenAI's own API says it: no `[DONE]` follows.
pub(in crate::gateway) fn last_event(error: &ApiError) -> String {
    event(&form::body(error))
}

/// One server-sent event. JSON has no raw line break, so one data line is enough.
fn event(data: &impl Serialize) -> String {
    match serde_json::to_string(data) {
        Ok(json) => format!("data: {json}\n\n"),
        // Texts and numbers are always JSON.
        Err(error) => format!(": {error}\n\n"),
    }
}

fn broken(problem: &str) -> ApiError {
    ApiError::Turn {
        status: StatusCode::BAD_GATEWAY,
        code: code::BUS.to_owned(),
        text: format!("the conversation engine broke its protocol: {problem}"),
    }
}
