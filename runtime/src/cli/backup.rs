//! `interlock backup`: make, verify, list and restore backups. One file for each; `watch` shows how far they are.

mod create;
mod list;
mod restore;
mod verify;
mod watch;

pub(crate) use create::target;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use interlock_actors::{
    backup::{self, BackupError, Contents, Installation, PartKind},
    store::{
        Passphrase, PassphraseSources, StoreError,
        key::attempts::{Attempts, Guess},
        passphrase::{PassphraseError, PassphraseOf},
    },
};
use interlock_bus::{
    PeerName,
    keys::{
        Audit,
        audit::{Act, Outcome},
    },
};

use super::{CliError, Global, Output, output::json, terminal};
use crate::{
    config::{Config, Loaded, Origin},
    exit::Exit,
    lifecycle::{self, DataDir},
};

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

/// What this invocation would back up. A configuration file that nobody names is that of the instance which runs, or the one
/// that a restore would write.
fn installation(global: &Global) -> Result<Installation, CliError> {
    let loaded = global.load()?;
    let data_dir = super::data_dir(&loaded.config)?;
    let root = data_dir.root().to_owned();
    let of_instance = || lifecycle::running(&data_dir).ok().flatten().and_then(|instance| instance.config);
    let config = global
        .named_config_file()
        .or_else(of_instance)
        .or_else(|| place_of_config(&loaded, &root).filter(|path| path.exists()))
        .or_else(Config::user_file);
    Ok(Installation { root, config })
}

/// Where the configuration of an installation is if nobody has named a file: the user's; but where a flag or a variable names
/// the data directory, it is in that, because the user's file is about another one.
fn place_of_config(loaded: &Loaded, root: &Path) -> Option<PathBuf> {
    match loaded.held.get("runtime.data_dir").map(|held| &held.origin) {
        Some(Origin::Flag(_) | Origin::Environment(_)) => Some(root.join("interlock.toml")),
        _ => Config::user_file_place(),
    }
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

/// A passphrase that is about to be tried on a backup. Wrong ones are in the audit file of the installation, and after some of
/// them the next one waits, as with the data key. Where nothing is installed yet, they are in that of the user's own installation;
/// and where there is none either, each wrong one waits.
struct Trial(Option<Attempts>);

/// What a wrong passphrase waits that is written down nowhere.
const UNCOUNTED: Duration = Duration::from_secs(1);

impl Trial {
    /// Waits as long as it has to.
    fn begin(keys: &Path, global: &Global, output: &mut Output) -> Self {
        let keys = Some(keys.to_owned()).into_iter().chain(own_keys(global)).find(|keys| keys.is_dir());
        let attempts = keys.map(|keys| Attempts::of(&keys, Guess::Backup));
        let delay = attempts.as_ref().map_or(Duration::ZERO, Attempts::delay);
        if !delay.is_zero() {
            output.say(&format!(
                "after several wrong passphrases of backups this one waits {} s",
                delay.as_secs()
            ));
            std::thread::sleep(delay);
        }
        Self(attempts)
    }

    /// What became of it.
    fn judged<T>(&self, outcome: Result<T, BackupError>) -> Result<T, BackupError> {
        match (&outcome, &self.0) {
            (Err(BackupError::WrongPassphrase { .. }), Some(attempts)) => attempts.failed(),
            (Err(BackupError::WrongPassphrase { .. }), None) => std::thread::sleep(UNCOUNTED),
            (Ok(_), Some(attempts)) => attempts.succeeded(),
            _ => {}
        }
        outcome
    }
}

/// The key store of the user's own installation: the one that commands work on which name none.
fn own_keys(global: &Global) -> Option<PathBuf> {
    let own = Global { config: None, data_dir: None, settings: Vec::new(), ..global.clone() };
    let data_dir = own.load_with(Config::user_file()).ok()?.config.data_dir()?;
    Some(DataDir::at(data_dir).keys())
}

/// Notes what came of `work`, and the peer that has asked for it, in the audit file of the key store `keys`, if there is one. What only reads is done without, too.
pub(crate) fn noted<T, E: std::fmt::Display>(
    keys: &Path,
    by: Option<&PeerName>,
    act: Act,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let outcome = work();
    if keys.is_dir() {
        let result = match &outcome {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        if let Err(error) = Audit::of(keys).asked_by(by.cloned()).note(act, result) {
            tracing::warn!(%error, "a backup is not in the audit file");
        }
    }
    outcome
}

/// What is done to which file.
pub(crate) fn act(action: &str, file: &Path) -> Act {
    Act::new(action).with(file.display().to_string())
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
