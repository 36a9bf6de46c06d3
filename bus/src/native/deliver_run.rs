//! Deliveries that lie one after the other in a batch and differ in their messages only.

use bytes::{Buf, Bytes};

use super::{
    batch::split_record,
    block::{Block, BlockView},
    record::kind,
};

/// Bytes of a `deliver` record to one subscription that stand in front of its block, its length included.
const HEAD_BYTES: usize = 4 + 2 + 4;

/// One or more deliveries to one subscription alone, from one origin. They are read where they lie, each when its turn
/// comes; that they can be read is known.
#[derive(Debug)]
pub struct DeliverRun {
    subscription: u32,
    origin: u32,
    messages: usize,
    /// Whole `deliver` records, each behind its length.
    records: Bytes,
}

impl DeliverRun {
    /// Takes the run that `batch` begins with, if it begins with one.
    pub(super) fn split_from(batch: &mut Bytes) -> Option<Self> {
        let mut rest = &batch[..];
        let (subscription, origin) = next_delivery(&mut rest)?;
        let (mut end, mut messages) = (rest, 1);
        while next_delivery(&mut rest) == Some((subscription, origin)) {
            end = rest;
            messages += 1;
        }
        let records = batch.split_to(batch.len() - end.len());
        Some(Self { subscription, origin, messages, records })
    }

    /// Whom they are for.
    pub fn subscription(&self) -> u32 {
        self.subscription
    }

    /// The number of the peer that published them.
    pub fn origin(&self) -> u32 {
        self.origin
    }

    /// How many there were at first.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes of the blocks that are left, and a little more.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Gives the next message, with its payload in shared memory, to `read`; `None` at the end.
    pub fn next_with<T>(&mut self, read: impl FnOnce(&BlockView<'_>, Bytes) -> T) -> Option<T> {
        let mut rest = &self.records[..];
        let record = split_record(&mut rest).ok()?;
        let block = BlockView::parse(record.get(HEAD_BYTES - 4..)?, kind::DELIVER).ok()?;
        let end = self.records.len() - rest.len();
        let result = read(&block, self.records.slice(end - block.payload_bytes()..end));
        self.records.advance(end);
        Some(result)
    }

    /// The next message in memory that it shares with the rest; `None` at the end.
    pub fn next_block(&mut self) -> Option<Block> {
        self.next_with(|view, _| view.to_block())
    }
}

/// Subscription and origin of the first record of `rest`, which is taken off, if it is a delivery to one subscription.
fn next_delivery(rest: &mut &[u8]) -> Option<(u32, u32)> {
    let [kind::DELIVER, 1, s0, s1, s2, s3, block @ ..] = split_record(rest).ok()? else { return None };
    let block = BlockView::parse(block, kind::DELIVER).ok()?;
    Some((u32::from_le_bytes([*s0, *s1, *s2, *s3]), block.origin))
}
