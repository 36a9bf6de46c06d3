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
    /// [`LifecycleError::AlreadyRunning`] if another process holds it.
    pub fn take(data_dir: &DataDir) -> Result<Self, LifecycleError> {
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
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut text);
                let pid = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .parse::<u32>()
                    .map_or("?".to_owned(), |pid| pid.to_string());
                return Err(LifecycleError::AlreadyRunning { pid, data_dir: data_dir.root().to_owned() });
            }
            Err((_, errno)) => return Err(io("lock", errno.into())),
        };
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| io("write", source))?;
        Ok(Self { _file: file })
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
        // A shared lock, so that two commands that look at the same time do not take each other for an instance.
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
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
            return Err(LifecycleError::InBetween { data_dir: data_dir.root().to_owned() });
        }
        opened => opened.map_err(io)?,
    };
    file.take(INSTANCE_FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
    let instance = serde_json::from_str(&text).map_err(|error| io(error.into()))?;
    Ok(Some(instance))
}

fn lock_path(data_dir: &DataDir) -> PathBuf {
    data_dir.run().join("instance.lock")
}

fn instance_path(data_dir: &DataDir) -> PathBuf {
    data_dir.run().join("instance.json")
}
