//! The key store of one installation: a directory with the broker's keys, the registry and the
//! credentials of every peer made here.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    Audit, BrokerKeys, Credentials, KeyError, LastUse, Permissions, Registry, Renewed, audit::Act, last_use,
    private_file, registry::Peer, registry_file::RegistryFile, staged, time_text,
};
use crate::{
    crypto::{KeyPair, PublicKey},
    endpoint::Endpoint,
    envelope::now_ns,
    peer::PeerName,
};

/// An open key store. Changes are made under a file lock, so that two commands never lose one; nothing
/// is kept in memory that another command may change.
#[derive(Clone, Debug)]
pub struct KeyStore {
    directory: PathBuf,
    /// Who has asked for the changes that are made.
    by: Option<PeerName>,
}

/// Where the file with new credentials goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep<'a> {
    /// To `NAME.toml` in the key store.
    InStore,
    /// To this file.
    At(&'a Path),
    /// Nowhere: whoever asked gets them, and nobody else has them. A `NAME.toml` that is in the key store is not left behind
    /// with a key that is no more.
    Nowhere,
}

impl<'a> From<Option<&'a Path>> for Keep<'a> {
    fn from(path: Option<&'a Path>) -> Self {
        path.map_or(Self::InStore, Self::At)
    }
}

