//! Keys on their way to another place: peers with their keys and rights, and the broker's keys, sealed under a passphrase.
//!
//! Three lines of text. The first is a header in JSON: what it is, its version, and what making the key from the passphrase
//! costs (Argon2id, one lane, believed within [`PassphraseCost::MOST`] only). The second holds, in hexadecimal digits, a box
//! with nothing in it, sealed beside the header, and the first 16 bytes of the BLAKE2b-256 of all before: whether the
//! passphrase is right is known apart from whether the file is whole. The third is the content, sealed beside the first two.
//!
//! | | the digest fits | it does not |
//! |---|---|---|
//! | the empty box opens | damaged, if the content does not open | damaged |
//! | it does not | wrong passphrase | damaged |

use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    BrokerKeys, Credentials, KeyError, KeyStore, Registry,
    audit::{Act, Outcome},
    private_file, staged,
};
use crate::{
    crypto::{
        CryptoError, PassphraseCost, SALT_BYTES, key_from_passphrase, open_beside, random, seal_beside,
        short_digest,
    },
    peer::PeerName,
};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Bytes of the digest in the second line.
const DIGEST_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    interlock_keys: u32,
    kdf: String,
    salt: String,
    passes: u32,
    memory_kib: u32,
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Content {
    /// `broker.toml`; `None` if single peers were exported.
    broker: Option<Zeroizing<String>>,
    peers: Vec<ArchivedPeer>,
}

#[derive(Serialize, Deserialize)]
struct ArchivedPeer {
    name: PeerName,
    /// Its table of `authorized.toml`, as a document of its own.
    entry: String,
    /// Its credentials file; `None` if that is not in the key store.
    credentials: Option<Zeroizing<String>>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Peers whose secret keys are in it.
    pub peers: Vec<PeerName>,
    /// Peers of which only the public key and the rights are, because their credentials lie elsewhere.
    pub without_secret: Vec<PeerName>,
}

/// What became of what was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Peers that are new here.
    pub added: Vec<PeerName>,
    /// Peers that had another key or other rights.
    pub replaced: Vec<PeerName>,
    /// Peers that were here with the same key; nothing of them was changed.
    pub same: Vec<PeerName>,
    /// Whether the broker has other keys now.
    pub broker: bool,
}

impl KeyStore {
    /// Writes these peers, or all of them and the broker's keys, to a new file that nobody can read without the passphrase.
    ///
    /// # Errors
    /// [`KeyError::UnknownPeer`]; [`KeyError::CredentialsMissing`] of a peer that was named; [`KeyError::Exists`].
    pub fn export(
        &self,
        names: Option<&[PeerName]>,
        passphrase: &[u8],
        cost: PassphraseCost,
        to: &Path,
    ) -> Result<Exported, KeyError> {
        if to.symlink_metadata().is_ok() {
            return Err(KeyError::Exists { path: to.to_owned() });
        }
        let text = names.map_or_else(|| "all".to_owned(), join);
        let act = Act::new("export").with(format!("{text} to `{}`", to.display()));
        self.audit().around(act, || {
            let (content, exported) = self.collect(names)?;
            let sealed = seal(&content, passphrase, cost, to)?;
            private_file::replace(to, &sealed)?;
            // What is on the disk now is what counts later.
            if *private_file::read(to)? != *sealed {
                return Err(damaged(
                    to,
                    "another text was read back than was written; the disk may be failing",
                ));
            }
            Ok(exported)
        })
    }

    fn collect(&self, names: Option<&[PeerName]>) -> Result<(Content, Exported), KeyError> {
        let _lock = self.lock()?;
        let file = self.registry_file()?;
        let registry = file.registry()?;
        let all = || registry.peers().map(|(name, _)| name.clone()).collect();
        let wanted: Vec<PeerName> = names.map_or_else(all, <[PeerName]>::to_vec);
        let (mut peers, mut exported) =
            (Vec::new(), Exported { peers: Vec::new(), without_secret: Vec::new() });
        for name in wanted {
            let entry = file.entry_text(&name)?;
            let path = Credentials::path_in(self.directory(), &name);
            let credentials = match path.exists() {
                true => Some(Credentials::load(&path)?.to_toml()),
                false if names.is_some() => return Err(KeyError::CredentialsMissing { name, path }),
                false => None,
            };
            let list = if credentials.is_some() { &mut exported.peers } else { &mut exported.without_secret };
            list.push(name.clone());
            peers.push(ArchivedPeer { name, entry, credentials });
        }
        let broker =
            names.is_none().then(|| private_file::read_text(&self.broker_keys_path())).transpose()?;
        Ok((Content { broker, peers }, exported))
    }

