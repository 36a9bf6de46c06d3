//! Follows the messages of a topic, in a thread of its own. The bus never waits for it: the broker drops for this
//! subscription what is more than it takes, and that is shown.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Workers,
    model::Event,
    tail::{TEXT_CHARACTERS_MAX, TailItem, TailMessage},
};
use crate::{
    blocking,
    client::{self, Client, SubscribeOptions, Subscription},
    envelope::Message,
    error::NextError,
    native::Overflow,
    tool::{
        decode::{Decoder, Shown},
        table,
    },
    topic::TopicFilter,
};

/// The broker's queue for it, in messages and bytes: the newest of a burst, and not more memory than that is worth.
const QUEUE: (u32, u32) = (200, 1 << 20);
/// Messages handed on at once; then it rests.
const BATCH: usize = 100;
const REST: Duration = Duration::from_millis(50);
/// How often a wait looks whether something else is to be followed.
const SLICE: Duration = Duration::from_millis(100);
/// Payloads that are larger are not looked into.
const DECODED_BYTES_MAX: usize = 256 << 10;

/// Starts the thread. `wanted` is a topic or filter, or nothing, and may change at any time.
pub(super) fn start(
    workers: &Workers,
    client: &Client,
    wanted: &Arc<Mutex<Option<String>>>,
) -> io::Result<JoinHandle<()>> {
    let (workers, client, wanted) = (workers.clone(), client.clone(), Arc::clone(wanted));
    thread::Builder::new().name("bus-top-tail".to_owned()).spawn(move || {
        let _guard = workers.guard("bus-top-tail");
        let mut follower = Follower { client, decoder: Decoder::default(), filter: None, followed: None };
        while !workers.is_ending() {
            let filter = wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            follower.change(filter);
            let items = follower.next();
            if !items.is_empty() && workers.events.send(Event::Tail(items)).is_err() {
                return;
            }
            thread::park_timeout(REST);
        }
    })
}

struct Follower {
    client: Client,
    decoder: Decoder,
    /// What is followed, or was until it ended.
    filter: Option<String>,
    followed: Option<Result<Subscription, String>>,
}

impl Follower {
    fn change(&mut self, filter: Option<String>) {
        if filter == self.filter {
            return;
        }
        // First: two at a time would be twice the traffic.
        self.followed = None;
        self.filter.clone_from(&filter);
        self.followed = filter.map(|filter| {
            let parsed: TopicFilter = filter.parse().map_err(|error| format!("{error}"))?;
            let options = SubscribeOptions::default().overflow(Overflow::DropOldest).queue(QUEUE.0, QUEUE.1);
            blocking::wait(self.client.subscribe(&parsed, options)).map_err(|error| error.to_string())
        });
    }

    /// What has come, after waiting a little for the first.
    fn next(&mut self) -> Vec<TailItem> {
        let mut items = Vec::new();
        let ended = match &mut self.followed {
            None => return items,
            Some(Err(reason)) => Some(std::mem::take(reason)),
            Some(Ok(subscription)) => {
                let filter = subscription.filter().to_string();
                let mut next = subscription.next_blocking(Instant::now() + SLICE);
                while let Ok(event) = next {
                    items.push(item(&self.client, &mut self.decoder, &filter, event));
                    if items.len() == BATCH {
                        return items;
                    }
                    next = subscription.try_next().ok_or(NextError::TimedOut);
                }
                match next {
                    Err(NextError::Closed) => Some(subscription.end_reason().unwrap_or_default()),
                    _ => None,
                }
            }
        };
        if let Some(reason) = ended {
            self.followed = None;
            items.push(TailItem::Ended(reason));
        }
        items
    }
}

fn item(client: &Client, decoder: &mut Decoder, filter: &str, event: client::Event) -> TailItem {
    match event {
        client::Event::Gap { count, reason } => TailItem::Gap(count, reason),
        client::Event::Message(message) => TailItem::Message(TailMessage {
            filter: filter.to_owned(),
            time: time_of(&message),
            topic: message.topic.to_string(),
            origin: message.origin.to_string(),
            sequence: message.sequence,
            bytes: message.payload.len(),
            text: text_of(client, decoder, &message),
            header: header_of(&message),
        }),
    }
}

/// When it was published, or if it does not say, when it came.
fn time_of(message: &Message) -> String {
    let at_ns = match message.header.published_at_ns {
        0 => crate::envelope::now_ns(),
        published => published,
    };
    table::time(&json!(at_ns / 1_000_000))
}

/// The payload as `bus sub` shows it, cut.
fn text_of(client: &Client, decoder: &mut Decoder, message: &Message) -> String {
    if message.payload.len() > DECODED_BYTES_MAX {
        return format!("({} bytes, too many to show; `bus sub --raw` prints them)", message.payload.len());
    }
    let text = match decoder.show(client, message) {
        Shown::Json(value) => value.to_string(),
        Shown::Text(text) => text,
        Shown::Hex(digits) => format!("0x{digits}"),
    };
    match text.char_indices().nth(TEXT_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}... ({} bytes in all)", &text[..end], message.payload.len()),
        None => text,
    }
}

fn header_of(message: &Message) -> Vec<String> {
    let header = &message.header;
    let mut lines = Vec::new();
    lines.extend((!header.id.is_nil()).then(|| format!("id {}", header.id)));
    lines.extend(Some(header.content_type.as_str()).filter(|text| !text.is_empty()).map(str::to_owned));
    lines.extend(header.traceparent.as_ref().map(|trace| format!("trace {trace}")));
    lines.extend(message.retained.then(|| "retained".to_owned()));
    lines.extend(header.user.iter().map(|(name, value)| format!("{name}: {value}")));
    lines
}
