//! The audit file: every change of keys, by whom, and what came of it. Beside the keys, because that is where a change is
//! made, also while nothing runs and by whoever cannot open the database; a running runtime takes it over into the log.
//!
//! - An entry is on the disk before the change is begun, and another one after it: a change without an entry cannot be, and
//!   one that was killed half way shows by its missing end.
//! - Lines of JSON, appended and never changed. No secret is in it.
//! - It goes on in a new file once everything in it was taken over and it is long; the one before is kept.

use std::{
    fmt::Display,
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{KeyError, private_file, store::now_ms};
use crate::peer::PeerName;

/// Name of the file in the key store.
pub const FILE: &str = "audit.jsonl";
/// Name of the one before it.
const BEFORE: &str = "audit.1.jsonl";
/// Name of the file that says how much of it was taken over.
const TAKEN: &str = "audit.taken";
/// Bytes after which a file that was taken over as a whole is put aside: some 3000 changes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read at once.
const READ_BYTES_MAX: u64 = 256 << 10;
/// How long a change may take. One that has no end then was killed.
const CHANGE_MS_MAX: u64 = 60_000;

/// What somebody does to keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// In one word: `issue`, `revoke`, `rotate`, `rotate-broker`, `rotate-wrap`, `passphrase`, `export`, `import`, ...
    pub action: String,
    /// To whose key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerName>,
    /// The fingerprint of the key that it is about: the new one, if one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// More, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Act {
    /// Something that is done to no key in particular.
    pub fn new(action: &str) -> Self {
        Self { action: action.to_owned(), ..Self::default() }
    }

    /// Something that is done to this peer's key.
    pub fn on(action: &str, peer: &PeerName, fingerprint: String) -> Self {
        Self { peer: Some(peer.clone()), fingerprint: Some(fingerprint), ..Self::new(action) }
    }

    /// With more to say of it.
    #[must_use]
    pub fn with(mut self, detail: String) -> Self {
        self.detail = Some(detail);
        self
    }
}

/// What has come of an [`Act`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing yet: it is about to be done.
    Begun,
    /// It was done.
    Done,
    /// It was not, and why.
    Failed(String),
    /// Whoever began it ended before it was over: it was done, or was not.
    Unknown,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The same for beginning and end of one act.
    pub id: Uuid,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The user who did it.
    pub uid: u32,
    /// The process that did it.
    pub pid: u32,
    /// The peer that it was done for, where the process did it for somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<PeerName>,
    /// What.
    #[serde(flatten)]
    pub act: Act,
    /// What came of it.
    pub outcome: Outcome,
}

/// The audit file of one key store.
#[derive(Clone, Debug)]
pub struct Audit {
    directory: PathBuf,
    by: Option<PeerName>,
}

/// What can be taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeover {
    /// Acts that are over, each once.
    pub entries: Vec<Entry>,
    /// Lines that are none.
    pub damaged: usize,
    /// How far it was read: what [`Audit::taken`] is to be told.
    pub to: u64,
}