    /// Takes in what [`KeyStore::export`] has written, into a key store that is made if there is none. Everything is checked
    /// before anything is changed, and then all of it is changed or nothing.
    ///
    /// | here | without `replace` | with it |
    /// |---|---|---|
    /// | no such peer | added | added |
    /// | the same key | stays as it is, with the rights it has here | gets the rights of the file |
    /// | another key | refused, and with it everything | gets key and rights of the file |
    ///
    /// The broker's keys likewise. Credentials name the broker's key of this key store afterwards.
    ///
    /// # Errors
    /// [`KeyError::WrongPassphrase`], [`KeyError::Damaged`], [`KeyError::Version`], [`KeyError::OtherKeys`].
    pub fn import(
        directory: &Path,
        from: &Path,
        passphrase: &[u8],
        replace: bool,
    ) -> Result<Imported, KeyError> {
        let content = match open(from, passphrase) {
            Ok(content) => content,
            Err(error) => {
                if directory.exists() {
                    let act = Act::new("import").with(format!("from `{}`", from.display()));
                    // The mistake itself is what is said.
                    let _ = super::Audit::of(directory).note(act, Outcome::Failed(error.to_string()));
                }
                return Err(error);
            }
        };
        private_file::private_directory(directory)?;
        if content.broker.is_none() && !directory.join("broker.toml").exists() {
            Self::open_or_create(directory)?;
        }
        let store = Self::at(directory);
        let _lock = store.lock()?;
        let (files, imported) = store.merge(&content, from, replace)?;
        let names: Vec<PeerName> = imported.added.iter().chain(&imported.replaced).cloned().collect();
        let broker = if imported.broker { " and the broker's keys" } else { "" };
        let act = Act::new("import").with(format!("{}{broker} from `{}`", join(&names), from.display()));
        store.audit().around(act, || staged::replace_all(directory, &files))?;
        Ok(imported)
    }

    /// The files that have to be written, and what that comes to.
    fn merge(
        &self,
        content: &Content,
        from: &Path,
        replace: bool,
    ) -> Result<(Vec<staged::NewFile>, Imported), KeyError> {
        let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
        let (mut files, mut imported, mut others) = (Vec::new(), Imported::default(), Vec::new());
        let own = self.broker_keys_path().exists().then(|| self.broker_keys()).transpose()?;
        let given = content.broker.as_deref().map(|text| BrokerKeys::from_toml(text, from)).transpose()?;
        let broker = match (own, given) {
            (Some(own), Some(given)) if own.current.public != given.current.public => {
                others.push("the broker".to_owned());
                imported.broker = true;
                given
            }
            (Some(own), _) => own,
            (None, Some(given)) => {
                imported.broker = true;
                given
            }
            (None, None) => return Err(damaged(from, "it has no key of a broker, and there is none here")),
        };
        if imported.broker {
            files.push(("broker.toml".to_owned(), Zeroizing::new(broker.to_toml().as_bytes().to_vec())));
        }
        let mut file = self.registry_file()?;
        let registry = file.registry()?;
        for archived in &content.peers {
            let name = &archived.name;
            let given = Registry::from_toml(&archived.entry, from)?;
            let given = given.peer(name).ok_or_else(|| damaged(from, "an entry is not that of its peer"))?;
            let credentials =
                archived.credentials.as_deref().map(|text| Credentials::from_toml(text, from)).transpose()?;
            if credentials.as_ref().is_some_and(|held| held.keys.public != given.key || held.name != *name) {
                return Err(damaged(from, "credentials have another key than their peer"));
            }
            let path = Credentials::path_in(self.directory(), name);
            match registry.peer(name) {
                None => imported.added.push(name.clone()),
                Some(here) if here.key == given.key && !(replace && here != given) => {
                    imported.same.push(name.clone());
                    // A lost file is put back.
                    if path.exists() {
                        continue;
                    }
                }
                Some(here) => {
                    if here.key != given.key {
                        others.push(format!("`{name}`"));
                    }
                    imported.replaced.push(name.clone());
                }
            }
            if imported.same.last() != Some(name) {
                file.put_entry(name, &archived.entry)?;
            }
            if let Some(held) = credentials {
                let held = Credentials { broker: broker.current.public, ..held };
                files.push((format!("{name}.toml"), bytes(&held.to_toml())));
            }
        }
        if !others.is_empty() && !replace {
            return Err(KeyError::OtherKeys { names: others.join(", "), path: from.to_owned() });
        }
        // Checks that no key belongs to two.
        file.registry()?;
        files.push(("authorized.toml".to_owned(), bytes(&file.text())));
        Ok((files, imported))
    }
}

