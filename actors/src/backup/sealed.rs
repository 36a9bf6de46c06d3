//! The body of a backup: one long text in sealed chunks, written and read in constant memory.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use interlock_bus::crypto::secret_stream::{CHUNK_OVERHEAD_BYTES, ChunkTag, StreamOpener, StreamSealer};
use zeroize::Zeroizing;

use super::{
    error::BackupError,
    header::{HEADER_BYTES, Header},
};

/// Seals what it is given into chunks of equal size. The header of the file is bound to the first one.
pub(super) struct SealingWriter<W> {
    inner: W,
    path: PathBuf,
    stream: StreamSealer,
    header: Vec<u8>,
    chunk_bytes: usize,
    /// Content of the chunk at hand.
    plain: Zeroizing<Vec<u8>>,
    sealed: Vec<u8>,
}

impl<W: Write> SealingWriter<W> {
    /// Writes the header at once. `path` is only named in errors.
    pub(super) fn begin(
        mut inner: W,
        path: &Path,
        stream: StreamSealer,
        header: &[u8; HEADER_BYTES],
        chunk_bytes: u32,
    ) -> Result<Self, BackupError> {
        inner.write_all(header).map_err(BackupError::file(path, "write"))?;
        let chunk_bytes = chunk_bytes as usize;
        Ok(Self {
            inner,
            path: path.to_owned(),
            stream,
            header: header.to_vec(),
            chunk_bytes,
            plain: Zeroizing::new(Vec::with_capacity(chunk_bytes)),
            sealed: Vec::with_capacity(chunk_bytes + CHUNK_OVERHEAD_BYTES),
        })
    }

    /// Takes the next piece of the text.
    pub(super) fn push(&mut self, mut piece: &[u8]) -> Result<(), BackupError> {
        while !piece.is_empty() {
            // A full chunk waits for what follows, because the last one is marked.
            if self.plain.len() == self.chunk_bytes {
                self.flush(ChunkTag::More)?;
            }
            let (now, later) = piece.split_at(piece.len().min(self.chunk_bytes - self.plain.len()));
            self.plain.extend_from_slice(now);
            piece = later;
        }
        Ok(())
    }

    /// Seals the last chunk.
    pub(super) fn finish(mut self) -> Result<W, BackupError> {
        self.flush(ChunkTag::Last)?;
        Ok(self.inner)
    }

    fn flush(&mut self, tag: ChunkTag) -> Result<(), BackupError> {
        self.stream.seal(&self.plain, &self.header, tag, &mut self.sealed);
        self.header.clear();
        self.plain.clear();
        self.inner.write_all(&self.sealed).map_err(BackupError::file(&self.path, "write"))
    }
}

/// Opens chunk after chunk. Nothing is given out that was not authenticated, and the end only if it is the end: the last
/// chunk is marked, nothing follows it, and the text is as long as the header says.
pub(super) struct OpeningReader<R> {
    inner: R,
    path: PathBuf,
    stream: StreamOpener,
    header: Vec<u8>,
    chunk_bytes: usize,
    left: u64,
    /// Chunks opened.
    chunks: u64,
    is_over: bool,
    plain: Zeroizing<Vec<u8>>,
    given: usize,
    sealed: Vec<u8>,
}

impl<R: Read> OpeningReader<R> {
    /// `inner` stands behind the header. `path` is only named in errors.
    pub(super) fn begin(
        inner: R,
        path: &Path,
        stream: StreamOpener,
        header: &Header,
        bytes: &[u8; HEADER_BYTES],
    ) -> Self {
        Self {
            inner,
            path: path.to_owned(),
            stream,
            header: bytes.to_vec(),
            chunk_bytes: header.chunk_bytes as usize,
            left: header.plain_bytes,
            chunks: 0,
            is_over: false,
            plain: Zeroizing::default(),
            given: 0,
            sealed: Vec::new(),
        }
    }

    /// The next piece of the text, `bytes` at most; empty at its end.
    pub(super) fn pull(&mut self, bytes: usize) -> Result<&[u8], BackupError> {
        while self.given == self.plain.len() && !self.is_over {
            self.next_chunk()?;
        }
        let begin = self.given;
        self.given += bytes.min(self.plain.len() - begin);
        Ok(&self.plain[begin..self.given])
    }

