//! Publishing durably, at the client.

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    attempt::DROPPED,
    error::DurableError,
    limits,
    outbox::DurableOptions,
    pause::pause,
    words::{self, Accepted, Figures},
};
use crate::{
    client::Client,
    codec,
    envelope::{Message, Payload},
    error::RequestError,
    topic::TopicName,
};

impl Client {
    /// Publishes durably: when this returns, the message is on the outbox's disk, and each consumer named for the topic
    /// will get it, also if everything here is killed now. It takes the right to request `outbox/put/TOPIC`.
    ///
    /// While no outbox serves, or one is lost or starts again, the message is put again, with the same id, until `deadline`.
    /// After a [`DurableError::Unconfirmed`] publish it again with the id in it: it is kept once.
    ///
    /// # Errors
    /// [`DurableError`].
    pub async fn publish_durable(
        &self,
        topic: &TopicName,
        payload: Payload,
        options: &DurableOptions,
        deadline: Duration,
    ) -> Result<Accepted, DurableError> {
        let put =
            words::put_topic(topic).map_err(|error| DurableError::Invalid { text: error.to_string() })?;
        if deadline.is_zero() {
            let text = "its deadline is `0s`; nothing was sent, give it time to be answered".to_owned();
            return Err(DurableError::Invalid { text });
        }
        let header = options.header_for(&payload);
        let mut header_bytes = Vec::with_capacity(128);
        codec::put_header(&header, &mut header_bytes);
        let message = Put { topic, put, id: header.id, header: header_bytes, payload: payload.bytes };
        let (begun, mut length, mut doubt) = (Instant::now(), limits::PUT_PAUSE_MIN, None);
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            let Refusal { error, passes } = match message.try_once(self, left).await {
                Ok(accepted) => return Ok(accepted),
                Err(refusal) => refusal,
            };
            if let DurableError::Unconfirmed { reason, .. } = &error {
                doubt.get_or_insert_with(|| reason.clone());
            }
            // A try that begins too late ends without an answer, and what was known would be in doubt.
            let in_time = |length| begun.elapsed() + length < deadline - deadline / 4;
            if !(passes && in_time(length) && pause(length).await && in_time(Duration::ZERO)) {
                return Err(match (doubt, error) {
                    // It knows the id.
                    (_, error @ DurableError::OtherContent { .. }) | (None, error) => error,
                    (Some(reason), DurableError::Unconfirmed { id, .. }) => {
                        DurableError::Unconfirmed { id, reason }
                    }
                    // An earlier try may have been accepted.
                    (Some(reason), later) => {
                        let reason = format!("{reason}; then {later}");
                        DurableError::Unconfirmed { id: message.id, reason }
                    }
                });
            }
            length = (2 * length).min(limits::PUT_PAUSE_MAX);
        }
    }
}

/// A message that is put, perhaps again and again.
struct Put<'a> {
    topic: &'a TopicName,
    put: TopicName,
    id: Uuid,
    header: Vec<u8>,
    payload: Bytes,
}

/// Why a message was not accepted, and whether that passes by itself.
struct Refusal {
    error: DurableError,
    passes: bool,
}

impl Put<'_> {
    async fn try_once(&self, client: &Client, deadline: Duration) -> Result<Accepted, Refusal> {
        let (mut last, mut end) = (None, None);
        match client.request_as_it_is(&self.put, &self.header, self.payload.clone(), deadline).await {
            Err(error) => end = Some(error),
            Ok(mut answer) => {
                while let Some(part) = answer.next().await {
                    match part {
                        Ok(part) => last = Some(part),
                        Err(error) => end = Some(error),
                    }
                }
            }
        }
        let id = self.id;
        let unreadable = |problem: String| DurableError::Unconfirmed { id, reason: problem };
        let Some(error) = end else {
            let accepted = last.as_ref().map(Message::decode::<Accepted>);
            let error = match accepted {
                Some(Ok(accepted)) => return Ok(accepted),
                Some(Err(problem)) => unreadable(format!("the answer cannot be read: {problem}")),
                None => unreadable("the answer is empty".to_owned()),
            };
            return Err(Refusal { error, passes: false });
        };
        let is_lost = matches!(error, RequestError::ServerGone);
        let (error, is_lost) = match error {
            RequestError::Failed { code, text } if code == DROPPED => (unreadable(text), true),
            RequestError::Failed { code, text } => {
                let figures = last.and_then(|last| last.decode::<Figures>().ok()).unwrap_or_default();
                (DurableError::from_wire(code, text, &figures, self.topic), false)
            }
            other => (DurableError::from_request(other, id), is_lost),
        };
        let passes = is_lost || matches!(error, DurableError::NoOutbox { .. } | DurableError::Restarting);
        Err(Refusal { error, passes })
    }
}
