//! What can be known of backups without their passphrase.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{error::BackupError, header::Header, manifest::id_text, open::Opened};

/// A file that begins as a backup does. Whether the rest opens says only its passphrase.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was made, in nanoseconds since the Unix epoch; absent if its header cannot be read.
    pub created_ns: Option<u64>,
    /// What was backed up.
    pub database_id: Option<String>,
    /// Bytes of what is sealed in it.
    pub plain_bytes: Option<u64>,
    /// What can be seen to be wrong.
    pub problem: Option<String>,
}

/// The backups in `directory`, the newest first.
///
/// # Errors
/// It is not there, or cannot be listed.
pub fn list(directory: &Path) -> Result<Vec<Listed>, BackupError> {
    let entries = fs::read_dir(directory).map_err(BackupError::file(directory, "list"))?;
    let mut listed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(BackupError::file(directory, "list"))?;
        let Ok(about) = entry.metadata() else { continue };
        if about.is_file() {
            listed.extend(look(&entry.path(), about.len()));
        }
    }
    listed.sort_by(|one, other| (other.created_ns, &other.path).cmp(&(one.created_ns, &one.path)));
    Ok(listed)
}

fn look(path: &Path, bytes: u64) -> Option<Listed> {
    let is_named_so = path.extension().is_some_and(|extension| extension == "ilbk");
    let listed = |header: Option<Header>, problem| Listed {
        path: path.to_owned(),
        bytes,
        created_ns: header.as_ref().map(|header| header.created_ns),
        database_id: header.as_ref().map(|header| id_text(&header.database_id)),
        plain_bytes: header.as_ref().map(|header| header.plain_bytes),
        problem,
    };
    match Opened::header_of(path) {
        Ok((header, _)) => {
            let whole = header.file_bytes();
            let problem = (whole != bytes).then(|| format!("it has {bytes} bytes, and should have {whole}"));
            Some(listed(Some(header), problem))
        }
        // Other files may lie there, too.
        Err(BackupError::Header { problem, .. }) if is_named_so => {
            Some(listed(None, Some(problem.to_owned())))
        }
        Err(error @ BackupError::NewerFormat { .. }) => Some(listed(None, Some(error.to_string()))),
        Err(_) => None,
    }
}