/// What a rotation of the broker's key came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The new public key.
    pub key: PublicKey,
    /// The one before it.
    pub before: PublicKey,
    /// Credentials files in the key store that name the new key now.
    pub renewed: Vec<PathBuf>,
    /// Files that could not be brought up to date, and why. The next start tries again.
    pub failed: Vec<String>,
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
        private_file::remove_abandoned(directory);
        staged::finish(directory)?;
        let broker_path = directory.join("broker.toml");
        let is_new = !broker_path.exists();
        if is_new {
            if let Some(orphan) = first_toml(directory, &[]) {
                return Err(KeyError::Damaged {
                    path: broker_path,
                    problem: format!(
                        "it is missing although `{}` is there; restore it, or move the whole directory away to begin anew",
                        orphan.display()
                    ),
                });
            }
            BrokerKeys::generate().save(&broker_path)?;
        }
        let store = Self::at(directory);
        store.registry_file()?.save_if_missing()?;
        store.finish_changes()?;
        let keys = store.broker_keys()?;
        let in_force = keys.in_force(now_ms());
        if in_force.old.len() < keys.old.len() {
            in_force.save(&broker_path)?;
        }
        // A rotation that was killed may have left some of them behind.
        let (_, failed) = store.renew_credentials(&in_force)?;
        for problem in failed {
            tracing::warn!("credentials not renewed: {problem}");
        }
        Ok((store, is_new))
    }

    /// Opens an existing key store.
    ///
    /// # Errors
    /// [`KeyError`]; a missing one is [`KeyError::Io`] naming the file.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let store = Self::at(directory);
        store.broker_keys()?;
        Ok(store)
    }

    /// That in `directory`, whatever is there.
    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), by: None }
    }

    /// The caller holds the lock.
    fn finish_changes(&self) -> Result<(), KeyError> {
        staged::finish(&self.directory)?;
        self.finish_rotations()
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// When each key was last used, as far as the broker has written it down.
    ///
    /// # Errors
    /// [`KeyError`] of a damaged file.
    pub fn last_use(&self) -> Result<LastUse, KeyError> {
        LastUse::load(&self.directory.join(last_use::FILE))
    }

    /// The same key store, changed because this peer has asked for it, which the audit file will say.
    #[must_use]
    pub fn asked_by(&self, by: &PeerName) -> Self {
        Self { by: Some(by.clone()), ..self.clone() }
    }

    /// Who has changed what.
    pub fn audit(&self) -> Audit {
        Audit::of(&self.directory).asked_by(self.by.clone())
    }

    /// Holds the store's lock until dropped; what commands that were killed have left is finished, or undone.
    pub(super) fn lock(&self) -> Result<Flock<File>, KeyError> {
        let lock = lock(&self.directory)?;
        self.finish_changes()?;
        Ok(lock)
    }

    /// The broker's long-term keys, as the file has them now.
    ///
    /// # Errors
    /// Those of [`BrokerKeys::load`].
    pub fn broker_keys(&self) -> Result<BrokerKeys, KeyError> {
        BrokerKeys::load(&self.broker_keys_path())
    }

    /// Where the broker's keys are.
    pub fn broker_keys_path(&self) -> PathBuf {
        self.directory.join("broker.toml")
    }

    /// Replaces the broker's key. The one before it is accepted for `overlap` longer; zero ends every old
    /// key at once. Credentials in the key store name the new key afterwards.
    ///
    /// Killed at any point, the old keys or the new ones stand in the file as a whole; credentials that
    /// were not reached are renewed by the next rotation or start.
    ///
    /// # Errors
    /// [`KeyError`]; nothing has changed then.
    pub fn rotate_broker_keys(&self, overlap: Duration) -> Result<Rotation, KeyError> {
        let _lock = self.lock()?;
        let before = self.broker_keys()?;
        let keys = before.rotated(overlap, now_ms());
        let act = Act { fingerprint: Some(keys.current.public.fingerprint()), ..Act::new("rotate-broker") };
        self.audit().around(act.with(format!("overlap of {} s", overlap.as_secs())), || {
            keys.save(&self.broker_keys_path())?;
            let (renewed, failed) = self.renew_credentials(&keys)?;
            Ok(Rotation { key: keys.current.public, before: before.current.public, renewed, failed })
        })
    }

    /// Writes the current key of the broker into a credentials file, wherever it lies, and the endpoints that `endpoints`
    /// gives for those in it; `None` leaves them.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`] if nobody here has its key; [`KeyError`] of the files.
    pub fn renew(
        &self,
        path: &Path,
        endpoints: impl FnOnce(&[Endpoint]) -> Option<Vec<Endpoint>>,
    ) -> Result<Renewed, KeyError> {
        let mut credentials = Credentials::load(path)?;
        if self.registry()?.peer_of(&credentials.keys.public).is_none() {
            return Err(KeyError::UnknownPeer { name: credentials.name, path: self.registry_path() });
        }
        let current = self.broker_keys()?.current.public;
        let mut renewed = Renewed { broker: credentials.broker != current, ..Renewed::default() };
        credentials.broker = current;
        if let Some(endpoints) = endpoints(&credentials.endpoints).filter(|now| *now != credentials.endpoints)
        {
            renewed.endpoints_before = Some(std::mem::replace(&mut credentials.endpoints, endpoints));
        }
        if renewed.is_changed() {
            credentials.save(path)?;
        }
        renewed.endpoints = credentials.endpoints;
        Ok(renewed)
    }

    /// Brings the credentials in the key store up to date: those renewed, and what went wrong.
    fn renew_credentials(&self, keys: &BrokerKeys) -> Result<(Vec<PathBuf>, Vec<String>), KeyError> {
        let (mut renewed, mut failed) = (Vec::new(), Vec::new());
        let names: Vec<PeerName> = self.registry()?.peers().map(|(name, _)| name.clone()).collect();
        for path in names.iter().map(|name| Credentials::path_in(&self.directory, name)) {
            if !path.exists() {
                continue;
            }
            let renew = Credentials::load(&path).and_then(|mut credentials| {
                let is_old = credentials.broker != keys.current.public;
                if is_old {
                    credentials.learn_broker_key(keys.current.public)?;
                }
                Ok(is_old)
            });
            match renew {
                Ok(true) => renewed.push(path),
                Ok(false) => {}
                Err(error) => failed.push(error.to_string()),
            }
        }
        Ok((renewed, failed))
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

    /// The registry for editing. A missing or empty one is new only where nobody is enrolled yet: elsewhere it is
    /// lost, and a new one would forget peers and what was revoked.
    pub(super) fn registry_file(&self) -> Result<RegistryFile, KeyError> {
        let path = self.registry_path();
        let problem = match path.exists() {
            false => "missing",
            true if private_file::read_text(&path)?.trim().is_empty() => "empty",
            true => return RegistryFile::open(&path),
        };
        if let Some(orphan) = first_toml(&self.directory, &["broker.toml", "authorized.toml"]) {
            return Err(KeyError::Damaged {
                path,
                problem: format!(
                    "it is {problem} although `{}` is there; restore it, or move it and all credentials files \
                     beside it but `broker.toml` away, then enrol anew with `interlock keys issue NAME`",
                    orphan.display()
                ),
            });
        }
        RegistryFile::open(&path)
    }

    /// [`KeyStore::issue_until`] for a key that has no end.
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
        self.issue_until(name, permissions, None, endpoints, path)
    }

    /// Enrols `name` with a new key and writes its credentials where `keep` says. At `expires_ms`, Unix milliseconds, the key
    /// ends by itself.
    ///
    /// # Errors
    /// [`KeyError::PeerExists`] if one of that name is active; [`KeyError::OtherFile`] if something else is there already.
    pub fn issue_until<'a>(
        &self,
        name: &PeerName,
        permissions: &Permissions,
        expires_ms: Option<u64>,
        endpoints: &[Endpoint],
        keep: impl Into<Keep<'a>>,
    ) -> Result<Credentials, KeyError> {
        let _lock = self.lock()?;
        let own = Credentials::path_in(&self.directory, name);
        let path = match keep.into() {
            Keep::InStore => Some(own.clone()),
            Keep::At(path) => Some(path.to_owned()),
            Keep::Nowhere => None,
        };
        Credentials::check_place(name, path.as_deref().unwrap_or(&own))?;
        let credentials = Credentials {
            name: name.clone(),
            keys: KeyPair::generate(),
            broker: self.broker_keys()?.current.public,
            endpoints: endpoints.to_vec(),
            file: path.clone(),
        };
        let mut file = self.registry_file()?;
        let peer = Peer {
            issued_ms: Some(now_ms()),
            expires_ms,
            ..Peer::new(credentials.keys.public, permissions.clone())
        };
        file.enrol(name, &peer)?;
        let act = Act::on("issue", name, credentials.keys.public.fingerprint());
        let act = expires_ms.map_or(act.clone(), |end_ms| act.with(format!("expires {}", time_text(end_ms))));
        self.audit().around(act, || {
            // Credentials first: a crash between the two leaves a file without rights, never rights without a file.
            match &path {
                Some(path) => credentials.save(path)?,
                None if own.exists() => remove(&own)?,
                None => {}
            }
            file.save()
        })?;
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
        let mut credentials = Credentials::load(&path).map_err(|error| match error {
            KeyError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                KeyError::CredentialsMissing { name: name.clone(), path: path.clone() }
            }
            error => error,
        })?;
        let broker = self.broker_keys()?.current.public;
        if credentials.endpoints != endpoints || credentials.broker != broker {
            credentials.endpoints = endpoints.to_vec();
            credentials.broker = broker;
            credentials.save(&path)?;
        }
        Ok(credentials)
    }

    /// Gives an enrolled peer these rights, if it has others. A running broker follows at once.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn set_permissions(&self, name: &PeerName, permissions: &Permissions) -> Result<(), KeyError> {
        self.set_all_permissions(&[(name.clone(), permissions.clone())])
    }

    /// [`KeyStore::set_permissions`] of several peers: of all of them, or, after an error, of none.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn set_all_permissions(&self, wanted: &[(PeerName, Permissions)]) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let mut file = self.registry_file()?;
        let registry = file.registry()?;
        let is_new = |(name, permissions): &&(PeerName, Permissions)| {
            registry.peer(name).is_none_or(|peer| *peer.permissions != *permissions)
        };
        let new: Vec<_> = wanted.iter().filter(is_new).collect();
        for (name, permissions) in &new {
            file.set_permissions(name, permissions)?;
        }
        if new.is_empty() { Ok(()) } else { file.save() }
    }

    /// Gives a built-in peer what `permissions` have more than when this was last called, and takes what
    /// they have no more. What people have changed in the registry stays.
    ///
    /// | in the rights of the last time | in those of now | in the registry |
    /// |---|---|---|
    /// | no | yes | added |
    /// | yes | no | removed |
    /// | both, or neither | | as it is |
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn grant_built_in(&self, name: &PeerName, permissions: &Permissions) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let path = self.directory.join("built-in-rights.json");
        let damaged = |error: serde_json::Error| KeyError::Damaged {
            path: path.clone(),
            problem: format!("{error}; remove it, and every right of the built-in peers is granted anew"),
        };
        let mut granted: BTreeMap<PeerName, Permissions> = match path.exists() {
            true => serde_json::from_str(&private_file::read_text(&path)?).map_err(damaged)?,
            false => BTreeMap::new(),
        };
        let last = granted.get(name).cloned().unwrap_or_default();
        if last == *permissions {
            return Ok(());
        }
        let mut file = self.registry_file()?;
        let registry = file.registry()?;
        if let Some(peer) = registry.peer(name) {
            let merged = peer.permissions.changed_as(&last, permissions);
            if merged != *peer.permissions {
                tracing::info!(peer = %name, "rights of a built-in peer follow the new version");
                file.set_permissions(name, &merged)?;
                file.save()?;
            }
        }
        granted.insert(name.clone(), permissions.clone());
        let text = serde_json::to_string_pretty(&granted).map_err(damaged)?;
        private_file::replace(&path, text.as_bytes())
    }

    /// Revokes the key of `name`. A running broker closes its sessions at once.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn revoke(&self, name: &PeerName) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let mut file = self.registry_file()?;
        let fingerprint = file.registry()?.peer(name).map(|peer| peer.key.fingerprint()).unwrap_or_default();
        self.audit().around(Act::on("revoke", name, fingerprint), || {
            file.revoke(name)?;
            file.save()
        })
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

