//! `GET /v1/bus/subscribe`: messages as server-sent events.
//!
//! What a reader is too slow for waits in the broker's queue of its subscription, which is bounded; what does not fit
//! there is lost, and the reader is told how much in its place. So a slow reader slows nobody.

use std::{future::poll_fn, task::Poll};

use actix_web::{HttpRequest, HttpResponse};
use interlock_bus::{
    Client, SubscribeOptions, Subscription, TopicFilter, client::Event, error::SubscribeError,
    inspect::Schemas,
};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::message::Published;
use crate::gateway::{
    access::{Access, Scope},
    error::ApiError,
    parameters::Parameters,
    server::Data,
    sse::{self, Sink},
};

/// Filters of one stream.
const FILTERS_MAX: usize = 32;
/// Messages that wait in the broker for a slow reader, of each filter.
pub(in crate::gateway) const QUEUE_MESSAGES_MAX: u32 = 4096;
/// The same in bytes.
pub(in crate::gateway) const QUEUE_BYTES_MAX: u32 = 4 << 20;
/// Events are put together up to about so many bytes before they are handed to the connection.
const PIECE_BYTES: usize = 64 << 10;

/// Streams the messages of all filters, decoded where a schema or JSON says how: events `message`; `lost` in the place of
/// messages that the reader was too slow for; at last `error`, unless the reader goes first.
#[utoipa::path(
    get, path = "/v1/bus/subscribe", tag = "bus",
    params(
        ("filter" = Vec<String>, Query, description = "Topics: `+` is one level, `#` the rest; may be given several times", example = json!(["conversation/#"])),
        ("retained" = Option<bool>, Query, description = "Whether the topics' last values come first", example = false),
    ),
    responses((status = 200, content((String = "text/event-stream"))))
)]
pub(super) async fn subscribe(
    access: Access,
    shared: Data,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Bus)?;
    let mut parameters = Parameters::of(&request)?;
    let filters = parameters.all_parsed::<TopicFilter>("filter")?;
    let retained = parameters.flag("retained")?;
    parameters.end()?;
    if !(1..=FILTERS_MAX).contains(&filters.len()) {
        let text = format!("`filter` stands {} times in the query; name 1 to {FILTERS_MAX}", filters.len());
        return Err(ApiError::BadRequest(text));
    }
    let client = access.own_client()?;
    let permit = shared.stream_permit()?;
    let mut subscriptions = Vec::with_capacity(filters.len());
    for filter in &filters {
        subscriptions.push(client.subscribe(filter, options(retained)).await?);
    }
    let (sink, response) = sse::stream(&shared);
    let stream = Stream { client, subscriptions, filters, schemas: Schemas::default() };
    actix_web::rt::spawn(stream.run(shared, sink, permit));
    Ok(response)
}

/// What every subscription of a web client asks for.
pub(in crate::gateway) fn options(retained: bool) -> SubscribeOptions {
    let options = SubscribeOptions::default().queue(QUEUE_MESSAGES_MAX, QUEUE_BYTES_MAX);
    SubscribeOptions { retained, ..options }
}

struct Stream {
    client: Client,
    subscriptions: Vec<Subscription>,
    filters: Vec<TopicFilter>,
    schemas: Schemas,
}

impl Stream {
    async fn run(mut self, shared: Data, sink: Sink, _permit: OwnedSemaphorePermit) {
        loop {
            let next = sink.alive(async {
                tokio::select! {
                    biased;
                    () = shared.stopped() => Err(ApiError::Stopping),
                    event = next_event(&mut self.subscriptions) => event.ok_or_else(|| self.end()),
                }
            });
            let Ok(next) = next.await else { return };
            let mut events = String::new();
            let is_end = match next {
                Ok((at, event)) => {
                    self.write(at, &event, &mut events).await;
                    self.write_what_is_there(&mut events).await;
                    false
                }
                Err(error) => {
                    sse::write(&mut events, "error", &error.content());
                    true
                }
            };
            if sink.send(events).await.is_err() || is_end {
                return;
            }
        }
    }

    /// Puts what is there already into the same piece.
    async fn write_what_is_there(&mut self, events: &mut String) {
        for at in 0..self.subscriptions.len() {
            while events.len() < PIECE_BYTES
                && let Some(event) = self.subscriptions[at].try_next()
            {
                self.write(at, &event, events).await;
            }
        }
    }

    async fn write(&mut self, at: usize, event: &Event, events: &mut String) {
        match event {
            // Several filters match it: the first one shows it.
            Event::Message(message)
                if self.filters[..at].iter().any(|filter| filter.matches(&message.topic)) => {}
            Event::Message(message) => {
                let decoded = self.schemas.decode(&self.client, message).await;
                sse::write(events, "message", &Published::new(message, decoded));
            }
            Event::Gap { count, reason } => {
                let lost = json!({ "filter": self.filters[at], "count": count, "reason": reason });
                sse::write(events, "lost", &lost);
            }
        }
    }

    /// Why there is no more.
    fn end(&self) -> ApiError {
        let reason = self.subscriptions.iter().find_map(Subscription::end_reason);
        let reason = self.client.closed_reason().or(reason).unwrap_or_default();
        ApiError::refused(502, "ended", format!("the subscription has ended: {reason}"))
    }
}

/// The next event of any subscription, with its place; `None` once one of them has ended.
async fn next_event(subscriptions: &mut [Subscription]) -> Option<(usize, Event)> {
    poll_fn(|context| {
        for (at, subscription) in subscriptions.iter_mut().enumerate() {
            if let Poll::Ready(event) = subscription.poll_next(context) {
                return Poll::Ready(event.map(|event| (at, event)));
            }
        }
        Poll::Pending
    })
    .await
}

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        let text = error.to_string();
        match error {
            SubscribeError::Denied { code, .. } if code == "too_many" => Self::refused(503, "busy", text),
            SubscribeError::Denied { .. } => Self::refused(403, "denied", text),
            SubscribeError::Option { .. } => Self::BadRequest(text),
            _ => Self::refused(502, "bus", text),
        }
    }
}
