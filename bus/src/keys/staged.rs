//! Several files of a key store replaced as one: all of them, or, killed at any point, none.
//!
//! They are written into a directory beside, then a mark that they are whole, then each is moved to its place. Whoever comes
//! after a kill finds the mark and moves the rest, or finds none and removes what is there.

use std::{fs, io, path::Path};

use zeroize::Zeroizing;

use super::{KeyError, private_file};

/// The directory beside.
const DIRECTORY: &str = ".staged";
/// The mark.
const WHOLE: &str = "whole";

/// A file's name and its new content.
pub(super) type NewFile = (String, Zeroizing<Vec<u8>>);

/// Replaces these files of `directory`. The caller holds the lock.
pub(super) fn replace_all(directory: &Path, files: &[NewFile]) -> Result<(), KeyError> {
    let staged = directory.join(DIRECTORY);
    finish(directory)?;
    private_file::private_directory(&staged)?;
    for (name, content) in files {
        private_file::replace(&staged.join(name), content)?;
    }
    private_file::replace(&staged.join(WHOLE), b"")?;
    finish(directory)
}

/// Does, or undoes, what somebody who was killed has left. The caller holds the lock.
pub(super) fn finish(directory: &Path) -> Result<(), KeyError> {
    let staged = directory.join(DIRECTORY);
    let error = |action| move |path: &Path, source| KeyError::Io { action, path: path.to_owned(), source };
    let entries = match fs::read_dir(&staged) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error("read")(&staged, source)),
    };
    if staged.join(WHOLE).exists() {
        let names = entries.flatten().map(|entry| entry.file_name());
        for name in names.filter(|name| name != WHOLE && !name.to_string_lossy().starts_with('.')) {
            let to = directory.join(&name);
            fs::rename(staged.join(&name), &to).map_err(|source| error("replace")(&to, source))?;
        }
        // The renames are on the disk before the mark goes.
        private_file::sync_directory_of(&staged)?;
    }
    fs::remove_dir_all(&staged).map_err(|source| error("remove")(&staged, source))?;
    private_file::sync_directory_of(&staged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_leaves_all_files_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let file = |name: &str, text: &str| (name.to_owned(), Zeroizing::new(text.as_bytes().to_vec()));
        let read = || ["a", "b"].map(|name| fs::read_to_string(place.join(name)).unwrap_or_default());
        replace_all(place, &[file("a", "1"), file("b", "1")]).unwrap();
        assert_eq!(read(), ["1", "1"]);
        let staged = place.join(DIRECTORY);
        // Before the mark, after it, and after the first of the moves.
        for (mark, moved, expected) in
            [(false, false, ["1", "1"]), (true, false, ["2", "2"]), (true, true, ["3", "3"])]
        {
            let text = expected[0].parse::<u32>().unwrap().max(2).to_string();
            private_file::private_directory(&staged).unwrap();
            for name in ["a", "b"] {
                private_file::replace(&staged.join(name), text.as_bytes()).unwrap();
            }
            if mark {
                private_file::replace(&staged.join(WHOLE), b"").unwrap();
            }
            if moved {
                fs::rename(staged.join("a"), place.join("a")).unwrap();
            }
            finish(place).unwrap();
            assert_eq!(read(), expected);
            assert!(!staged.exists());
        }
    }
}
