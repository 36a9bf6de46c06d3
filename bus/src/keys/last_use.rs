//! When each key and each peer last had a session: what tells a key that nobody needs from one that somebody does.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{KeyError, Registry, private_file};
use crate::{crypto::PublicKey, peer::PeerName};

/// Name of the file in the key store.
pub const FILE: &str = "last-use.json";

/// The last moment, in Unix milliseconds, at which a session of theirs was known to be open.
///
/// - Written by the broker: a few seconds after a session began or ended, and now and then while one goes on. A broker
///   that is killed leaves what was written, so a time may be too early, never too late.
/// - No secret and no rule: without the file, or with a damaged one, everything works, and uses before are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastUse {
    /// By public key, as Z85.
    keys: BTreeMap<String, u64>,
    /// By name, with whatever key: also with one of an incarnation, or with none in the broker's process.
    peers: BTreeMap<PeerName, u64>,
}

impl LastUse {
    /// What is known in this key store. Nothing, if nothing was written yet.
    ///
    /// # Errors
    /// [`KeyError`] of a file that cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_str(&private_file::read_text(path)?)
            .map_err(|error| KeyError::Damaged { path: path.to_owned(), problem: error.to_string() })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| KeyError::Damaged { path: path.to_owned(), problem: error.to_string() })?;
        private_file::replace(path, text.as_bytes())
    }

    /// A session of `peer` is open at `now_ms`; `key` is the one it began with, if with one.
    pub fn note(&mut self, peer: &PeerName, key: Option<&PublicKey>, now_ms: u64) {
        let later = |at: &mut u64| *at = now_ms.max(*at);
        self.peers.entry(peer.clone()).and_modify(later).or_insert(now_ms);
        if let Some(key) = key {
            self.keys.entry(key.to_string()).and_modify(later).or_insert(now_ms);
        }
    }

    /// Takes in what another knows, the later time of each.
    pub fn merge(&mut self, other: Self) {
        for (peer, at) in other.peers {
            let own = self.peers.entry(peer).or_insert(at);
            *own = at.max(*own);
        }
        for (key, at) in other.keys {
            let own = self.keys.entry(key).or_insert(at);
            *own = at.max(*own);
        }
    }

    /// Forgets keys and peers that are not registered: keys of incarnations, and whoever was removed.
    pub fn keep_registered(&mut self, registry: &Registry) {
        let registered: std::collections::HashSet<String> =
            registry.peers().flat_map(|(_, peer)| peer.keys()).map(ToString::to_string).collect();
        self.keys.retain(|key, _| registered.contains(key));
        self.peers.retain(|peer, _| registry.peer(peer).is_some());
    }

    /// When this key last had a session; `None` if never, as far as known.
    pub fn of_key(&self, key: &PublicKey) -> Option<u64> {
        self.keys.get(&key.to_string()).copied()
    }

    /// When this peer last had one, with whatever key.
    pub fn of_peer(&self, peer: &PeerName) -> Option<u64> {
        self.peers.get(peer).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::KeyPair, keys::registry::Peer};

    #[test]
    fn the_latest_time_counts_and_only_what_is_registered_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        assert_eq!(LastUse::load(&path).unwrap(), LastUse::default());
        let [key, incarnation] = [0; 2].map(|_| KeyPair::generate().public);
        let [ada, gone]: [PeerName; 2] = ["ada", "gone"].map(|name| name.parse().unwrap());
        let mut registry = Registry::default();
        registry.insert(ada.clone(), Peer::new(key, Default::default())).unwrap();
        let mut known = LastUse::default();
        known.note(&ada, Some(&key), 2000);
        known.note(&ada, Some(&incarnation), 3000);
        known.note(&gone, None, 1000);
        // A clock that was set back takes nothing away.
        known.note(&ada, Some(&key), 500);
        known.keep_registered(&registry);
        known.save(&path).unwrap();
        let mut read = LastUse::load(&path).unwrap();
        assert_eq!((read.of_key(&key), read.of_key(&incarnation)), (Some(2000), None));
        assert_eq!((read.of_peer(&ada), read.of_peer(&gone)), (Some(3000), None));
        let mut other = LastUse::default();
        other.note(&ada, Some(&key), 2500);
        read.merge(other);
        assert_eq!((read.of_key(&key), read.of_peer(&ada)), (Some(2500), Some(3000)));
        private_file::replace(&path, b"{").unwrap();
        assert!(matches!(LastUse::load(&path), Err(KeyError::Damaged { .. })));
    }
}
