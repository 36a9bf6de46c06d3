//! From blocks to the messages that applications see.

use bytes::{Buf, Bytes, BytesMut};

use crate::{
    codec::{self, CodecError},
    envelope::Message,
    native::{Block, BlockView},
    peer::PeerName,
    topic::{TopicError, TopicName},
};

/// Why a block is not a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DamagedMessage {
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error(transparent)]
    Header(#[from] CodecError),
    #[error("a frame of the stock message is longer than the payload")]
    Parts,
}

/// The last few topics one consumer has seen, so that a topic is checked once and not for every message.
#[derive(Debug, Default)]
pub(crate) struct TopicMemory {
    topics: Vec<TopicName>,
    next: usize,
}

const TOPICS_REMEMBERED: usize = 8;

impl TopicMemory {
    fn topic(&mut self, bytes: &[u8]) -> Result<TopicName, TopicError> {
        if let Some(known) = self.topics.iter().find(|known| known.as_str().as_bytes() == bytes) {
            return Ok(known.clone());
        }
        let topic = TopicName::from_bytes(bytes)?;
        if self.topics.len() < TOPICS_REMEMBERED {
            self.topics.push(topic.clone());
        } else {
            self.topics[self.next] = topic.clone();
            self.next = (self.next + 1) % TOPICS_REMEMBERED;
        }
        Ok(topic)
    }

    /// Reads a block.
    pub(crate) fn message(&mut self, origin: PeerName, block: Block) -> Result<Message, DamagedMessage> {
        let payload = block.payload();
        self.message_of(origin, &block.view(), payload)
    }

    /// Reads a block whose payload is in shared memory.
    pub(crate) fn message_of(
        &mut self,
        origin: PeerName,
        block: &BlockView<'_>,
        payload: Bytes,
    ) -> Result<Message, DamagedMessage> {
        let topic = self.topic(block.topic())?;
        let header = codec::header(block.header())?;
        let payload = if block.flags & Block::PARTS == 0 { payload } else { join_parts(payload)? };
        let retained = block.flags & Block::RETAIN != 0;
        Ok(Message { topic, origin, sequence: block.sequence, header, payload, retained })
    }
}

/// Joins the frames of a stock message, each a `u32` length and its bytes. One frame is not copied.
fn join_parts(mut payload: Bytes) -> Result<Bytes, DamagedMessage> {
    let mut joined = BytesMut::new();
    while !payload.is_empty() {
        let length = payload.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize);
        let length = length.filter(|length| *length <= payload.len() - 4).ok_or(DamagedMessage::Parts)?;
        payload.advance(4);
        let part = payload.split_to(length);
        if payload.is_empty() && joined.is_empty() {
            return Ok(part);
        }
        joined.extend_from_slice(&part);
    }
    Ok(joined.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frames_of_a_stock_message_are_joined_and_lying_lengths_refused() {
        let parts = |bytes: &'static [u8]| join_parts(Bytes::from_static(bytes));
        assert_eq!(parts(b"").unwrap(), "");
        assert_eq!(parts(b"\x02\0\0\0ab").unwrap(), "ab");
        assert_eq!(parts(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c").unwrap(), "abc");
        assert!(matches!(parts(b"\x03\0\0\0ab"), Err(DamagedMessage::Parts)));
        assert!(matches!(parts(b"\x03\0"), Err(DamagedMessage::Parts)));
    }
}
