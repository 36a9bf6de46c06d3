//! Passphrases: where one comes from when the data key is sealed under one, and what a new one must be.
//!
//! | order | source | refused when |
//! |---|---|---|
//! | 1 | the file that a flag names | it is missing, a link, another user's, readable by others, empty or too long |
//! | 2 | the file that `INTERLOCK_PASSPHRASE_FILE` names | the same |
//! | 3 | `interlock.passphrase` in `CREDENTIALS_DIRECTORY` (systemd) | it is a link, readable by everybody, empty or too long |
//! | 4 | the terminal, if there is one | nothing was typed, or Ctrl-C |
//!
//! The first one that is there decides; a bad one is an error, not a reason to try the next. Never from an argument or a
//! variable: others can read those of a process.

use std::{
    fmt,
    fs::OpenOptions,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use interlock_bus::keys::{KeyError, private_file};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use zeroize::Zeroizing;

/// The variable that names a file.
pub const FILE_VARIABLE: &str = "INTERLOCK_PASSPHRASE_FILE";
/// The variable in which systemd names the directory of credentials.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// The name of the credential.
pub const CREDENTIAL: &str = "interlock.passphrase";

/// What a passphrase opens. Variable and credential of each are its own, so that one is never taken for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassphraseOf {
    /// The data key of this installation.
    #[default]
    DataKey,
    /// A backup.
    Backup,
    /// Exported keys.
    Keys,
}

impl PassphraseOf {
    /// The variable that names a file.
    pub fn variable(self) -> &'static str {
        match self {
            Self::DataKey => FILE_VARIABLE,
            Self::Backup => "INTERLOCK_BACKUP_PASSPHRASE_FILE",
            Self::Keys => "INTERLOCK_KEYS_PASSPHRASE_FILE",
        }
    }

    /// The name of the credential.
    pub fn credential(self) -> &'static str {
        match self {
            Self::DataKey => CREDENTIAL,
            Self::Backup => "interlock.backup-passphrase",
            Self::Keys => "interlock.keys-passphrase",
        }
    }
}

/// Characters of a new passphrase. Fewer are refused: whoever has the file can guess without end.
pub const CHARS_MIN: usize = 12;
/// Bytes of a passphrase. More is a wrong file.
pub const BYTES_MAX: usize = 1024;

/// A passphrase. Wiped when dropped, never shown.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Passphrase(redacted)")
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        interlock_bus::crypto::equal_in_constant_time(&self.0, &other.0)
    }
}

/// Why there is no passphrase. No variant holds one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// A file that was named cannot be taken.
    #[error("the passphrase file cannot be used: {0}")]
    File(#[source] KeyError),
    /// The credential that the service manager passed cannot be taken.
    #[error("the credential `{}` cannot be used: {problem}; see `LoadCredential=` or `LoadCredentialEncrypted=` of systemd.exec(5)", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// Nothing is in it.
    #[error("the passphrase from {origin} is empty")]
    Empty {
        /// Where it came from.
        origin: String,
    },
    /// More than a passphrase.
    #[error("the passphrase from {origin} has more than {BYTES_MAX} bytes; is it the right file?")]
    TooLong {
        /// Where it came from.
        origin: String,
    },
    /// A new one that can be guessed.
    #[error(
        "the new passphrase has {chars} characters; at least {CHARS_MIN} are needed, because whoever gets hold of the key file can guess without end"
    )]
    TooShort {
        /// How many it has.
        chars: usize,
    },
    /// A new one, typed twice, differently.
    #[error("the two passphrases are not the same; nothing was changed")]
    NotTheSame,
    /// The person at the terminal did not want to.
    #[error("no passphrase was typed")]
    Cancelled,
    /// The terminal does not work.
    #[error("the passphrase cannot be asked for at the terminal: {0}")]
    Terminal(#[source] std::io::Error),
    /// No source is there.
    #[error(
        "there is no passphrase: give it with `--passphrase-file FILE`, `{}`, the systemd credential `{}`, or start it at a terminal", of.variable(), of.credential()
    )]
    NoSource {
        /// What it would have opened.
        of: PassphraseOf,
    },
    /// No source for a new one is there.
    #[error(
        "there is no new passphrase: give it with `--new-passphrase-file FILE`, or start it at a terminal"
    )]
    NoSourceOfNew,
}

impl PassphraseError {
    /// The exit code of a program that ends because of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::File(KeyError::Io { .. }) | Self::Terminal(_) => 6,
            Self::File(_) | Self::Credential { .. } | Self::TooLong { .. } | Self::TooShort { .. } => 2,
            Self::NotTheSame | Self::NoSourceOfNew => 2,
            _ => 4,
        }
    }
}

