//! `authorized.toml` as it is edited: by commands, beside people, with their comments kept.

use std::path::{Path, PathBuf};

use super::{
    KeyError, KeyState, Permissions, Registry, private_file,
    registry::{Peer, ReplacedKey},
    time_text,
};
use crate::{crypto::PublicKey, peer::PeerName};

/// Keys of one peer that may overlap. The youngest stay.
const OLD_KEYS_MAX: usize = 8;

/// Writes what a peer's entry says of time: when its key was made, when it ends, and what it replaced.
fn put_times(entry: &mut dyn toml_edit::TableLike, peer: &Peer) {
    for (field, ms) in [("issued", peer.issued_ms), ("expires", peer.expires_ms)] {
        match ms {
            Some(ms) => entry.insert(field, toml_edit::value(time_text(ms))),
            None => entry.remove(field),
        };
    }
    let old_keys = peer.old_keys.iter().map(|old| {
        let mut table = toml_edit::InlineTable::new();
        table.insert("public_key", old.key.to_string().into());
        table.insert("until", time_text(old.until_ms).into());
        table
    });
    let old_keys: toml_edit::Array = old_keys.collect();
    if old_keys.is_empty() {
        entry.remove("old_keys");
    } else {
        entry.insert("old_keys", toml_edit::value(old_keys));
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
    pub fn enrol(&mut self, name: &PeerName, peer: &Peer) -> Result<(), KeyError> {
        let registry = self.registry()?;
        if registry.peer(name).is_some_and(|peer| peer.state == KeyState::Active) {
            return Err(KeyError::PeerExists { name: name.clone(), path: self.path.clone() });
        }
        let damaged = |problem: String| KeyError::Damaged { path: self.path.clone(), problem };
        let mut table =
            toml_edit::ser::to_document(&*peer.permissions).map_err(|error| damaged(error.to_string()))?;
        table.insert("public_key", toml_edit::value(peer.key.to_string()));
        put_times(table.as_table_mut(), peer);
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
        let damaged = |problem: String| KeyError::Damaged { path: self.path.clone(), problem };
        let rights = toml_edit::ser::to_document(permissions).map_err(|error| damaged(error.to_string()))?;
        let peer = self.entry(name)?;
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
        self.entry(name)?.insert("state", toml_edit::value("revoked"));
        Ok(())
    }

    /// Gives a peer another key. The one before it is accepted for `overlap_ms` longer, none at all if that is zero;
    /// `expires_ms` is the end of all of them. Rights and comments stay.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub fn replace_key(
        &mut self,
        name: &PeerName,
        key: &PublicKey,
        expires_ms: Option<u64>,
        overlap_ms: u64,
        now_ms: u64,
    ) -> Result<(), KeyError> {
        let registry = self.registry()?;
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let mut peer = registry.peer(name).cloned().ok_or_else(unknown)?;
        if overlap_ms == 0 {
            peer.old_keys.clear();
        } else {
            let until_ms = now_ms.saturating_add(overlap_ms);
            peer.old_keys.retain(|old| old.until_ms > now_ms);
            peer.old_keys.insert(0, ReplacedKey { key: peer.key, until_ms });
            peer.old_keys.truncate(OLD_KEYS_MAX);
        }
        (peer.key, peer.issued_ms, peer.expires_ms) = (*key, Some(now_ms), expires_ms);
        let entry = self.entry(name)?;
        entry.insert("public_key", toml_edit::value(key.to_string()));
        put_times(entry, &peer);
        Ok(())
    }

    /// The table of a peer.
    fn entry(&mut self, name: &PeerName) -> Result<&mut dyn toml_edit::TableLike, KeyError> {
        let unknown = KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let peers = self.document.get_mut("peers").and_then(|peers| peers.as_table_like_mut());
        let peer = peers.and_then(|peers| peers.get_mut(name.as_str()));
        peer.and_then(|peer| peer.as_table_like_mut()).ok_or(unknown)
    }

    /// A peer's table as a document of its own.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`].
    pub(super) fn entry_text(&self, name: &PeerName) -> Result<String, KeyError> {
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let peers = self.document.get("peers").and_then(|peers| peers.as_table_like());
        let entry = peers.and_then(|peers| peers.get(name.as_str())).ok_or_else(unknown)?;
        let mut peers = toml_edit::Table::new();
        peers.set_implicit(true);
        peers.insert(name.as_str(), entry.clone());
        let mut document = toml_edit::DocumentMut::new();
        document.insert("peers", toml_edit::Item::Table(peers));
        Ok(document.to_string())
    }

    /// Puts a peer's table from such a document in the place of the one there is, if there is one.
    ///
    /// # Errors
    /// [`KeyError::Damaged`].
    pub(super) fn put_entry(&mut self, name: &PeerName, text: &str) -> Result<(), KeyError> {
        let registry = Registry::from_toml(text, &self.path)?;
        let unknown = || KeyError::UnknownPeer { name: name.clone(), path: self.path.clone() };
        let peer = registry.peer(name).ok_or_else(unknown)?;
        if let Some(present) = self.document.get_mut("peers").and_then(|peers| peers.as_table_like_mut()) {
            present.remove(name.as_str());
        }
        self.enrol(name, peer)?;
        if peer.state == KeyState::Revoked {
            self.revoke(name)?;
        }
        Ok(())
    }

    /// The whole document.
    pub(super) fn text(&self) -> String {
        self.document.to_string()
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
    fn another_key_keeps_rights_comments_and_the_old_key_for_its_overlap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authorized.toml");
        let mut file = RegistryFile::open(&path).unwrap();
        let name: PeerName = "guest".parse().unwrap();
        let keys: Vec<PublicKey> = (0..12).map(|_| KeyPair::generate().public).collect();
        let peer =
            Peer { issued_ms: Some(1000), expires_ms: Some(90_000), ..Peer::new(keys[0], permissions()) };
        file.enrol(&name, &peer).unwrap();
        assert_eq!(file.registry().unwrap().peer(&name), Some(&peer));
        file.replace_key(&name, &keys[1], Some(80_000), 3000, 2000).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[peers.guest]", "# mine\n[peers.guest]")).unwrap();
        let mut file = RegistryFile::open(&path).unwrap();
        let read = file.registry().unwrap().peer(&name).unwrap().clone();
        let old_keys = vec![ReplacedKey { key: keys[0], until_ms: 5000 }];
        let expected =
            Peer { key: keys[1], issued_ms: Some(2000), expires_ms: Some(80_000), old_keys, ..peer };
        assert_eq!(read, expected);
        // However often: a few stay. None without an overlap.
        for key in &keys[2..] {
            file.replace_key(&name, key, None, 3000, 2000).unwrap();
        }
        let read = file.registry().unwrap().peer(&name).unwrap().clone();
        assert_eq!(
            (read.old_keys.len(), read.old_keys[0].key, read.expires_ms),
            (OLD_KEYS_MAX, keys[10], None)
        );
        file.replace_key(&name, &keys[0], None, 0, 2000).unwrap();
        assert!(file.registry().unwrap().peer(&name).unwrap().old_keys.is_empty());
        assert!(file.document.to_string().contains("# mine"));
        assert!(file.replace_key(&"nobody".parse().unwrap(), &keys[1], None, 0, 0).is_err());
    }

    #[test]
    fn other_rights_leave_key_and_neighbours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RegistryFile::open(&directory.path().join("authorized.toml")).unwrap();
        let (one, two): (PeerName, PeerName) = ("one".parse().unwrap(), "two".parse().unwrap());
        let key = KeyPair::generate().public;
        file.enrol(&one, &Peer::new(key, permissions())).unwrap();
        file.enrol(&two, &Peer::new(KeyPair::generate().public, permissions())).unwrap();
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
        file.enrol(&"gateway".parse().unwrap(), &Peer::new(key, permissions())).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[peers.gateway]", "# mine\n[peers.gateway]")).unwrap();

        let mut file = RegistryFile::open(&path).unwrap();
        file.enrol(&"tool".parse().unwrap(), &Peer::new(KeyPair::generate().public, permissions())).unwrap();
        assert!(matches!(
            file.enrol(&"tool".parse().unwrap(), &Peer::new(key, permissions())),
            Err(KeyError::PeerExists { .. })
        ));
        file.save().unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("# mine") && text.starts_with("# Who may connect"), "{text}");
        let registry = Registry::load(&path).unwrap();
        let (name, rights) = registry.authenticate(&key, 0).unwrap();
        assert_eq!((name.as_str(), &*rights), ("gateway", &permissions()));
    }
}
