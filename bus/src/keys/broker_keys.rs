//! The broker's long-term keys: the current pair, and those it replaced whose overlap has not ended.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{KeyError, credentials::parse_problem, private_file};
use crate::crypto::{KeyPair, PublicKey, SecretKey};

/// Old keys that are accepted at once. Each one costs 40 us for every HELLO that is sealed for none.
const OLD_KEYS_MAX: usize = 8;

/// What `broker.toml` holds.
///
/// - A HELLO is tried with the current key, then with the old ones, the youngest first.
/// - An old key ends at a time that is written down, not when somebody remembers to remove it.
/// - The file is replaced as a whole: a crash leaves the keys of before or those of after a rotation.
#[derive(Clone, Debug)]
pub struct BrokerKeys {
    /// The pair that new credentials name.
    pub current: KeyPair,
    /// Those before it, the youngest first.
    pub old: Vec<OldKey>,
}

/// A pair that was replaced.
#[derive(Clone, Debug)]
pub struct OldKey {
    /// The pair.
    pub keys: KeyPair,
    /// When its overlap ends, Unix milliseconds.
    pub until_ms: u64,
}

/// `broker.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    public_key: String,
    secret_key: Zeroizing<String>,
    #[serde(default)]
    old: Vec<FileOld>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOld {
    public_key: String,
    secret_key: Zeroizing<String>,
    until: jiff::Timestamp,
}

impl BrokerKeys {
    /// A new pair, and none before it.
    pub fn generate() -> Self {
        Self { current: KeyPair::generate(), old: Vec::new() }
    }

