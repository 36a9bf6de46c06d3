//! Which instance runs: a lock that ends with its process, and a file that says where it listens.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use interlock_bus::{Endpoint, keys::private_file};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{DataDir, LifecycleError};
use crate::exit::Exit;

/// Bytes of `instance.json` that are read.
const INSTANCE_FILE_BYTES_MAX: u64 = 64 << 10;

/// What a restore writes into the lock file behind its pid.
const RESTORE: &str = "restore";

/// A running instance, as it says of itself in `run/instance.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Made anew at each start.
    pub instance: Uuid,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub started_at: jiff::Timestamp,
    /// Where its broker listens, best first.
    pub endpoints: Vec<Endpoint>,
    /// Where its gateway listens; `None` until it does.
    pub gateway: Option<String>,
    /// Its configuration file, absolute; `None` if it has none, or one whose name is not UTF-8.
    #[serde(default)]
    pub config: Option<PathBuf>,
}

/// The lock of the one instance on a data directory. Held until dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct InstanceLock {
    _file: Flock<File>,
}

impl InstanceLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`LifecycleError::AlreadyRunning`] if another process holds it, [`LifecycleError::Restoring`] if that restores.
    pub fn take(data_dir: &DataDir) -> Result<Self, LifecycleError> {
        Self::take_saying(data_dir, "")
    }

    /// The same for a restore: whoever comes meanwhile is told what goes on.
    ///
    /// # Errors
    /// Those of [`InstanceLock::take`].
    pub fn take_for_restore(data_dir: &DataDir) -> Result<Self, LifecycleError> {
        Self::take_saying(data_dir, RESTORE)
    }

    fn take_saying(data_dir: &DataDir, what: &str) -> Result<Self, LifecycleError> {
        let path = lock_path(data_dir);
        let io = |action, source| LifecycleError::Io { action, path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| io("open", source))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => return Err(held_by(file, data_dir)),
            Err((_, errno)) => return Err(io("lock", errno.into())),
        };
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("{}\n{what}", std::process::id()).as_bytes()))
            .map_err(|source| io("write", source))?;
        Ok(Self { _file: file })
    }

    /// Where the lock is.
    pub fn path(data_dir: &DataDir) -> PathBuf {
        lock_path(data_dir)
    }

    /// Notes beside the lock how its holder ends. For the holder alone.
    ///
    /// # Errors
    /// The file cannot be written; then it is not known how it ended.
    pub fn note_end(data_dir: &DataDir, exit: Exit) -> Result<(), LifecycleError> {
        let path = lock_path(data_dir);
        let noted = OpenOptions::new().append(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
        noted
            .and_then(|mut file| writeln!(file, "ended {}", exit.code()))
            .map_err(|source| LifecycleError::Io { action: "write", path, source })
    }

    /// How the process `pid` ended that held the lock last; `None` if it could not say.
    pub fn end_of(data_dir: &DataDir, pid: u32) -> Option<Exit> {
        let mut text = String::new();
        File::open(lock_path(data_dir)).ok()?.take(64).read_to_string(&mut text).ok()?;
        let (holder, end) = text.split_once('\n')?;
        let code = end.lines().last()?.strip_prefix("ended ")?.parse().ok()?;
        Exit::from_code(code).filter(|_| holder.parse() == Ok(pid))
    }

    /// Whether some process holds the lock. Creates nothing.
    pub fn is_held(data_dir: &DataDir) -> bool {
        let Ok(file) = File::open(lock_path(data_dir)) else { return false };
        Self::is_locked(file).is_some()
    }

    /// Who holds the lock, as the error that taking it would be; `None` if nobody does. Creates nothing.
    pub fn holder(data_dir: &DataDir) -> Option<LifecycleError> {
        let file = Self::is_locked(File::open(lock_path(data_dir)).ok()?)?;
        Some(held_by(file, data_dir))
    }

    /// The file, if somebody holds its lock.
    fn is_locked(file: File) -> Option<File> {
        // A shared lock, so that two commands that look at the same time do not take each other for an instance.
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((file, Errno::EWOULDBLOCK)) => Some(file),
            _ => None,
        }
    }
}

/// `run/instance.json`, removed when dropped.
#[derive(Debug)]
pub struct InstanceFile {
    path: PathBuf,
}

impl InstanceFile {
    /// Writes the file.
    ///
    /// # Errors
    /// [`LifecycleError::Key`] naming the file.
    pub fn write(data_dir: &DataDir, instance: &Instance) -> Result<Self, LifecycleError> {
        let file = Self { path: instance_path(data_dir) };
        file.update(instance)?;
        Ok(file)
    }

    /// Lets the file say something else; replaces it whole.
    ///
    /// # Errors
    /// [`LifecycleError::Key`] naming the file.
    pub fn update(&self, instance: &Instance) -> Result<(), LifecycleError> {
        let text = serde_json::to_string_pretty(instance).expect("text, numbers and lists are always JSON");
        Ok(private_file::replace(&self.path, text.as_bytes())?)
    }
}

impl Drop for InstanceFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The instance that runs on `data_dir`, `None` if none does. A file left behind by one that was killed does not
/// count: its lock is gone. Creates nothing.
///
/// # Errors
/// An instance runs, but its file is missing (it is starting or ending) or damaged.
pub fn running(data_dir: &DataDir) -> Result<Option<Instance>, LifecycleError> {
    if !InstanceLock::is_held(data_dir) {
        return Ok(None);
    }
    let path = instance_path(data_dir);
    let io = |source| LifecycleError::Io { action: "read", path: path.clone(), source };
    let mut text = String::new();
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return match InstanceLock::holder(data_dir) {
                Some(error @ LifecycleError::Restoring { .. }) => Err(error),
                _ => Err(LifecycleError::InBetween { data_dir: data_dir.root().to_owned() }),
            };
        }
        opened => opened.map_err(io)?,
    };
    file.take(INSTANCE_FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
    let instance = serde_json::from_str(&text).map_err(|error| io(error.into()))?;
    Ok(Some(instance))
}

/// What stands in the lock file `file`, which somebody holds: the pid, and a word if it is no instance.
fn held_by(file: File, data_dir: &DataDir) -> LifecycleError {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    let mut lines = text.lines();
    let pid = lines.next().unwrap_or_default().parse::<u32>();
    let pid = pid.map_or("?".to_owned(), |pid| pid.to_string());
    let data_dir = data_dir.root().to_owned();
    match lines.next() {
        Some(RESTORE) => LifecycleError::Restoring { pid, data_dir },
        _ => LifecycleError::AlreadyRunning { pid, data_dir },
    }
}

fn lock_path(data_dir: &DataDir) -> PathBuf {
    data_dir.run().join("instance.lock")
}

fn instance_path(data_dir: &DataDir) -> PathBuf {
    data_dir.run().join("instance.json")
}