impl Audit {
    /// That of the key store in `directory`.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), by: None }
    }

    /// The same file, for what is done because this peer has asked for it.
    #[must_use]
    pub fn asked_by(self, by: Option<PeerName>) -> Self {
        Self { by, ..self }
    }

    /// Does `work`, with an entry before it and one after it. Without the first, nothing is done.
    ///
    /// # Errors
    /// Those of `work`; [`KeyError::Io`] if there can be no entry.
    pub fn around<T, E: Display + From<KeyError>>(
        &self,
        act: Act,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let begun = self.entry(act, Outcome::Begun);
        self.append(&begun)?;
        let done = work();
        let outcome = match &done {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        // What is done is done; that its end is missing shows.
        if let Err(error) = self.append(&Entry { at_ms: now_ms(), outcome, ..begun }) {
            tracing::warn!(%error, "the end of a change of keys is not in the audit file");
        }
        done
    }

    /// Notes something that has happened.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn note(&self, act: Act, outcome: Outcome) -> Result<(), KeyError> {
        self.append(&self.entry(act, outcome))
    }

    fn entry(&self, act: Act, outcome: Outcome) -> Entry {
        let (uid, by) = (nix::unistd::getuid().as_raw(), self.by.clone());
        Entry { id: Uuid::now_v7(), at_ms: now_ms(), uid, pid: std::process::id(), by, act, outcome }
    }

    /// The last entries, the oldest first: at most what 256 KiB hold.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn last(&self) -> Result<Vec<Entry>, KeyError> {
        let bytes = fs::metadata(self.path()).map_or(0, |metadata| metadata.len());
        let text = self.read_from(bytes.saturating_sub(READ_BYTES_MAX))?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// What was not taken over yet and is over. An act without an end is given one when it has had time for it, or when
    /// another was begun after it: they come one after the other.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn to_take_over(&self) -> Result<Takeover, KeyError> {
        let length = fs::metadata(self.path()).map_or(0, |metadata| metadata.len());
        // A file that is shorter than that is another one.
        let from = Some(self.taken_to()).filter(|to| *to <= length).unwrap_or(0);
        let text = self.read_from(from)?;
        let mut takeover = Takeover { to: from, ..Takeover::default() };
        let mut open: Option<(Entry, u64)> = None;
        let mut at = from;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if line.last() != Some(&b'\n') {
                // It is being written.
                break;
            }
            let begins = at;
            at += line.len() as u64;
            let entry = match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => entry,
                Err(_) => {
                    takeover.damaged += usize::from(line.len() > 1);
                    continue;
                }
            };
            if entry.outcome == Outcome::Begun {
                takeover.entries.extend(open.take().map(|(entry, _)| unknown(entry)));
                open = Some((entry, begins));
            } else {
                open = open.filter(|(begun, _)| begun.id != entry.id);
                takeover.entries.push(entry);
            }
        }
        takeover.to = at;
        match open {
            Some((entry, _)) if now_ms().saturating_sub(entry.at_ms) > CHANGE_MS_MAX => {
                takeover.entries.push(unknown(entry));
            }
            Some((_, begins)) => takeover.to = begins,
            None => {}
        }
        Ok(takeover)
    }

    /// Remembers that everything up to `to` was taken over.
    ///
    /// # Errors
    /// [`KeyError::Io`]; the same is taken over again then.
    pub fn taken(&self, to: u64) -> Result<(), KeyError> {
        let path = self.path();
        let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let is_long = to >= length && length > FILE_BYTES_MAX;
        // Before the file is put aside: if this is killed between the two, all of it is taken over again.
        let to = if is_long { 0 } else { to };
        private_file::replace(&self.directory.join(TAKEN), to.to_string().as_bytes())?;
        if is_long {
            let renamed = fs::rename(&path, self.directory.join(BEFORE));
            renamed.map_err(|source| KeyError::Io { action: "put aside", path, source })?;
        }
        Ok(())
    }

    fn taken_to(&self) -> u64 {
        let text = private_file::read_text(&self.directory.join(TAKEN)).ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn append(&self, entry: &Entry) -> Result<(), KeyError> {
        let path = self.path();
        let io_error = |source| KeyError::Io { action: "write", path: path.clone(), source };
        let mut line = serde_json::to_vec(entry).map_err(|error| io_error(error.into()))?;
        line.push(b'\n');
        let is_new = !path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(io_error)?;
        if !ends_whole(&mut file).map_err(io_error)? {
            // Somebody was killed, or the disk was full, in the middle of a line.
            line.insert(0, b'\n');
        }
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(io_error)?;
        if is_new { private_file::sync_directory_of(&path) } else { Ok(()) }
    }

    /// At most [`READ_BYTES_MAX`] bytes from there on.
    fn read_from(&self, from: u64) -> Result<Vec<u8>, KeyError> {
        let path = self.path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut text = Vec::new();
            file.take(READ_BYTES_MAX).read_to_end(&mut text)?;
            Ok(text)
        };
        read().map_err(|source| KeyError::Io { action: "read", path: path.clone(), source })
    }
}

fn unknown(entry: Entry) -> Entry {
    Entry { outcome: Outcome::Unknown, ..entry }
}

