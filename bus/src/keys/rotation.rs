//! A new key for one peer: made, registered and put into its credentials file, so that a kill at any point leaves a key
//! that works.
//!
//! | step | killed after it |
//! |---|---|
//! | 1. the new credentials are written beside the old ones, as `NAME.toml.next` | the next command removes them: their key is nobody's |
//! | 2. the registry names the new key, and the old one until its overlap ends | the next command, or the next start, does step 3 |
//! | 3. `NAME.toml.next` becomes `NAME.toml` | it is done |

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Credentials, Keep, KeyError, KeyState, KeyStore,
    audit::Act,
    private_file,
    store::{now_ms, remove},
};
use crate::{
    crypto::{KeyPair, PublicKey},
    endpoint::Endpoint,
    peer::PeerName,
};

/// What the file of step 1 ends with.
const NEXT: &str = "next";

/// What a new key of a peer came to.
#[derive(Clone, Debug)]
pub struct PeerRotation {
    /// The new credentials, and the file they are in.
    pub credentials: Credentials,
    /// The public key before them.
    pub before: PublicKey,
    /// Until when that is accepted, Unix milliseconds; `None` if not at all.
    pub before_until_ms: Option<u64>,
    /// The end of both, likewise.
    pub expires_ms: Option<u64>,
}

