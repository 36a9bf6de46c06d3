//! A long text in chunks, each sealed, all of them in one order: libsodium's secretstream (XChaCha20-Poly1305).
//!
//! A chunk opens only with the key, at its place, beside the same associated bytes, and says whether it is the last one. So
//! nothing can be cut, added, moved, repeated or taken from another stream, if whoever opens asks for the last one. What is
//! sealed here libsodium opens, and the other way about: <https://doc.libsodium.org/secret-key_cryptography/secretstream>.

use std::fmt;

use dryoc::classic::{
    crypto_generichash::{
        GenericHashState, crypto_generichash_final, crypto_generichash_init, crypto_generichash_update,
    },
    crypto_secretstream_xchacha20poly1305 as secretstream,
};

use super::{CryptoError, DIGEST_BYTES, KEY_BYTES};

/// Bytes at the head of a stream: random, not secret, needed to open it.
pub const STREAM_HEADER_BYTES: usize = 24;
/// Bytes that a sealed chunk is longer than its content.
pub const CHUNK_OVERHEAD_BYTES: usize = 17;

/// libsodium's tags. `TAG_PUSH` and `TAG_REKEY` are not used here.
const TAG_MESSAGE: u8 = 0;
const TAG_FINAL: u8 = 3;

/// Whether another chunk follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkTag {
    /// Another one follows.
    More,
    /// It is the last one.
    Last,
}

/// Seals chunks, one after the other. Its state is wiped when dropped.
pub struct StreamSealer(secretstream::State);

impl fmt::Debug for StreamSealer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StreamSealer(redacted)")
    }
}

impl StreamSealer {
    /// A new stream under this key, and its head. Two streams under one key have nothing in common.
    pub fn new(key: &[u8; KEY_BYTES]) -> (Self, [u8; STREAM_HEADER_BYTES]) {
        let (mut state, mut header) = (secretstream::State::new(), [0; STREAM_HEADER_BYTES]);
        secretstream::crypto_secretstream_xchacha20poly1305_init_push(&mut state, &mut header, key);
        (Self(state), header)
    }

    /// Seals `plain` into `sealed`, which is made as long as it must be.
    pub fn seal(&mut self, plain: &[u8], associated: &[u8], tag: ChunkTag, sealed: &mut Vec<u8>) {
        sealed.resize(plain.len() + CHUNK_OVERHEAD_BYTES, 0);
        let tag = match tag {
            ChunkTag::More => TAG_MESSAGE,
            ChunkTag::Last => TAG_FINAL,
        };
        secretstream::crypto_secretstream_xchacha20poly1305_push(
            &mut self.0,
            sealed,
            plain,
            Some(associated),
            tag,
        )
        .expect("the output is as long as content and overhead, and that is below 256 GB");
    }
}

/// Opens chunks, one after the other. Its state is wiped when dropped.
pub struct StreamOpener(secretstream::State);

impl fmt::Debug for StreamOpener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StreamOpener(redacted)")
    }
}

impl StreamOpener {
    /// The stream with this head.
    pub fn new(key: &[u8; KEY_BYTES], header: &[u8; STREAM_HEADER_BYTES]) -> Self {
        let mut state = secretstream::State::new();
        secretstream::crypto_secretstream_xchacha20poly1305_init_pull(&mut state, header, key);
        Self(state)
    }

    /// Opens the next chunk into `plain`, which is made as long as it must be. After a failure the same chunk may be tried
    /// again.
    ///
    /// # Errors
    /// It is not the next chunk of this stream, was changed, or belongs beside other bytes. `plain` is empty then.
    pub fn open(
        &mut self,
        sealed: &[u8],
        associated: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<ChunkTag, CryptoError> {
        plain.clear();
        let bytes = sealed.len();
        let least = CHUNK_OVERHEAD_BYTES;
        let content = bytes.checked_sub(least).ok_or(CryptoError::BoxTooShort { bytes, least })?;
        plain.resize(content, 0);
        let mut tag = TAG_MESSAGE;
        let opened = secretstream::crypto_secretstream_xchacha20poly1305_pull(
            &mut self.0,
            plain,
            &mut tag,
            sealed,
            Some(associated),
        );
        match (opened, tag) {
            (Ok(_), TAG_MESSAGE) => Ok(ChunkTag::More),
            (Ok(_), TAG_FINAL) => Ok(ChunkTag::Last),
            _ => {
                plain.clear();
                Err(CryptoError::BoxRefused)
            }
        }
    }
}

/// [`digest`](super::digest) of what comes piece by piece (BLAKE2b, 32 bytes).
pub struct Digester(GenericHashState);

impl fmt::Debug for Digester {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digester")
    }
}

impl Default for Digester {
    fn default() -> Self {
        Self::new()
    }
}

