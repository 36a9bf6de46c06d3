//! Waiting messages as they go on the wire: the records of one batch, and where they are counted.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    broker::ledger::RowId,
    limits,
    native::{
        BlockView, Record, SubscriptionIds,
        batch::{delivered_block, put_deliver},
    },
    zmtp::Draft,
};

/// Bytes of the largest block that is kept in a chunk. A larger one is kept as it is, so that its
/// subscribers share it.
pub(super) const CHUNKED_BLOCK_BYTES_MAX: usize = limits::BATCH_BYTES / 2;

/// Messages counted by ledger row, oldest first; neighbours of one row share an item.
#[derive(Debug, Default)]
pub(super) struct Runs(VecDeque<Run>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) row: RowId,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Runs {
    pub(super) fn add(&mut self, run: Run) {
        match self.0.back_mut() {
            Some(last) if last.row == run.row => {
                last.messages += run.messages;
                last.bytes += run.bytes;
            }
            _ => self.0.push_back(run),
        }
    }

    /// Takes up to `messages` off the front run. Within a run sizes are averaged; its last message
    /// takes what is left.
    pub(super) fn take(&mut self, messages: u64) -> Option<Run> {
        let front = self.0.front_mut()?;
        if front.messages <= messages {
            return self.0.pop_front();
        }
        let taken = Run { row: front.row, messages, bytes: front.bytes / front.messages * messages };
        front.messages -= messages;
        front.bytes -= taken.bytes;
        Some(taken)
    }

    /// Takes one message of `bytes` off the front.
    fn take_one(&mut self, bytes: u64) -> Option<RowId> {
        let front = self.0.front_mut()?;
        let row = front.row;
        front.messages -= 1;
        front.bytes -= bytes;
        if front.messages == 0 {
            self.0.pop_front();
        }
        Some(row)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Run> {
        self.0.drain(..)
    }
}

/// The `deliver` records of one lane, each behind its length, in order.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    records: Draft,
    /// Bytes of records that have left.
    left: usize,
    messages: usize,
    /// What the records that wait count for; see [`Chunk::front`].
    bytes: u64,
    runs: Runs,
}

impl Chunk {
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a message of `bytes` still fits into this batch.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.records.len() + bytes <= limits::BATCH_BYTES
    }

    pub(super) fn put(&mut self, subscriptions: &[u32], block: &BlockView<'_>) {
        put_deliver(subscriptions, block, self.records.tail());
    }

    /// Counts what was put in.
    pub(super) fn count(&mut self, run: Run) {
        self.messages += run.messages as usize;
        self.bytes += run.bytes;
        self.runs.add(run);
    }

    /// The front record, and what it counts for: all but its kind and the first subscription, which every record has.
    fn front(&self) -> Option<(&[u8], u64)> {
        let (length, rest) = self.records.body()[self.left..].split_first_chunk::<4>()?;
        let record = &rest[..u32::from_le_bytes(*length) as usize];
        Some((record, record.len().saturating_sub(2 + size_of::<u32>()) as u64))
    }

    /// The subscriptions that share the front record.
    pub(super) fn front_subscriptions(&self) -> SubscriptionIds {
        let Some((record, _)) = self.front() else { return SubscriptionIds::new() };
        let (ids, _) = record[2..2 + 4 * usize::from(record[1])].as_chunks();
        ids.iter().map(|id| u32::from_le_bytes(*id)).collect()
    }

    /// Drops the front record.
    pub(super) fn drop_front(&mut self) -> Option<Run> {
        let (record, bytes) = self.front()?;
        self.left += 4 + record.len();
        self.messages -= 1;
        self.bytes -= bytes;
        let row = self.runs.take_one(bytes)?;
        Some(Run { row, messages: 1, bytes })
    }

    /// Shows `act` the front record's block and drops it.
    pub(super) fn pop_view(&mut self, act: impl FnOnce(&BlockView<'_>)) -> Option<Run> {
        act(&delivered_block(self.front()?.0)?);
        self.drop_front()
    }

    /// Takes the front record as a value.
    pub(super) fn pop(&mut self) -> Option<(Record, Run)> {
        let record = Record::take(Bytes::copy_from_slice(self.front()?.0)).ok()??;
        Some((record, self.drop_front()?))
    }

    /// Appends at most `most` records to `out` while those before them count for less than `room` bytes, and tells
    /// `sent` of each run. Returns how many.
    pub(super) fn take(&mut self, room: u64, most: u64, out: &mut Vec<u8>, mut sent: impl FnMut(Run)) -> u64 {
        if self.bytes <= room && self.messages as u64 <= most {
            out.extend_from_slice(&self.records.body()[self.left..]);
            self.left = self.records.len();
            self.bytes = 0;
            self.runs.drain().for_each(sent);
            return std::mem::take(&mut self.messages) as u64;
        }
        let (from, mut bytes, mut messages) = (self.left, 0, 0);
        while bytes < room
            && messages < most
            && let Some(run) = self.drop_front()
        {
            bytes += run.bytes;
            messages += 1;
            sent(run);
        }
        out.extend_from_slice(&self.records.body()[from..self.left]);
        messages
    }

    /// Its records, if all of them wait, fill a batch well and count for at most `room` bytes.
    pub(super) fn whole(&mut self, room: u64) -> Option<&mut Draft> {
        let is_whole = self.left == 0 && self.bytes <= room;
        (is_whole && self.records.len() >= limits::BATCH_BYTES / 2).then_some(&mut self.records)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Run> {
        self.runs.drain()
    }
}

/// Empty chunks with their memory, kept for reuse by all queues.
#[derive(Debug, Default)]
pub struct SpareChunks(Vec<Chunk>);

/// At most a mebibyte of memory that is not in use.
const SPARE_CHUNKS_MAX: usize = 16;

impl SpareChunks {
    pub(super) fn take(&mut self) -> Chunk {
        self.0.pop().unwrap_or_default()
    }

    pub(super) fn give(&mut self, mut chunk: Chunk) {
        if self.0.len() < SPARE_CHUNKS_MAX && chunk.records.capacity() <= 2 * limits::BATCH_BYTES {
            chunk.records.clear();
            chunk.runs.0.clear();
            (chunk.left, chunk.messages, chunk.bytes) = (0, 0, 0);
            self.0.push(chunk);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|chunk| chunk.records.capacity()).sum()
    }
}
