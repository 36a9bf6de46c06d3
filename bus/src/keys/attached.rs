//! Peers that are in the broker's own process only: enrolled as any other, with a key that nobody has.

use std::fmt::Display;

use super::{KeyError, KeyState, KeyStore, Permissions, audit::Act, registry::Peer, store::now_ms};
use crate::{crypto::KeyPair, peer::PeerName};

impl KeyStore {
    /// Enrols `name`, who can be attached in the broker's process and connect from nowhere: the secret half of its key is
    /// forgotten at once, and there is no credentials file. It ends at `expires_ms`, Unix milliseconds.
    ///
    /// # Errors
    /// [`KeyError::PeerExists`] if one of that name is active and has not expired.
    pub fn enrol_attached(
        &self,
        name: &PeerName,
        permissions: &Permissions,
        expires_ms: Option<u64>,
    ) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        let mut file = self.registry_file()?;
        let has_ended = |peer: &Peer| peer.state == KeyState::Active && peer.has_expired(now_ms());
        if file.registry()?.peer(name).is_some_and(has_ended) {
            file.revoke(name)?;
        }
        let key = KeyPair::generate().public;
        let peer = Peer { issued_ms: Some(now_ms()), expires_ms, ..Peer::new(key, permissions.clone()) };
        file.enrol(name, &peer)?;
        let act = Act::on("issue", name, key.fingerprint()).with("in the broker's process only".to_owned());
        self.audit().around(act, || file.save())
    }

    /// Does `work`, a change of another file in the key store, under its lock and with entries in the audit file. It must not
    /// call what takes the lock itself.
    ///
    /// # Errors
    /// Those of `work`; [`KeyError`] if there can be no lock or no entry.
    pub fn change<T, E: Display + From<KeyError>>(
        &self,
        act: Act,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = self.lock()?;
        self.audit().around(act, work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Credentials;

    #[test]
    fn who_is_in_process_only_has_rights_an_end_and_no_credentials_and_can_be_enrolled_again_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = KeyStore::open_or_create(&directory.path().join("keys")).unwrap();
        let name: PeerName = "web-ada".parse().unwrap();
        let rights = Permissions::from_lists(&["a/#"], &[], &[], &[]).unwrap();
        store.enrol_attached(&name, &rights, Some(now_ms() + 60_000)).unwrap();
        let registry = store.registry().unwrap();
        assert!(registry.permissions_of(&name, now_ms()).is_ok());
        assert_eq!(registry.permissions_of(&name, now_ms() + 60_000).unwrap_err().code(), "key_expired");
        assert!(!Credentials::path_in(store.directory(), &name).exists());
        assert!(matches!(store.enrol_attached(&name, &rights, None), Err(KeyError::PeerExists { .. })));
        store.revoke(&name).unwrap();
        store.enrol_attached(&name, &rights, Some(1)).unwrap();
        store.enrol_attached(&name, &rights, None).unwrap();
        assert!(store.registry().unwrap().permissions_of(&name, now_ms()).is_ok());
        let acts: Vec<String> =
            store.audit().last().unwrap().into_iter().map(|entry| entry.act.action).collect();
        assert_eq!(acts.iter().filter(|action| *action == "issue").count(), 6, "{acts:?}");
    }
}
