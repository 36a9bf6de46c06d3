//! Batches: the records of one ZMTP message, each behind a `u32` length.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::{
    block::{Block, BlockView, PublishParts},
    deliver_run::DeliverRun,
    large::LargeBuffer,
    record::{Record, RecordError, kind},
};
use crate::limits;

/// Appends records to one batch. A record above [`limits::RECORD_BYTES_MAX`] is cut into fragments,
/// which [`BatchWriter::next_fragment`] then gives out one batch at a time.
#[derive(Debug, Default)]
pub struct BatchWriter {
    /// What is left of a record that is being sent in fragments, in the pieces of memory it lies in.
    remainder: VecDeque<Bytes>,
}

impl BatchWriter {
    /// Appends `record`, or begins to send it in fragments if it is too large for one record.
    pub fn put(&mut self, record: &Record, out: &mut Vec<u8>) {
        debug_assert!(self.remainder.is_empty(), "records wait while fragments are going out");
        if record.bytes_hint() > limits::RECORD_BYTES_MAX {
            let mut head = Vec::new();
            let tail = record.put_but_tail(&mut head);
            self.remainder.push_back(head.into());
            self.remainder.extend(tail.into_iter().filter(|piece| !piece.is_empty()).cloned());
            return;
        }
        put_framed(record, out);
    }

    /// Whether fragments of a record are still to go out. Control records may be put between them
    /// with [`BatchWriter::put_control`]; other records must wait.
    pub fn in_fragments(&self) -> bool {
        !self.remainder.is_empty()
    }

    /// Appends the next fragment, if any.
    pub fn next_fragment(&mut self, out: &mut Vec<u8>) {
        let left: usize = self.remainder.iter().map(Bytes::len).sum();
        let mut wanted = left.min(limits::RECORD_BYTES_MAX);
        if wanted == 0 {
            return;
        }
        out.reserve(6 + wanted);
        out.extend_from_slice(&(2 + wanted as u32).to_le_bytes());
        out.extend_from_slice(&[kind::FRAGMENT, u8::from(wanted == left)]);
        while let Some(piece) = self.remainder.front_mut().filter(|_| wanted > 0) {
            let taken = piece.split_to(piece.len().min(wanted));
            wanted -= taken.len();
            out.extend_from_slice(&taken);
            if piece.is_empty() {
                self.remainder.pop_front();
            }
        }
    }

    /// Appends a control record, which is never fragmented.
    pub fn put_control(&self, record: &Record, out: &mut Vec<u8>) {
        put_framed(record, out);
    }
}

/// Appends a publish; see [`PublishParts::put`].
///
/// # Errors
/// The bytes of its header, if they are above [`limits::HEADER_BYTES_MAX`]; `out` is as it was.
pub fn put_publish(parts: &PublishParts<'_>, sequence: u64, out: &mut Vec<u8>) -> Result<(), usize> {
    if let Some((head, header)) = parts.plain_head(sequence) {
        let topic = parts.topic.as_str().as_bytes();
        out.reserve(head.len() + topic.len() + header.len() + parts.payload.len());
        for piece in [&head[..], topic, &header, parts.payload] {
            out.extend_from_slice(piece);
        }
        return Ok(());
    }
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    parts.put(sequence, out).inspect_err(|_| out.truncate(length_at))?;
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Subscriptions that one `deliver` can name: their number is a byte.
pub const SUBSCRIPTIONS_NAMED_MAX: usize = u8::MAX as usize;

/// Appends a `deliver` of `block` for these subscriptions, [`SUBSCRIPTIONS_NAMED_MAX`] at most.
pub fn put_deliver(subscriptions: &[u32], block: &BlockView<'_>, out: &mut Vec<u8>) {
    debug_assert!(subscriptions.len() <= SUBSCRIPTIONS_NAMED_MAX, "the others would never hear of it");
    let subscriptions = &subscriptions[..subscriptions.len().min(SUBSCRIPTIONS_NAMED_MAX)];
    let length = 2 + 4 * subscriptions.len() + block.bytes();
    out.reserve(4 + length);
    let [l0, l1, l2, l3] = (length as u32).to_le_bytes();
    let start = [l0, l1, l2, l3, kind::DELIVER, subscriptions.len() as u8];
    if let [subscription] = subscriptions {
        // Nearly all of them: what stands before the topic in one piece.
        let mut head = [0; 10 + Block::PREFIX_BYTES];
        head[..6].copy_from_slice(&start);
        head[6..10].copy_from_slice(&subscription.to_le_bytes());
        head[10..].copy_from_slice(&block.prefix());
        out.extend_from_slice(&head);
    } else {
        out.extend_from_slice(&start);
        subscriptions.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        out.extend_from_slice(&block.prefix());
    }
    block.put_behind_prefix(out);
}

/// The block of a `deliver` record.
/// `None` if it is another record, or none that can be read.
pub fn delivered_block(record: &[u8]) -> Option<BlockView<'_>> {
    let [kind::DELIVER, subscriptions, rest @ ..] = record else { return None };
    BlockView::parse(rest.get(4 * usize::from(*subscriptions)..)?, kind::DELIVER).ok()
}

