//! The name of a backup in the directory of backups: a plain file there, and nothing that leads elsewhere.

use std::{fmt, str::FromStr};

/// Bytes of a name.
const BYTES_MAX: usize = 100;

/// What the name of a backup ends with.
const ENDING: &str = ".ilbk";

/// The name of a file, not of a way to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupName(String);

/// Why a text is no name of a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no name of a backup: 1 to {BYTES_MAX} characters of a-z, A-Z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit", .0.escape_debug()
)]
pub struct BackupNameError(String);

impl BackupName {
    /// The name of the file.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a new file: with the ending of backups, if it was left out.
    #[must_use]
    pub fn with_ending(self) -> Self {
        if self.0.ends_with(ENDING) { self } else { Self(self.0 + ENDING) }
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for BackupName {
    type Err = BackupNameError;

    fn from_str(text: &str) -> Result<Self, BackupNameError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins_well = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        if begins_well && text.len() <= BYTES_MAX && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(BackupNameError(text.chars().take(BYTES_MAX).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in ["a", "2026-01-31.ilbk", "Before_update", &"x".repeat(BYTES_MAX)] {
            assert_eq!(good.parse::<BackupName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "../a",
            "a\\b",
            "-a",
            "a b",
            "\u{e9}",
            "a\0",
            &"x".repeat(BYTES_MAX + 1),
        ] {
            assert!(bad.parse::<BackupName>().is_err(), "{bad:?}");
        }
        let name: BackupName = "a".parse().unwrap();
        assert_eq!(name.with_ending().with_ending().as_str(), "a.ilbk");
    }
}
