//! One instance from start to end: its data directory, its lock, its descriptor file, and what ends it.
//!
//! ```text
//! DATA/                0700
//!   interlock.db       the encrypted store
//!   outbox.db          durable messages, encrypted too; once a topic has consumers
//!   outbox.lock        held by whoever sends them
//!   keys/              0700, files 0600: broker.toml, authorized.toml, NAME.toml, data.key, wrap.key
//!   run/               0700
//!     instance.lock    held by the running instance; holds its pid
//!     instance.json    who runs and where it listens; removed at the end
//!     interlock.shutdown   written by whoever wants a stop; holds the instance id
//!     gateway-token    0600
//!     bus.sock
//! ```

mod data_dir;
mod instance;
mod service_manager;
mod shutdown;
mod stop;
mod watchdog;

use std::path::PathBuf;

use interlock_bus::keys::KeyError;

pub use data_dir::DataDir;
pub use instance::{Instance, InstanceFile, InstanceLock, running};
pub use service_manager::{ServiceManager, ServiceManagerError};
pub use shutdown::{Shutdown, ShutdownPhase, ShutdownStatus};
pub use stop::{STOP_FILE, StopReason, StopSignals};
pub use watchdog::{WATCHDOG_SLACK, Watchdog, end_process};

use crate::exit::Exit;

/// Why an instance cannot run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// No data directory is configured and none can be derived.
    #[error(
        "no data directory: neither HOME nor XDG_DATA_HOME is an absolute path; give one with `--data-dir`"
    )]
    NoDataDir,
    /// A directory or file cannot be used.
    #[error("cannot {action} `{}`: {source}; choose another place with `--data-dir`, or mend its permissions", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A directory is not private, or not ours.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Another instance runs on this data directory.
    #[error("already running on `{}` as process {pid}; `interlock status` shows it, `interlock stop` ends it", data_dir.display())]
    AlreadyRunning {
        /// Its process, or `?` if it has not said yet.
        pid: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// A backup is being restored into this data directory.
    #[error("a restore into `{}` is under way, as process {pid}; wait for its end", data_dir.display())]
    Restoring {
        /// Its process, or `?` if it has not said yet.
        pid: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// An instance runs that has not said yet where it is to be found, or says so no longer.
    #[error("the instance on `{}` is starting or ending; try again in a moment", data_dir.display())]
    InBetween {
        /// The data directory.
        data_dir: PathBuf,
    },
}

impl LifecycleError {
    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoDataDir => Exit::Misuse,
            Self::Io { source, .. } => Exit::of_io(source),
            Self::Key(error) => Exit::of_key(error),
            Self::AlreadyRunning { .. } | Self::Restoring { .. } => Exit::Busy,
            Self::InBetween { .. } => Exit::NotReady,
        }
    }
}

#[cfg(test)]
mod tests;
