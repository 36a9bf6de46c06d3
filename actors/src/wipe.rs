//! Secure wiping of files, with honest words about what that is worth.
//!
//! One pass of random bytes, synced; a random name, the directory synced; the name taken away, the directory synced. On flash
//! and on file systems that write elsewhere (btrfs, ZFS, bcachefs, snapshots below) the old cells survive an overwrite: there
//! this is best effort, and what protects is that our files are encrypted and that their key is gone.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use interlock_bus::crypto;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

/// Bytes that are overwritten at a time, so that memory does not grow with the file.
const BLOCK_BYTES: usize = 1 << 20;

/// Files that SQLite keeps beside a database, which hold parts of the same content.
pub const SIDECARS: [&str; 3] = ["-journal", "-wal", "-shm"];

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum Wiped {
    /// It was overwritten, renamed and removed, each step synced.
    Wiped,
    /// Its name is gone, its content may not be.
    UnlinkedOnly(String),
    /// It is still there.
    Failed(String),
}

impl fmt::Display for Wiped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wiped => formatter.write_str("wiped"),
            Self::UnlinkedOnly(reason) => write!(formatter, "only unlinked: {reason}"),
            Self::Failed(reason) => write!(formatter, "failed: {reason}"),
        }
    }
}

/// What became of several files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct WipedCounts {
    /// Overwritten and removed.
    pub wiped: u64,
    /// Removed, but perhaps not overwritten.
    pub unlinked_only: u64,
    /// Still there.
    pub failed: u64,
}

impl WipedCounts {
    /// Counts one more.
    pub fn add(&mut self, wiped: &Wiped) {
        match wiped {
            Wiped::Wiped => self.wiped += 1,
            Wiped::UnlinkedOnly(_) => self.unlinked_only += 1,
            Wiped::Failed(_) => self.failed += 1,
        }
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.wiped + self.unlinked_only + self.failed
    }
}

/// Wipes one file, under whatever names it is to be found: who must not lose the others looks before. A plain one, not what a link names. Anything else is refused and left as it is; nothing here waits for
/// the other end of a pipe.
pub fn wipe(path: &Path) -> Wiped {
    let file = match open(path) {
        Ok(file) => file,
        Err(reason) => return Wiped::Failed(reason),
    };
    let overwritten = overwrite(&file);
    drop(file);
    let unlinked = vanish(path);
    match (overwritten, unlinked) {
        (_, Err(error)) => Wiped::Failed(format!("it cannot be removed: {error}")),
        (Ok(1), Ok(())) => Wiped::Wiped,
        (Ok(links), Ok(())) => {
            Wiped::UnlinkedOnly(format!("{} other names of it remain, with random content", links - 1))
        }
        (Err(error), Ok(())) => Wiped::UnlinkedOnly(format!("it cannot be overwritten: {error}")),
    }
}

/// Wipes a file and what SQLite keeps beside a database of this name, if anything. What is not there is not counted.
pub fn wipe_with_sidecars(path: &Path) -> Vec<(PathBuf, Wiped)> {
    let there = with_sidecars(path).filter(|path| fs::symlink_metadata(path).is_ok());
    there.map(|path| (path.clone(), wipe(&path))).collect()
}

/// All that [`wipe_with_sidecars`] wipes if it is there: the file itself, which is what people look for afterwards, comes last.
pub fn with_sidecars(path: &Path) -> impl Iterator<Item = PathBuf> {
    let beside = SIDECARS.into_iter().map(move |suffix| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    });
    beside.chain([path.to_owned()])
}

/// Wipes everything in a directory of ours, and removes it. Links are unlinked, what they name is not touched.
pub fn wipe_directory(directory: &Path) -> io::Result<WipedCounts> {
    let mut counts = WipedCounts::default();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let below = wipe_directory(&entry.path())?;
            counts.wiped += below.wiped;
            counts.unlinked_only += below.unlinked_only;
            counts.failed += below.failed;
        } else {
            counts.add(&wipe(&entry.path()));
        }
    }
    fs::remove_dir(directory)?;
    sync_directory(parent(directory))?;
    Ok(counts)
}

/// The file for writing, if it is a plain one.
fn open(path: &Path) -> Result<File, String> {
    let about = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    let kind = about.file_type();
    if kind.is_symlink() {
        return Err("it is a symbolic link; name the file itself".to_owned());
    }
    if !kind.is_file() {
        return Err("it is not a plain file".to_owned());
    }
    // It may have been exchanged meanwhile: a link is not followed, a pipe does not wait, and what was opened is looked at.
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| format!("it cannot be opened for writing: {error}"))?;
    match file.metadata() {
        Ok(about) if about.is_file() => Ok(file),
        Ok(_) => Err("it is not a plain file".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Overwrites the whole file with random bytes; returns how many names it has.
fn overwrite(mut file: &File) -> io::Result<u64> {
    let about = file.metadata()?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = about.len();
    while left > 0 {
        crypto::fill_random(&mut block);
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        file.write_all(&block[..bytes])?;
        left -= bytes as u64;
    }
    file.sync_all()?;
    Ok(about.nlink())
}

/// Takes the name away, after one that says nothing has taken its place.
fn vanish(path: &Path) -> io::Result<()> {
    let nameless = path.with_file_name(uuid::Uuid::new_v4().to_string());
    fs::rename(path, &nameless)?;
    sync_directory(parent(path))?;
    fs::remove_file(&nameless)?;
    sync_directory(parent(path))
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_is_gone_and_nothing_is_left_in_its_directory() {
        let place = tempfile::tempdir().unwrap();
        for bytes in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1] {
            let path = place.path().join("secret");
            fs::write(&path, vec![b'x'; bytes]).unwrap();
            assert_eq!(wipe(&path), Wiped::Wiped);
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_other_names_show_is_random_and_that_they_are_there_is_said() {
        let place = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| place.path().join(name));
        fs::write(&one, [b'x'; 5000]).unwrap();
        fs::hard_link(&one, &other).unwrap();
        assert!(matches!(wipe(&one), Wiped::UnlinkedOnly(reason) if reason.contains("1 other name")));
        let left = fs::read(&other).unwrap();
        assert_eq!(left.len(), 5000);
        assert!(left.iter().filter(|byte| **byte == b'x').count() < 200, "it was not overwritten");
    }

    #[test]
    fn links_directories_pipes_and_devices_are_refused_and_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let [target, link, pipe] = ["target", "link", "pipe"].map(|name| place.path().join(name));
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&link, &pipe, place.path(), Path::new("/dev/null"), &place.path().join("none")] {
            assert!(matches!(wipe(path), Wiped::Failed(_)), "{}", path.display());
        }
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_database_goes_with_what_stands_beside_it_and_a_directory_with_all_that_is_below() {
        let place = tempfile::tempdir().unwrap();
        let below = place.path().join("work/below");
        fs::create_dir_all(&below).unwrap();
        for name in ["a.db", "a.db-wal", "a.db-journal", "b.db"] {
            fs::write(below.join(name), name).unwrap();
        }
        let wiped = wipe_with_sidecars(&below.join("a.db"));
        assert!(wiped.len() == 3 && wiped.iter().all(|(_, wiped)| *wiped == Wiped::Wiped), "{wiped:?}");
        let counts = wipe_directory(&place.path().join("work")).unwrap();
        assert_eq!(counts, WipedCounts { wiped: 1, ..WipedCounts::default() });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
