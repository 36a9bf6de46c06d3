//! Exchanging what is live for what was restored: several files and directories, one step.
//!
//! Everything new is complete and synced in a staging directory before. Then a marker is written that lists each exchange; from
//! that instant on the restore has happened, and whoever comes next carries on where it was killed: [`finish_pending`], which
//! each command calls before it opens anything. Each exchange can be begun again at any point, because a staged file that is
//! gone has taken its place. What was live before keeps its content under a name of its own.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use interlock_bus::keys::private_file;
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc::{self, O_CLOEXEC, O_NOFOLLOW},
};
use serde::{Deserialize, Serialize};

use super::{error::BackupError, limits};
use crate::{
    store::{StoreError, key},
    wipe::{self, parent},
};

/// Name of the marker in the data directory.
pub(super) const MARKER: &str = "restore.pending";
const VERSION: u32 = 1;
/// SQLite's lock bytes: pending, reserved, and those that each open connection of a WAL database holds.
const LOCK_BYTES: (i64, i64) = (0x4000_0000, 512);

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A database: its write-ahead log goes with the old one, and never meets the new one.
    Database,
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// A path as bytes: what a file system allows is more than text. Relative ones are below the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Place(Vec<u8>);

impl Place {
    fn new(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }

    fn in_root(&self, root: &Path) -> PathBuf {
        root.join(OsString::from_vec(self.0.clone()))
    }
}

/// One exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    kind: Kind,
    /// Where it is used.
    live: Place,
    /// Where the new one is; `None` if there is to be none.
    staged: Option<Place>,
    /// Where the old one goes.
    kept: Place,
}

impl Item {
    /// Exchanges `live` for `staged`, and keeps the old one at `kept`.
    pub(super) fn new(kind: Kind, live: &Path, staged: Option<&Path>, kept: &Path) -> Self {
        Self { kind, live: Place::new(live), staged: staged.map(Place::new), kept: Place::new(kept) }
    }

    /// Does what is left to be done of it.
    fn carry_out(&self, root: &Path) -> io::Result<()> {
        let (live, kept) = (self.live.in_root(root), self.kept.in_root(root));
        let staged = self.staged.as_ref().map(|staged| staged.in_root(root));
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        match &staged {
            Some(staged) if !is_there(staged) => return Ok(()),
            None if !is_there(&live) => return Ok(()),
            _ => {}
        }
        match (self.kind, &staged) {
            (Kind::Directory, _) | (_, None) => {
                self.move_sidecars(&live, &kept)?;
                if is_there(&live) {
                    fs::rename(&live, &kept)?;
                }
            }
            (Kind::Database | Kind::File, Some(_)) => {
                // A second name first: at no instant is there no file under the name that everybody opens.
                if is_there(&live) && !is_there(&kept) {
                    fs::hard_link(&live, &kept)?;
                }
                self.move_sidecars(&live, &kept)?;
            }
        }
        wipe::sync_directory(parent(&live))?;
        if let Some(staged) = staged {
            fs::rename(&staged, &live)?;
            wipe::sync_directory(parent(&live))?;
        }
        Ok(())
    }

