//! The table of contents: the first thing inside the sealed stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{error::BackupError, limits};
use crate::store::{key::hex, snapshot};

/// The only version there is.
const FORMAT: u32 = 1;

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// A database, encrypted under the key of this backup.
    Database,
    /// A file of the key store.
    Key,
    /// The configuration.
    Config,
}

/// One file in the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Its name, without any directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What is known of a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseFacts>,
}

/// What is known of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Version of its schema.
    pub schema_version: u32,
    /// SQLite's `application_id`.
    pub application_id: i32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages.
    pub pages: u64,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
}

/// The table of contents with its secrets.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    #[serde(flatten)]
    pub(super) public: Contents,
    /// The data key, 64 hexadecimal digits.
    pub(super) data_key: Zeroizing<String>,
    /// What the databases in this backup are encrypted with.
    pub(super) snapshot_key: Zeroizing<String>,
}

/// The table of contents, as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Version of the program that made it.
    pub program: String,
    /// When, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// What was backed up, 32 hexadecimal digits.
    pub database_id: String,
    /// What its data key was sealed under: `keystore`, `passphrase` or `none`.
    pub seal: String,
    /// Everything in it, in this order.
    pub parts: Vec<Part>,
}

impl Manifest {
    pub(super) fn new(
        public: Contents,
        data_key: Zeroizing<String>,
        snapshot_key: Zeroizing<String>,
    ) -> Self {
        Self { format: FORMAT, public, data_key, snapshot_key }
    }

    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Written in one go into what is large enough: growing would leave copies of keys behind.
        let parts = self.public.parts.len();
        let mut text = Zeroizing::new(Vec::with_capacity(16_384 + 1024 * parts));
        serde_json::to_writer(&mut *text, self).expect("text, numbers and lists are always JSON");
        text
    }

    /// Reads the table of contents of the backup at `path`, which is only named in errors.
    pub(super) fn decode(text: &[u8], path: &Path) -> Result<Self, BackupError> {
        let unfit = |problem: String| BackupError::Content {
            what: format!("the table of contents of `{}`", path.display()),
            problem,
        };
        // The parser's own message can quote what it read.
        let manifest: Self =
            serde_json::from_slice(text).map_err(|_| unfit("it is not the JSON it should be".to_owned()))?;
        if manifest.format != FORMAT {
            return Err(unfit(format!("its version is {}, this program knows {FORMAT}", manifest.format)));
        }
        let mut seen = BTreeSet::new();
        for part in &manifest.public.parts {
            let Part { kind, name, bytes, .. } = part;
            let is_plain = !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0']);
            let fits = match kind {
                PartKind::Database => snapshot::is_known(name),
                PartKind::Key | PartKind::Config => *bytes <= limits::SMALL_FILE_BYTES_MAX,
            };
            if !is_plain || name.len() > 255 || !fits || !seen.insert((*kind, name.clone())) {
                return Err(unfit(format!("this program does not know what to do with part `{name}`")));
            }
        }
        if seen.len() > limits::SMALL_FILES_MAX {
            return Err(unfit(format!("it has more than {} parts", limits::SMALL_FILES_MAX)));
        }
        Ok(manifest)
    }

    /// Bytes of everything: the length of the table, the table, each part and its digest.
    pub(super) fn plain_bytes(&self, encoded: &[u8]) -> u64 {
        let parts = self.public.parts.iter().map(|part| part.bytes + super::DIGEST_BYTES as u64);
        4 + encoded.len() as u64 + parts.sum::<u64>()
    }
}

impl Contents {
    /// Bytes of all databases.
    pub fn database_bytes(&self) -> u64 {
        let databases = self.parts.iter().filter(|part| part.kind == PartKind::Database);
        databases.map(|part| part.bytes).sum()
    }
}

pub(super) fn id_text(id: &super::header::DatabaseId) -> String {
    hex(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kind: PartKind, name: &str) -> Part {
        Part { kind, name: name.to_owned(), bytes: 5, database: None }
    }

    fn read(parts: Vec<Part>) -> Result<Manifest, BackupError> {
        let public = Contents {
            program: "0".to_owned(),
            created_ns: 1,
            database_id: String::new(),
            seal: "keystore".to_owned(),
            parts,
        };
        let manifest = Manifest::new(public, Zeroizing::default(), Zeroizing::default());
        Manifest::decode(&manifest.encode(), Path::new("x"))
    }

    #[test]
    fn a_name_that_leads_elsewhere_or_comes_twice_is_refused() {
        use PartKind::{Config, Database, Key};
        let good = vec![part(Database, "interlock.db"), part(Key, "a.toml"), part(Config, "a.toml")];
        assert_eq!(read(good.clone()).unwrap().public.parts, good);
        for name in ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\0b", &"x".repeat(256)] {
            assert_eq!(read(vec![part(Key, name)]).err().unwrap().exit_code(), 8, "{name:?}");
        }
        assert!(read(vec![part(Key, "a"), part(Key, "a")]).is_err());
        assert!(read(vec![part(Database, "other.db")]).is_err());
        let huge = Part { bytes: limits::SMALL_FILE_BYTES_MAX + 1, ..part(Key, "a") };
        assert!(read(vec![huge]).is_err());
    }
}