/// Some `*.toml` in `directory` that has none of the names in `except`.
pub(super) fn remove(path: &Path) -> Result<(), KeyError> {
    let removed = std::fs::remove_file(path);
    removed.map_err(|source| KeyError::Io { action: "remove", path: path.to_owned(), source })
}

fn first_toml(directory: &Path, except: &[&str]) -> Option<PathBuf> {
    let entries = directory.read_dir().ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .find(|path| path.file_name().is_none_or(|name| !except.iter().any(|other| name == *other)))
}

/// Unix time.
pub(super) fn now_ms() -> u64 {
    now_ns() / 1_000_000
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
        assert_eq!(first.broker_keys().unwrap().pairs(), again.broker_keys().unwrap().pairs());
        let other = open(1).0.broker_keys().unwrap().current.public;
        assert_ne!(first.broker_keys().unwrap().current.public, other);
    }

    #[test]
    fn issuing_enrols_and_writes_credentials_that_authenticate() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let name: PeerName = "tool".parse().unwrap();
        let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let issued = store.issue(&name, &permissions, &endpoints(), None).unwrap();
        assert_eq!(store.registry().unwrap().authenticate(&issued.keys.public, 0).unwrap().0, name);
        assert_eq!(store.ensure(&name, &permissions, &endpoints()).unwrap().keys.public, issued.keys.public);
        store.revoke(&name).unwrap();
        assert!(store.registry().unwrap().authenticate(&issued.keys.public, 0).is_err());
        let reissued = store.issue(&name, &permissions, &endpoints(), None).unwrap();
        assert!(store.registry().unwrap().authenticate(&reissued.keys.public, 0).is_ok());
    }

    #[test]
    fn a_missing_credentials_file_is_named_with_a_way_out_that_works() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let name: PeerName = "tool".parse().unwrap();
        let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let lost = store.ensure(&name, &permissions, &endpoints()).unwrap();
        std::fs::remove_file(Credentials::path_in(&directory.path().join("keys"), &name)).unwrap();
        let error = store.ensure(&name, &permissions, &endpoints()).unwrap_err();
        assert!(matches!(error, KeyError::CredentialsMissing { .. }), "{error}");
        assert!(error.to_string().contains("keys/tool.toml"), "{error}");
        store.revoke(&name).unwrap();
        store.issue(&name, &permissions, &endpoints(), None).unwrap();
        let given = store.ensure(&name, &permissions, &endpoints()).unwrap();
        assert_ne!(given.keys.public, lost.keys.public);
    }

    #[test]
    fn a_rotation_that_was_killed_half_way_is_finished_by_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let (store, _) = KeyStore::open_or_create(&path).unwrap();
        let permissions = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let issue =
            |name: &str| store.issue(&name.parse().unwrap(), &permissions, &endpoints(), None).unwrap();
        let (one, two) = (issue("one"), issue("two"));
        let outside = directory.path().join("outside.toml");
        two.save(&outside).unwrap();
        // What a kill leaves behind: the new keys, and no credentials reached.
        let keys = store.broker_keys().unwrap().rotated(Duration::from_secs(3600), now_ms());
        keys.save(&store.broker_keys_path()).unwrap();
        KeyStore::open_or_create(&path).unwrap();
        for credentials in [one, two] {
            let read = Credentials::load(&credentials.file.unwrap()).unwrap();
            assert_eq!((read.broker, read.keys), (keys.current.public, credentials.keys));
        }
        let renew = || store.renew(&outside, |_| None).unwrap().is_changed();
        assert!(renew() && !renew());

        let rotation = store.rotate_broker_keys(Duration::ZERO).unwrap();
        assert_eq!((rotation.renewed.len(), rotation.failed.len()), (2, 0));
        assert_eq!(rotation.before, keys.current.public);
        assert_eq!(store.broker_keys().unwrap().pairs().len(), 1);
    }

    #[test]
    fn new_rights_of_a_built_in_peer_arrive_and_edits_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let name: PeerName = "runtime".parse().unwrap();
        let rights = |publish: &[&str], subscribe: &[&str]| {
            Permissions::from_lists(publish, subscribe, &[], &[]).unwrap()
        };
        let now = || store.registry().unwrap().peer(&name).unwrap().permissions.clone();
        let first = rights(&["a", "b"], &["c"]);
        store.ensure(&name, &first, &endpoints()).unwrap();
        store.grant_built_in(&name, &first).unwrap();
        // Somebody takes `b` away and gives `mine`.
        store.set_permissions(&name, &rights(&["a", "mine"], &["c"])).unwrap();
        store.grant_built_in(&name, &first).unwrap();
        assert_eq!(*now(), rights(&["a", "mine"], &["c"]));
        // A later version needs `d`, and `c` no more.
        store.grant_built_in(&name, &rights(&["a", "b"], &["d"])).unwrap();
        assert_eq!(*now(), rights(&["a", "mine"], &["d"]));
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

    #[test]
    fn a_lost_registry_is_never_replaced_behind_the_back_of_enrolled_peers() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        let (store, _) = KeyStore::open_or_create(&keys).unwrap();
        let path = store.registry_path();
        // Nobody is enrolled: a first start that was killed here goes on.
        std::fs::remove_file(&path).unwrap();
        KeyStore::open_or_create(&keys).unwrap();
        let (ada, bob): (PeerName, PeerName) = ("ada".parse().unwrap(), "bob".parse().unwrap());
        let rights = Permissions::from_lists(&["a/#"], &[], &[], &[]).unwrap();
        store.issue(&ada, &rights, &endpoints(), None).unwrap();
        store.revoke(&ada).unwrap();
        for said in ["is empty although", "is missing although"] {
            match said {
                "is empty although" => private_file::replace(&path, b"\n").unwrap(),
                _ => std::fs::remove_file(&path).unwrap(),
            }
            for error in [
                KeyStore::open_or_create(&keys).map(drop),
                store.issue(&bob, &rights, &endpoints(), None).map(drop),
                store.revoke(&ada),
            ] {
                let message = error.unwrap_err().to_string();
                assert!(message.contains(said), "{message}");
            }
        }
        // The way out that is named.
        std::fs::remove_file(keys.join("ada.toml")).unwrap();
        KeyStore::open_or_create(&keys).unwrap();
        store.issue(&bob, &rights, &endpoints(), None).unwrap();
    }
}
