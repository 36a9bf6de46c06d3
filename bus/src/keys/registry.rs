//! The registry of authorised peers: who may connect, and do what. It alone feeds authenticator,
//! key generation and tool.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use super::{KeyError, Permissions, RuleSource, private_file};
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

/// One peer of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its long-term public key.
    pub key: PublicKey,
    /// Whether the key may connect.
    pub state: KeyState,
    /// What it may do.
    pub permissions: Arc<Permissions>,
}

/// Why a key may not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No peer has this key.
    #[error("key is not in the registry; enrol it with `interlock keys issue NAME`")]
    UnknownKey,
    /// There is no peer of that name any more, or there never was.
    #[error("peer `{0}` is not in the registry; enrol it with `interlock keys issue {0}`")]
    UnknownPeer(PeerName),
    /// The key was revoked.
    #[error("key of `{0}` was revoked; issue a new one with `interlock keys issue {0}`")]
    Revoked(PeerName),
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
            Self::Rightless(_) => "no_rights",
        }
    }
}

/// The peers of one installation, as `authorized.toml` lists them, and the keys of incarnations,
/// which live in memory only.
///
/// Invariants: a key belongs to one name; a name to one registered key and any number of
/// incarnation keys, all with the same rights.
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
            let key = peer.public_key.parse().map_err(|_| {
                damaged(format!("`peers.{name}.public_key` is not a key of 40 Z85 characters"))
            })?;
            let FilePeer { state, publish, subscribe, serve, request, wait, .. } = peer;
            let permissions = Arc::new(Permissions { publish, subscribe, serve, request, wait });
            registry.insert(name, Peer { key, state, permissions }).map_err(|other| {
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
        if let Some(other) = self.names.get(&peer.key).filter(|other| **other != name) {
            return Err(other.clone());
        }
        if let Some(old) = self.peers.get(&name) {
            self.names.remove(&old.key);
        }
        self.names.insert(peer.key, name.clone());
        self.peers.insert(name, peer);
        Ok(())
    }

    /// Whether this key may connect, as whom, and with which rights.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn authenticate(&self, key: &PublicKey) -> Result<(PeerName, Arc<Permissions>), Refusal> {
        let name = self.peer_of(key).ok_or(Refusal::UnknownKey)?;
        let permissions = self.permissions_of(&name)?;
        Ok((name, permissions))
    }

    /// Whether this peer may have a session, with a key or in the broker's process, and its rights.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn permissions_of(&self, name: &PeerName) -> Result<Arc<Permissions>, Refusal> {
        let peer = self.peers.get(name).ok_or_else(|| Refusal::UnknownPeer(name.clone()))?;
        match peer.state {
            KeyState::Revoked => Err(Refusal::Revoked(name.clone())),
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

/// An `authorized.toml` that is edited with its comments kept.
#[derive(Debug)]
pub struct RegistryFile {
    path: PathBuf,
    document: toml_edit::DocumentMut,
}

/// What stands at the top of a new `authorized.toml`.
const FILE_HEAD: &str = "\
# Who may connect to the bus, and do what. Read live: a saved change applies at once;
# a file with a mistake is refused and the old rules stay.
# Rights: publish, subscribe, serve, request, each with `allow` and `deny` lists of topic filters
# (`+` one level, `#` the rest). Deny beats allow beats the default, which is deny.
";

impl RegistryFile {
    /// Opens the file for editing; a missing one begins with an explanation.
    ///
    /// # Errors
    /// Those of [`Registry::load`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let text =
            if path.exists() { private_file::read_text(path)?.to_string() } else { FILE_HEAD.to_owned() };
        Registry::from_toml(&text, path)?;
        let document = text.parse().map_err(|error: toml_edit::TomlError| KeyError::Damaged {
            path: path.to_owned(),
            problem: error.message().to_owned(),
        })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a peer.
    ///
    /// # Errors
    /// [`KeyError::PeerExists`] if one of that name is active.
    pub fn enrol(
        &mut self,
        name: &PeerName,
        key: &PublicKey,
        permissions: &Permissions,
    ) -> Result<(), KeyError> {
        let registry = self.registry()?;
        if registry.peer(name).is_some_and(|peer| peer.state == KeyState::Active) {
            return Err(KeyError::PeerExists { name: name.clone(), path: self.path.clone() });
        }
        let damaged = |problem: String| KeyError::Damaged { path: self.path.clone(), problem };
        let mut table =
            toml_edit::ser::to_document(permissions).map_err(|error| damaged(error.to_string()))?;
        table.insert("public_key", toml_edit::value(key.to_string()));
        let mut table = table.as_table().clone();
        if self.document.is_empty() {
            // A document without tables holds its comments as trailing text; they belong on top.
            let head = self.document.trailing().as_str().unwrap_or_default().to_owned();
            table.decor_mut().set_prefix(head + "\n");
            self.document.set_trailing("");
        } else {
            table.decor_mut().set_prefix("\n");
        }
        let peers = self.document.entry("peers").or_insert_with(|| {
            let mut peers = toml_edit::Table::new();
            peers.set_implicit(true);
            toml_edit::Item::Table(peers)
        });
        let peers = peers.as_table_like_mut().ok_or_else(|| KeyError::Damaged {
            path: self.path.clone(),
            problem: "`peers` is not a table".to_owned(),
        })?;
        peers.insert(name.as_str(), toml_edit::Item::Table(table));
        Ok(())
    }

    /// Gives a peer other rights; key and state stay. For peers whose rights are set elsewhere, as those of
    /// configured programs are.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn set_permissions(&mut self, name: &PeerName, permissions: &Permissions) -> Result<(), KeyError> {
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let damaged = |problem: String| KeyError::Damaged { path: self.path.clone(), problem };
        let rights = toml_edit::ser::to_document(permissions).map_err(|error| damaged(error.to_string()))?;
        let peers =
            self.document.get_mut("peers").and_then(|peers| peers.as_table_like_mut()).ok_or_else(unknown)?;
        let peer =
            peers.get_mut(name.as_str()).and_then(|peer| peer.as_table_like_mut()).ok_or_else(unknown)?;
        for key in ["publish", "subscribe", "serve", "request", "wait"] {
            peer.remove(key);
        }
        for (key, item) in rights.iter() {
            peer.insert(key, item.clone());
        }
        Ok(())
    }

    /// Marks a peer's key as revoked.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn revoke(&mut self, name: &PeerName) -> Result<(), KeyError> {
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let peers =
            self.document.get_mut("peers").and_then(|peers| peers.as_table_like_mut()).ok_or_else(unknown)?;
        let peer =
            peers.get_mut(name.as_str()).and_then(|peer| peer.as_table_like_mut()).ok_or_else(unknown)?;
        peer.insert("state", toml_edit::value("revoked"));
        Ok(())
    }

    /// What the document says now.
    ///
    /// # Errors
    /// [`KeyError::Damaged`].
    pub fn registry(&self) -> Result<Registry, KeyError> {
        Registry::from_toml(&self.document.to_string(), &self.path)
    }

    /// Checks and writes the file.
    ///
    /// # Errors
    /// [`KeyError::Damaged`] if the result would not be readable, [`KeyError::Io`].
    pub fn save(&self) -> Result<(), KeyError> {
        self.registry()?;
        private_file::replace(&self.path, self.document.to_string().as_bytes())
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
    fn other_rights_leave_key_and_neighbours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RegistryFile::open(&directory.path().join("authorized.toml")).unwrap();
        let (one, two): (PeerName, PeerName) = ("one".parse().unwrap(), "two".parse().unwrap());
        let key = KeyPair::generate().public;
        file.enrol(&one, &key, &permissions()).unwrap();
        file.enrol(&two, &KeyPair::generate().public, &permissions()).unwrap();
        let other = Permissions::from_lists(&[], &[], &["x/#"], &[]).unwrap();
        file.set_permissions(&one, &other).unwrap();
        file.save().unwrap();
        let registry = Registry::load(file.path()).unwrap();
        assert_eq!(*registry.peer(&one).unwrap().permissions, other);
        assert_eq!(registry.peer(&one).unwrap().key, key);
        assert_eq!(*registry.peer(&two).unwrap().permissions, permissions());
        assert!(file.set_permissions(&"three".parse().unwrap(), &other).is_err());
    }

    #[test]
    fn enrolling_keeps_comments_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authorized.toml");
        let key = KeyPair::generate().public;
        let mut file = RegistryFile::open(&path).unwrap();
        file.enrol(&"gateway".parse().unwrap(), &key, &permissions()).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[peers.gateway]", "# mine\n[peers.gateway]")).unwrap();

        let mut file = RegistryFile::open(&path).unwrap();
        file.enrol(&"tool".parse().unwrap(), &KeyPair::generate().public, &permissions()).unwrap();
        assert!(matches!(
            file.enrol(&"tool".parse().unwrap(), &key, &permissions()),
            Err(KeyError::PeerExists { .. })
        ));
        file.save().unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("# mine") && text.starts_with("# Who may connect"), "{text}");
        let registry = Registry::load(&path).unwrap();
        let (name, rights) = registry.authenticate(&key).unwrap();
        assert_eq!((name.as_str(), &*rights), ("gateway", &permissions()));
    }

    #[test]
    fn unknown_revoked_and_rightless_keys_are_refused_each_by_its_name() {
        let mut registry = Registry::default();
        let keys: Vec<PublicKey> = (0..3).map(|_| KeyPair::generate().public).collect();
        let mut add = |name: &str, key, state, permissions: Permissions| {
            registry
                .insert(name.parse().unwrap(), Peer { key, state, permissions: permissions.into() })
                .unwrap();
        };
        add("gone", keys[0], KeyState::Revoked, permissions());
        add("mute", keys[1], KeyState::Active, Permissions::default());
        let code = |key| registry.authenticate(key).unwrap_err().code();
        assert_eq!(
            [code(&keys[0]), code(&keys[1]), code(&keys[2])],
            ["revoked_key", "no_rights", "unknown_key"]
        );
    }

    #[test]
    fn an_incarnation_key_has_the_rights_of_its_name_until_it_is_removed() {
        let mut registry = Registry::default();
        let name: PeerName = "program".parse().unwrap();
        let peer = Peer {
            key: KeyPair::generate().public,
            state: KeyState::Active,
            permissions: permissions().into(),
        };
        registry.insert(name.clone(), peer).unwrap();
        let key = KeyPair::generate().public;
        registry.incarnations().insert(key, name.clone());
        assert_eq!(registry.authenticate(&key).unwrap().0, name);
        registry.incarnations().remove(&key);
        assert_eq!(registry.authenticate(&key), Err(Refusal::UnknownKey));
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