fn join(names: &[PeerName]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn damaged(path: &Path, problem: &str) -> KeyError {
    KeyError::Damaged { path: path.to_owned(), problem: problem.to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len().is_multiple_of(2) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect::<Option<Vec<u8>>>().filter(|_| digits)
}

fn seal(
    content: &Content,
    passphrase: &[u8],
    cost: PassphraseCost,
    path: &Path,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let salt: [u8; SALT_BYTES] = random();
    let key =
        key_from_passphrase(passphrase, &salt, cost).map_err(|error| damaged(path, &error.to_string()))?;
    let header = Header {
        interlock_keys: VERSION,
        kdf: "argon2id13".to_owned(),
        salt: hex(&salt),
        passes: cost.passes,
        memory_kib: cost.memory_kib,
    };
    let json_error = |error: serde_json::Error| damaged(path, &error.to_string());
    let header = serde_json::to_string(&header).map_err(json_error)?;
    // Its length is known before it is made: what grows leaves copies.
    let texts = content.peers.iter().map(|peer| {
        peer.entry.len()
            + peer.credentials.as_ref().map_or(0, |text| text.len())
            + peer.name.as_str().len()
            + 64
    });
    let length = 64 + texts.sum::<usize>() + content.broker.as_ref().map_or(0, |text| text.len());
    let mut plain = Zeroizing::new(Vec::with_capacity(2 * length));
    serde_json::to_writer(&mut *plain, content).map_err(json_error)?;
    let check = hex(&seal_beside(&key, header.as_bytes(), b""));
    let digest = hex(&short_digest::<DIGEST_BYTES>(format!("{header}\n{check}").as_bytes()));
    let before = format!("{header}\n{check} {digest}\n");
    let sealed = hex(&seal_beside(&key, before.as_bytes(), &plain));
    Ok(Zeroizing::new(format!("{before}{sealed}\n").into_bytes()))
}

fn open(path: &Path, passphrase: &[u8]) -> Result<Content, KeyError> {
    let text = private_file::read_text(path)?;
    let cut = || damaged(path, "it is not a file that `interlock keys export` writes, or not all of it");
    let mut lines = text.split_inclusive('\n');
    let [Some(first), Some(second), Some(third), None] = [(); 4].map(|()| lines.next()) else {
        return Err(cut());
    };
    let header_text = first.trim_end_matches('\n');
    // The version before the rest: a later one may look otherwise.
    let version: serde_json::Value = serde_json::from_str(header_text).map_err(|_| cut())?;
    match version["interlock_keys"].as_u64() {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(KeyError::Version { path: path.to_owned(), version }),
        None => return Err(cut()),
    }
    let (check, digest) = second.trim_end_matches('\n').split_once(' ').ok_or_else(cut)?;
    let expected = hex(&short_digest::<DIGEST_BYTES>(format!("{header_text}\n{check}").as_bytes()));
    if digest != expected {
        return Err(damaged(path, "its header was changed"));
    }
    let header: Header = serde_json::from_str(header_text).map_err(|_| cut())?;
    let salt =
        unhex(&header.salt).and_then(|salt| <[u8; SALT_BYTES]>::try_from(salt).ok()).ok_or_else(cut)?;
    if header.kdf != "argon2id13" {
        return Err(cut());
    }
    let cost = PassphraseCost { passes: header.passes, memory_kib: header.memory_kib };
    let key = key_from_passphrase(passphrase, &salt, cost)
        .map_err(|_| damaged(path, "what it says of the cost of its passphrase is out of bounds"))?;
    let opened = |associated: &str, sealed: &str| -> Result<_, CryptoError> {
        open_beside(&key, associated.as_bytes(), &unhex(sealed).unwrap_or_default())
    };
    opened(header_text, check).map_err(|_| KeyError::WrongPassphrase { path: path.to_owned() })?;
    let third = third.strip_suffix('\n').ok_or_else(cut)?;
    let plain =
        opened(&format!("{first}{second}"), third).map_err(|_| damaged(path, "its content was changed"))?;
    // The parser's words could hold a part of it.
    serde_json::from_slice(&plain).map_err(|_| damaged(path, "its content is not what this program writes"))
}

#[cfg(test)]
mod tests;
