//! The block: what all records that carry a message share.

use bytes::{Buf, Bytes};

use super::{
    body::Body,
    large::LargeBuffer,
    record::{RecordError, kind},
};
use crate::{
    codec::{self, PLAIN_HEADER_BYTES},
    envelope::Header,
    limits,
    topic::TopicName,
};

/// The part of a message all sides share: the broker-owned prefix, then topic, header and payload.
///
/// Layout: `flags u8 | topic bytes u8 | header bytes u16 | origin u32 | sequence u64 | deadline u64 |
/// topic | header | payload` (the payload takes what is left).
#[derive(Clone, Debug)]
pub struct Block {
    /// [`Block::RETAIN`], [`Block::ACKNOWLEDGE`], [`Block::PARTS`].
    pub flags: u8,
    /// The origin's number in this broker epoch (see [`Record::Origin`](super::Record::Origin)); zero from a client.
    pub origin: u32,
    /// From a client: its own number for the message. From the broker: the broker's number.
    pub sequence: u64,
    /// Milliseconds since the Unix epoch after which nobody wants it; zero if never.
    pub deadline_ms: u64,
    /// Length of the topic in front of `content`.
    topic_bytes: u8,
    /// Length of the header behind it.
    header_bytes: u16,
    /// Topic and header, as they stand on the wire, and the payload unless it stands apart. One piece
    /// of shared memory: a reference for each message is what a batch costs most.
    content: Bytes,
    /// The payload of a block that was made in this process, so that it is never copied there.
    apart: Bytes,
}

impl Block {
    /// Publish: keep it as the topic's last value. Deliver: it is that value.
    pub const RETAIN: u8 = 1;
    /// Publish: answer with `accepted` when it is in the queues of every matching subscriber.
    pub const ACKNOWLEDGE: u8 = 2;
    /// The payload is several frames of a stock message, each a `u32` length and its bytes.
    pub const PARTS: u8 = 4;

    /// Bytes in front of the topic.
    pub const PREFIX_BYTES: usize = 24;

    /// Builds a block. `header` is written by [`crate::codec::put_header`] or empty; the lengths must be
    /// within [`limits`], which the callers check with their own errors.
    pub fn new(topic: &TopicName, header: &[u8], payload: &[u8]) -> Self {
        Self::with_payload(topic, header, Bytes::copy_from_slice(payload))
    }

    /// [`Block::new`] without a copy of the payload.
    pub fn with_payload(topic: &TopicName, header: &[u8], payload: Bytes) -> Self {
        let mut names = Vec::with_capacity(topic.as_str().len() + header.len());
        names.extend_from_slice(topic.as_str().as_bytes());
        names.extend_from_slice(header);
        Self {
            flags: 0,
            origin: 0,
            sequence: 0,
            deadline_ms: 0,
            topic_bytes: topic.as_str().len() as u8,
            header_bytes: header.len() as u16,
            content: names.into(),
            apart: payload,
        }
    }

    /// The topic's bytes, not yet checked.
    pub fn topic(&self) -> &[u8] {
        #[cfg(test)]
        TOPICS_LOOKED_AT.set(TOPICS_LOOKED_AT.get() + 1);
        &self.content[..self.topic_bytes.into()]
    }

    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.content[self.topic_bytes.into()..self.names_bytes()]
    }

    /// Bytes of topic and header.
    fn names_bytes(&self) -> usize {
        usize::from(self.topic_bytes) + usize::from(self.header_bytes)
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.content.len() - self.names_bytes() + self.apart.len()
    }

    /// The payload, sharing the block's memory.
    pub fn payload(&self) -> Bytes {
        match self.content.len() - self.names_bytes() {
            0 => self.apart.clone(),
            _ => self.content.slice(self.names_bytes()..),
        }
    }

    /// The payload, taking the block's memory.
    pub fn into_payload(mut self) -> Bytes {
        match self.content.len() - self.names_bytes() {
            0 => self.apart,
            _ => {
                self.content.advance(self.names_bytes());
                self.content
            }
        }
    }

    /// Bytes of the block on the wire.
    pub fn bytes(&self) -> usize {
        Self::PREFIX_BYTES + self.content.len() + self.apart.len()
    }

    /// Appends the block but for what follows its prefix, which it gives.
    pub(super) fn put_but_tail(&self, out: &mut Vec<u8>) -> [&Bytes; 2] {
        out.extend_from_slice(&self.view().prefix());
        [&self.content, &self.apart]
    }

    pub(super) fn take(body: &mut Body) -> Result<Self, RecordError> {
        let BlockView { flags, origin, sequence, deadline_ms, topic_bytes, header_bytes, .. } =
            BlockView::parse(&body.bytes, body.kind)?;
        body.bytes.advance(Self::PREFIX_BYTES);
        let (content, apart) = (body.rest(), Bytes::new());
        Ok(Self { flags, origin, sequence, deadline_ms, topic_bytes, header_bytes, content, apart })
    }

    /// The block, borrowed.
    pub fn view(&self) -> BlockView<'_> {
        BlockView {
            flags: self.flags,
            origin: self.origin,
            sequence: self.sequence,
            deadline_ms: self.deadline_ms,
            topic_bytes: self.topic_bytes,
            header_bytes: self.header_bytes,
            content: &self.content,
            apart: &self.apart,
        }
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has asked a block for its topic: tests count the steps of who looks for one.
    pub(crate) static TOPICS_LOOKED_AT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Two blocks are equal if they are on the wire.
impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        let numbers = |block: &Self| (block.flags, block.origin, block.sequence, block.deadline_ms);
        numbers(self) == numbers(other)
            && (self.topic(), self.header()) == (other.topic(), other.header())
            && self.payload() == other.payload()
    }
}

impl Eq for Block {}

/// A block that is read where it lies: in an opened batch, or in a [`Block`].
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// As in [`Block`].
    pub flags: u8,
    /// As in [`Block`].
    pub origin: u32,
    /// As in [`Block`].
    pub sequence: u64,
    /// As in [`Block`].
    pub deadline_ms: u64,
    topic_bytes: u8,
    header_bytes: u16,
    content: &'a [u8],
    apart: &'a [u8],
}

impl<'a> BlockView<'a> {
    /// A block without a header. The topic has at most [`limits::TOPIC_BYTES_MAX`] bytes.
    pub fn new(topic: &'a [u8], payload: &'a [u8]) -> Self {
        let topic_bytes = topic.len() as u8;
        Self {
            flags: 0,
            origin: 0,
            sequence: 0,
            deadline_ms: 0,
            topic_bytes,
            header_bytes: 0,
            content: topic,
            apart: payload,
        }
    }

    /// Reads the block that is the rest of a record of this kind.
    pub(super) fn parse(block: &'a [u8], kind: u8) -> Result<Self, RecordError> {
        let Some((prefix, content)) = block.split_first_chunk::<{ Block::PREFIX_BYTES }>() else {
            return Err(RecordError::Short { kind });
        };
        let [flags, topic_bytes, h0, h1, o0, o1, o2, o3, numbers @ ..] = *prefix;
        let [s0, s1, s2, s3, s4, s5, s6, s7, d0, d1, d2, d3, d4, d5, d6, d7] = numbers;
        let view = Self {
            flags,
            origin: u32::from_le_bytes([o0, o1, o2, o3]),
            sequence: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            deadline_ms: u64::from_le_bytes([d0, d1, d2, d3, d4, d5, d6, d7]),
            topic_bytes,
            header_bytes: u16::from_le_bytes([h0, h1]),
            content,
            apart: &[],
        };
        if topic_bytes == 0 || content.len() < view.names_bytes() {
            return Err(RecordError::Field { kind, field: "block length" });
        }
        Ok(view)
    }

    /// The header's bytes.
    pub fn header(&self) -> &'a [u8] {
        &self.content[self.topic_bytes.into()..self.names_bytes()]
    }

    /// The topic's bytes, not yet checked.
    pub fn topic(&self) -> &'a [u8] {
        &self.content[..self.topic_bytes.into()]
    }

    fn names_bytes(&self) -> usize {
        usize::from(self.topic_bytes) + usize::from(self.header_bytes)
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> usize {
        self.content.len() - self.names_bytes() + self.apart.len()
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        match self.content.len() - self.names_bytes() {
            0 => self.apart,
            _ => &self.content[self.names_bytes()..],
        }
    }

    /// Bytes of the block on the wire.
    pub fn bytes(&self) -> usize {
        Block::PREFIX_BYTES + self.content.len() + self.apart.len()
    }

    /// The block with the numbers that the broker gives it.
    #[must_use]
    pub fn stamped(self, origin: u32, sequence: u64) -> Self {
        Self { origin, sequence, ..self }
    }

    /// The block in memory of its own, which nothing else shares.
    pub fn to_block(&self) -> Block {
        let mut content = LargeBuffer::with_capacity(self.content.len() + self.apart.len());
        content.extend_from_slice(self.content);
        content.extend_from_slice(self.apart);
        Block {
            flags: self.flags,
            origin: self.origin,
            sequence: self.sequence,
            deadline_ms: self.deadline_ms,
            topic_bytes: self.topic_bytes,
            header_bytes: self.header_bytes,
            content: content.freeze(),
            apart: Bytes::new(),
        }
    }

    /// What stands in front of the topic.
    pub(super) fn prefix(&self) -> [u8; Block::PREFIX_BYTES] {
        let mut prefix = [0; Block::PREFIX_BYTES];
        (prefix[0], prefix[1]) = (self.flags, self.topic_bytes);
        prefix[2..4].copy_from_slice(&self.header_bytes.to_le_bytes());
        prefix[4..8].copy_from_slice(&self.origin.to_le_bytes());
        prefix[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        prefix[16..].copy_from_slice(&self.deadline_ms.to_le_bytes());
        prefix
    }

    /// Appends the block.
    ///
    /// # Errors
    /// The bytes of the header, if they are above the limit.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix());
        self.put_behind_prefix(out);
    }

    /// Appends topic, header and payload.
    pub(super) fn put_behind_prefix(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.content);
        if !self.apart.is_empty() {
            out.extend_from_slice(self.apart);
        }
    }
}