    /// Exactly as many bytes as fit.
    pub(super) fn pull_exact(&mut self, mut into: &mut [u8]) -> Result<(), BackupError> {
        while !into.is_empty() {
            let piece = self.pull(into.len())?;
            if piece.is_empty() {
                return Err(self.damaged("its content ends too early"));
            }
            let (now, later) = into.split_at_mut(piece.len());
            now.copy_from_slice(piece);
            into = later;
        }
        Ok(())
    }

    /// Goes to the end, where nothing may be left.
    pub(super) fn finish(mut self) -> Result<u64, BackupError> {
        if self.pull(1)?.is_empty() { Ok(self.chunks) } else { Err(self.damaged("its content goes on")) }
    }

    pub(super) fn damaged(&self, problem: &'static str) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), chunk: self.chunks.max(1), problem }
    }

    fn next_chunk(&mut self) -> Result<(), BackupError> {
        let whole = self.chunk_bytes + CHUNK_OVERHEAD_BYTES;
        self.sealed.resize(whole, 0);
        let bytes =
            read_full(&mut self.inner, &mut self.sealed).map_err(BackupError::file(&self.path, "read"))?;
        self.chunks += 1;
        if bytes == 0 {
            return Err(self.damaged("the file ends before its last chunk"));
        }
        let opened = self.stream.open(&self.sealed[..bytes], &self.header, &mut self.plain);
        self.header.clear();
        self.given = 0;
        let tag = opened.map_err(|_| match bytes < whole {
            true => self.damaged("it does not open: it was changed, or the file is cut here"),
            false => self.damaged("it does not open: it was changed, moved, or is from another backup"),
        })?;
        self.left = (self.left.checked_sub(self.plain.len() as u64))
            .ok_or_else(|| self.damaged("there is more content than its header says"))?;
        match tag {
            ChunkTag::More if bytes < whole => Err(self.damaged("the file ends before its last chunk")),
            ChunkTag::More => Ok(()),
            ChunkTag::Last => {
                if read_full(&mut self.inner, &mut [0]).map_err(BackupError::file(&self.path, "read"))? > 0 {
                    return Err(self.damaged("something follows the last chunk"));
                }
                if self.left > 0 {
                    return Err(self.damaged("there is less content than its header says"));
                }
                self.is_over = true;
                Ok(())
            }
        }
    }
}