impl Passphrase {
    /// A passphrase out of what was typed or read; one newline at the end is not part of it.
    ///
    /// # Errors
    /// [`PassphraseError::Empty`] and [`PassphraseError::TooLong`], with where it came from.
    pub fn new(mut bytes: Zeroizing<Vec<u8>>, origin: &str) -> Result<Self, PassphraseError> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        match bytes.len() {
            0 => Err(PassphraseError::Empty { origin: origin.to_owned() }),
            1..=BYTES_MAX => Ok(Self(bytes)),
            _ => Err(PassphraseError::TooLong { origin: origin.to_owned() }),
        }
    }

    /// The passphrase in a file that only its owner can read.
    ///
    /// # Errors
    /// The file is not such a one, or its content is none.
    pub fn from_file(path: &Path) -> Result<Self, PassphraseError> {
        let bytes = private_file::read(path).map_err(PassphraseError::File)?;
        Self::new(bytes, &format!("`{}`", path.display()))
    }

    /// Whether it is good enough to seal something new under it.
    ///
    /// # Errors
    /// [`PassphraseError::TooShort`].
    pub fn check_new(&self) -> Result<(), PassphraseError> {
        let chars = String::from_utf8_lossy(&self.0).chars().count();
        if chars < CHARS_MIN { Err(PassphraseError::TooShort { chars }) } else { Ok(()) }
    }

    /// What it is, for whoever makes a key from it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A credential of systemd: its directory belongs to the service alone, and the file's own owner and group rights may
    /// be those of an access control list.
    fn from_credential(path: &Path) -> Result<Self, PassphraseError> {
        let bad = |problem: String| PassphraseError::Credential { path: path.to_owned(), problem };
        let io = |error: std::io::Error| bad(error.to_string());
        let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        let us = nix::unistd::geteuid().as_raw();
        if !about.is_file() || !(about.uid() == us || about.uid() == 0) {
            return Err(bad("it is not a plain file of root or of this user".to_owned()));
        }
        if about.permissions().mode() & 0o007 != 0 {
            return Err(bad("everybody can read it".to_owned()));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX + 3));
        file.take(BYTES_MAX as u64 + 3).read_to_end(&mut bytes).map_err(io)?;
        Self::new(bytes, &format!("the credential `{}`", path.display()))
    }
}

/// Asks a person at the terminal, with this text. `None` from a program that has none.
pub type Prompt = fn(&str) -> Result<Passphrase, PassphraseError>;

/// Where a passphrase may come from, in this process.
#[derive(Clone, Debug, Default)]
pub struct PassphraseSources {
    /// What it opens.
    pub of: PassphraseOf,
    /// The file that a flag names.
    pub flag: Option<PathBuf>,
    /// The file that a variable names.
    pub variable: Option<PathBuf>,
    /// The directory of the service manager's credentials.
    pub credentials: Option<PathBuf>,
    /// The terminal.
    pub prompt: Option<Prompt>,
}

impl PassphraseSources {
    /// Those of this process's environment, and the file of a flag; without a terminal.
    pub fn from_environment(flag: Option<PathBuf>) -> Self {
        Self::of(PassphraseOf::DataKey, flag)
    }

    /// The same for another passphrase.
    pub fn of(of: PassphraseOf, flag: Option<PathBuf>) -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            of,
            flag,
            variable: path(of.variable()),
            credentials: path(CREDENTIALS_VARIABLE),
            prompt: None,
        }
    }

    /// The passphrase of the first source that is there. `question` is for a person.
    ///
    /// # Errors
    /// That source's own, or [`PassphraseError::NoSource`].
    pub fn ask(&self, question: &str) -> Result<Passphrase, PassphraseError> {
        if let Some(path) = self.flag.as_ref().or(self.variable.as_ref()) {
            return Passphrase::from_file(path);
        }
        if let Some(path) = self.credential() {
            return Passphrase::from_credential(&path);
        }
        match self.prompt {
            Some(prompt) => prompt(question),
            None => Err(PassphraseError::NoSource { of: self.of }),
        }
    }

    /// The credential that the service manager passed, if it did.
    fn credential(&self) -> Option<PathBuf> {
        let path = self.credentials.as_ref()?.join(self.of.credential());
        std::fs::symlink_metadata(&path).is_ok().then_some(path)
    }

    /// Whether somebody has named a source: a file or a credential, not the terminal that is there anyway.
    pub(super) fn is_given(&self) -> bool {
        self.flag.is_some() || self.variable.is_some() || self.credential().is_some()
    }

    /// The passphrase for something new: of the first source that is there, from a person twice, and good enough.
    ///
    /// # Errors
    /// Those of [`ask`](Self::ask) and [`ask_new`](Self::ask_new).
    pub fn ask_for_new(&self) -> Result<Passphrase, PassphraseError> {
        if !self.is_given() && self.prompt.is_some() {
            return self.ask_new(None);
        }
        let given = self.ask("")?;
        given.check_new().map(|()| given)
    }

    /// A new passphrase, from `file` or typed twice, that is good enough.
    ///
    /// # Errors
    /// The file's, or the person's.
    pub fn ask_new(&self, file: Option<&Path>) -> Result<Passphrase, PassphraseError> {
        let passphrase = match (file, self.prompt) {
            (Some(file), _) => Passphrase::from_file(file)?,
            (None, None) => return Err(PassphraseError::NoSourceOfNew),
            (None, Some(prompt)) => {
                let first = prompt("new passphrase: ")?;
                first.check_new()?;
                if first != prompt("the same again: ")? {
                    return Err(PassphraseError::NotTheSame);
                }
                first
            }
        };
        passphrase.check_new()?;
        Ok(passphrase)
    }
}