    /// What SQLite keeps beside the old database goes with it. Its shared memory is made anew by whoever opens it.
    fn move_sidecars(&self, live: &Path, kept: &Path) -> io::Result<()> {
        if self.kind != Kind::Database {
            return Ok(());
        }
        for suffix in ["-wal", "-journal"] {
            match fs::rename(beside(live, suffix), beside(kept, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_file(beside(live, "-shm")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OsStr::new(suffix));
    name.into()
}

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    staging: Place,
    items: Vec<Item>,
}

/// A restore that was carried to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where the old data are.
    pub kept: Vec<PathBuf>,
}

/// The right to exchange what is in a data directory. Ends with the value, or with the process.
pub(super) struct Exchange {
    root: PathBuf,
    _lock: File,
}

impl Exchange {
    /// Waits for another one, but not for long.
    pub(super) fn begin(root: &Path) -> Result<Self, BackupError> {
        let lock = File::open(root).map_err(BackupError::file(root, "open"))?;
        let began = Instant::now();
        let patience: Duration = limits::ALONE_WAITS.iter().sum();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { root: root.to_owned(), _lock: lock }),
                Err(fs::TryLockError::Error(error)) => return Err(BackupError::file(root, "lock")(error)),
                Err(fs::TryLockError::WouldBlock) if began.elapsed() > patience => {
                    return Err(BackupError::Restoring { path: root.to_owned() });
                }
                Err(fs::TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Exchanges everything. Once the marker is there it is going to happen, by this process or another.
    pub(super) fn carry_out(&self, staging: &Path, items: Vec<Item>) -> Result<Finished, BackupError> {
        let marker = Marker { version: VERSION, staging: Place::new(staging), items };
        let text = serde_json::to_vec(&marker).expect("numbers and lists are always JSON");
        let path = self.root.join(MARKER);
        private_file::replace(&path, &text).map_err(|error| match error {
            interlock_bus::keys::KeyError::Io { source, path, .. } => {
                BackupError::file(path, "write")(source)
            }
            error => {
                BackupError::Content { what: format!("`{}`", path.display()), problem: error.to_string() }
            }
        })?;
        self.go_on(&marker)
    }

    fn go_on(&self, marker: &Marker) -> Result<Finished, BackupError> {
        for item in &marker.items {
            let live = item.live.in_root(&self.root);
            item.carry_out(&self.root).map_err(BackupError::file(live, "exchange"))?;
        }
        let kept = marker.items.iter().map(|item| item.kept.in_root(&self.root));
        Ok(Finished { kept: kept.filter(|path| fs::symlink_metadata(path).is_ok()).collect() })
    }

    /// Says that it is over.
    pub(super) fn end(self) -> Result<(), BackupError> {
        let path = self.root.join(MARKER);
        let staging = self.marker()?.map(|marker| marker.staging.in_root(&self.root));
        fs::remove_file(&path)
            .and_then(|()| wipe::sync_directory(&self.root))
            .map_err(BackupError::file(&path, "remove"))?;
        if let Some(staging) = staging {
            // What is left is found by the next run.
            let _ = wipe::wipe_directory(&staging);
        }
        Ok(())
    }

    fn marker(&self) -> Result<Option<Marker>, BackupError> {
        let path = self.root.join(MARKER);
        if fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let bad = |problem: String| BackupError::Content {
            what: format!("the marker `{}` of a restore that was interrupted", path.display()),
            problem,
        };
        let text = private_file::read(&path).map_err(|error| bad(error.to_string()))?;
        let marker: Marker = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if marker.version != VERSION {
            return Err(bad(format!("its version is {}, this program knows {VERSION}", marker.version)));
        }
        Ok(Some(marker))
    }
}

/// Carries a restore to its end that was killed in the middle; `None` if there is none. To be called before anything in the data
/// directory is opened; costs one look at a name if there is nothing to do.
///
/// # Errors
/// Another process is at it for long, or a file cannot be moved. The next call tries again.
pub fn finish_pending(root: &Path) -> Result<Option<Finished>, BackupError> {
    if fs::symlink_metadata(root.join(MARKER)).is_err() {
        return Ok(None);
    }
    let exchange = Exchange::begin(root)?;
    // Whoever had the lock may have finished it.
    let Some(marker) = exchange.marker()? else { return Ok(None) };
    let finished = exchange.go_on(&marker)?;
    exchange.end()?;
    Ok(Some(finished))
}

/// Keeps everybody else from a database until it is dropped; `None` if there is none. Needs no key, so that a damaged database or
/// one whose key is lost can be replaced. For a process that has not opened it: closing the file drops SQLite's own locks.
///
/// # Errors
/// `InUse` if somebody has it open for longer than this waits; or it cannot be opened.
pub fn hold_alone(path: &Path) -> Result<Option<File>, BackupError> {
    if !key::exists(path)? {
        return Ok(None);
    }
    let flags = O_NOFOLLOW | O_CLOEXEC;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = file.map_err(BackupError::file(path, "open"))?;
    let lock = all_locks();
    let mut waits = limits::ALONE_WAITS.into_iter();
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(Some(file)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => match waits.next() {
                Some(wait) => {
                    let jitter = u32::from(interlock_bus::crypto::random::<1>()[0]);
                    thread::sleep(wait + wait * jitter / 2560);
                }
                None => return Err(StoreError::InUse { path: path.to_owned() }.into()),
            },
            Err(error) => return Err(BackupError::file(path, "lock")(error.into())),
        }
    }
}

/// A process that has the database at `path` open; `None` if none has, or it cannot be told.
pub fn who_has_open(path: &Path) -> Option<i32> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_CLOEXEC).open(path).ok()?;
    let mut lock = all_locks();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (lock.l_type != libc::F_UNLCK as libc::c_short && lock.l_pid > 0).then_some(lock.l_pid)
}

