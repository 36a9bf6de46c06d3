//! Notices edits of `authorized.toml`.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::keys::{KeyError, Registry};

/// Notices that the registry's file was edited.
#[derive(Debug)]
pub(super) struct RegistryWatch {
    path: PathBuf,
    seen: Option<(u64, i64, i64, u64)>,
}

impl RegistryWatch {
    pub(super) fn new(path: PathBuf) -> Self {
        let seen = stamp(&path);
        Self { path, seen }
    }

    /// The edited registry, or why it cannot be read; `None` if nothing has changed.
    pub(super) fn changed(&mut self) -> Option<Result<Registry, KeyError>> {
        let now = stamp(&self.path);
        if now == self.seen {
            return None;
        }
        self.seen = now;
        Some(Registry::load(&self.path))
    }
}

/// What changes when a file is written or replaced; `None` if there is none.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}