impl From<PassphraseError> for super::StoreError {
    fn from(error: PassphraseError) -> Self {
        Self::Passphrase(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn passphrase(text: &str) -> Result<Passphrase, PassphraseError> {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), "a test")
    }

    fn private(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_it_and_nothing_is_no_passphrase() {
        for text in ["a b\n", "a b\r\n", "a b"] {
            assert_eq!(passphrase(text).unwrap().bytes(), b"a b");
        }
        assert_eq!(passphrase("a b \n\n").unwrap().bytes(), b"a b \n");
        assert!(matches!(passphrase("\n"), Err(PassphraseError::Empty { .. })));
        assert_eq!(passphrase("").unwrap_err().exit_code(), 4);
        assert!(matches!(passphrase(&"x".repeat(BYTES_MAX + 1)), Err(PassphraseError::TooLong { .. })));
        assert!(!format!("{:?}", passphrase("a secret").unwrap()).contains("secret"));
    }

    #[test]
    fn a_new_one_has_twelve_characters_whatever_their_bytes() {
        assert!(matches!(
            passphrase("12345678901").unwrap().check_new(),
            Err(PassphraseError::TooShort { chars: 11 })
        ));
        assert!(passphrase("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}").unwrap().check_new().is_err());
        passphrase("123456789012").unwrap().check_new().unwrap();
    }

    #[test]
    fn the_first_source_that_is_there_decides_and_a_bad_one_is_not_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let [flag, variable] = ["flag", "variable"].map(|name| private(place.path(), name, name));
        private(place.path(), CREDENTIAL, "credential\n");
        let mut sources = PassphraseSources {
            flag: Some(flag.clone()),
            variable: Some(variable.clone()),
            credentials: Some(place.path().to_owned()),
            prompt: Some(|_| Passphrase::new(Zeroizing::new(b"typed".to_vec()), "the terminal")),
            ..PassphraseSources::default()
        };
        let given = |sources: &PassphraseSources| {
            sources.ask("passphrase: ").map(|given| String::from_utf8_lossy(given.bytes()).into_owned())
        };
        assert_eq!(given(&sources).unwrap(), "flag");
        fs::set_permissions(&flag, fs::Permissions::from_mode(0o640)).unwrap();
        let error = given(&sources).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("chmod 600"), "{error}");
        sources.flag = Some(place.path().join("missing"));
        let error = given(&sources).unwrap_err();
        assert!(error.exit_code() == 6 && error.to_string().contains("missing"), "{error}");
        sources.flag = None;
        assert_eq!(given(&sources).unwrap(), "variable");
        sources.variable = None;
        assert_eq!(given(&sources).unwrap(), "credential");
        let credential = place.path().join(CREDENTIAL);
        fs::set_permissions(&credential, fs::Permissions::from_mode(0o444)).unwrap();
        let error = given(&sources).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("everybody"), "{error}");
        fs::remove_file(&credential).unwrap();
        assert_eq!(given(&sources).unwrap(), "typed");
        sources.prompt = None;
        let error = given(&sources).unwrap_err();
        let named = ["--passphrase-file", FILE_VARIABLE, CREDENTIAL, "terminal"];
        assert!(named.iter().all(|name| error.to_string().contains(name)), "{error}");
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn the_credential_of_a_backup_is_not_that_of_the_data_key() {
        let place = tempfile::tempdir().unwrap();
        private(place.path(), CREDENTIAL, "of the data key");
        let credentials = Some(place.path().to_owned());
        let mut sources = PassphraseSources { credentials, ..PassphraseSources::default() };
        assert!(sources.is_given() && sources.ask_for_new().is_ok());
        sources.of = PassphraseOf::Backup;
        assert!(!sources.is_given());
        let error = sources.ask_for_new().unwrap_err().to_string();
        assert!(error.contains("INTERLOCK_BACKUP_PASSPHRASE_FILE"), "{error}");
        private(place.path(), PassphraseOf::Backup.credential(), "too short");
        assert!(matches!(sources.ask_for_new(), Err(PassphraseError::TooShort { .. })));
    }

    #[test]
    fn a_new_one_is_typed_twice() {
        let typed: Prompt = |question| {
            let text = if question.contains("again") { "another text" } else { "some long text" };
            Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), "the terminal")
        };
        let sources = PassphraseSources { prompt: Some(typed), ..PassphraseSources::default() };
        assert!(matches!(sources.ask_new(None), Err(PassphraseError::NotTheSame)));
        assert!(matches!(PassphraseSources::default().ask_new(None), Err(PassphraseError::NoSourceOfNew)));
        let place = tempfile::tempdir().unwrap();
        let short = private(place.path(), "new", "too short\n");
        assert!(matches!(sources.ask_new(Some(&short)), Err(PassphraseError::TooShort { chars: 9 })));
    }
}
