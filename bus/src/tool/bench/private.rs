//! A broker for one run, in this process, with keys that nobody else has.

use std::{path::PathBuf, time::Duration};

use crate::{
    broker::{Broker, BrokerConfig, BrokerHandle},
    endpoint::Endpoint,
    keys::{Credentials, KeyStore, private_file},
    peer::PeerName,
    tool::{broker, failure::Failure},
};

/// Nobody is left to be told anything.
const STOP_GRACE: Duration = Duration::from_millis(100);

/// Ends with its directory when it is dropped.
pub(super) struct PrivateBroker {
    handle: BrokerHandle,
    credentials: Credentials,
    #[cfg_attr(not(test), expect(dead_code, reason = "it is removed when it is dropped"))]
    directory: Directory,
}

impl PrivateBroker {
    pub(super) fn start() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("interlock-bench-{}", uuid::Uuid::new_v4()));
        private_file::private_directory(&path)?;
        let directory = Directory(path);
        let (store, _) = KeyStore::open_or_create(&directory.0.join("keys"))?;
        let endpoints = vec![Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 0 }];
        let handle =
            Broker::start(BrokerConfig::from_key_store(&store, endpoints)?).map_err(broker::failure)?;
        let name: PeerName =
            "operator".parse().map_err(|error| Failure::new(crate::exit::Exit::Misuse, error))?;
        let credentials = store.ensure(&name, &broker::everything()?, handle.endpoints())?;
        Ok(Self { handle, credentials, directory })
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        self.handle.stop(STOP_GRACE);
    }
}

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's own directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_broker_leaves_nothing_behind() {
        let private = PrivateBroker::start().unwrap();
        let path = private.directory.0.clone();
        assert!(path.join("keys").exists());
        drop(private);
        assert!(!path.exists());
    }
}
