//! What a server holds: the service, the requests it takes, and their answers.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    core::{Handle, part_header},
    lane::{Item, lock},
    link::{Link, LinkError},
    subscription::Consumer,
};
use crate::{
    envelope::{Message, Payload},
    error::ReplyError,
    native::{Record, Status},
    topic::TopicFilter,
};

/// Requests on topics that match a filter. Dropping it stops serving: requests that wait are ended
/// as `dropped`.
#[derive(Debug)]
pub struct Service {
    consumer: Consumer,
    filter: TopicFilter,
}

impl Service {
    pub(super) fn new(consumer: Consumer, filter: TopicFilter) -> Self {
        Self { consumer, filter }
    }

    /// The next request; `None` once the service has ended. Losing the link does not end it.
    pub async fn next(&mut self) -> Option<Request> {
        poll_fn(|context| {
            loop {
                let (origin, block, served, ticket) = match self.consumer.poll_item(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(Item::Request { origin, block, served, ticket })) => {
                        (origin, block, served, ticket)
                    }
                    // A gap cannot come here: a request that was not delivered was answered `busy`.
                    Poll::Ready(Some(_)) => continue,
                };
                self.consumer.settle(ticket, block.bytes());
                if served.cancel.is_cancelled() {
                    continue;
                }
                let (header, deadline_ms) = (Bytes::copy_from_slice(block.header()), block.deadline_ms);
                match self.consumer.topics.message(origin, block) {
                    Ok(message) => {
                        let handle = Arc::clone(&self.consumer.handle);
                        return Poll::Ready(Some(Request {
                            message,
                            header,
                            deadline_ms,
                            open: Arc::new(Open { served, handle }),
                        }));
                    }
                    Err(problem) => {
                        let link = self.consumer.handle.core.link();
                        served.end(link, "damaged_message", &problem.to_string());
                        self.consumer.handle.core.forget_served(served.id);
                    }
                }
            }
        })
        .await
    }

    /// What it serves.
    pub fn filter(&self) -> &TopicFilter {
        &self.filter
    }

    /// Why it has ended, if it has.
    pub fn end_reason(&self) -> Option<String> {
        self.consumer.lane.end_reason()
    }
}

/// A request to be answered: by any number of parts and one end. Dropping it without an end tells the
/// requester so.
pub struct Request {
    /// The question: its topic, who asks, header and payload.
    pub message: Message,
    /// Its header as it stood on the wire, with facts that this version does not know.
    pub(crate) header: Bytes,
    /// When the broker ends it at the latest, in Unix milliseconds; zero: [`crate::limits::REQUEST_TIMEOUT`] after it came there.
    pub(crate) deadline_ms: u64,
    open: Arc<Open>,
}

/// What all holds on one request share. When the last is gone, an unanswered request counts as dropped.
struct Open {
    served: Arc<Served>,
    handle: Arc<Handle>,
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("topic", &self.message.topic)
            .field("origin", &self.message.origin)
            .field("id", &self.open.served.id)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Sends one part of the answer, as soon as the requester is ready for it.
    ///
    /// # Errors
    /// [`ReplyError`]; after [`ReplyError::TooLarge`] the request is still open.
    pub async fn reply(&self, payload: Payload) -> Result<(), ReplyError> {
        let header = part_header(&payload).map_err(too_large)?;
        self.open.served.permit().await?;
        self.send(Record::Reply { id: self.open.served.id, header, payload: payload.bytes }).await
    }

    /// Ends the answer with a last part, which needs no readiness of the requester.
    ///
    /// # Errors
    /// [`ReplyError`]; after [`ReplyError::TooLarge`] the requester is told `dropped`.
    pub async fn end(self, payload: Payload) -> Result<(), ReplyError> {
        let header = part_header(&payload).map_err(too_large)?;
        self.finish(Status::Done, "", "", (header, payload.bytes)).await
    }

