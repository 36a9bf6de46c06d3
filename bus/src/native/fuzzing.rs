//! The fuzz target of batches.

use super::{BatchReader, Record};
use crate::fuzzing::{Input, own};

/// Batches of one session, each behind a length byte of 8 bytes' units. A record that was read is
/// written and read again as the same one; nothing is joined that was not sent.
pub(crate) fn batch(data: &[u8]) {
    let mut input = Input(data);
    let mut reader = BatchReader::default();
    while !input.is_empty() {
        let bytes = usize::from(input.byte()) * 8;
        reader.begin(own(input.take(bytes)));
        loop {
            match reader.next_record() {
                Ok(Some(record)) => check(&record, data.len()),
                Ok(None) => break,
                // The session ends.
                Err(_) => return,
            }
        }
    }
}

fn check(record: &Record, sent_bytes: usize) {
    let mut written = Vec::new();
    record.put(&mut written);
    assert!(written.len() <= sent_bytes + 64, "a record of {} bytes from {sent_bytes}", written.len());
    let read = Record::take(written.into()).expect("what was written can be read");
    assert_eq!(read.as_ref(), Some(record));
}