/// Takes the first record off `batch`, which is not empty.
pub(super) fn split_record<'a>(batch: &mut &'a [u8]) -> Result<&'a [u8], RecordError> {
    let Some((length, rest)) = batch.split_first_chunk::<4>() else {
        return Err(RecordError::Length { bytes: 4, limit: batch.len() });
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length > rest.len() {
        return Err(RecordError::Length { bytes: length, limit: rest.len() });
    }
    let (record, rest) = rest.split_at(length);
    *batch = rest;
    Ok(record)
}

/// Takes the first record off `batch` if it is a publish that `is_wanted`; else `batch` is as it was.
pub fn next_publish_if<'a>(
    batch: &mut &'a [u8],
    is_wanted: impl FnOnce(&BlockView<'a>) -> bool,
) -> Option<BlockView<'a>> {
    let mut rest = *batch;
    let (kind::PUBLISH, block) =
        split_record(&mut rest).ok()?.split_first().map(|(kind, body)| (*kind, body))?
    else {
        return None;
    };
    let block = BlockView::parse(block, kind::PUBLISH).ok().filter(is_wanted)?;
    *batch = rest;
    Some(block)
}

fn put_framed(record: &Record, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    record.put(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Takes batches apart and joins fragments.
#[derive(Debug, Default)]
pub struct BatchReader {
    batch: Bytes,
    assembly: LargeBuffer,
}

impl BatchReader {
    /// Begins a new batch. The previous one has been read to its end.
    pub fn begin(&mut self, batch: Bytes) {
        self.batch = batch;
    }

    /// The next whole record, or `None` at the end of the batch.
    ///
    /// # Errors
    /// [`RecordError`] if a length or a body is impossible; the session should end.
    pub fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        while !self.batch.is_empty() {
            let mut rest = &self.batch[..];
            let length = split_record(&mut rest)?.len();
            self.batch.advance(4);
            match Record::take(self.batch.split_to(length))? {
                Some(Record::Fragment { last, piece }) => {
                    if let Some(record) = self.join(last, &piece)? {
                        return Ok(Some(record));
                    }
                }
                Some(record) => return Ok(Some(record)),
                None => {}
            }
        }
        Ok(None)
    }

    /// The next whole record, or all deliveries to one subscription from one origin that follow each other;
    /// `None` at the end of the batch.
    ///
    /// # Errors
    /// As [`BatchReader::next_record`].
    pub fn next_received(&mut self) -> Result<Option<Received>, RecordError> {
        match DeliverRun::split_from(&mut self.batch) {
            Some(run) => Ok(Some(Received::Deliveries(run))),
            None => Ok(self.next_record()?.map(Received::Record)),
        }
    }

    /// The next whole record of `rest`, what was not yet read of a batch; `None` at its end. Publishes
    /// are left where they lie; everything else is copied out.
    ///
    /// # Errors
    /// As [`BatchReader::next_record`].
    pub fn next_in<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<Incoming<'a>>, RecordError> {
        while !rest.is_empty() {
            let record = split_record(rest)?;
            let whole = match record {
                [kind::PUBLISH, block @ ..] => {
                    return BlockView::parse(block, kind::PUBLISH)
                        .map(|block| Some(Incoming::Publish(block)));
                }
                [kind::FRAGMENT, last, piece @ ..] => self.join(*last != 0, piece)?,
                _ => Record::take(Bytes::copy_from_slice(record))?,
            };
            if let Some(record) = whole {
                return Ok(Some(Incoming::Record(record)));
            }
        }
        Ok(None)
    }

    /// Adds a piece to the record that comes in fragments; gives the record with its last one.
    fn join(&mut self, last: bool, piece: &[u8]) -> Result<Option<Record>, RecordError> {
        let total = self.assembly.len() + piece.len();
        if total > limits::ASSEMBLED_BYTES_MAX {
            return Err(RecordError::Length { bytes: total, limit: limits::ASSEMBLED_BYTES_MAX });
        }
        if self.assembly.len() == 0 {
            // Many a large record is a little larger than one piece.
            self.assembly = LargeBuffer::with_capacity(piece.len() + piece.len() / 4);
        }
        self.assembly.extend_from_slice(piece);
        if !last {
            return Ok(None);
        }
        match Record::take(std::mem::take(&mut self.assembly).freeze())? {
            // A fragment of fragments is nothing that anybody sends.
            Some(Record::Fragment { .. }) | None => Ok(None),
            whole => Ok(whole),
        }
    }
}

/// A part of a batch, as [`BatchReader::next_received`] gives it.
#[derive(Debug)]
pub enum Received {
    /// Deliveries, still in the batch.
    Deliveries(DeliverRun),
    /// Any other record, and a delivery that several subscriptions share or that came in fragments.
    Record(Record),
}