/// Bytes of a publish in front of its topic: length, kind and the block's prefix.
const PUBLISH_HEAD_BYTES: usize = 4 + 1 + Block::PREFIX_BYTES;

/// A publish before it is a record: a client's link writes it straight into a batch.
#[derive(Clone, Copy, Debug)]
pub struct PublishParts<'a> {
    /// As in [`Block`].
    pub flags: u8,
    /// As in [`Block`].
    pub deadline_ms: u64,
    /// The topic.
    pub topic: &'a TopicName,
    /// The header, not yet encoded.
    pub header: &'a Header,
    /// The payload.
    pub payload: &'a Bytes,
}

impl PublishParts<'_> {
    /// The record, behind its length, but for topic, header and payload, with the header's bytes: if the header is plain.
    pub(super) fn plain_head(
        &self,
        sequence: u64,
    ) -> Option<([u8; PUBLISH_HEAD_BYTES], [u8; PLAIN_HEADER_BYTES])> {
        let header = codec::plain_header(self.header)?;
        let (flags, deadline_ms) = (self.flags, self.deadline_ms);
        let topic = self.topic.as_str().as_bytes();
        let view = BlockView {
            flags,
            sequence,
            deadline_ms,
            header_bytes: PLAIN_HEADER_BYTES as u16,
            ..BlockView::new(topic, &[])
        };
        let mut head = [0; PUBLISH_HEAD_BYTES];
        let length = PUBLISH_HEAD_BYTES - 4 + topic.len() + PLAIN_HEADER_BYTES + self.payload.len();
        head[..4].copy_from_slice(&(length as u32).to_le_bytes());
        head[4] = kind::PUBLISH;
        head[5..].copy_from_slice(&view.prefix());
        Some((head, header))
    }

    /// Appends `kind u8 | block`. A header above [`limits::HEADER_BYTES_MAX`] gives its size, and `out` is as it was.
    pub fn put(&self, sequence: u64, out: &mut Vec<u8>) -> Result<(), usize> {
        let start = out.len();
        let topic = self.topic.as_str().as_bytes();
        out.push(kind::PUBLISH);
        let (flags, deadline_ms) = (self.flags, self.deadline_ms);
        BlockView { flags, sequence, deadline_ms, ..BlockView::new(topic, &[]) }.put(out);
        let header_at = out.len();
        codec::put_header(self.header, out);
        let header_bytes = out.len() - header_at;
        let Ok(length) = u16::try_from(header_bytes) else {
            out.truncate(start);
            return Err(header_bytes);
        };
        // Behind the record's kind, the block's flags and the topic's length.
        out[start + 3..start + 5].copy_from_slice(&length.to_le_bytes());
        out.extend_from_slice(self.payload);
        Ok(())
    }

    /// The same as a block, sharing the payload's memory.
    ///
    /// # Errors
    /// The size of a header above its limit.
    pub fn block(&self, sequence: u64) -> Result<Block, usize> {
        let mut header = Vec::with_capacity(128);
        codec::put_header(self.header, &mut header);
        if header.len() > limits::HEADER_BYTES_MAX {
            return Err(header.len());
        }
        let block = Block::with_payload(self.topic, &header, self.payload.clone());
        Ok(Block { flags: self.flags, deadline_ms: self.deadline_ms, sequence, ..block })
    }
}

const _: () = assert!(limits::TOPIC_BYTES_MAX <= u8::MAX as usize, "topic lengths are one byte on the wire");
const _: () =
    assert!(limits::HEADER_BYTES_MAX <= u16::MAX as usize, "header lengths are two bytes on the wire");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Record;

    #[test]
    fn a_publish_written_in_parts_has_the_bytes_of_its_block() {
        let (header, payload) = (Header::new(), Bytes::from_static(b"payload"));
        let topic = "a/b".parse().unwrap();
        let parts =
            PublishParts { flags: 2, deadline_ms: 7, topic: &topic, header: &header, payload: &payload };
        let mut direct = b"before".to_vec();
        parts.put(9, &mut direct).unwrap();
        let mut encoded = Vec::new();
        Record::Publish(parts.block(9).unwrap()).put(&mut encoded);
        assert_eq!(direct[6..], encoded);
        let header = Header { user: vec![("k".into(), "v".repeat(70_000))], ..Header::new() };
        let parts = PublishParts { header: &header, ..parts };
        let before = direct.clone();
        assert!(parts.put(9, &mut direct).unwrap_err() > 70_000);
        assert!(parts.block(9).unwrap_err() > 70_000);
        assert_eq!(direct, before);
    }
}