/// Whether the file is empty or ends with a whole line.
fn ends_whole(file: &mut fs::File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit() -> (tempfile::TempDir, Audit) {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::of(directory.path());
        (directory, audit)
    }

    fn outcomes(takeover: &Takeover) -> Vec<(&str, Outcome)> {
        takeover.entries.iter().map(|entry| (entry.act.action.as_str(), entry.outcome.clone())).collect()
    }

    #[test]
    fn each_act_is_taken_over_once_with_what_came_of_it() {
        let (_directory, audit) = audit();
        audit.around(Act::new("one"), || Ok::<_, KeyError>(())).unwrap();
        let name: PeerName = "ada".parse().unwrap();
        let failed = audit.around(Act::on("two", &name, "f".to_owned()), || {
            Err::<(), _>(KeyError::Revoked { name: name.clone() })
        });
        assert!(failed.is_err());
        let first = audit.to_take_over().unwrap();
        let why = KeyError::Revoked { name: name.clone() }.to_string();
        assert_eq!(outcomes(&first), [("one", Outcome::Done), ("two", Outcome::Failed(why))]);
        let (uid, pid) = (nix::unistd::getuid().as_raw(), std::process::id());
        assert!(first.entries.iter().all(|entry| (entry.uid, entry.pid) == (uid, pid)));
        // Nothing is lost if whoever takes it over is killed before it says so.
        assert_eq!(audit.to_take_over().unwrap(), first);
        audit.taken(first.to).unwrap();
        assert!(audit.to_take_over().unwrap().entries.is_empty());
        audit.note(Act::new("three"), Outcome::Done).unwrap();
        assert_eq!(outcomes(&audit.to_take_over().unwrap()), [("three", Outcome::Done)]);
    }

    #[test]
    fn an_act_that_was_killed_is_told_of_when_another_begins_or_its_time_is_over() {
        let (_directory, audit) = audit();
        audit.note(Act::new("killed"), Outcome::Begun).unwrap();
        let waits = audit.to_take_over().unwrap();
        assert_eq!((waits.entries.len(), waits.to), (0, 0));
        audit.around(Act::new("next"), || Ok::<_, KeyError>(())).unwrap();
        let both = [("killed", Outcome::Unknown), ("next", Outcome::Done)];
        assert_eq!(outcomes(&audit.to_take_over().unwrap()), both);
        audit.taken(audit.to_take_over().unwrap().to).unwrap();
        let old =
            Entry { at_ms: now_ms() - CHANGE_MS_MAX - 1, ..audit.entry(Act::new("late"), Outcome::Begun) };
        audit.append(&old).unwrap();
        assert_eq!(outcomes(&audit.to_take_over().unwrap()), [("late", Outcome::Unknown)]);
    }

    #[test]
    fn half_a_line_costs_no_other_and_a_link_is_not_followed() {
        let (directory, audit) = audit();
        let path = directory.path().join(FILE);
        audit.note(Act::new("one"), Outcome::Done).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
        assert_eq!(outcomes(&audit.to_take_over().unwrap()), [("one", Outcome::Done)]);
        audit.note(Act::new("two"), Outcome::Done).unwrap();
        let takeover = audit.to_take_over().unwrap();
        assert_eq!(outcomes(&takeover), [("one", Outcome::Done), ("two", Outcome::Done)]);
        assert_eq!((takeover.damaged, takeover.to), (1, fs::metadata(&path).unwrap().len()));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).unwrap();
        audit.note(Act::new("three"), Outcome::Done).unwrap_err();
        let done = audit.around(Act::new("four"), || -> Result<(), KeyError> { panic!("without an entry") });
        assert!(done.is_err());
    }

    #[test]
    fn a_long_file_is_put_aside_when_it_was_taken_over_and_not_before() {
        let (directory, audit) = audit();
        let long = Act::new("long").with("x".repeat(READ_BYTES_MAX as usize / 2));
        for _ in 0..9 {
            audit.note(long.clone(), Outcome::Done).unwrap();
        }
        let mut taken = 0;
        while taken < 9 {
            let takeover = audit.to_take_over().unwrap();
            assert!(!directory.path().join(BEFORE).exists() && !takeover.entries.is_empty());
            taken += takeover.entries.len();
            audit.taken(takeover.to).unwrap();
        }
        assert!(directory.path().join(BEFORE).exists() && !directory.path().join(FILE).exists());
        audit.note(Act::new("next"), Outcome::Done).unwrap();
        assert_eq!(outcomes(&audit.to_take_over().unwrap()), [("next", Outcome::Done)]);
    }
}
