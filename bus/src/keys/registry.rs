//! The registry of authorised peers: who may connect, and do what. It alone feeds authenticator,
//! key generation and tool.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use super::{KeyError, Permissions, RuleSource, private_file, time_text, token_file::token_of};
use crate::{crypto::PublicKey, peer::PeerName};

/// Whether a registered key may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It may.
    #[default]
    Active,
    /// It may not; sessions it had were closed.
    Revoked,
}

/// One peer of the registry. Times are Unix milliseconds, as the clock of this machine says: set forward, it ends keys;
/// set back, it revives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its long-term public key.
    pub key: PublicKey,
    /// Whether the key may connect.
    pub state: KeyState,
    /// What it may do.
    pub permissions: Arc<Permissions>,
    /// When the key was made; `None` if nobody has written it down.
    pub issued_ms: Option<u64>,
    /// When the peer's keys end, whichever they are; `None` for never.
    pub expires_ms: Option<u64>,
    /// Keys it had before, and until when each is accepted.
    pub old_keys: Vec<ReplacedKey>,
}

/// A key that was replaced by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplacedKey {
    /// The public key.
    pub key: PublicKey,
    /// When its overlap ends.
    pub until_ms: u64,
}

impl Peer {
    /// A peer whose key has no end.
    pub fn new(key: PublicKey, permissions: Permissions) -> Self {
        let permissions = Arc::new(permissions);
        let state = KeyState::Active;
        Self { key, state, permissions, issued_ms: None, expires_ms: None, old_keys: Vec::new() }
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }

    /// All its keys, the present one first.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        [&self.key].into_iter().chain(self.old_keys.iter().map(|old| &old.key))
    }
}

/// How a peer comes in again: the bearer of a token by another token.
pub(crate) fn enrolment(name: &PeerName) -> String {
    match token_of(name) {
        Some(token) => format!("make another token with `interlock tokens issue {token}`"),
        None => format!("enrol it with `interlock keys issue {name}`"),
    }
}

fn renewal(name: &PeerName) -> String {
    match token_of(name) {
        Some(_) => enrolment(name),
        None => format!("give it a new one with `interlock keys rotate {name} --expires 30d`"),
    }
}

/// Why a key may not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No peer has this key.
    #[error("key is not in the registry; enrol it with `interlock keys issue NAME`")]
    UnknownKey,
    /// There is no peer of that name any more, or there never was.
    #[error("peer `{name}` is not in the registry; {}", enrolment(.0), name = .0)]
    UnknownPeer(PeerName),
    /// The key was revoked.
    #[error("key of `{name}` was revoked; {}", enrolment(.0), name = .0)]
    Revoked(PeerName),
    /// The time of the peer's keys is over.
    #[error("key of `{name}` expired at {}; {}", time_text(*.expires_ms), renewal(.name))]
    Expired {
        /// The peer.
        name: PeerName,
        /// When that was, Unix milliseconds.
        expires_ms: u64,
    },
    /// The peer has another key, and the overlap of this one has ended.
    #[error(
        "key of `{0}` was replaced and is not accepted any more; its credentials file has the new one, or `interlock keys rotate {0}` makes one"
    )]
    Replaced(PeerName),
    /// The peer has no right at all.
    #[error("peer `{0}` has no permission at all; give it one in `authorized.toml`")]
    Rightless(PeerName),
}

impl Refusal {
    /// The refusal's name in events, counters and the tool.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownKey | Self::UnknownPeer(_) => "unknown_key",
            Self::Revoked(_) => "revoked_key",
            Self::Expired { .. } => "key_expired",
            Self::Replaced(_) => "key_replaced",
            Self::Rightless(_) => "no_rights",
        }
    }

    /// The code with which a session ends that was open when this became true.
    pub(crate) fn ending_code(&self) -> &'static str {
        match self {
            Self::Expired { .. } | Self::Replaced(_) => self.code(),
            _ => "revoked",
        }
    }
}

/// The peers of one installation, as `authorized.toml` lists them, and the keys of incarnations,
/// which live in memory only.
///
/// Invariants: a key belongs to one name; a name to one registered key, those it had before while their overlap lasts,
/// and any number of incarnation keys, all with the same rights and the same end.
#[derive(Debug, Default)]
pub struct Registry {
    peers: BTreeMap<PeerName, Peer>,
    names: HashMap<PublicKey, PeerName>,
    /// Keys of incarnations. Shared with those who issue them while the broker reads.
    incarnations: Arc<DashMap<PublicKey, PeerName>>,
    source: Option<Arc<RuleSource>>,
}

