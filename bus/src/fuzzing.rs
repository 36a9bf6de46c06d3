//! Fuzz targets: everything that reads bytes of others, each with an oracle and not only "does not
//! panic". Built for tests and with `--cfg fuzzing`; never part of the library.
//!
//! `bus/fuzz/run TARGET [SECONDS]` runs one for as long as it is told. The corpus in
//! `bus/fuzz/corpus/TARGET/` is replayed by an ordinary test, so that what was found once stays found.

use bytes::Bytes;

use crate::{broker, codec, native, schema, zmtp};

/// One target.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("greeting", zmtp::fuzzing::greeting),
    ("frames", zmtp::fuzzing::frames),
    ("handshake_server", zmtp::fuzzing::handshake_of_a_server),
    ("handshake_client", zmtp::fuzzing::handshake_of_a_client),
    ("batch", native::fuzzing::batch),
    ("header", header),
    ("schema", schema_and_payload),
    ("records", broker::fuzzing::records),
    ("stock", broker::fuzzing::stock),
];

/// What a fuzzer's bytes are read with: when they are used up, zeros follow.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// At most `bytes` bytes.
    pub(crate) fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length byte and as many bytes.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let bytes = self.byte();
        self.take(bytes.into())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_be_bytes(bytes)
    }
}

/// A header that was read is written and read again as the same one.
fn header(data: &[u8]) {
    if let Ok(header) = codec::header(data) {
        let mut written = Vec::new();
        codec::put_header(&header, &mut written);
        if !data.is_empty() && written.len() <= crate::limits::HEADER_BYTES_MAX {
            assert_eq!(codec::header(&written).ok(), Some(header));
        }
    }
    let _ = codec::from_bytes::<Everything>(data).map(|value| codec::to_bytes(&value));
}

/// A payload type with all that serde knows.
#[derive(serde::Serialize, serde::Deserialize)]
enum Everything {
    Nothing,
    Numbers(u8, i16, u32, i64, f64, u128),
    Texts { one: String, many: Vec<String>, maybe: Option<char> },
    Map(std::collections::BTreeMap<String, Vec<u8>>),
    Nested(Vec<Vec<Option<bool>>>),
}

/// A schema as JSON, a zero byte, a payload.
fn schema_and_payload(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let Ok(text) = std::str::from_utf8(&data[..at]) else { return };
    let Ok(schema) = schema::Schema::parse("fuzzed", text) else { return };
    let _ = schema.fingerprint();
    let _ = schema.decode(data.get(at + 1..).unwrap_or_default());
}

/// The same bytes without a shared buffer.
pub(crate) fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    /// Names the input at fault.
    struct OnPanic(&'static str, PathBuf);

    impl Drop for OnPanic {
        #[allow(clippy::print_stderr, reason = "says which of thousands of files it was")]
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("target `{}`, input `{}`", self.0, self.1.display());
            }
        }
    }

    #[test]
    fn every_input_of_the_corpus_passes_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().flatten().collect();
            assert!(!inputs.is_empty(), "no corpus for `{name}`");
            for input in inputs {
                let data = fs::read(input.path()).unwrap();
                let _seen = OnPanic(name, input.path());
                target(&data);
            }
        }
    }
}