/// As much as fits, or as there is.
pub(super) fn read_full(reader: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match reader.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            header::{
                Keys,
                tests::{CHEAP, passphrase},
            },
            limits,
        },
        *,
    };

    const CHUNK: usize = *limits::CHUNK_BYTES.start() as usize;
    const SEALED: usize = CHUNK + CHUNK_OVERHEAD_BYTES;
    const SALT: [u8; 16] = [9; 16];

    struct Backup {
        keys: Keys,
        bytes: Vec<u8>,
    }

    fn keys() -> Keys {
        Keys::derive(&passphrase("a long enough one"), &SALT, CHEAP).unwrap()
    }

    fn seal(text: &[u8]) -> Backup {
        let keys = keys();
        let (stream, head) = keys.sealer();
        let header = Header {
            cost: CHEAP,
            salt: SALT,
            chunk_bytes: CHUNK as u32,
            plain_bytes: text.len() as u64,
            created_ns: 0,
            database_id: [0; 16],
            stream: head,
        };
        let bytes = header.encode(&keys);
        let mut writer =
            SealingWriter::begin(Vec::new(), Path::new("x"), stream, &bytes, CHUNK as u32).unwrap();
        text.chunks(10_000).for_each(|piece| writer.push(piece).unwrap());
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, header.file_bytes());
        Backup { keys, bytes }
    }

    fn open(keys: &Keys, bytes: &[u8]) -> Result<Vec<u8>, BackupError> {
        let head = bytes.first_chunk().unwrap();
        let header = Header::decode(head, Path::new("x"))?;
        let stream = keys.opener(&header);
        let mut reader = OpeningReader::begin(&bytes[HEADER_BYTES..], Path::new("x"), stream, &header, head);
        let mut text = Vec::new();
        loop {
            let piece = reader.pull(7_777)?;
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(piece);
        }
        reader.finish().map(|_| text)
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_whatever_its_length() {
        for bytes in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let backup = seal(&text(bytes));
            assert_eq!(open(&backup.keys, &backup.bytes).unwrap(), text(bytes), "{bytes} bytes");
        }
    }

    #[test]
    fn a_file_that_is_cut_extended_reordered_or_spliced_is_refused_and_the_chunk_named() {
        let backup = seal(&text(12 * CHUNK + 100));
        let refused = |bytes: &[u8], chunk: u64, what: &str| match open(&backup.keys, bytes) {
            Err(BackupError::Damaged { chunk: found, .. }) => assert_eq!(found, chunk, "{what}"),
            other => panic!("{what}: {other:?}"),
        };
        let chunk_at = |chunk: usize| HEADER_BYTES + chunk * SEALED;
        for chunk in 0..=12 {
            refused(&backup.bytes[..chunk_at(chunk)], chunk as u64 + 1, "cut at a boundary");
        }
        for at in chunk_at(12) + 1..backup.bytes.len() {
            refused(&backup.bytes[..at], 13, "cut in the last chunk");
        }
        for chunk in 0..13 {
            let mut changed = backup.bytes.clone();
            changed[chunk_at(chunk) + 50] ^= 1;
            refused(&changed, chunk as u64 + 1, "changed");
        }
        refused(&[&backup.bytes[..], b"x"].concat(), 13, "one byte more");
        refused(&[&backup.bytes[..], &backup.bytes].concat(), 13, "twice");
        let other = seal(&text(12 * CHUNK + 100));
        for chunk in 0..11 {
            let (one, two) = (chunk_at(chunk), chunk_at(chunk + 1));
            let (head, middle, tail) = (&backup.bytes[..one], &backup.bytes[one..two], &backup.bytes[two..]);
            refused(&[head, tail].concat(), chunk as u64 + 1, "one left out");
            refused(&[head, middle, middle, tail].concat(), chunk as u64 + 2, "one twice");
            let swapped = [head, &tail[..SEALED], middle, &tail[SEALED..]].concat();
            refused(&swapped, chunk as u64 + 1, "two in another order");
            let spliced = [head, &other.bytes[one..two], tail].concat();
            refused(&spliced, chunk as u64 + 1, "one of another backup with the same passphrase");
        }
        let spliced = [&backup.bytes[..HEADER_BYTES], &other.bytes[HEADER_BYTES..]].concat();
        refused(&spliced, 1, "the header of one, the body of another");
    }

    #[test]
    fn the_last_chunk_must_be_marked_and_the_length_be_that_of_the_header() {
        // Sealed by somebody with the passphrase, or by another program with a bug.
        let seal_as = |chunks: &[(&[u8], ChunkTag)], plain_bytes| {
            let keys = keys();
            let (mut stream, head) = keys.sealer();
            let header = Header {
                cost: CHEAP,
                salt: SALT,
                chunk_bytes: CHUNK as u32,
                plain_bytes,
                created_ns: 0,
                database_id: [0; 16],
                stream: head,
            };
            let mut bytes = header.encode(&keys).to_vec();
            let mut beside = bytes.clone();
            for (text, tag) in chunks {
                let mut sealed = Vec::new();
                stream.seal(text, &beside, *tag, &mut sealed);
                bytes.extend(sealed);
                beside.clear();
            }
            open(&keys, &bytes).map_err(|error| error.exit_code())
        };
        let whole = text(CHUNK);
        assert_eq!(seal_as(&[(b"abc", ChunkTag::Last)], 3), Ok(b"abc".to_vec()));
        assert_eq!(seal_as(&[(b"abc", ChunkTag::More)], 3), Err(8));
        assert_eq!(seal_as(&[(&whole, ChunkTag::More)], CHUNK as u64), Err(8));
        assert_eq!(seal_as(&[(b"abc", ChunkTag::Last)], 2), Err(8));
        assert_eq!(seal_as(&[(b"abc", ChunkTag::Last)], 4), Err(8));
        assert_eq!(seal_as(&[(&whole, ChunkTag::Last), (b"abc", ChunkTag::Last)], CHUNK as u64), Err(8));
    }

    #[test]
    fn two_backups_of_the_same_text_have_no_block_in_common() {
        let [one, two] = [seal(&text(3 * CHUNK)), seal(&text(3 * CHUNK))];
        let blocks = |backup: &Backup| -> std::collections::HashSet<Vec<u8>> {
            backup.bytes[HEADER_BYTES..].chunks_exact(16).map(<[u8]>::to_vec).collect()
        };
        assert!(blocks(&one).is_disjoint(&blocks(&two)));
    }
}
