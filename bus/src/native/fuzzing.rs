//! The fuzz target of batches.

use super::{BatchReader, Received, Record, RecordError};
use crate::fuzzing::{Input, own};

/// Batches of one session, each behind a length byte of 8 bytes' units. A record that was read is
/// written and read again as the same one; nothing is joined that was not sent. Whoever takes deliveries in runs
/// gets the same.
pub(crate) fn batch(data: &[u8]) {
    let mut input = Input(data);
    let (mut reader, mut run_reader) = (BatchReader::default(), BatchReader::default());
    while !input.is_empty() {
        let bytes = usize::from(input.byte()) * 8;
        let batch = own(input.take(bytes));
        reader.begin(batch.clone());
        run_reader.begin(batch);
        let (mut records, mut from_runs) = (Vec::new(), Vec::new());
        let end = take_all(|| Ok(reader.next_record()?.map(|record| records.push(record))));
        let end_of_runs =
            take_all(|| Ok(run_reader.next_received()?.map(|part| flatten(part, &mut from_runs))));
        assert_eq!((&records, &end), (&from_runs, &end_of_runs));
        records.iter().for_each(|record| check(record, data.len()));
        // After an error the session ends.
        if end.is_err() {
            return;
        }
    }
}

fn take_all(mut next: impl FnMut() -> Result<Option<()>, RecordError>) -> Result<(), RecordError> {
    while next()?.is_some() {}
    Ok(())
}

fn flatten(part: Received, records: &mut Vec<Record>) {
    match part {
        Received::Record(record) => records.push(record),
        Received::Deliveries(mut run) => {
            let (messages, before) = (run.messages(), records.len());
            while let Some(block) = run.next_block() {
                assert_eq!(block.origin, run.origin());
                let subscriptions = [run.subscription()].into_iter().collect();
                records.push(Record::Deliver { subscriptions, block });
            }
            assert_eq!(records.len() - before, messages);
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
