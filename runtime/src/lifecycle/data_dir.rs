//! The data directory and its layout.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use interlock_bus::keys::{KeyError, private_file};

use super::LifecycleError;

/// A data directory. Naming one creates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The directory at `root`, whether it exists or not.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes what is missing, all of it private, and proves that it can be written. An existing empty directory is
    /// made private; one with content that others can read is refused. What killed writers left in it is removed.
    ///
    /// # Errors
    /// [`LifecycleError::Io`] or [`LifecycleError::Key`], naming the directory and the way out.
    pub fn create(&self) -> Result<(), LifecycleError> {
        if is_empty_directory(&self.root) {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
                .map_err(self.io("make private"))?;
        }
        private_file::private_directory_behind(&self.root).map_err(unusable)?;
        private_file::private_directory(&self.run()).map_err(unusable)?;
        private_file::remove_abandoned(&self.run());
        let probe = self.run().join(".probe");
        private_file::replace(&probe, b"").map_err(unusable)?;
        match fs::remove_file(&probe) {
            // Another process that began at the same moment has removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(self.io("remove a file in")),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The key store.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Files of the running instance.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The store.
    pub fn database(&self) -> PathBuf {
        self.root.join("interlock.db")
    }

    /// Durable messages.
    pub fn outbox(&self) -> PathBuf {
        self.root.join(interlock_actors::store::outbox::OUTBOX_FILE)
    }

    /// The token that the gateway asks for.
    pub fn gateway_token(&self) -> PathBuf {
        self.run().join("gateway-token")
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> LifecycleError {
        let path = self.root.clone();
        move |source| LifecycleError::Io { action, path, source }
    }
}

/// The data directory itself is what cannot be used: another one is the way out.
fn unusable(error: KeyError) -> LifecycleError {
    match error {
        KeyError::Io { action, path, source } => LifecycleError::Io { action, path, source },
        error => error.into(),
    }
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
