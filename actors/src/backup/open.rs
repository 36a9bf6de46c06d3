//! Reading a backup: its header, its table of contents, part after part, to the end.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use interlock_bus::crypto::{DIGEST_BYTES, secret_stream::Digester};
use nix::libc::{O_CLOEXEC, O_NONBLOCK};
use zeroize::Zeroizing;

use super::{
    error::BackupError,
    header::{HEADER_BYTES, Header, Keys},
    limits,
    manifest::{Contents, Manifest, Part, id_text},
    progress::{OF_VERIFY, Phase, Teller, Watcher},
    sealed::{OpeningReader, read_full},
};
use crate::store::Passphrase;

/// Bytes of a part that are handed on at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A backup that was read to its end, and is whole.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verified {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its chunks.
    pub chunks: u64,
    /// What is in it.
    pub contents: Contents,
}

/// A backup with its table of contents read; its parts come next, in order.
pub(super) struct Opened {
    pub(super) header: Header,
    pub(super) manifest: Manifest,
    reader: OpeningReader<File>,
    path: PathBuf,
}

/// Reads the whole backup at `path` and opens each chunk of it. Writes nothing.
///
/// # Errors
/// What is wrong with it.
pub fn verify(
    path: &Path,
    passphrase: &Passphrase,
    watcher: &mut Watcher<'_>,
) -> Result<Verified, BackupError> {
    let mut teller = Teller::new(watcher, OF_VERIFY);
    let outcome = read_whole(path, passphrase, &mut teller);
    teller.end(outcome)
}

fn read_whole(
    path: &Path,
    passphrase: &Passphrase,
    teller: &mut Teller<'_, '_>,
) -> Result<Verified, BackupError> {
    let mut opened = Opened::new(path, passphrase)?;
    let (contents, all) = (opened.manifest.public.clone(), opened.header.plain_bytes);
    let bytes = opened.header.file_bytes();
    let mut done = 0;
    for part in &contents.parts {
        opened.part(part, |piece| {
            done += piece.len() as u64;
            teller.at(Phase::Verifying, done, all)
        })?;
    }
    let chunks = opened.finish()?;
    Ok(Verified { path: path.to_owned(), bytes, chunks, contents })
}

impl Opened {
    /// The header of the file at `path`, and its bytes.
    pub(super) fn header_of(path: &Path) -> Result<(Header, [u8; HEADER_BYTES]), BackupError> {
        let (_, header, head) = open(path)?;
        Ok((header, head))
    }

    /// Opens the backup at `path` up to its table of contents.
    pub(super) fn new(path: &Path, passphrase: &Passphrase) -> Result<Self, BackupError> {
        let (file, header, head) = open(path)?;
        let keys = header.unlock(&head, passphrase, path)?;
        Self::read_table(path, file, header, &head, &keys)
    }

    /// The same with keys that are there already.
    pub(super) fn with_keys(path: &Path, keys: &Keys) -> Result<Self, BackupError> {
        let (file, header, head) = open(path)?;
        Self::read_table(path, file, header, &head, keys)
    }

    fn read_table(
        path: &Path,
        file: File,
        header: Header,
        head: &[u8; HEADER_BYTES],
        keys: &Keys,
    ) -> Result<Self, BackupError> {
        let mut reader = OpeningReader::begin(file, path, keys.opener(&header), &header, head);
        let mut bytes = [0; 4];
        reader.pull_exact(&mut bytes)?;
        let bytes = u32::from_le_bytes(bytes);
        if bytes > limits::MANIFEST_BYTES_MAX {
            return Err(reader.damaged("its table of contents is longer than it may be"));
        }
        let mut table = Zeroizing::new(vec![0; bytes as usize]);
        reader.pull_exact(&mut table)?;
        let manifest = Manifest::decode(&table, path)?;
        let is_about_it = manifest.public.database_id == id_text(&header.database_id);
        if !is_about_it || manifest.plain_bytes(&table) != header.plain_bytes {
            return Err(reader.damaged("its table of contents does not fit its header"));
        }
        Ok(Self { header, manifest, reader, path: path.to_owned() })
    }

    /// The next part, which is `part`, piece by piece; its digest is compared.
    pub(super) fn part(
        &mut self,
        part: &Part,
        mut take: impl FnMut(&[u8]) -> Result<(), BackupError>,
    ) -> Result<[u8; DIGEST_BYTES], BackupError> {
        let mut digester = Digester::new();
        let mut left = part.bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let piece = self.reader.pull(wanted)?;
            if piece.is_empty() {
                return Err(self.reader.damaged("its content ends too early"));
            }
            digester.update(piece);
            left -= piece.len() as u64;
            take(piece)?;
        }
        let mut there = [0; DIGEST_BYTES];
        self.reader.pull_exact(&mut there)?;
        let digest = digester.finish();
        if digest == there {
            return Ok(digest);
        }
        Err(BackupError::Content {
            what: format!("part `{}` of `{}`", part.name, self.path.display()),
            problem: "it does not fit its digest".to_owned(),
        })
    }

    /// Goes to the end, where nothing may be left. Returns how many chunks there were.
    pub(super) fn finish(self) -> Result<u64, BackupError> {
        self.reader.finish()
    }
}

/// A file that begins as a backup does, standing behind its header.
fn open(path: &Path) -> Result<(File, Header, [u8; HEADER_BYTES]), BackupError> {
    // A pipe must not let us wait.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_CLOEXEC).open(path);
    let mut file = file.map_err(BackupError::file(path, "open"))?;
    let about = file.metadata().map_err(BackupError::file(path, "look at"))?;
    if !about.is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a plain file");
        return Err(BackupError::File { path: path.to_owned(), doing: "read", source });
    }
    let mut head = [0; HEADER_BYTES];
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| read_full(&mut file, &mut head));
    if read.map_err(BackupError::file(path, "read"))? < HEADER_BYTES {
        return Err(BackupError::Header { path: path.to_owned(), problem: "it is shorter than a header" });
    }
    let header = Header::decode(&head, path)?;
    Ok((file, header, head))
}
