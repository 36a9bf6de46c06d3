//! Why there is no backup, or nothing was restored from one.

use std::{io, path::PathBuf};

use crate::store::{StoreError, passphrase::PassphraseError};

/// What went wrong. Each message names the file and the way out.
///
/// | kind | exit code |
/// |---|---|
/// | `WrongPassphrase` | 4 |
/// | `File` | 6, or 7 where the disk is full |
/// | `NoSpace` | 7 |
/// | `Damaged`, `Header`, `Content` | 8 |
/// | `NewerFormat` | 9 |
/// | `Restoring` | 5 |
/// | `Cost`, `Chunk` | 2 |
/// | `Store`, `Passphrase` | their own |
/// | the rest | 1 |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The databases or the data key.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The passphrase of the backup.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The operating system refused something.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It would not fit.
    #[error("not enough space in `{}`: need {} MB, have {} MB; free some, or name another place", path.display(), need.div_ceil(1_000_000), have / 1_000_000)]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes that are needed.
        need: u64,
        /// Bytes that are there.
        have: u64,
    },
    /// The beginning of the file is not that of a backup, or was changed.
    #[error("`{}` is not a backup, or its header is damaged: {problem}; take another copy of the file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// A version of the format that this program does not know.
    #[error("backup `{}` has format version {found}, this program knows {known}; use the program that wrote it, or a newer one", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// The newest version of this program.
        known: u16,
    },
    /// The header is whole, and the passphrase is not the one it was made with.
    #[error("the passphrase does not open backup `{}`; nothing was changed", path.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// The passphrase is right, and the file is not as it was written.
    #[error("backup `{}` is damaged at chunk {chunk}: {problem}; nothing was changed: take another copy of the file, or an older backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which chunk, counted from one.
        chunk: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// What is sealed in it, or is to be sealed, is not fit to be restored.
    #[error("{what} is not fit to be restored: {problem}; nothing was changed")]
    Content {
        /// What.
        what: String,
        /// Why.
        problem: String,
    },
    /// What was written was read back differently.
    #[error("what was written to `{}` was read back differently: {problem}; the disk may be failing. The backup before it, if there was one, is untouched", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// Somebody else is at it.
    #[error("a restore of `{}` is going on in another process; wait for its end", path.display())]
    Restoring {
        /// The data directory.
        path: PathBuf,
    },
    /// A key derivation that is too cheap or too dear.
    #[error("a key derivation with {passes} passes over {memory_kib} KiB is out of bounds: {} to {} passes, {} to {} KiB", super::limits::PASSES.start(), super::limits::PASSES.end(), super::limits::MEMORY_KIB.start(), super::limits::MEMORY_KIB.end())]
    Cost {
        /// Passes over the memory.
        passes: u32,
        /// The memory.
        memory_kib: u32,
    },
    /// A chunk that is too small or too large.
    #[error("chunks of {bytes} bytes are out of bounds: {} to {}", super::limits::CHUNK_BYTES.start(), super::limits::CHUNK_BYTES.end())]
    Chunk {
        /// Bytes of content in a chunk.
        bytes: u32,
    },
    /// It was told to stop.
    #[error("stopped before it was done; nothing was changed, and temporary files are wiped")]
    Cancelled,
}

impl BackupError {
    /// The exit code of a program that ends because of it; the numbers are those of the table in ARCHITECTURE.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) => error.exit_code(),
            Self::Passphrase(error) => error.exit_code(),
            Self::WrongPassphrase { .. } => 4,
            Self::Restoring { .. } => 5,
            Self::NoSpace { .. } => 7,
            Self::File { source, .. } if is_full(source) => 7,
            Self::File { .. } | Self::ReadBack { .. } => 6,
            Self::Header { .. } | Self::Damaged { .. } | Self::Content { .. } => 8,
            Self::NewerFormat { .. } => 9,
            Self::Cost { .. } | Self::Chunk { .. } => 2,
            Self::Cancelled => 1,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, doing, source }
    }
}

/// Whether there is no room, on the disk or in somebody's share of it.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
