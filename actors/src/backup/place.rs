//! Where a configuration file may lie: not where a restore works.

use std::path::{Component, Path, PathBuf};

use super::{KEPT_MARK, exchange, workspace};
use crate::{log_transport::journal, store::snapshot, wipe::SIDECARS};

/// What of the installation on `root` is in the way of a configuration file at `config`.
pub(super) fn config_in_the_way(root: &Path, config: &Path) -> Option<PathBuf> {
    let [root, config] = [root, config].map(resolved);
    // A file cannot be where a directory is going to be.
    if root.starts_with(&config) {
        return Some(root);
    }
    let first = config.strip_prefix(&root).ok()?.components().next()?;
    let name = first.as_os_str().to_string_lossy();
    is_taken(&name).then(|| root.join(first))
}

/// Whether what is called so in a data directory is exchanged, wiped, or written by a restore.
fn is_taken(name: &str) -> bool {
    let of_database = |file: &str| {
        name.strip_prefix(file)
            .is_some_and(|rest| rest.is_empty() || rest == ".id" || SIDECARS.contains(&rest))
    };
    let fixed = ["keys", "run", journal::DIRECTORY, exchange::MARKER];
    fixed.contains(&name)
        || snapshot::files().any(of_database)
        || name.contains(KEPT_MARK)
        || workspace::is_work(name)
}

/// The path without links and `..`, also where only its beginning is there.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(resolved.pop()),
            component => resolved.push(component),
        }
        if let Ok(real) = resolved.canonicalize() {
            resolved = real;
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_configuration_file_lies_beside_what_a_restore_works_with_and_never_among_it() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("there/keys")).unwrap();
        std::os::unix::fs::symlink(base.join("there/keys"), base.join("link")).unwrap();
        for data in ["none/deep", "there"] {
            let root = base.join(data);
            let judge = |config: &Path| config_in_the_way(&root, config);
            let taken = [
                "keys/a.toml",
                "keys",
                "keys/b/../a.toml",
                "x/../keys/a.toml",
                "run/a.toml",
                "run",
                "journal",
                "journal/a",
                "interlock.db",
                "interlock.db-wal",
                "interlock.db.id",
                "outbox.db",
                "outbox.db-shm",
                "restore.pending",
                "keys.pre-restore-20260101T000000Z/a.toml",
                "",
            ];
            for name in taken {
                assert!(judge(&root.join(name)).is_some(), "{data}: {name}");
            }
            let work = format!("restore.tmp-{}/a.toml", "0".repeat(32));
            assert_eq!(judge(&root.join(work)), Some(root.join(format!("restore.tmp-{}", "0".repeat(32)))));
            for name in [
                "interlock.toml",
                "backups/a.toml",
                "my/keys/a.toml",
                "keys.toml",
                "interlock.db.toml",
                "../keys/a.toml",
            ] {
                assert_eq!(judge(&root.join(name)), None, "{data}: {name}");
            }
        }
        let root = base.join("there");
        assert!(config_in_the_way(&root, &base.join("link/a.toml")).is_some());
        assert_eq!(
            config_in_the_way(&base.join("none/deep"), &base.join("none")),
            Some(base.join("none/deep"))
        );
    }
}
