//! Where unfinished work lies: a private directory of each run inside the data directory, wiped at its end, and found by the
//! next run if there was none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{libc::O_NOFOLLOW, sys::statvfs::statvfs};

use super::{error::BackupError, exchange::MARKER, header::MAGIC, limits};
use crate::{
    store::key::hex,
    wipe::{self, WipedCounts, parent},
};

/// Between a name and 32 random hexadecimal digits.
const MARK: &str = ".tmp-";
/// What directories of ours are called before that.
const STEMS: [&str; 2] = ["backup", "restore"];
/// Bytes that a file name may have.
const NAME_BYTES_MAX: usize = 255;

/// A directory for one run. Locked while its process lives; everything in it is wiped when it is dropped.
#[derive(Debug)]
pub(super) struct Workspace {
    path: PathBuf,
    /// `None` once it is closed.
    lock: Option<File>,
}

impl Workspace {
    /// A new one in `root`, for this purpose, one of [`STEMS`].
    pub(super) fn new(root: &Path, stem: &'static str) -> Result<Self, BackupError> {
        loop {
            let path = root.join(format!("{stem}{MARK}{}", random()));
            DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::file(&path, "create"))?;
            let lock = File::open(&path).map_err(BackupError::file(&path, "open"))?;
            lock.lock().map_err(BackupError::file(&path, "lock"))?;
            // Between the two somebody may have taken it for abandoned.
            if fs::metadata(&path).is_ok() {
                return Ok(Self { path, lock: Some(lock) });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it, or in a directory in it.
    pub(super) fn create(path: &Path) -> Result<File, BackupError> {
        create_private(path)
    }

    /// Wipes everything.
    pub(super) fn close(mut self) -> Result<WipedCounts, BackupError> {
        self.lock = None;
        wipe::wipe_directory(&self.path).map_err(BackupError::file(&self.path, "wipe"))
    }

    /// Leaves it where it is, for somebody else to finish.
    pub(super) fn leave(mut self) {
        self.lock = None;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What cannot be wiped is found by the next run.
            let _ = wipe::wipe_directory(&self.path);
        }
    }
}

/// Wipes what runs that were killed have left in the data directory. `None` if there was nothing.
pub(super) fn sweep(root: &Path) -> Option<WipedCounts> {
    let mut counts = None;
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(is_work) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Ok(directory) = File::open(&path) else { continue };
        // A restore that was killed behind its marker still needs this: whoever finishes it wipes it. The marker is written under
        // this lock, so that nobody can write it now.
        if directory.try_lock().is_err() || fs::symlink_metadata(root.join(MARKER)).is_ok() {
            continue;
        }
        let wiped = wipe::wipe_directory(&path).unwrap_or(WipedCounts { failed: 1, ..Default::default() });
        let sum = counts.get_or_insert_with(WipedCounts::default);
        sum.wiped += wiped.wiped;
        sum.unlinked_only += wiped.unlinked_only;
        sum.failed += wiped.failed;
    }
    counts
}

/// Whether a directory of this name is one of those.
pub(super) fn is_work(name: &str) -> bool {
    STEMS.iter().any(|stem| is_temporary(name, Some(stem)))
}

