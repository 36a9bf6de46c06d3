//! Server-sent events whose reader may be slow, and may go at any moment.

use std::{cell::Cell, convert::Infallible, future::Future, pin::pin, time::Duration};

use actix_web::{HttpResponse, http::header};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::Shared;

/// Pieces that wait for a reader; then whoever writes waits.
const PIECES_WAITING: usize = 4;

/// How often a silent stream shows that it is alive, which is also when a reader that went away is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The reader went away, or took nothing for too long.
#[derive(Debug)]
pub(super) struct Gone;

/// Where events go.
#[derive(Debug)]
pub(super) struct Sink {
    sender: mpsc::Sender<Bytes>,
    write_timeout: Duration,
    /// When something was written last.
    written: Cell<Instant>,
}

/// The two ends of a stream: where events go, and the answer that they come out of.
pub(super) fn stream(shared: &Shared) -> (Sink, HttpResponse) {
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let body = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|piece| (Ok::<_, Infallible>(piece), receiver))
    });
    let response = HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body);
    (
        Sink { sender, write_timeout: shared.options.write_timeout, written: Cell::new(Instant::now()) },
        response,
    )
}

impl Sink {
    /// Hands on what was written, waiting for a slow reader as long as it may take.
    pub(super) async fn send(&self, events: String) -> Result<(), Gone> {
        if events.is_empty() {
            return Ok(());
        }
        self.written.set(Instant::now());
        match timeout(self.write_timeout, self.sender.send(events.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Waits for `work`, noticing meanwhile whether the reader is still there.
    pub(super) async fn alive<T>(&self, work: impl Future<Output = T>) -> Result<T, Gone> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.sender.closed() => return Err(Gone),
                output = &mut work => return Ok(output),
                () = sleep_until(self.written.get() + KEEP_ALIVE) => self.send(": alive\n\n".to_owned()).await?,
            }
        }
    }
}

/// Appends one event. JSON has no raw line break, so one data line is enough.
pub(super) fn write(out: &mut String, name: &str, data: &impl Serialize) {
    // What is sent has names that are texts and numbers that are numbers: it is always JSON.
    if let Ok(data) = serde_json::to_string(data) {
        out.extend(["event: ", name, "\ndata: ", &data, "\n\n"]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_name_one_line_of_data_and_an_empty_line() {
        let mut out = String::new();
        write(&mut out, "message", &json!({ "text": "a\nb" }));
        write(&mut out, "lost", &json!({ "count": 2 }));
        assert_eq!(out, "event: message\ndata: {\"text\":\"a\\nb\"}\n\nevent: lost\ndata: {\"count\":2}\n\n");
    }
}
