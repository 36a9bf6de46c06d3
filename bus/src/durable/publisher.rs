//! Publishing durably, at the client.

use std::time::Duration;

use super::{
    attempt::DROPPED,
    error::DurableError,
    outbox::DurableOptions,
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
        let header = options.header_for(&payload);
        let id = header.id;
        let mut header_bytes = Vec::with_capacity(128);
        codec::put_header(&header, &mut header_bytes);
        let (mut last, mut end) = (None, None);
        match self.request_as_it_is(&put, &header_bytes, payload.bytes, deadline).await {
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
        let unreadable = |problem: String| DurableError::Unconfirmed { id, reason: problem };
        let Some(error) = end else {
            let accepted = last.as_ref().map(Message::decode::<Accepted>);
            return match accepted {
                Some(Ok(accepted)) => Ok(accepted),
                Some(Err(problem)) => Err(unreadable(format!("the answer cannot be read: {problem}"))),
                None => Err(unreadable("the answer is empty".to_owned())),
            };
        };
        Err(match error {
            RequestError::Failed { code, text } if code == DROPPED => unreadable(text),
            RequestError::Failed { code, text } => {
                let figures = last.and_then(|last| last.decode::<Figures>().ok()).unwrap_or_default();
                DurableError::from_wire(code, text, &figures, topic)
            }
            other => DurableError::from_request(other, id),
        })
    }
}