/// Whether the name ends as those of our temporary files do, and begins with `stem` if one is given.
fn is_temporary(name: &str, stem: Option<&str>) -> bool {
    name.rsplit_once(MARK).is_some_and(|(before, digits)| {
        stem.map_or(!before.is_empty(), |stem| before == stem)
            && digits.len() == 32
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

fn random() -> String {
    hex(&interlock_bus::crypto::random::<16>())
}

fn create_private(path: &Path) -> Result<File, BackupError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path)
        .map_err(BackupError::file(path, "create"))
}

/// A file that takes the place of another one when it is whole, and goes when it is not.
#[derive(Debug)]
pub(super) struct NewFile {
    target: PathBuf,
    path: PathBuf,
    file: File,
    is_placed: bool,
}

impl NewFile {
    /// A file beside `target`, locked while its process lives.
    pub(super) fn beside(target: &Path) -> Result<Self, BackupError> {
        let name = target.file_name().unwrap_or_default().as_bytes();
        let mark = format!("{MARK}{}", random());
        // A name that is as long as may be has no room for more.
        let mut temporary = name[..name.len().min(NAME_BYTES_MAX - mark.len())].to_vec();
        temporary.extend_from_slice(mark.as_bytes());
        let path = target.with_file_name(std::ffi::OsStr::from_bytes(&temporary));
        let file = create_private(&path)?;
        let new = Self { target: target.to_owned(), path, file, is_placed: false };
        new.file.lock().map_err(BackupError::file(&new.path, "lock"))?;
        Ok(new)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name. It and its directory are durable then.
    pub(super) fn place(mut self) -> Result<(), BackupError> {
        self.file.sync_all().map_err(BackupError::file(&self.path, "sync"))?;
        // Somebody may have exchanged it for another one under the same name.
        let ours = self.file.metadata().map_err(BackupError::file(&self.path, "look at"))?;
        let there = fs::symlink_metadata(&self.path).map_err(BackupError::file(&self.path, "look at"))?;
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            let problem = "another file stands there now".to_owned();
            return Err(BackupError::ReadBack { path: self.path.clone(), problem });
        }
        fs::rename(&self.path, &self.target).map_err(BackupError::file(&self.target, "rename a file to"))?;
        self.is_placed = true;
        let directory = parent(&self.target);
        wipe::sync_directory(directory).map_err(BackupError::file(directory, "sync"))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_placed {
            // It is sealed: nothing in it needs to be overwritten.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes unfinished backups of processes that were killed from `directory`; says how many.
pub(super) fn sweep_new_files(directory: &Path) -> u64 {
    let mut removed = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !is_temporary(&entry.file_name().to_string_lossy(), None)
            || !entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            continue;
        }
        let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(entry.path());
        let Ok(mut file) = opened else { continue };
        let mut head = [0; MAGIC.len()];
        let bytes = super::sealed::read_full(&mut file, &mut head).unwrap_or(0);
        // Others may use such names for files of their own.
        if head[..bytes] == MAGIC[..bytes] && file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok()
        {
            removed += 1;
        }
    }
    removed
}

/// Refuses to begin what would not fit: so many bytes of work in each of these directories.
pub(super) fn check_space(needs: &[(&Path, u64)]) -> Result<(), BackupError> {
    let place = |path: &Path| -> io::Result<(u64, u64)> {
        let about = statvfs(path)?;
        // Field types differ between platforms.
        #[allow(clippy::unnecessary_cast, reason = "they are narrower on other machines")]
        Ok((
            fs::metadata(path)?.dev(),
            (about.blocks_available() as u64).saturating_mul(about.fragment_size() as u64),
        ))
    };
    let mut places = Vec::new();
    for (path, bytes) in needs {
        let (device, have) = place(path).map_err(BackupError::file(*path, "look for space in"))?;
        places.push((*path, *bytes, device, have));
    }
    for (path, _, device, have) in &places {
        let same = places.iter().filter(|(_, _, other, _)| other == device);
        let bytes: u64 = same.map(|(_, bytes, ..)| *bytes).sum();
        let (times, by) = limits::SPACE_FACTOR;
        let need = bytes.saturating_mul(times) / by;
        if need > *have {
            return Err(BackupError::NoSpace { path: (*path).to_owned(), need, have: *have });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_a_killed_run_left_is_wiped_and_what_a_living_one_uses_is_not() {
        let root = tempfile::tempdir().unwrap();
        let living = Workspace::new(root.path(), "backup").unwrap();
        Workspace::create(&living.path().join("a")).unwrap();
        let dead = root.path().join(format!("restore{MARK}{}", random()));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("a"), "left").unwrap();
        fs::write(dead.join("b"), "left").unwrap();
        fs::create_dir(root.path().join("backup.tmp-mine")).unwrap();
        fs::write(root.path().join(MARKER), "").unwrap();
        assert_eq!(sweep(root.path()), None, "a restore that is going to be finished needs it");
        fs::remove_file(root.path().join(MARKER)).unwrap();
        assert_eq!(sweep(root.path()), Some(WipedCounts { wiped: 2, ..Default::default() }));
        assert_eq!(sweep(root.path()), None);
        assert!(living.path().join("a").exists());
        assert_eq!(living.close().unwrap().wiped, 1);
        drop(Workspace::new(root.path(), "backup").unwrap());
        assert_eq!(names(root.path()), ["backup.tmp-mine"]);
    }

    #[test]
    fn a_new_file_takes_its_place_or_goes_and_abandoned_ones_are_found() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("x".repeat(NAME_BYTES_MAX));
        fs::write(&target, "old").unwrap();
        drop(NewFile::beside(&target).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"old");
        let new = NewFile::beside(&target).unwrap();
        io::Write::write_all(&mut new.file(), b"new").unwrap();
        assert_eq!(sweep_new_files(place.path()), 0, "it is being written");
        new.place().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(place.path()).len(), 1);
        let abandoned = |content: &[u8]| {
            fs::write(place.path().join(format!("a{MARK}{}", random())), content).unwrap();
        };
        abandoned(b"");
        abandoned(&MAGIC[..3]);
        abandoned(&MAGIC);
        abandoned(b"somebody else's");
        assert_eq!(sweep_new_files(place.path()), 3);
    }

    #[test]
    fn what_would_not_fit_is_refused_in_numbers() {
        let place = tempfile::tempdir().unwrap();
        check_space(&[(place.path(), 1000), (place.path(), 1000)]).unwrap();
        let error = check_space(&[(place.path(), 1 << 60)]).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("need 1729382256911 MB, have "), "{error}");
    }
}