/// The file's form.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    peers: BTreeMap<PeerName, FilePeer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePeer {
    public_key: String,
    #[serde(default)]
    state: KeyState,
    #[serde(default)]
    issued: Option<jiff::Timestamp>,
    #[serde(default)]
    expires: Option<jiff::Timestamp>,
    #[serde(default)]
    old_keys: Vec<FileReplaced>,
    #[serde(default)]
    publish: super::Rules,
    #[serde(default)]
    subscribe: super::Rules,
    #[serde(default)]
    serve: super::Rules,
    #[serde(default)]
    request: super::Rules,
    #[serde(default)]
    wait: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileReplaced {
    public_key: String,
    until: jiff::Timestamp,
}

/// Before 1970 is as good as its beginning.
fn unix_ms(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or_default()
}

impl Registry {
    /// Reads `authorized.toml`.
    ///
    /// # Errors
    /// Those of [`private_file::read`]; [`KeyError::Damaged`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_toml(&private_file::read_text(path)?, path)
    }

    /// Reads a registry from text; `origin` is named in errors.
    ///
    /// # Errors
    /// [`KeyError::Damaged`] naming line and key.
    pub fn from_toml(text: &str, origin: &Path) -> Result<Self, KeyError> {
        let damaged = |problem: String| KeyError::Damaged { path: origin.to_owned(), problem };
        let file: File = toml::from_str(text).map_err(|error| {
            // Nothing in this file is secret, so the parser's whole message may be shown.
            let line =
                error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            damaged(format!("line {line}: {}", error.message()))
        })?;
        let source = Some(Arc::new(RuleSource::new(origin, text)));
        let mut registry = Self { source, ..Self::default() };
        for (name, peer) in file.peers {
            let key = |text: &str, field: &str| {
                text.parse()
                    .map_err(|_| damaged(format!("`peers.{name}.{field}` is not a key of 40 Z85 characters")))
            };
            let old_keys = peer.old_keys.iter().map(|old| {
                let key = key(&old.public_key, "old_keys.public_key")?;
                Ok(ReplacedKey { key, until_ms: unix_ms(old.until) })
            });
            let old_keys = old_keys.collect::<Result<Vec<_>, KeyError>>()?;
            let key = key(&peer.public_key, "public_key")?;
            let (issued_ms, expires_ms) = (peer.issued.map(unix_ms), peer.expires.map(unix_ms));
            let FilePeer { state, publish, subscribe, serve, request, wait, .. } = peer;
            let permissions = Arc::new(Permissions { publish, subscribe, serve, request, wait });
            let peer = Peer { key, state, permissions, issued_ms, expires_ms, old_keys };
            registry.insert(name, peer).map_err(|other| {
                damaged(format!("two peers have the same public key, one of them `{other}`"))
            })?;
        }
        Ok(registry)
    }

    /// Adds a peer or replaces the one of that name. Refused, with the other's name, if the key is taken.
    ///
    /// # Errors
    /// The name that holds the key.
    pub fn insert(&mut self, name: PeerName, peer: Peer) -> Result<(), PeerName> {
        let taken = |key: &PublicKey| self.names.get(key).filter(|other| **other != name);
        if let Some(other) = peer.keys().find_map(taken) {
            return Err(other.clone());
        }
        for key in self.peers.get(&name).into_iter().flat_map(Peer::keys) {
            self.names.remove(key);
        }
        self.names.extend(peer.keys().map(|key| (*key, name.clone())));
        self.peers.insert(name, peer);
        Ok(())
    }

    /// Whether this key may connect, as whom, and with which rights.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn authenticate(
        &self,
        key: &PublicKey,
        now_ms: u64,
    ) -> Result<(PeerName, Arc<Permissions>), Refusal> {
        let name = self.peer_of(key).ok_or(Refusal::UnknownKey)?;
        let permissions = self.permissions_of(&name, now_ms)?;
        let replaced =
            self.peers.get(&name).and_then(|peer| peer.old_keys.iter().find(|old| old.key == *key));
        match replaced {
            Some(old) if old.until_ms <= now_ms => Err(Refusal::Replaced(name)),
            _ => Ok((name, permissions)),
        }
    }

    /// Whether an open session may go on: as [`Registry::authenticate`], and a key that the peer had when the session
    /// began and has no more was replaced.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn judge(
        &self,
        name: &PeerName,
        key: Option<&PublicKey>,
        now_ms: u64,
    ) -> Result<Arc<Permissions>, Refusal> {
        let Some(key) = key else { return self.permissions_of(name, now_ms) };
        match self.authenticate(key, now_ms) {
            Err(Refusal::UnknownKey) if self.peers.contains_key(name) => {
                self.permissions_of(name, now_ms)?;
                Err(Refusal::Replaced(name.clone()))
            }
            judged => judged.map(|(_, permissions)| permissions),
        }
    }

    /// The next moment at which a key ends by itself, after `now_ms`.
    pub fn next_end_ms(&self, now_ms: u64) -> Option<u64> {
        let ends =
            self.peers.values().filter(|peer| peer.state == KeyState::Active).flat_map(|peer| {
                peer.expires_ms.into_iter().chain(peer.old_keys.iter().map(|old| old.until_ms))
            });
        ends.filter(|end_ms| *end_ms > now_ms).min()
    }

    /// Whether this peer may have a session, with a key or in the broker's process, and its rights.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn permissions_of(&self, name: &PeerName, now_ms: u64) -> Result<Arc<Permissions>, Refusal> {
        let peer = self.peers.get(name).ok_or_else(|| Refusal::UnknownPeer(name.clone()))?;
        match peer.state {
            KeyState::Revoked => Err(Refusal::Revoked(name.clone())),
            KeyState::Active if peer.has_expired(now_ms) => {
                Err(Refusal::Expired { name: name.clone(), expires_ms: peer.expires_ms.unwrap_or_default() })
            }
            KeyState::Active if peer.permissions.is_empty() => Err(Refusal::Rightless(name.clone())),
            KeyState::Active => Ok(Arc::clone(&peer.permissions)),
        }
    }

    /// The name a key belongs to, whether or not it may connect.
    /// `None` if it belongs to nobody.
    pub fn peer_of(&self, key: &PublicKey) -> Option<PeerName> {
        let incarnation = || self.incarnations.get(key).map(|entry| entry.value().clone());
        self.names.get(key).cloned().or_else(incarnation)
    }

    /// The peer of that name.
    /// `None` if there is none.
    pub fn peer(&self, name: &PeerName) -> Option<&Peer> {
        self.peers.get(name)
    }

    /// All peers by name.
    pub fn peers(&self) -> impl Iterator<Item = (&PeerName, &Peer)> {
        self.peers.iter()
    }

    /// Where its rules stand; `None` if they come from no text.
    pub fn source(&self) -> Option<&Arc<RuleSource>> {
        self.source.as_ref()
    }

    /// The keys of incarnations: whoever starts a program adds one, and removes it when the
    /// incarnation ends. Survives [`Registry::replace_peers`].
    pub fn incarnations(&self) -> Arc<DashMap<PublicKey, PeerName>> {
        Arc::clone(&self.incarnations)
    }

    /// Takes the keys of incarnations from an earlier registry.
    pub(crate) fn share_incarnations(&mut self, incarnations: Arc<DashMap<PublicKey, PeerName>>) {
        self.incarnations = incarnations;
    }

    /// Takes over the peers of `edited`, keeping the keys of incarnations.
    pub fn replace_peers(&mut self, edited: Registry) {
        self.peers = edited.peers;
        self.names = edited.names;
        self.source = edited.source;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;

    fn permissions() -> Permissions {
        Permissions::from_lists(&["a/#"], &["b"], &[], &["c/+"]).unwrap()
    }

    #[test]
    fn a_refusal_names_the_way_by_which_the_peer_can_come_in_again() {
        let (ada, bearer): (PeerName, PeerName) = ("ada".parse().unwrap(), "web-ada".parse().unwrap());
        for refusal in [Refusal::UnknownPeer, Refusal::Revoked] {
            assert!(refusal(ada.clone()).to_string().ends_with("`interlock keys issue ada`"));
            assert!(refusal(bearer.clone()).to_string().ends_with("`interlock tokens issue ada`"));
        }
        let expired = Refusal::Expired { name: bearer, expires_ms: 1 }.to_string();
        assert!(expired.ends_with("`interlock tokens issue ada`"), "{expired}");
    }

    #[test]
    fn unknown_revoked_and_rightless_keys_are_refused_each_by_its_name() {
        let mut registry = Registry::default();
        let keys: Vec<PublicKey> = (0..3).map(|_| KeyPair::generate().public).collect();
        let mut add = |name: &str, key, state, permissions: Permissions| {
            registry.insert(name.parse().unwrap(), Peer { state, ..Peer::new(key, permissions) }).unwrap();
        };
        add("gone", keys[0], KeyState::Revoked, permissions());
        add("mute", keys[1], KeyState::Active, Permissions::default());
        let code = |key| registry.authenticate(key, 0).unwrap_err().code();
        assert_eq!(
            [code(&keys[0]), code(&keys[1]), code(&keys[2])],
            ["revoked_key", "no_rights", "unknown_key"]
        );
    }

    #[test]
    fn an_incarnation_key_has_the_rights_of_its_name_until_it_is_removed() {
        let mut registry = Registry::default();
        let name: PeerName = "program".parse().unwrap();
        let peer = Peer::new(KeyPair::generate().public, permissions());
        registry.insert(name.clone(), peer).unwrap();
        let key = KeyPair::generate().public;
        registry.incarnations().insert(key, name.clone());
        assert_eq!(registry.authenticate(&key, 0).unwrap().0, name);
        registry.incarnations().remove(&key);
        assert_eq!(registry.authenticate(&key, 0), Err(Refusal::UnknownKey));
    }

    #[test]
    fn a_key_ends_at_its_instant_and_those_it_replaced_at_theirs() {
        let mut registry = Registry::default();
        let name: PeerName = "guest".parse().unwrap();
        let [now, before, incarnation] = [0; 3].map(|_| KeyPair::generate().public);
        let old_keys = vec![ReplacedKey { key: before, until_ms: 500 }];
        let peer = Peer { expires_ms: Some(1000), old_keys, ..Peer::new(now, permissions()) };
        registry.insert(name.clone(), peer).unwrap();
        registry.incarnations().insert(incarnation, name.clone());
        let code =
            |key: &PublicKey, now_ms| registry.authenticate(key, now_ms).map_err(|refusal| refusal.code());
        assert!(code(&now, 999).is_ok() && code(&before, 499).is_ok() && code(&incarnation, 999).is_ok());
        assert_eq!(code(&before, 500), Err("key_replaced"));
        assert_eq!(
            [code(&now, 1000), code(&before, 1000), code(&incarnation, 1000)],
            [const { Err("key_expired") }; 3]
        );
        assert_eq!(
            [0, 499, 500, 999, 1000].map(|now_ms| registry.next_end_ms(now_ms)),
            [Some(500), Some(500), Some(1000), Some(1000), None]
        );
        // A clock that was set back finds them again.
        assert!(code(&now, 0).is_ok());
        // An open session with a key that is gone was replaced; one with a stranger's key never was.
        let gone = KeyPair::generate().public;
        assert_eq!(registry.judge(&name, Some(&gone), 0), Err(Refusal::Replaced(name.clone())));
        assert_eq!(registry.judge(&name, Some(&gone), 1000).unwrap_err().code(), "key_expired");
        assert!(registry.judge(&name, None, 0).is_ok());
    }

    #[test]
    fn a_mistake_names_the_line_and_what_is_allowed() {
        let problem =
            |text: &str| Registry::from_toml(text, Path::new("authorized.toml")).unwrap_err().to_string();
        let key = KeyPair::generate().public;
        assert!(problem("[peers.a]\npublic_key = 'short'").contains("peers.a.public_key"));
        assert!(
            problem(&format!("[peers.a]\npublic_key = '{key}'\npublish = {{ alow = [] }}"))
                .contains("line 3")
        );
        assert!(
            problem(&format!("[peers.a]\npublic_key = '{key}'\npublish = {{ allow = ['a//b'] }}"))
                .contains("empty level")
        );
        assert!(
            problem(&format!("[peers.a]\npublic_key = '{key}'\n[peers.b]\npublic_key = '{key}'"))
                .contains("same public key")
        );
    }
}
