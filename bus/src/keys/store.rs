//! The key store of one installation: a directory with the broker's keys, the registry and the
//! credentials of every peer made here.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    Credentials, KeyError, Permissions, Registry, credentials::parse_problem, private_file,
    registry::RegistryFile,
};
use crate::{
    crypto::{KeyPair, SecretKey},
    endpoint::Endpoint,
    peer::PeerName,
};

/// An open key store. Changes are made under a file lock, so that two commands never lose one.
#[derive(Clone, Debug)]
pub struct KeyStore {
    directory: PathBuf,
    /// The broker's long-term keys.
    broker: KeyPair,
}

/// `broker.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerFile {
    public_key: String,
    secret_key: Zeroizing<String>,
}

impl KeyStore {
    /// Opens the key store in `directory`, making directory, broker keys and registry if they are missing.
    /// The second value says whether it was made now.
    ///
    /// # Errors
    /// [`KeyError`]; an existing store is never changed by a failure.
    pub fn open_or_create(directory: &Path) -> Result<(Self, bool), KeyError> {
        private_file::private_directory(directory)?;
        let _lock = lock(directory)?;
        let broker_path = directory.join("broker.toml");
        let is_new = !broker_path.exists();
        if is_new {
            if let Some(orphan) = first_toml(directory) {
                return Err(KeyError::Damaged {
                    path: broker_path,
                    problem: format!(
                        "it is missing although `{}` is there; restore it, or move the whole directory away to begin anew",
                        orphan.display()
                    ),
                });
            }
            write_broker_keys(&broker_path, &KeyPair::generate())?;
        }
        RegistryFile::open(&directory.join("authorized.toml"))?.save_if_missing()?;
        Ok((Self { directory: directory.to_owned(), broker: read_broker_keys(&broker_path)? }, is_new))
    }

    /// Opens an existing key store.
    ///
    /// # Errors
    /// [`KeyError`]; a missing one is [`KeyError::Io`] naming the file.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let broker = read_broker_keys(&directory.join("broker.toml"))?;
        Ok(Self { directory: directory.to_owned(), broker })
    }

    /// The broker's long-term keys.
    pub fn broker_keys(&self) -> &KeyPair {
        &self.broker
    }

    /// Where the registry is.
    pub fn registry_path(&self) -> PathBuf {
        self.directory.join("authorized.toml")
    }

    /// Reads the registry.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn registry(&self) -> Result<Registry, KeyError> {
        Registry::load(&self.registry_path())
    }

    /// Enrols `name` with a new key and writes its credentials to `NAME.toml`, or to `path` if given.
    ///
    /// # Errors
    /// [`KeyError::PeerExists`] if one of that name is active.
    pub fn issue(
        &self,
        name: &PeerName,
        permissions: &Permissions,
        endpoints: &[Endpoint],
        path: Option<&Path>,
    ) -> Result<Credentials, KeyError> {
        let _lock = lock(&self.directory)?;
        let credentials = Credentials {
            name: name.clone(),
            keys: KeyPair::generate(),
            broker: self.broker.public,
            endpoints: endpoints.to_vec(),
        };
        let mut file = RegistryFile::open(&self.registry_path())?;
        file.enrol(name, &credentials.keys.public, permissions)?;
        // Credentials first: a crash between the two leaves a file without rights, never rights without a file.
        credentials.save(path.unwrap_or(&Credentials::path_in(&self.directory, name)))?;
        file.save()?;
        Ok(credentials)
    }

    /// The credentials of a peer, made if it is not enrolled yet; its endpoints are brought up to date.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn ensure(
        &self,
        name: &PeerName,
        permissions: &Permissions,
        endpoints: &[Endpoint],
    ) -> Result<Credentials, KeyError> {
        if self.registry()?.peer(name).is_none() {
            return self.issue(name, permissions, endpoints, None);
        }
        let path = Credentials::path_in(&self.directory, name);
        let mut credentials = Credentials::load(&path)?;
        if credentials.endpoints != endpoints || credentials.broker != self.broker.public {
            credentials.endpoints = endpoints.to_vec();
            credentials.broker = self.broker.public;
            credentials.save(&path)?;
        }
        Ok(credentials)
    }

    /// Gives an enrolled peer these rights, if it has others. A running broker follows within a second.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn set_permissions(&self, name: &PeerName, permissions: &Permissions) -> Result<(), KeyError> {
        let _lock = lock(&self.directory)?;
        let mut file = RegistryFile::open(&self.registry_path())?;
        if file.registry()?.peer(name).is_some_and(|peer| *peer.permissions == *permissions) {
            return Ok(());
        }
        file.set_permissions(name, permissions)?;
        file.save()
    }

    /// Revokes the key of `name`. A running broker closes its sessions within a second.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn revoke(&self, name: &PeerName) -> Result<(), KeyError> {
        let _lock = lock(&self.directory)?;
        let mut file = RegistryFile::open(&self.registry_path())?;
        file.revoke(name)?;
        file.save()
    }
}

