//! The native protocol: batches of records inside ZMTP messages. `bus/WIRE.md` describes every byte.

pub mod batch;
pub mod block;
mod body;
mod deliver_run;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod large;
pub mod record;
mod words;

pub use batch::{BatchReader, BatchWriter, Incoming, Received};
pub use block::{Block, BlockView, PublishParts};
pub use deliver_run::DeliverRun;
pub use record::{CreditScope, Record, RecordError, SubscribeSpec, SubscriptionIds};
pub use words::{Operation, Overflow, Status};

/// Major version of the protocol, as announced in `X-Interlock` and `hello`. Peers of different
/// major versions do not talk.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version: what a peer may leave out. The lower of both sides counts. 1: [`Record::BrokerKey`] and [`Record::Will`];
/// 2: `not_retained` of [`Record::Accepted`].
pub const VERSION_MINOR: u16 = 2;
/// The minor version from which a broker knows wills; an older one skips the record and answers nothing.
pub(crate) const MINOR_OF_WILLS: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// The batches of WIRE.md's example, in the blocks marked `hex`: direction, then bytes.
    fn documented() -> Vec<Vec<u8>> {
        let lines = include_str!("../WIRE.md").split("```hex\n").skip(1);
        let lines = lines.flat_map(|block| block.split("```").next().unwrap_or_default().lines());
        lines.map(|line| bytes(&line[1..].replace(' ', ""))).collect()
    }

    fn bytes(digits: &str) -> Vec<u8> {
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_example_in_wire_md_is_what_the_code_reads_and_writes() {
        let batches = documented();
        assert!(batches.len() >= 10);
        for batch in batches {
            let mut reader = BatchReader::default();
            reader.begin(batch.clone().into());
            let mut written = Vec::new();
            while let Some(record) = reader.next_record().unwrap() {
                BatchWriter::default().put(&record, &mut written);
            }
            assert_eq!(written, batch);
        }
    }
}