impl Digester {
    /// Of nothing yet.
    pub fn new() -> Self {
        let state = crypto_generichash_init(None, DIGEST_BYTES);
        Self(state.expect("32 bytes and no key are within the limits of BLAKE2b"))
    }

    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        crypto_generichash_update(&mut self.0, piece);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        crypto_generichash_final(self.0, &mut digest).expect("it was begun for 32 bytes");
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

    fn stream(chunks: &[&[u8]]) -> ([u8; STREAM_HEADER_BYTES], Vec<Vec<u8>>) {
        let (mut sealer, header) = StreamSealer::new(&KEY);
        let last = chunks.len() - 1;
        let seal = |(at, chunk): (usize, &&[u8])| {
            let mut sealed = Vec::new();
            let tag = if at == last { ChunkTag::Last } else { ChunkTag::More };
            sealer.seal(chunk, b"beside", tag, &mut sealed);
            sealed
        };
        (header, chunks.iter().enumerate().map(seal).collect())
    }

    #[test]
    fn a_stream_of_libsodium_opens() {
        let unhex = |text: &str| -> Vec<u8> {
            let digits = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
            digits.collect::<Result<_, _>>().unwrap()
        };
        let key: [u8; KEY_BYTES] = std::array::from_fn(|at| at as u8);
        let header = unhex(HEADER).try_into().unwrap();
        let (mut opener, mut plain) = (StreamOpener::new(&key, &header), Vec::new());
        assert_eq!(opener.open(&unhex(FIRST), b"header", &mut plain), Ok(ChunkTag::More));
        assert_eq!(plain, b"first of two");
        assert_eq!(opener.open(&unhex(SECOND), b"", &mut plain), Ok(ChunkTag::Last));
        assert_eq!(plain, b"the last");
    }

    /// Made with PyNaCl 1.6.2 (libsodium 1.0.20).
    const HEADER: &str = "e898ad855203a0cfabfc9fc20a98d31fda58f54c6e3fd4c9";
    const FIRST: &str = "b891dd7ba9322ca113544834b738ff86239f69cab96424c6a3fb50b1b2";
    const SECOND: &str = "a05fe6fad4dd92292775f17237fac1d82711e00dbeaf9b1e8e";

    #[test]
    fn a_chunk_opens_only_at_its_place_whole_and_beside_the_same_bytes() {
        let (header, sealed) = stream(&[b"one", b"two", b"three"]);
        let mut plain = Vec::new();
        let open = |chunk: &[u8], beside: &[u8]| {
            StreamOpener::new(&KEY, &header).open(chunk, beside, &mut Vec::new())
        };
        assert_eq!(open(&sealed[0], b"beside"), Ok(ChunkTag::More));
        assert_eq!(open(&sealed[1], b"beside"), Err(CryptoError::BoxRefused));
        assert_eq!(open(&sealed[0], b"Beside"), Err(CryptoError::BoxRefused));
        for at in 0..sealed[0].len() {
            let mut changed = sealed[0].clone();
            changed[at] ^= 1;
            assert_eq!(open(&changed, b"beside"), Err(CryptoError::BoxRefused), "bit of byte {at}");
            assert!(open(&sealed[0][..at], b"beside").is_err(), "cut at {at}");
        }
        let mut opener = StreamOpener::new(&KEY, &header);
        for (at, text) in [&b"one"[..], b"two", b"three"].into_iter().enumerate() {
            // What was refused changes nothing: the right one still opens.
            assert!(opener.open(&[0; 40], b"beside", &mut plain).is_err() && plain.is_empty());
            let tag = opener.open(&sealed[at], b"beside", &mut plain).unwrap();
            assert_eq!((plain.as_slice(), tag == ChunkTag::Last), (text, at == 2));
        }
    }

    #[test]
    fn two_streams_of_the_same_text_have_nothing_in_common() {
        let text = [0; 4096];
        let [one, two] = [stream(&[&text, &text]), stream(&[&text, &text])];
        assert_ne!(one.0, two.0);
        let blocks = |sealed: &[Vec<u8>]| -> std::collections::HashSet<Vec<u8>> {
            sealed.concat().chunks_exact(16).map(<[u8]>::to_vec).collect()
        };
        assert!(blocks(&one.1).is_disjoint(&blocks(&two.1)));
    }

    #[test]
    fn a_digest_of_pieces_is_that_of_the_whole() {
        let text: Vec<u8> = (0..1000).map(|at| at as u8).collect();
        for piece in [1, 7, 128, 129, 1000] {
            let mut digester = Digester::new();
            text.chunks(piece).for_each(|piece| digester.update(piece));
            assert_eq!(digester.finish(), super::super::digest(&text));
        }
    }
}
