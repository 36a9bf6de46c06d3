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
    /// Watches `path`. The first look always reads: an edit made between the broker's own reading and
    /// this moment would never be noticed otherwise.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyStore;

    #[test]
    fn an_edit_made_before_the_watch_began_is_read_at_the_first_look_and_none_is_read_twice() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let permissions = crate::Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let issue = |name: &str| store.issue(&name.parse().unwrap(), &permissions, &[], None);
        let _ = issue("early");
        let mut watch = RegistryWatch::new(store.registry_path());
        assert_eq!(watch.changed().unwrap().unwrap().peers().count(), 1);
        assert!(watch.changed().is_none());
        let _ = issue("later");
        assert_eq!(watch.changed().unwrap().unwrap().peers().count(), 2);
    }
}
