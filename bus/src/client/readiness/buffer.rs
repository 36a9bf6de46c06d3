//! What a gated publisher holds: messages in order, a cursor, bounds, counts. Pure.

use std::collections::VecDeque;

use uuid::Uuid;

use crate::{
    envelope::{Header, Payload, StreamMark},
    limits,
};

/// What a full buffer does with one message more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GateOverflow {
    /// Refuses it, with the payload.
    #[default]
    Refuse,
    /// Drops the oldest, counted. The gap in the sequence tells consumers how many.
    DropOldest,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) header: Header,
    pub(super) payload: Payload,
    times_sent: u32,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.payload.bytes.len() + limits::GATE_MESSAGE_BYTES
    }
}

/// Messages from the cursor on. Their sequences rise, with gaps where one was dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    stream: Uuid,
    entries: VecDeque<Entry>,
    /// How many of the first entries are sent since the last [`Buffer::rewind`].
    sent: usize,
    /// Bytes of all entries, and of those that are sent.
    bytes: usize,
    sent_bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    overflow: GateOverflow,
    /// The sequence accepted last.
    last: u64,
    first: u64,
    /// Everything up to here is taken or dropped.
    cursor: u64,
    /// Every consumer has taken the message with this sequence; it is the one before the first entry.
    taken: u64,
    flushed: u64,
    dropped: u64,
    refused: u64,
    again: u64,
}

/// What [`Buffer`] has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) buffered: usize,
    pub(super) bytes: usize,
    pub(super) cursor: u64,
    pub(super) flushed: u64,
    pub(super) dropped: u64,
    pub(super) refused: u64,
    pub(super) again: u64,
}

impl Buffer {
    /// The first message gets the sequence `first`.
    pub(super) fn new(
        stream: Uuid,
        messages_max: usize,
        bytes_max: usize,
        overflow: GateOverflow,
        first: u64,
    ) -> Self {
        let before = first.max(1) - 1;
        Self {
            stream,
            entries: VecDeque::new(),
            sent: 0,
            bytes: 0,
            sent_bytes: 0,
            messages_max,
            bytes_max,
            overflow,
            last: before,
            first: before,
            cursor: before,
            taken: before,
            flushed: 0,
            dropped: 0,
            refused: 0,
            again: 0,
        }
    }

    /// Takes a message: its id and sequence. Gives the payload back if there is no room.
    pub(super) fn accept(&mut self, header: Header, payload: Payload) -> Result<(Uuid, u64), Payload> {
        let entry = Entry { sequence: self.last + 1, header, payload, times_sent: 0 };
        while self.is_full_for(entry.bytes()) {
            if self.overflow == GateOverflow::Refuse {
                self.refused += 1;
                return Err(entry.payload);
            }
            self.drop_oldest();
        }
        self.last = entry.sequence;
        self.bytes += entry.bytes();
        let accepted = (entry.header.id, entry.sequence);
        self.entries.push_back(entry);
        Ok(accepted)
    }

    /// An empty buffer takes a message of any legal size.
    fn is_full_for(&self, bytes: usize) -> bool {
        !self.entries.is_empty()
            && (self.entries.len() >= self.messages_max || self.bytes + bytes > self.bytes_max)
    }

    fn drop_oldest(&mut self) {
        if self.pop().is_some() {
            self.dropped += 1;
        }
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes();
        if self.sent > 0 {
            self.sent -= 1;
            self.sent_bytes -= entry.bytes();
        }
        self.cursor = entry.sequence;
        Some(entry)
    }

    /// The next message to send, marked, if the window has room for it.
    pub(super) fn next(&self) -> Option<Entry> {
        let is_full =
            self.sent >= limits::GATE_WINDOW_MESSAGES || self.sent_bytes >= limits::GATE_WINDOW_BYTES;
        let mut entry = self.entries.get(self.sent).filter(|_| !is_full)?.clone();
        let previous = match self.sent {
            0 => self.taken,
            sent => self.entries[sent - 1].sequence,
        };
        let (stream, sequence, again) = (self.stream, entry.sequence, entry.times_sent > 0);
        entry.header.stream =
            Some(Box::new(StreamMark { stream, sequence, previous, taken: self.taken, again }));
        Some(entry)
    }

    /// The message with this sequence was handed to the link.
    pub(super) fn mark_sent(&mut self, sequence: u64) {
        let Some(entry) = self.entries.get_mut(self.sent) else { return };
        // It may have been dropped meanwhile to make room.
        if entry.sequence == sequence {
            self.again += u64::from(entry.times_sent > 0);
            entry.times_sent += 1;
            self.sent += 1;
            self.sent_bytes += entry.bytes();
        }
    }

    /// The sequence sent last, if something is sent that is not known to be taken.
    pub(super) fn sent_through(&self) -> Option<u64> {
        Some(self.entries.get(self.sent.checked_sub(1)?)?.sequence)
    }

    /// All that was sent up to this sequence is taken.
    pub(super) fn confirm(&mut self, through: u64) {
        while self.sent > 0 && self.entries.front().is_some_and(|entry| entry.sequence <= through) {
            self.pop();
            self.flushed += 1;
            self.taken = self.cursor;
        }
    }

    /// Nothing that was sent is known to have arrived: everything is sent again from the cursor.
    pub(super) fn rewind(&mut self) {
        (self.sent, self.sent_bytes) = (0, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            accepted: self.last - self.first,
            buffered: self.entries.len(),
            bytes: self.bytes,
            cursor: self.cursor,
            flushed: self.flushed,
            dropped: self.dropped,
            refused: self.refused,
            again: self.again,
        }
    }
}