/// A record of a batch, as [`BatchReader::next_in`] gives it.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// A publish, still in the batch.
    Publish(BlockView<'a>),
    /// Any other record, and a publish that came in fragments.
    Record(Record),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{ContentType, Header};

    fn all(reader: &mut BatchReader, batch: Vec<u8>) -> Vec<Record> {
        reader.begin(batch.into());
        std::iter::from_fn(|| reader.next_record().unwrap()).collect()
    }

    #[test]
    fn records_of_a_batch_come_out_in_order_and_unknown_ones_are_skipped() {
        let mut batch = Vec::new();
        let mut writer = BatchWriter::default();
        writer.put(&Record::Cancel { id: 1 }, &mut batch);
        batch.extend_from_slice(&[2, 0, 0, 0, 250, 0]);
        writer.put(&Record::Cancel { id: 2 }, &mut batch);
        assert_eq!(
            all(&mut BatchReader::default(), batch),
            [Record::Cancel { id: 1 }, Record::Cancel { id: 2 }]
        );
    }

    #[test]
    fn a_publish_written_at_once_has_the_bytes_of_its_record_whatever_its_header_says() {
        let topic = "a/b".parse().unwrap();
        let headers = [
            Header::new(),
            Header::absent(),
            Header { content_type: ContentType::Json, ..Header::new() },
            Header { schema: Some(7), ..Header::new() },
            Header { user: vec![("k".to_owned(), "v".to_owned())], ..Header::new() },
        ];
        for header in &headers {
            for payload in [Bytes::new(), Bytes::from_static(b"payload")] {
                let parts =
                    PublishParts { flags: 3, deadline_ms: 9, topic: &topic, header, payload: &payload };
                let (mut at_once, mut as_record) = (b"before".to_vec(), b"before".to_vec());
                put_publish(&parts, 5, &mut at_once).unwrap();
                put_framed(&Record::Publish(parts.block(5).unwrap()), &mut as_record);
                assert_eq!(at_once, as_record);
            }
        }
    }

    #[test]
    fn deliveries_to_one_subscription_from_one_origin_are_one_run_and_others_end_it() {
        let mut batch = Vec::new();
        let topic = "a/b".parse().unwrap();
        let mut deliver = |subscriptions: &[u32], origin, payload: &[u8]| {
            let block = Block::new(&topic, b"h", payload);
            put_deliver(subscriptions, &block.view().stamped(origin, 0), &mut batch);
        };
        deliver(&[1], 7, b"one");
        deliver(&[1], 7, b"");
        deliver(&[1], 8, b"other origin");
        deliver(&[2], 8, b"other subscription");
        deliver(&[2, 1], 8, b"shared");
        deliver(&[2], 8, b"last");
        BatchWriter::default().put(&Record::Cancel { id: 1 }, &mut batch);
        let mut reader = BatchReader::default();
        reader.begin(batch.into());
        let mut runs = Vec::new();
        while let Some(received) = reader.next_received().unwrap() {
            runs.push(match received {
                Received::Record(_) => vec![],
                Received::Deliveries(mut run) => {
                    let read = |block: &BlockView<'_>, payload: Bytes| {
                        assert_eq!((block.topic(), block.header()), (&b"a/b"[..], &b"h"[..]));
                        payload
                    };
                    std::iter::from_fn(|| run.next_with(read)).collect()
                }
            });
        }
        let runs: Vec<Vec<&[u8]>> =
            runs.iter().map(|run| run.iter().map(|payload| &payload[..]).collect()).collect();
        let expected: [&[&[u8]]; 6] =
            [&[b"one", b""], &[b"other origin"], &[b"other subscription"], &[], &[b"last"], &[]];
        assert_eq!(runs, expected);
    }

    #[test]
    fn a_large_record_travels_in_fragments_with_control_records_between() {
        let payload = vec![7u8; 3 * limits::RECORD_BYTES_MAX];
        let large = Record::Publish(Block::new(&"a".parse().unwrap(), b"", &payload));
        let (mut writer, mut reader) = (BatchWriter::default(), BatchReader::default());
        let mut first = Vec::new();
        writer.put(&large, &mut first);
        assert!(first.is_empty());
        let mut seen = Vec::new();
        while writer.in_fragments() {
            let mut batch = Vec::new();
            writer.next_fragment(&mut batch);
            assert!(batch.len() <= limits::NATIVE_FRAME_BYTES_MAX);
            writer.put_control(&Record::Ping { number: 1, answer: false }, &mut batch);
            seen.extend(all(&mut reader, batch));
        }
        assert_eq!(seen.iter().filter(|record| matches!(record, Record::Ping { .. })).count(), 4);
        assert!(seen.contains(&large));
    }

    #[test]
    fn a_lying_length_ends_the_batch_with_an_error() {
        for hostile in [vec![255, 255, 255, 255, 1], vec![0, 0, 0, 0], vec![1, 0]] {
            let mut reader = BatchReader::default();
            reader.begin(hostile.into());
            assert!(reader.next_record().is_err());
        }
    }
}
