//! `interlock backup create`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use interlock_actors::backup::{self, CreateOptions, Installation};
use interlock_bus::keys::private_file;

use super::{CliError, Global, Output, Seal, act, describe, installation, noted, size, sweep, watch::watch};
use crate::exit::Exit;

#[derive(Debug, Args)]
pub(in super::super) struct Arguments {
    /// The new file, or the directory for it; by default one named by the time in `backups` in the data directory. A backup
    /// that is there is replaced when the new one is whole.
    file: Option<PathBuf>,
    #[command(flatten)]
    seal: Seal,
    /// File with the passphrase of the data key, if that is sealed under one; mode 0600. Else INTERLOCK_PASSPHRASE_FILE, the
    /// systemd credential interlock.passphrase, or the terminal.
    #[arg(long, value_name = "FILE")]
    data_passphrase_file: Option<PathBuf>,
    /// One JSON object a line: how far it is, and at the end the result.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    let installation = installation(global)?;
    let data_dir = global.data_dir()?;
    super::super::db::initialised(&data_dir)?;
    sweep(&installation.root, output);
    let target = target(arguments.file.as_deref(), &installation)?;
    // The flag of this verb is about the backup.
    let global = Global { passphrase_file: arguments.data_passphrase_file.clone(), ..global.clone() };
    let key = global.data_key(&data_dir)?;
    let passphrase = arguments.seal.sources().ask_for_new()?;
    let created = noted(&data_dir.keys(), None, act("backup-create", &target), || {
        watch(arguments.json, output, |watcher| {
            backup::create(&installation, &key, &passphrase, &target, CreateOptions::default(), watcher)
        })
    })?;
    for path in &created.left_out {
        output.say(&format!("`{path}` is no plain file, and not in the backup"));
    }
    if created.wiped.all() > created.wiped.wiped {
        output.say(&format!(
            "of the temporary files {} were only unlinked and {} could not be removed; their key is gone",
            created.wiped.unlinked_only, created.wiped.failed
        ));
    }
    if !arguments.json {
        output.line(&format!(
            "made `{}`, {}, and read it back:",
            created.path.display(),
            size(created.bytes)
        ))?;
        describe(&created.contents, output)?;
        output.say("without its passphrase nobody can open it, and that cannot be reset");
    }
    Ok(Exit::Done)
}

/// Where the backup goes. Never over something that is none.
pub(crate) fn target(file: Option<&Path>, installation: &Installation) -> Result<PathBuf, CliError> {
    let misuse =
        |path: &Path, problem: &str| CliError::new(Exit::Misuse, format!("`{}` {problem}", path.display()));
    let path = match file {
        None => {
            private_file::private_directory(&installation.backups())?;
            installation.backups().join(backup::default_name())
        }
        Some(path) if path.is_dir() => path.join(backup::default_name()),
        Some(path) => path.to_owned(),
    };
    if path.file_name().is_none() {
        return Err(misuse(&path, "names no file"));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::canonicalize(directory).map_err(|error| {
        CliError::new(Exit::Io, format!("cannot use the directory `{}`: {error}", directory.display()))
    })?;
    let root = fs::canonicalize(&installation.root).unwrap_or_else(|_| installation.root.clone());
    if directory.starts_with(&root) && !directory.starts_with(root.join("backups")) {
        return Err(misuse(
            &path,
            "is among the files of the data directory; choose another place, or `backups` in it",
        ));
    }
    match fs::symlink_metadata(&path) {
        Ok(about) if !about.is_file() => {
            Err(misuse(&path, "is there and no plain file; choose another name"))
        }
        Ok(about) if about.len() > 0 && !backup::is_backup(&path) => Err(misuse(
            &path,
            "is there and no backup, so it is not replaced; remove it, or choose another name",
        )),
        _ => Ok(path),
    }
}
