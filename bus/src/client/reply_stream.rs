//! What a requester holds: the parts of an answer as they come.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;

use super::{core::Handle, lane::lock};
use crate::{
    blocking, codec,
    envelope::Message,
    error::RequestError,
    limits,
    native::{CreditScope, Record, Status},
    peer::PeerName,
    topic::TopicName,
};

/// Parts consumed before the server is told.
const CREDIT_PARTS: u64 = limits::REPLY_WINDOW as u64 / 4;

/// Parts of one answer that wait for the requester, and its end.
#[derive(Debug, Default)]
pub(crate) struct ReplyQueue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<(Bytes, Bytes)>,
    end: Option<ReplyEnd>,
    waker: Option<Waker>,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub(crate) enum ReplyEnd {
    /// The broker's record.
    Record { status: Status, code: String, text: String },
    /// The session was lost.
    Disconnected,
    /// The broker did not even say that the deadline had passed.
    Expired,
}

impl ReplyQueue {
    pub(crate) fn push(&self, header: Bytes, payload: Bytes) {
        self.change(|waiting| waiting.parts.push_back((header, payload)));
    }

    pub(crate) fn end(&self, end: ReplyEnd) {
        self.change(|waiting| {
            waiting.end.get_or_insert(end);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = lock(&self.0);
        change(&mut waiting);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Result<(Bytes, Bytes), ReplyEnd>> {
        let mut waiting = lock(&self.0);
        if let Some(part) = waiting.parts.pop_front() {
            return Poll::Ready(Ok(part));
        }
        if let Some(end) = &waiting.end {
            return Poll::Ready(Err(end.clone()));
        }
        waiting.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The answer to a request, part by part. It gives any number of messages and then, unless the
/// server was done, one error. Dropping it cancels the request.
///
/// The messages carry the request's topic; their `sequence` counts the parts from 1, and their
/// `origin` is [`ReplyStream::ORIGIN`], because the wire does not name the server.
#[derive(Debug)]
pub struct ReplyStream {
    handle: Arc<Handle>,
    queue: Arc<ReplyQueue>,
    id: u64,
    topic: TopicName,
    origin: PeerName,
    deadline: Duration,
    parts: u64,
    credited: u64,
    over: bool,
}

impl ReplyStream {
    /// The origin of every part: some peer that may serve the topic.
    pub const ORIGIN: &'static str = "server";

    pub(super) fn new(
        handle: Arc<Handle>,
        queue: Arc<ReplyQueue>,
        id: u64,
        topic: TopicName,
        deadline: Duration,
    ) -> Self {
        let origin = handle.core.server_name().clone();
        Self { handle, queue, id, topic, origin, deadline, parts: 0, credited: 0, over: false }
    }

    /// The next part; after the last one `None`, or an error and then `None`.
    pub async fn next(&mut self) -> Option<Result<Message, RequestError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`ReplyStream::next`] for executors' own loops.
    /// `None` after the end, which is an error or the last part.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Message, RequestError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match self.queue.poll_next(context) {
            Poll::Pending => {
                blocking::awaits(&self.handle.core);
                Poll::Pending
            }
            Poll::Ready(Ok((header, payload))) => {
                self.parts += 1;
                self.give_credit();
                let message = self.message(&header, payload);
                if message.is_err() {
                    self.cancel();
                    self.over = true;
                }
                Poll::Ready(Some(message))
            }
            Poll::Ready(Err(end)) => {
                self.over = true;
                Poll::Ready(self.error(end).map(Err))
            }
        }
    }

    /// Tells the server that no more is wanted. What is already here can still be taken; then comes
    /// [`RequestError::Cancelled`], unless the server was done before it heard.
    pub fn cancel(&self) {
        self.handle.core.cancel_request(self.id);
    }

    fn give_credit(&mut self) {
        if self.parts - self.credited >= CREDIT_PARTS {
            self.credited = self.parts;
            let scope = CreditScope::Request { id: self.id, parts: self.parts };
            self.handle.core.link().send_control(Record::Credit { scope });
        }
    }

    fn message(&self, header: &[u8], payload: Bytes) -> Result<Message, RequestError> {
        let header = codec::header(header).map_err(|problem| RequestError::Damaged {
            topic: self.topic.clone(),
            problem: problem.to_string(),
        })?;
        Ok(Message {
            topic: self.topic.clone(),
            origin: self.origin.clone(),
            sequence: self.parts,
            header,
            payload,
            retained: false,
        })
    }

    /// What an end means to the requester; `None` if the server was done.
    fn error(&self, end: ReplyEnd) -> Option<RequestError> {
        let topic = self.topic.clone();
        let (status, code, text) = match end {
            ReplyEnd::Disconnected => return Some(RequestError::Disconnected),
            ReplyEnd::Expired => return Some(RequestError::TimedOut { topic, after: self.deadline }),
            ReplyEnd::Record { status, code, text } => (status, code, text),
        };
        match status {
            Status::Done => None,
            Status::Failed => Some(RequestError::Failed { code, text }),
            Status::NoResponders => Some(RequestError::NoResponders { topic }),
            Status::Denied => Some(RequestError::Denied { topic, code, text }),
            Status::TimedOut => Some(RequestError::TimedOut { topic, after: self.deadline }),
            Status::ServerGone => Some(RequestError::ServerGone),
            Status::Cancelled => Some(RequestError::Cancelled),
            Status::Busy => Some(RequestError::Busy { topic, code, text }),
        }
    }

    /// The one message of an answer that is not a stream: the last part, or an empty message.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn last(mut self) -> Result<Message, RequestError> {
        let mut last = None;
        while let Some(part) = self.next().await {
            last = Some(part?);
        }
        match last {
            Some(message) => Ok(message),
            None => self.message(&[], Bytes::new()),
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if !self.over {
            self.handle.core.abandon_request(self.id);
        }
    }
}