    /// Reads `broker.toml`.
    ///
    /// # Errors
    /// Those of [`private_file::read`]; [`KeyError::Damaged`] naming the place, never a value.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_toml(&private_file::read_text(path)?, path)
    }

    /// Reads keys from text; `origin` is named in errors.
    ///
    /// # Errors
    /// [`KeyError::Damaged`] naming the place, never a value.
    pub(super) fn from_toml(text: &str, origin: &Path) -> Result<Self, KeyError> {
        let damaged = |problem: String| KeyError::Damaged { path: origin.to_owned(), problem };
        let pair = |public: &str, secret: &str| {
            let secret = SecretKey::from_z85(secret)
                .map_err(|_| damaged("a `secret_key` is not a key of 40 Z85 characters".to_owned()))?;
            let keys = KeyPair::from_secret(secret);
            if keys.public.to_string() != public {
                return Err(damaged("a `secret_key` does not belong to its `public_key`".to_owned()));
            }
            Ok(keys)
        };
        let file: File = toml::from_str(text).map_err(|error| damaged(parse_problem(text, &error)))?;
        let old = file.old.iter().take(OLD_KEYS_MAX).map(|old| {
            let until_ms = u64::try_from(old.until.as_millisecond()).unwrap_or_default();
            Ok::<_, KeyError>(OldKey { keys: pair(&old.public_key, &old.secret_key)?, until_ms })
        });
        Ok(Self { current: pair(&file.public_key, &file.secret_key)?, old: old.collect::<Result<_, _>>()? })
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        private_file::replace(path, self.to_toml().as_bytes())
    }

    pub(super) fn to_toml(&self) -> Zeroizing<String> {
        // The secret straight into a text that does not grow, as in credentials.
        let put_pair = |text: &mut String, keys: &KeyPair| {
            text.push_str(&format!("public_key = \"{}\"\nsecret_key = \"", keys.public));
            text.push_str(&keys.secret.expose_z85());
            text.push_str("\"\n");
        };
        let mut text = Zeroizing::new(String::with_capacity(512 * (1 + self.old.len())));
        text.push_str(
            "# The broker's long-term keys. Whoever can read this file can pretend to be the broker.\n",
        );
        put_pair(&mut text, &self.current);
        for old in &self.old {
            let until = jiff::Timestamp::from_millisecond(i64::try_from(old.until_ms).unwrap_or(i64::MAX))
                .unwrap_or(jiff::Timestamp::MAX);
            text.push_str(
                "\n# Replaced; accepted until then, and removed at the next start or rotation.\n[[old]]\n",
            );
            put_pair(&mut text, &old.keys);
            text.push_str(&format!("until = \"{until}\"\n"));
        }
        text
    }

    /// A new current pair. The one before it is accepted for `overlap` longer; after none at all, no old
    /// key is accepted any more.
    #[must_use]
    pub fn rotated(&self, overlap: Duration, now_ms: u64) -> Self {
        let mut old = self.in_force(now_ms).old;
        if overlap.is_zero() {
            old.clear();
        } else {
            let until_ms = now_ms.saturating_add(u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX));
            old.insert(0, OldKey { keys: self.current.clone(), until_ms });
            old.truncate(OLD_KEYS_MAX);
        }
        Self { current: KeyPair::generate(), old }
    }

    /// These keys without those whose overlap has ended.
    #[must_use]
    pub fn in_force(&self, now_ms: u64) -> Self {
        let old = self.old.iter().filter(|old| old.until_ms > now_ms).cloned().collect();
        Self { current: self.current.clone(), old }
    }

    /// All pairs in the order in which a HELLO is tried with them.
    pub fn pairs(&self) -> Vec<KeyPair> {
        [&self.current].into_iter().chain(self.old.iter().map(|old| &old.keys)).cloned().collect()
    }

    /// Whether a session may begin with this key.
    pub fn accept(&self, key: &PublicKey, now_ms: u64) -> bool {
        self.current.public == *key || self.until_ms(key).is_some_and(|until_ms| until_ms > now_ms)
    }

    /// When the overlap of an old key ends; `None` for the current one and for those that are not known.
    pub fn until_ms(&self, key: &PublicKey) -> Option<u64> {
        self.old.iter().find(|old| old.keys.public == *key).map(|old| old.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_keys_read_back_and_an_old_one_is_accepted_until_its_overlap_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.toml");
        let first = BrokerKeys::generate();
        let second = first.rotated(Duration::from_secs(10), 1000);
        let third = second.rotated(Duration::from_secs(1), 2000);
        third.save(&path).unwrap();
        let read = BrokerKeys::load(&path).unwrap();
        assert_eq!(read.pairs(), [third.current.clone(), second.current.clone(), first.current.clone()]);
        assert_eq!(read.until_ms(&first.current.public), Some(11_000));
        assert!(read.accept(&second.current.public, 2999) && !read.accept(&second.current.public, 3000));
        assert!(read.accept(&first.current.public, 10_999) && !read.accept(&first.current.public, 11_000));
        assert!(read.accept(&third.current.public, u64::MAX));
        assert_eq!(read.in_force(3000).pairs().len(), 2);
        // Nothing old survives a rotation without an overlap.
        assert_eq!(third.rotated(Duration::ZERO, 2000).pairs().len(), 1);
    }

    #[test]
    fn however_often_it_is_rotated_a_few_old_keys_are_kept() {
        let keys = (0..20).fold(BrokerKeys::generate(), |keys, _| keys.rotated(Duration::from_secs(60), 0));
        assert_eq!(keys.old.len(), OLD_KEYS_MAX);
    }

    #[test]
    fn no_key_is_shown_by_debug_or_by_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("broker.toml");
        let keys = BrokerKeys::generate().rotated(Duration::from_secs(10), 0);
        keys.save(&path).unwrap();
        let secrets: Vec<_> = keys.pairs().iter().map(|pair| pair.secret.expose_z85()).collect();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut shown = vec![format!("{keys:?}")];
        for damaged in
            [text.replace("until", "untill"), text.replace("[[old]]", "[[old"), text.replacen('=', "", 2)]
        {
            private_file::replace(&path, damaged.as_bytes()).unwrap();
            shown.push(BrokerKeys::load(&path).unwrap_err().to_string());
        }
        for text in shown {
            assert!(secrets.iter().all(|secret| !text.contains(&secret[..12])), "{text}");
        }
    }
}
