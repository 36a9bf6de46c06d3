//! The will of a client: what the broker publishes for it if it dies.

use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::{
    Client,
    core::{AckFailure, Core},
    lane::lock,
};
use crate::{
    codec,
    envelope::{Header, Payload},
    error::PublishError,
    limits,
    native::{self, Block, Record},
    topic::TopicName,
};

/// Distinguishes the references of wills from those of publishes, which count from one.
const REFERENCE_BIT: u64 = 1 << 63;

impl Client {
    /// Deposits what the broker publishes, in this client's name, if the session ends in any other way than by
    /// [`Client::close`]: the process was killed, the link was lost, pings went unanswered. A revoked peer has no rights
    /// any more, so its will is denied. Replaces the will before; later sessions of this client deposit it again.
    ///
    /// Subscribers get it before they hear on `$peers/...` that the peer is gone. `retain` keeps it as the topic's last
    /// value. At most [`limits::WILL_BYTES_MAX`] with topic and header.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`]; [`PublishError::NotOffered`] by a broker that is too old; [`PublishError::Denied`] if it may not be published; [`PublishError::NotConnected`] and
    /// [`PublishError::Unconfirmed`] if there is no session, or none any more: then it is deposited in the next one.
    pub async fn set_will(
        &self,
        topic: &TopicName,
        payload: Payload,
        retain: bool,
    ) -> Result<(), PublishError> {
        let core = self.core();
        let mut header = Vec::new();
        codec::put_header(&Header::for_payload(&payload), &mut header);
        let mut block = Block::new(topic, &header, &payload.bytes);
        block.flags = Block::ACKNOWLEDGE | if retain { Block::RETAIN } else { 0 };
        block.sequence = core.next_id.fetch_add(1, Ordering::Relaxed) | REFERENCE_BIT;
        let (reference, bytes, limit) = (block.sequence, block.bytes(), limits::WILL_BYTES_MAX);
        if bytes > limit {
            return Err(PublishError::TooLarge { payload, bytes, limit });
        }
        let known = lock(&core.state).broker_minor;
        if let Some(minor) = known.filter(|minor| *minor < native::MINOR_OF_WILLS) {
            return Err(PublishError::NotOffered { payload, what: "wills", minor });
        }
        let record = Record::Will { block: Some(block) };

        let (waiter, answer) = oneshot::channel();
        lock(&core.acknowledgements).insert(reference, waiter);
        let closed = {
            let mut state = lock(&core.state);
            state.will = Some(record.clone());
            state.closed.clone()
        };
        if let Some(reason) = closed {
            lock(&core.acknowledgements).remove(&reference);
            return Err(PublishError::NotConnected { payload, reason });
        }
        core.link().send_control(record);
        match answer.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(AckFailure::Denied(denial))) => {
                core.forget_will(Some(reference));
                Err(PublishError::Denied { payload, denial })
            }
            Ok(Err(AckFailure::Lost(reason))) => Err(PublishError::Unconfirmed { payload, reason }),
            Err(_) => {
                let reason = "the session ended meanwhile".to_owned();
                Err(PublishError::Unconfirmed { payload, reason })
            }
        }
    }

    /// Takes the will back. The broker has forgotten it when whatever is published after this has been acknowledged.
    pub fn clear_will(&self) {
        self.core().forget_will(None);
        self.core().link().send_control(Record::Will { block: None });
    }
}

impl Core {
    /// Forgets the will, or only the one with this reference.
    fn forget_will(&self, only: Option<u64>) {
        let mut state = lock(&self.state);
        let is_meant = match (&state.will, only) {
            (Some(Record::Will { block: Some(block) }), Some(reference)) => block.sequence == reference,
            _ => true,
        };
        if is_meant {
            state.will = None;
        }
    }
}
