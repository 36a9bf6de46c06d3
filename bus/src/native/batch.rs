//! Batches: the records of one ZMTP message, each behind a `u32` length.

use bytes::{Buf, Bytes, BytesMut};

use super::record::{PublishParts, Record, RecordError};
use crate::limits;

/// Appends records to one batch. A record above [`limits::RECORD_BYTES_MAX`] is cut into fragments,
/// which [`BatchWriter::next_fragment`] then gives out one batch at a time.
#[derive(Debug, Default)]
pub struct BatchWriter {
    /// What is left of a record that is being sent in fragments.
    remainder: Bytes,
}

impl BatchWriter {
    /// Appends `record`, or begins to send it in fragments if it is too large for one record.
    pub fn put(&mut self, record: &Record, out: &mut Vec<u8>) {
        debug_assert!(self.remainder.is_empty(), "records wait while fragments are going out");
        if record.bytes_hint() > limits::RECORD_BYTES_MAX {
            let mut whole = Vec::with_capacity(record.bytes_hint());
            record.put(&mut whole);
            self.remainder = whole.into();
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
        if self.remainder.is_empty() {
            return;
        }
        let piece = self.remainder.split_to(self.remainder.len().min(limits::RECORD_BYTES_MAX));
        put_framed(&Record::Fragment { last: self.remainder.is_empty(), piece }, out);
    }

    /// Appends a control record, which is never fragmented.
    pub fn put_control(&self, record: &Record, out: &mut Vec<u8>) {
        put_framed(record, out);
    }
}

/// Appends a publish; see [`PublishParts::put`].
pub fn put_publish(parts: &PublishParts<'_>, sequence: u64, out: &mut Vec<u8>) -> Result<(), usize> {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    parts.put(sequence, out).inspect_err(|_| out.truncate(length_at))?;
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
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
    assembly: BytesMut,
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
            let Some(length) = self.batch.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize)
            else {
                return Err(RecordError::Length { bytes: 4, limit: self.batch.len() });
            };
            self.batch.advance(4);
            if length == 0 || length > self.batch.len() {
                return Err(RecordError::Length { bytes: length, limit: self.batch.len() });
            }
            match Record::take(self.batch.split_to(length))? {
                Some(Record::Fragment { last, piece }) => {
                    let total = self.assembly.len() + piece.len();
                    if total > limits::ASSEMBLED_BYTES_MAX {
                        return Err(RecordError::Length { bytes: total, limit: limits::ASSEMBLED_BYTES_MAX });
                    }
                    self.assembly.extend_from_slice(&piece);
                    if last && let Some(record) = Record::take(std::mem::take(&mut self.assembly).freeze())? {
                        return Ok(Some(record));
                    }
                }
                Some(record) => return Ok(Some(record)),
                None => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::record::Block;

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