/// All of SQLite's lock bytes, for nobody else.
fn all_locks() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: LOCK_BYTES.0,
        l_len: LOCK_BYTES.1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plant(root: &Path) -> Vec<Item> {
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(parent(&path)).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, text) in [
            ("a.db", "old"),
            ("a.db-wal", "old wal"),
            ("a.db-shm", "old shm"),
            ("b.db", "old b"),
            ("b.db-wal", "old b wal"),
            ("keys/one", "old key"),
            ("journal/1", "old journal"),
            ("conf", "old conf"),
            ("stage/a.db", "new"),
            ("stage/keys/two", "new key"),
            ("stage/conf", "new conf"),
            ("stage/c", "new c"),
        ] {
            write(name, text);
        }
        let item = |kind, name: &str, staged: bool| {
            let from = PathBuf::from("stage").join(name);
            Item::new(kind, Path::new(name), staged.then_some(&from), &beside(Path::new(name), ".kept"))
        };
        vec![
            item(Kind::Database, "a.db", true),
            item(Kind::Database, "b.db", false),
            item(Kind::Directory, "keys", true),
            item(Kind::Directory, "journal", false),
            item(Kind::File, "conf", true),
            item(Kind::File, "c", true),
            item(Kind::File, "none", false),
        ]
    }

    fn all(root: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    found.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    const EXCHANGED: [(&str, &str); 10] = [
        ("a.db", "new"),
        ("a.db.kept", "old"),
        ("a.db.kept-wal", "old wal"),
        ("b.db.kept", "old b"),
        ("b.db.kept-wal", "old b wal"),
        ("c", "new c"),
        ("conf", "new conf"),
        ("conf.kept", "old conf"),
        ("journal.kept/1", "old journal"),
        ("keys.kept/one", "old key"),
    ];

    fn assert_exchanged(root: &Path) {
        let mut wanted: Vec<_> =
            EXCHANGED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        wanted.push(("keys/two".to_owned(), "new key".to_owned()));
        wanted.sort();
        assert_eq!(all(root), wanted);
    }

    #[test]
    fn everything_is_exchanged_and_the_old_kept_with_what_stood_beside_it() {
        let root = tempfile::tempdir().unwrap();
        let items = plant(root.path());
        let exchange = Exchange::begin(root.path()).unwrap();
        let finished = exchange.carry_out(Path::new("stage"), items).unwrap();
        assert_eq!(finished.kept.len(), 5);
        exchange.end().unwrap();
        assert_exchanged(root.path());
        assert_eq!(finish_pending(root.path()).unwrap(), None);
    }

    #[test]
    fn whoever_comes_after_a_kill_between_any_two_steps_finishes_it() {
        // Each exchange is begun again from every state that the one before could have left.
        for killed_after in 0..7 {
            let root = tempfile::tempdir().unwrap();
            let items = plant(root.path());
            let marker =
                Marker { version: VERSION, staging: Place::new(Path::new("stage")), items: items.clone() };
            let text = serde_json::to_vec(&marker).unwrap();
            private_file::replace(&root.path().join(MARKER), &text).unwrap();
            for item in &items[..killed_after] {
                item.carry_out(root.path()).unwrap();
            }
            // In the middle of the next one: its second name and its sidecars have been seen to.
            if let Some(item) = items.get(killed_after).filter(|item| item.kind == Kind::Database) {
                let (live, kept) = (item.live.in_root(root.path()), item.kept.in_root(root.path()));
                if item.staged.is_some() {
                    fs::hard_link(&live, &kept).unwrap();
                }
                item.move_sidecars(&live, &kept).unwrap();
            }
            assert!(finish_pending(root.path()).unwrap().is_some());
            assert_exchanged(root.path());
        }
    }

    #[test]
    fn a_marker_that_cannot_be_read_is_told_and_nothing_moved() {
        let root = tempfile::tempdir().unwrap();
        plant(root.path());
        private_file::replace(&root.path().join(MARKER), b"{}").unwrap();
        let before = all(root.path());
        assert_eq!(finish_pending(root.path()).unwrap_err().exit_code(), 8);
        assert_eq!(all(root.path()), before);
    }
}