    /// Ends the answer without a further part.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub async fn end_empty(self) -> Result<(), ReplyError> {
        self.finish(Status::Done, "", "", (Bytes::new(), Bytes::new())).await
    }

    /// Ends the answer with a failure: a word for programs and a sentence for people. Longer ones
    /// than the wire takes (255 and 65,535 bytes) are cut.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub async fn fail(self, code: &str, text: &str) -> Result<(), ReplyError> {
        self.finish(Status::Failed, code, text, (Bytes::new(), Bytes::new())).await
    }

    /// [`Request::fail`] with a last part, which says the same for programs in more detail.
    ///
    /// # Errors
    /// [`ReplyError`]; after [`ReplyError::TooLarge`] the requester is told `dropped`.
    pub async fn fail_with(self, code: &str, text: &str, payload: Payload) -> Result<(), ReplyError> {
        let header = part_header(&payload).map_err(too_large)?;
        self.finish(Status::Failed, code, text, (header, payload.bytes)).await
    }

    /// Says when the requester wants no more.
    pub fn cancelled(&self) -> CancelToken {
        self.open.served.cancel.clone()
    }

    /// The same request once more: it counts as dropped when every hold on it is. For hosts that may have to
    /// hand it out again, because the actor that had it failed.
    #[must_use]
    pub fn hold(&self) -> Self {
        let Self { message, header, deadline_ms, open } = self;
        let (message, header, open) = (message.clone(), header.clone(), Arc::clone(open));
        Self { message, header, deadline_ms: *deadline_ms, open }
    }

    /// Whether nothing of an answer has been sent, and one is still wanted.
    pub fn is_unanswered(&self) -> bool {
        let state = lock(&self.open.served.state);
        state.sent == 0 && !state.ended && state.over.is_none()
    }

    /// [`Request::fail`] without waiting for room, for all holds on it.
    pub fn fail_now(&self, code: &str, text: &str) {
        self.open.served.end(self.open.handle.core.link(), code, text);
    }

    async fn finish(
        &self,
        status: Status,
        code: &str,
        text: &str,
        (header, payload): (Bytes, Bytes),
    ) -> Result<(), ReplyError> {
        self.open.served.check()?;
        let (code, text) = (cut(code, 255), cut(text, usize::from(u16::MAX)));
        let end = Record::ReplyEnd { id: self.open.served.id, status, code, text, header, payload };
        self.send(end).await?;
        self.open.served.mark_ended();
        Ok(())
    }

    async fn send(&self, mut record: Record) -> Result<(), ReplyError> {
        let link = self.open.handle.core.link();
        loop {
            let room = link.space().notified();
            self.open.served.check()?;
            match link.send(record) {
                Ok(_) => return Ok(()),
                Err((LinkError::Full, back)) => record = back,
                Err(_) => return Err(ReplyError::Disconnected),
            }
            room.await;
            super::yield_once().await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.served.end_dropped(self.handle.core.link());
        self.handle.core.forget_served(self.served.id);
    }
}

fn too_large((bytes, limit): (usize, usize)) -> ReplyError {
    ReplyError::TooLarge { bytes, limit }
}

/// The longest beginning of `text` that is whole characters and at most `bytes` long.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

/// Says whether and when something was cancelled.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Cancel>);

#[derive(Default)]
struct Cancel {
    is_cancelled: AtomicBool,
    changed: Notify,
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("CancelToken").field(&self.is_cancelled()).finish()
    }
}

impl CancelToken {
    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Ends when it is cancelled.
    pub async fn wait(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_cancelled() {
                return;
            }
            changed.await;
        }
    }

    fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

/// The state of one request at its server.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) id: u64,
    pub(crate) cancel: CancelToken,
    state: Mutex<ServedState>,
    changed: Notify,
}

#[derive(Debug)]
struct ServedState {
    /// Parts that may be sent, in total.
    allowed: u64,
    sent: u64,
    /// Why no more may be sent.
    over: Option<ReplyError>,
    ended: bool,
}

impl Served {
    pub(crate) fn new(id: u64, window: u32) -> Self {
        let state = ServedState { allowed: window.into(), sent: 0, over: None, ended: false };
        Self { id, cancel: CancelToken::default(), state: Mutex::new(state), changed: Notify::new() }
    }

    /// The requester has consumed `parts` in total; it grants as many beyond `window`.
    pub(crate) fn credit(&self, window: u32, parts: u64) {
        let mut state = lock(&self.state);
        state.allowed = state.allowed.max(parts.saturating_add(window.into()));
        drop(state);
        self.changed.notify_waiters();
    }

    /// No answer is wanted any more.
    pub(crate) fn close(&self, why: ReplyError) {
        lock(&self.state).over.get_or_insert(why);
        self.cancel.cancel();
        self.changed.notify_waiters();
    }

    fn check(&self) -> Result<(), ReplyError> {
        lock(&self.state).over.map_or(Ok(()), Err)
    }

    fn mark_ended(&self) {
        lock(&self.state).ended = true;
    }

    /// Waits until one part more may be sent, and counts it.
    async fn permit(&self) -> Result<(), ReplyError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = lock(&self.state);
                if let Some(why) = state.over {
                    return Err(why);
                }
                if state.sent < state.allowed {
                    state.sent += 1;
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Ends it as failed, unless it has ended already.
    fn end(&self, link: &dyn Link, code: &str, text: &str) {
        self.end_with(link, Status::Failed, code, text);
    }

    /// Ends it as done: what a subscription answers to a probe.
    pub(super) fn end_done(&self, link: &dyn Link) {
        self.end_with(link, Status::Done, "", "");
    }

    fn end_with(&self, link: &dyn Link, status: Status, code: &str, text: &str) {
        {
            let mut state = lock(&self.state);
            if state.ended || state.over.is_some() {
                return;
            }
            state.ended = true;
        }
        link.send_last(Record::ReplyEnd {
            id: self.id,
            status,
            code: code.to_owned(),
            text: cut(text, usize::from(u16::MAX)),
            header: Bytes::new(),
            payload: Bytes::new(),
        });
    }

    /// Its owner let it go without an answer.
    pub(crate) fn end_dropped(&self, link: &dyn Link) {
        self.end(link, "dropped", "dropped by the server");
    }
}