impl KeyStore {
    /// Gives `name` a new key. The one before it is accepted for `overlap` longer; after none at all, every old one is void
    /// and its sessions end at once. Rights stay; so does the end of the peer's keys unless there is a new one.
    ///
    /// The new credentials are in `NAME.toml` of the key store if there is such a file, and where `keep` says.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`], [`KeyError::Revoked`], [`KeyError::Expired`]; nothing has changed then.
    pub fn rotate<'a>(
        &self,
        name: &PeerName,
        overlap: Duration,
        expires_ms: Option<u64>,
        endpoints: &[Endpoint],
        keep: impl Into<Keep<'a>>,
    ) -> Result<PeerRotation, KeyError> {
        let keep = keep.into();
        let _lock = self.lock()?;
        let now_ms = now_ms();
        let mut file = self.registry_file()?;
        let registry = file.registry()?;
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.registry_path() };
        let peer = registry.peer(name).ok_or_else(unknown)?;
        if peer.state == KeyState::Revoked {
            return Err(KeyError::Revoked { name: name.clone() });
        }
        let expires_ms = expires_ms.or(peer.expires_ms);
        if let Some(expires_ms) = expires_ms.filter(|expires_ms| *expires_ms <= now_ms) {
            return Err(KeyError::Expired { name: name.clone(), expires_ms });
        }
        let path = if let Keep::At(path) = keep { Some(path) } else { None };
        path.map_or(Ok(()), |path| Credentials::check_place(name, path))?;
        let own = Credentials::path_in(self.directory(), name);
        let stays = own.exists();
        let is_kept = stays || keep == Keep::InStore;
        let endpoints = match stays {
            true => Credentials::load(&own)?.endpoints,
            false => endpoints.to_vec(),
        };
        let mut credentials = Credentials {
            name: name.clone(),
            keys: KeyPair::generate(),
            broker: self.broker_keys()?.current.public,
            endpoints,
            file: None,
        };
        let next = self.next_of(name);
        let overlap_ms = u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX);
        let act = Act::on("rotate", name, credentials.keys.public.fingerprint());
        let act =
            act.with(format!("instead of {}, overlap of {} s", peer.key.fingerprint(), overlap.as_secs()));
        self.audit().around(act, || {
            credentials.save(&next)?;
            file.replace_key(name, &credentials.keys.public, expires_ms, overlap_ms, now_ms)?;
            file.save()?;
            if let Some(path) = path {
                credentials.save(path)?;
            }
            if is_kept { rename(&next, &own) } else { remove(&next) }
        })?;
        credentials.file = path.map(Path::to_owned).or(is_kept.then_some(own));
        let before_until_ms = (overlap_ms > 0).then(|| now_ms.saturating_add(overlap_ms));
        Ok(PeerRotation { credentials, before: peer.key, before_until_ms, expires_ms })
    }

    /// Does what rotations that were killed have left. The caller holds the lock.
    pub(super) fn finish_rotations(&self) -> Result<(), KeyError> {
        let Ok(entries) = self.directory().read_dir() else { return Ok(()) };
        let is_next = |path: &PathBuf| path.extension().is_some_and(|extension| extension == NEXT);
        for next in entries.flatten().map(|entry| entry.path()).filter(is_next) {
            let credentials = Credentials::load(&next)?;
            let registered = self.registry()?.peer(&credentials.name).map(|peer| peer.key);
            if registered == Some(credentials.keys.public) {
                rename(&next, &Credentials::path_in(self.directory(), &credentials.name))?;
            } else {
                remove(&next)?;
            }
        }
        Ok(())
    }

    fn next_of(&self, name: &PeerName) -> PathBuf {
        self.directory().join(format!("{name}.toml.{NEXT}"))
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), KeyError> {
    fs::rename(from, to).map_err(|source| KeyError::Io { action: "replace", path: to.to_owned(), source })?;
    private_file::sync_directory_of(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Permissions, registry_file::RegistryFile};

    const HOUR: Duration = Duration::from_secs(3600);

    fn store() -> (tempfile::TempDir, KeyStore, Credentials) {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let rights = Permissions::from_lists(&["a"], &[], &[], &[]).unwrap();
        let issued = store.issue(&"ada".parse().unwrap(), &rights, &endpoints(), None).unwrap();
        (directory, store, issued)
    }

    fn endpoints() -> Vec<Endpoint> {
        vec!["tcp://127.0.0.1:5555".parse().unwrap()]
    }

    #[test]
    fn a_new_key_is_in_the_file_and_the_old_one_works_through_its_overlap_or_not_at_all() {
        let (directory, store, issued) = store();
        let code = |key: &PublicKey, now_ms| {
            store.registry().unwrap().authenticate(key, now_ms).map(drop).map_err(|refusal| refusal.code())
        };
        let first = store.rotate(&issued.name, HOUR, None, &[], None).unwrap();
        assert_eq!(first.before, issued.keys.public);
        assert_eq!(Credentials::load(&issued.file.unwrap()).unwrap().keys, first.credentials.keys);
        let until_ms = first.before_until_ms.unwrap();
        assert_eq!(code(&issued.keys.public, until_ms - 1), Ok(()));
        assert_eq!(code(&issued.keys.public, until_ms), Err("key_replaced"));

        // Elsewhere as well, where there is one in the key store.
        let elsewhere = directory.path().join("elsewhere.toml");
        let second =
            store.rotate(&issued.name, Duration::ZERO, None, &[], Some(elsewhere.as_path())).unwrap();
        assert_eq!(code(&first.credentials.keys.public, 0), Err("unknown_key"));
        for file in [&elsewhere, &Credentials::path_in(store.directory(), &issued.name)] {
            assert_eq!(Credentials::load(file).unwrap().keys, second.credentials.keys);
        }
        // And only there, where there is none.
        fs::remove_file(Credentials::path_in(store.directory(), &issued.name)).unwrap();
        let third = store.rotate(&issued.name, HOUR, None, &endpoints(), Some(elsewhere.as_path())).unwrap();
        assert_eq!(Credentials::load(&elsewhere).unwrap().keys, third.credentials.keys);
        assert!(!Credentials::path_in(store.directory(), &issued.name).exists());
    }

    #[test]
    fn credentials_that_only_their_peer_is_to_have_are_in_no_file_unless_there_was_one_and_who_asked_is_noted()
     {
        let (_directory, store, issued) = store();
        let (asked, path) = (store.asked_by(&"web-ada".parse().unwrap()), issued.file.unwrap());
        // A program may be run from it.
        let rotation = asked.rotate(&issued.name, HOUR, None, &[], Keep::Nowhere).unwrap();
        assert_eq!(Credentials::load(&path).unwrap().keys, rotation.credentials.keys);
        asked.revoke(&issued.name).unwrap();
        let rights = Permissions::default();
        let again = asked.issue_until(&issued.name, &rights, None, &endpoints(), Keep::Nowhere).unwrap();
        assert!(!path.exists() && again.file.is_none(), "its key is void");
        let rotation = asked.rotate(&issued.name, HOUR, None, &endpoints(), Keep::Nowhere).unwrap();
        assert!(!path.exists() && !store.next_of(&issued.name).exists());
        assert_eq!(rotation.credentials.endpoints, endpoints());
        assert_eq!(
            store.registry().unwrap().peer(&issued.name).unwrap().key,
            rotation.credentials.keys.public
        );
        let entries = store.audit().last().unwrap();
        let by: Vec<_> = entries.iter().map(|entry| entry.by.as_ref().map(PeerName::as_str)).collect();
        // Beginning and end of each: one that nobody asked for, four that were.
        assert_eq!(by, [[None; 2].as_slice(), &[Some("web-ada"); 8]].concat());
    }

    #[test]
    fn who_is_revoked_unknown_or_expired_gets_no_new_key_by_the_way() {
        let (_directory, store, issued) = store();
        let nobody = store.rotate(&"nobody".parse().unwrap(), HOUR, None, &[], None);
        assert!(matches!(nobody, Err(KeyError::UnknownPeer { .. })));
        let expired = store.rotate(&issued.name, HOUR, Some(1), &[], None);
        assert!(matches!(expired, Err(KeyError::Expired { .. })));
        store.revoke(&issued.name).unwrap();
        let revoked = store.rotate(&issued.name, HOUR, None, &[], None);
        assert!(matches!(revoked, Err(KeyError::Revoked { .. })));
        assert_eq!(Credentials::load(&issued.file.unwrap()).unwrap().keys, issued.keys);
    }

    #[test]
    fn a_rotation_that_was_killed_is_undone_before_the_registry_and_finished_after_it() {
        let (_directory, store, issued) = store();
        let path = issued.file.clone().unwrap();
        let next = Credentials { keys: KeyPair::generate(), ..issued.clone() };
        for registered in [false, true] {
            next.save(&store.next_of(&issued.name)).unwrap();
            if registered {
                let mut file = RegistryFile::open(&store.registry_path()).unwrap();
                file.replace_key(&issued.name, &next.keys.public, None, 1000, 0).unwrap();
                file.save().unwrap();
            }
            KeyStore::open_or_create(store.directory()).unwrap();
            let expected = if registered { &next } else { &issued };
            assert_eq!(Credentials::load(&path).unwrap().keys, expected.keys);
            assert!(!store.next_of(&issued.name).exists());
        }
    }
}
