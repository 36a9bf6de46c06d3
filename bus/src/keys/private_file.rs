//! Files that hold secrets: read only if nobody else can, written so that one whole file exists at any instant.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::KeyError;

/// Bytes of the largest key file. A larger one is damaged.
const PRIVATE_FILE_BYTES_MAX: u64 = 1 << 20;

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeyError + 'a {
    move |source| KeyError::Io { action, path: path.to_owned(), source }
}

/// Makes `path` and its parents, readable by the owner only; checks that an existing one is, and that it is no link.
///
/// # Errors
/// [`KeyError::Exposed`] if others may enter it, [`KeyError::Link`] if it is a link, [`KeyError::Io`] if it cannot be made.
pub fn private_directory(path: &Path) -> Result<(), KeyError> {
    if let Ok(target) = fs::read_link(path) {
        return Err(KeyError::Link { path: path.to_owned(), target });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create directory", path))?;
    let metadata = fs::metadata(path).map_err(io_error("read", path))?;
    if !metadata.is_dir() {
        return Err(KeyError::NotOurs { path: path.to_owned(), found: "not a directory" });
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode, wanted: 0o700 });
    }
    Ok(())
}

/// [`private_directory`] for a directory that its owner has chosen, and may have named by a link: what the link names is
/// made and checked.
///
/// # Errors
/// As [`private_directory`]; [`KeyError::Link`] only if nothing is there.
pub fn private_directory_behind(path: &Path) -> Result<(), KeyError> {
    private_directory(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))
}

/// Reads a secret. The buffer is erased when dropped.
///
/// # Errors
/// [`KeyError::Exposed`] if group or others have any right on it, [`KeyError::NotOurs`] if it is a
/// link, a device or another user's, [`KeyError::Io`] otherwise.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(nix::libc::ELOOP) => KeyError::NotOurs { path: path.to_owned(), found: "a symbolic link" },
            _ => KeyError::Io { action: "read", path: path.to_owned(), source },
        })?;
    let metadata = file.metadata().map_err(io_error("read", path))?;
    if !metadata.is_file() {
        return Err(KeyError::NotOurs { path: path.to_owned(), found: "not a plain file" });
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeyError::NotOurs { path: path.to_owned(), found: "another user's" });
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode, wanted: 0o600 });
    }
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(metadata.len().min(PRIVATE_FILE_BYTES_MAX) as usize + 1));
    file.take(PRIVATE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > PRIVATE_FILE_BYTES_MAX {
        return Err(KeyError::Damaged {
            path: path.to_owned(),
            problem: "it is larger than 1 MiB".to_owned(),
        });
    }
    Ok(bytes)
}

/// Reads a secret that is text.
///
/// # Errors
/// Those of [`read`]; [`KeyError::Damaged`] if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Damaged {
        path: path.to_owned(),
        problem: "it is not UTF-8 text".to_owned(),
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Replaces `path` with `bytes`, mode 0600: a new file is written, synced, renamed over the old one,
/// and the directory synced. A crash leaves the old file or the new one, whole, and perhaps the temporary file,
/// which the next [`replace`] of the same path or [`remove_abandoned`] takes away.
///
/// # Errors
/// [`KeyError::Io`]; the temporary file is removed.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    remove_unlocked(directory_of(path), &prefix);
    let (temporary, mut file) = create_temporary(path, &prefix)?;
    let written = file
        .write_all(bytes)
        .map_err(io_error("write", &temporary))
        .and_then(|()| file.sync_all().map_err(io_error("sync", &temporary)))
        .and_then(|()| fs::rename(&temporary, path).map_err(io_error("replace", path)))
        .and_then(|()| sync_directory_of(path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes what writers that were killed have left in `directory`: the temporary files of [`replace`] that no living
/// process is writing. One that cannot be removed stays; it is as private as the file it was to become.
pub fn remove_abandoned(directory: &Path) {
    remove_unlocked(directory, ".");
}

fn remove_unlocked(directory: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| is_temporary(name, prefix))
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether the name begins with `prefix` and ends with a dot and 32 hexadecimal digits.
fn is_temporary(name: &str, prefix: &str) -> bool {
    name.starts_with(prefix)
        && name.rsplit_once('.').is_some_and(|(stem, number)| {
            !stem.is_empty() && number.len() == 32 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
}

/// A new file beside `path`. It is locked while it is open, which says that its writer lives.
fn create_temporary(path: &Path, prefix: &str) -> Result<(PathBuf, File), KeyError> {
    loop {
        let temporary = path.with_file_name(format!("{prefix}{}", uuid::Uuid::new_v4().simple()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(io_error("create", &temporary))?;
        file.lock().map_err(io_error("lock", &temporary))?;
        // Between its creation and its lock it may have been taken for an abandoned one.
        if file.metadata().map_err(io_error("read", &temporary))?.nlink() > 0 {
            return Ok((temporary, file));
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn sync_directory_of(path: &Path) -> Result<(), KeyError> {
    let directory = directory_of(path);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        replace(&path, b"secret").unwrap();
        assert_eq!(&*read(&path).unwrap(), b"secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("chmod 600") && !message.contains("secret"), "{message}");
    }

    #[test]
    fn a_link_or_a_directory_is_never_read_as_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(matches!(read(&link), Err(KeyError::NotOurs { .. })));
        assert!(matches!(read(directory.path()), Err(KeyError::NotOurs { .. })));
    }

    #[test]
    fn a_directory_for_secrets_is_never_a_link_and_nobody_is_told_to_change_what_one_names() {
        let directory = tempfile::tempdir().unwrap();
        let [link, target] = ["run", "elsewhere"].map(|name| directory.path().join(name));
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for exists in [true, false] {
            let message = private_directory(&link).unwrap_err().to_string();
            assert!(message.contains(&format!("`{}` is a symbolic link", link.display())), "{message}");
            assert!(message.contains("remove the link") && !message.contains("chmod"), "{message}");
            if exists {
                // One that its owner has chosen is looked at where it is.
                let message = private_directory_behind(&link).unwrap_err().to_string();
                let target = fs::canonicalize(&target).unwrap();
                assert!(message.contains(&format!("`chmod 700 {}`", target.display())), "{message}");
                fs::set_permissions(&target, fs::Permissions::from_mode(0o700)).unwrap();
                private_directory_behind(&link).unwrap();
                fs::remove_dir(&target).unwrap();
            }
        }
        assert!(matches!(private_directory_behind(&link), Err(KeyError::Link { .. })), "a link to nothing");
        assert!(!target.exists());
    }

    #[test]
    fn replacing_leaves_no_other_file_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for content in [&b"one"[..], b"two"] {
            replace(&path, content).unwrap();
        }
        assert_eq!(&*read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(replace(&directory.path().join("none/key"), b"x").is_err());
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let left = |name: &str| directory.path().join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
        let names = || {
            let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let (same, other, hidden) = (left("key"), left("other"), directory.path().join(".profile"));
        for path in [&same, &other, &hidden] {
            fs::write(path, "left").unwrap();
        }
        let (written, writer) = create_temporary(&path, ".key.").unwrap();
        replace(&path, b"one").unwrap();
        assert_eq!(names(), [&path, &other, &hidden, &written].map(Clone::clone).into());
        remove_abandoned(directory.path());
        assert_eq!(names(), [&path, &hidden, &written].map(Clone::clone).into());
        drop(writer);
        remove_abandoned(directory.path());
        assert_eq!(names(), [path, hidden].into());
    }
}
