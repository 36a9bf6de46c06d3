//! Looking for damage: the seal of every page, the structure, the references, the schema. Changes nothing.

use std::{collections::BTreeSet, fmt, path::Path};

use rusqlite::{Connection, types::Value};
use sha2::{Digest, Sha256};

use super::{
    connection,
    error::StoreError,
    key,
    migrate::{self, MIGRATIONS, Object},
};

/// How often pages whose seal seemed broken are read again. A page that another process is just writing reads as broken
/// once; a damaged one always.
const SEAL_READS: usize = 3;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FindingKind {
    /// A page is not as it was written, or was written with another key.
    Seal,
    /// Tables, indexes or free pages contradict themselves or each other.
    Structure,
    /// A row that refers to one which is not there.
    Orphan,
    /// A table, index, trigger or view of the schema is not there.
    Missing,
    /// One has another text than the migrations give it.
    Changed,
    /// One that no migration makes.
    Foreign,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// What it is, in SQLite's words or ours.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FindingKind::Seal => "a damaged page",
            FindingKind::Structure => "damaged structure",
            FindingKind::Orphan => "a row without the one it belongs to",
            FindingKind::Missing => "missing",
            FindingKind::Changed => "not as the migrations make it",
            FindingKind::Foreign => "not of this schema",
        };
        write!(formatter, "{kind}: {}", self.what)
    }
}

/// A migration that was applied.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Applied {
    /// Its number.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// SHA-256 of its text, which is the one this program has.
    pub checksum: String,
    /// When, in nanoseconds since the Unix epoch.
    pub applied_ns: i64,
}

/// Something in the schema.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SchemaObject {
    /// `table`, `index`, `trigger` or `view`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// SHA-256 of its text; absent where SQLite makes it itself.
    pub sha256: Option<String>,
}

/// The result of looking everywhere.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Checkup {
    /// Everything that is wrong; nothing if all is well.
    pub findings: Vec<Finding>,
    /// Everything in the schema.
    pub objects: Vec<SchemaObject>,
    /// The migrations that made it.
    pub migrations: Vec<Applied>,
    /// Pages that were read.
    pub pages: i64,
}

impl Checkup {
    /// Whether nothing is wrong.
    pub fn is_well(&self) -> bool {
        self.findings.is_empty()
    }

    /// As one object, with where the database is and whether all is well.
    pub fn as_json(&self, path: &Path) -> serde_json::Value {
        let mut object = serde_json::json!({ "path": path, "ok": self.is_well() });
        if let (Some(object), Ok(serde_json::Value::Object(found))) =
            (object.as_object_mut(), serde_json::to_value(self))
        {
            object.extend(found);
        }
        object
    }

    /// Whether something of this kind is wrong.
    pub fn has(&self, kind: FindingKind) -> bool {
        self.findings.iter().any(|finding| finding.kind == kind)
    }
}

/// Looks everywhere. Takes as long as the database is large.
pub(super) fn run(connection: &Connection, path: &Path) -> Result<Checkup, StoreError> {
    let fail = |error| StoreError::from_sqlite(path, "checking it", error);
    let mut findings = Vec::new();
    // A look that itself runs into damage has found it.
    let mut find = |kind, what: rusqlite::Result<Vec<String>>| {
        let what = match what.map_err(fail) {
            Ok(what) => what,
            Err(StoreError::Damaged { problem, .. }) => vec![problem],
            Err(error) => return Err(error),
        };
        findings.extend(what.into_iter().map(|what| Finding { kind, what }));
        Ok(())
    };
    let seals = broken_seals(connection);
    let structure = lines(connection, "PRAGMA integrity_check")
        .map(|lines| lines.into_iter().filter(|line| line != "ok").collect::<Vec<_>>());
    // The seals are looked at in the file itself. A page that is in the write-ahead log may be missing there, or be half
    // copied by a process that was killed; nobody reads it there. The structure is read as everybody reads: if every page
    // in use opens so, none is damaged.
    let is_superseded = structure.as_ref().is_ok_and(Vec::is_empty) && connection::wal_bytes(path)? > 0;
    find(FindingKind::Seal, if is_superseded { Ok(Vec::new()) } else { seals })?;
    find(FindingKind::Structure, structure)?;
    find(FindingKind::Orphan, orphans(connection))?;
    let (wanted, present) =
        (migrate::reference(path, MIGRATIONS)?, migrate::objects(connection).map_err(fail)?);
    let differs = |of: &[Object], from: &[Object], is_there: bool| -> Vec<String> {
        let named = |object: &Object| from.iter().any(|other| (&other.0, &other.1) == (&object.0, &object.1));
        of.iter()
            .filter(|object| !from.contains(object) && named(object) == is_there)
            .map(|(kind, name, _)| format!("{kind} {name}"))
            .collect()
    };
    find(FindingKind::Missing, Ok(differs(&wanted, &present, false)))?;
    find(FindingKind::Changed, Ok(differs(&wanted, &present, true)))?;
    find(FindingKind::Foreign, Ok(differs(&present, &wanted, false)))?;
    let hash = |text: &String| key::hex(&Sha256::digest(text.as_bytes()));
    let objects = present
        .iter()
        .map(|(kind, name, text)| SchemaObject {
            kind: kind.clone(),
            name: name.clone(),
            sha256: text.as_ref().map(hash),
        })
        .collect();
    let pages = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(fail)?;
    Ok(Checkup { findings, objects, migrations: applied(connection).map_err(fail)?, pages })
}

/// Pages whose seal is broken each time they are read.
fn broken_seals(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut broken: BTreeSet<String> =
        lines(connection, "PRAGMA cipher_integrity_check")?.into_iter().collect();
    for _ in 1..SEAL_READS {
        if broken.is_empty() {
            break;
        }
        let again: BTreeSet<String> =
            lines(connection, "PRAGMA cipher_integrity_check")?.into_iter().collect();
        broken.retain(|line| again.contains(line));
    }
    Ok(broken.into_iter().collect())
}

/// Rows whose parent is not there.
pub(super) fn orphans(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare("PRAGMA foreign_key_check")?
        .query_map([], |row| {
            let (table, number, parent): (String, Value, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let number =
                if let Value::Integer(number) = number { number.to_string() } else { "?".to_owned() };
            Ok(format!("row {number} of {table} has no row in {parent}"))
        })?
        .collect()
}

fn applied(connection: &Connection) -> rusqlite::Result<Vec<Applied>> {
    connection
        .prepare("SELECT version, name, checksum, applied_at_ns FROM schema_migrations ORDER BY version")?
        .query_map([], |row| {
            Ok(Applied {
                version: row.get(0)?,
                name: row.get(1)?,
                checksum: row.get(2)?,
                applied_ns: row.get(3)?,
            })
        })?
        .collect()
}

/// The first column of what a pragma says.
fn lines(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare(pragma)?
        .query_map([], |row| {
            Ok(match row.get(0)? {
                Value::Text(text) => text,
                other => format!("{other:?}"),
            })
        })?
        .collect()
}
