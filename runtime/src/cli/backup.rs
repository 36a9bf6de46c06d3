//! `interlock backup`: make, verify, list and restore backups. One file for each; `watch` shows how far they are.

mod create;
mod list;
mod restore;
mod verify;
mod watch;

pub(crate) use create::target;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use interlock_actors::{
    backup::{self, BackupError, Contents, Installation, PartKind},
    store::{
        Passphrase, PassphraseSources, StoreError,
        passphrase::{PassphraseError, PassphraseOf},
    },
};

use super::{CliError, Global, Output, output::json, terminal};
use crate::exit::Exit;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Seal databases, keys and configuration into one file; also while the runtime runs.
    Create(create::Arguments),
    /// Read a backup to its end and open each chunk of it.
    Verify(verify::Arguments),
    /// Show the backups in a directory; needs no passphrase.
    List(list::Arguments),
    /// Replace databases, keys and configuration by those in a backup, with the runtime stopped.
    Restore(restore::Arguments),
}

/// Where the passphrase of a backup comes from. It takes the place of the global flag, which is about the data key.
#[derive(Debug, Args)]
struct Seal {
    /// File with the passphrase of the backup, mode 0600. Else INTERLOCK_BACKUP_PASSPHRASE_FILE, the systemd credential
    /// interlock.backup-passphrase, or the terminal.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Seal {
    fn sources(&self) -> PassphraseSources {
        interlock_bus::keys::keep_memory_private();
        let given = PassphraseSources::of(PassphraseOf::Backup, self.passphrase_file.clone());
        PassphraseSources { prompt: terminal::prompt(), ..given }
    }

    /// The passphrase of the backup at `path`.
    fn of(&self, path: &Path) -> Result<Passphrase, CliError> {
        Ok(self.sources().ask(&format!("passphrase of the backup `{}`: ", path.display()))?)
    }
}

pub(super) fn run(verb: &Verb, global: &Global, output: &mut Output) -> Result<Exit, CliError> {
    match verb {
        Verb::Create(arguments) => create::run(arguments, global, output),
        Verb::Verify(arguments) => verify::run(arguments, global, output),
        Verb::List(arguments) => list::run(arguments, global, output),
        Verb::Restore(arguments) => restore::run(arguments, global, output),
    }
}

/// What this invocation would back up or restore into.
fn installation(global: &Global) -> Result<Installation, CliError> {
    let root = global.data_dir()?.root().to_owned();
    Ok(Installation { root, config: global.config_file() })
}

/// Says what was left by runs that were killed, and is gone now.
pub(crate) fn sweep(root: &Path, output: &mut Output) {
    if let Some(counts) = backup::sweep(root) {
        output.say(&format!(
            "a backup or restore had been interrupted; of {} temporary files that it left {} were wiped, {} only unlinked, {} could not be removed",
            counts.all(),
            counts.wiped,
            counts.unlinked_only,
            counts.failed
        ));
    }
}

/// What is in a backup, in a line for each kind.
fn describe(contents: &Contents, output: &mut Output) -> Result<(), CliError> {
    for part in &contents.parts {
        if let Some(database) = &part.database {
            let rows: u64 = database.rows.values().sum();
            output.line(&format!(
                "  {}: {} bytes, schema version {}, {rows} rows in {} tables",
                part.name,
                part.bytes,
                database.schema_version,
                database.rows.len()
            ))?;
        }
    }
    let keys = contents.parts.iter().filter(|part| part.kind == PartKind::Key).count();
    let config = contents.parts.iter().any(|part| part.kind == PartKind::Config);
    let config = if config { ", and the configuration" } else { "; no configuration file" };
    output.line(&format!("  {keys} files of the key store{config}"))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn time(nanoseconds: u64) -> String {
    super::db::time(nanoseconds.into())
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        let exit = Exit::from_code(error.exit_code()).unwrap_or(Exit::Failed);
        Self::new(exit, error.to_string())
    }
}

impl From<PassphraseError> for CliError {
    fn from(error: PassphraseError) -> Self {
        StoreError::from(error).into()
    }
}