impl RegistryFile {
    /// Writes a new registry with nobody in it.
    fn save_if_missing(&self) -> Result<(), KeyError> {
        if self.path().exists() { Ok(()) } else { self.save() }
    }
}

/// Holds the store's lock until dropped.
fn lock(directory: &Path) -> Result<Flock<File>, KeyError> {
    let path = directory.join(".lock");
    let io_error = |source| KeyError::Io { action: "lock", path: path.clone(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_file, error)| io_error(error.into()))
}

fn first_toml(directory: &Path) -> Option<PathBuf> {
    let entries = directory.read_dir().ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "toml"))
}

fn write_broker_keys(path: &Path, keys: &KeyPair) -> Result<(), KeyError> {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let secret = keys.secret.expose_z85();
    let text = Zeroizing::new(format!(
        "# The broker's long-term keys. Whoever can read this file can pretend to be the broker.\n\
         public_key = {}\nsecret_key = {}\n",
        quoted(&keys.public.to_string()),
        quoted(&secret),
    ));
    private_file::replace(path, text.as_bytes())
}

fn read_broker_keys(path: &Path) -> Result<KeyPair, KeyError> {
    let text = private_file::read_text(path)?;
    let damaged = |problem: String| KeyError::Damaged { path: path.to_owned(), problem };
    let file: BrokerFile = toml::from_str(&text).map_err(|error| damaged(parse_problem(&text, &error)))?;
    let secret = SecretKey::from_z85(&file.secret_key)
        .map_err(|_| damaged("`secret_key` is not a key of 40 Z85 characters".to_owned()))?;
    let keys = KeyPair::from_secret(secret);
    if keys.public.to_string() != file.public_key {
        return Err(damaged("`secret_key` does not belong to `public_key`".to_owned()));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Vec<Endpoint> {
        vec!["tcp://127.0.0.1:5555".parse().unwrap()]
    }

    #[test]
    fn keys_are_made_once_and_differ_between_installations() {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |index: usize| KeyStore::open_or_create(&directories[index].path().join("keys")).unwrap();
        let (first, made) = open(0);
        let (again, made_again) = open(0);
        assert!(made && !made_again);
        assert_eq!(first.broker_keys().public, again.broker_keys().public);
        assert_ne!(first.broker_keys().public, open(1).0.broker_keys().public);
    }

    #[test]
    fn issuing_enrols_and_writes_credentials_that_authenticate() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let name: PeerName = "tool".parse().unwrap();
        let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let issued = store.issue(&name, &permissions, &endpoints(), None).unwrap();
        assert_eq!(store.registry().unwrap().authenticate(&issued.keys.public).unwrap().0, name);
        assert_eq!(store.ensure(&name, &permissions, &endpoints()).unwrap().keys.public, issued.keys.public);
        store.revoke(&name).unwrap();
        assert!(store.registry().unwrap().authenticate(&issued.keys.public).is_err());
        let reissued = store.issue(&name, &permissions, &endpoints(), None).unwrap();
        assert!(store.registry().unwrap().authenticate(&reissued.keys.public).is_ok());
    }

    #[test]
    fn a_lost_broker_key_is_never_replaced_behind_the_back_of_enrolled_peers() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        KeyStore::open_or_create(&keys).unwrap();
        std::fs::remove_file(keys.join("broker.toml")).unwrap();
        let message = KeyStore::open_or_create(&keys).unwrap_err().to_string();
        assert!(message.contains("missing although"), "{message}");
    }
}
