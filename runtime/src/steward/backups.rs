//! Backups in the directory of backups of the installation that runs.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use interlock_actors::{
    backup::{self, BackupError, BackupName, Installation, Watcher},
    gateway::steward::{NewBackup, Refusal, RefusalKind},
    store::{
        Passphrase, PassphraseSources, StoreError,
        key::attempts::{Attempts, Guess},
        passphrase::{PassphraseError, PassphraseOf},
    },
};
use interlock_bus::{PeerName, keys::audit::Act};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Turn, refused};
use crate::{admin::make_backup, cli, config::schema::nearest, exit::Exit, site::Site};

/// How often one that waits looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn list(site: &Site) -> Result<Value, Refusal> {
    let directory = site.installation().backups();
    let backups: Vec<Value> = listed(&site.installation())?.iter().map(with_name).collect();
    Ok(json!({ "directory": directory, "backups": backups }))
}

/// The backups there are; the directory is made by the first one.
fn listed(installation: &Installation) -> Result<Vec<backup::Listed>, Refusal> {
    let directory = installation.backups();
    if directory.exists() { backup::list(&directory).map_err(of_backup) } else { Ok(Vec::new()) }
}

pub(super) fn create(
    site: &Site,
    by: &PeerName,
    wanted: NewBackup,
    watcher: &mut Watcher<'_>,
) -> Result<Value, Refusal> {
    let NewBackup { name, passphrase } = wanted;
    let installation = site.installation();
    let passphrase = match passphrase {
        Some(given) => given.check_new().map(|()| given),
        None => PassphraseSources::of(PassphraseOf::Backup, None).ask_for_new(),
    };
    let passphrase = passphrase.map_err(of_passphrase)?;
    let _turn = Turn::take(&site.backing_up).ok_or_else(|| {
        refused(RefusalKind::Busy, "busy", "another backup is being made; wait for its end")
    })?;
    // Makes the directory, if it has to.
    let default = cli::backup_target(None, &installation).map_err(of_target)?;
    let target = name.map_or(default, |name| installation.backups().join(name.as_str()));
    if target.symlink_metadata().is_ok() {
        let text = format!("there is a `{}` already; choose another name", shown(&target));
        return Err(refused(RefusalKind::Conflict, "exists", text));
    }
    tracing::info!(%by, "backup asked for");
    let made = make_backup(site, by, &target, &passphrase, watcher);
    match &made {
        Ok(made) => tracing::info!(path = %made.path.display(), bytes = made.bytes, "backup made"),
        Err(error) => tracing::error!(%error, "no backup was made"),
    }
    Ok(with_name(&made.map_err(of_backup)?))
}

pub(super) fn verify(
    site: &Site,
    verifying: &Arc<AtomicBool>,
    by: &PeerName,
    name: &BackupName,
    passphrase: Option<Passphrase>,
    watcher: &mut Watcher<'_>,
) -> Result<Value, Refusal> {
    let installation = site.installation();
    let there = listed(&installation)?;
    let names: Vec<String> = there.iter().map(|backup| shown(&backup.path)).collect();
    if !names.iter().any(|there| there == name.as_str()) {
        // The ending is what is left out first.
        let whole = name.clone().with_ending();
        let ended = names.iter().map(String::as_str).find(|there| *there == whole.as_str());
        let meant = ended.or_else(|| nearest(name.as_str(), names.iter().map(String::as_str)));
        let meant = meant.map_or_else(
            || "; `GET /v1/admin/backups` shows those there are".to_owned(),
            |meant| format!("; did you mean `{meant}`?"),
        );
        return Err(refused(
            RefusalKind::Unknown,
            "unknown_backup",
            format!("there is no backup `{name}`{meant}"),
        ));
    }
    let passphrase = match passphrase {
        Some(given) => given,
        None => PassphraseSources::of(PassphraseOf::Backup, None).ask("").map_err(of_passphrase)?,
    };
    let _turn = Turn::take(verifying).ok_or_else(|| {
        refused(RefusalKind::Busy, "busy", "another backup is being verified; wait for its end")
    })?;
    let (keys, path) = (site.data_dir.keys(), installation.backups().join(name.as_str()));
    let attempts = Attempts::of(&keys, Guess::Backup);
    wait(attempts.delay(), watcher.cancel).map_err(of_backup)?;
    let act = Act::new("backup-verify").with(path.display().to_string());
    let verified = cli::backup_noted(&keys, Some(by), act, || {
        let outcome = backup::verify(&path, &passphrase, watcher);
        match &outcome {
            Err(BackupError::WrongPassphrase { .. }) => attempts.failed(),
            Ok(_) => attempts.succeeded(),
            Err(_) => {}
        }
        outcome
    });
    Ok(with_name(&verified.map_err(of_backup)?))
}

/// After several wrong passphrases the next one waits, unless nobody wants it any more.
fn wait(delay: Duration, cancel: &AtomicBool) -> Result<(), BackupError> {
    let until = Instant::now() + delay;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if cancel.load(Ordering::Relaxed) {
            return Err(BackupError::Cancelled);
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
    Ok(())
}

/// As an object, with the name of the file beside its path.
fn with_name(backup: &impl Serialize) -> Value {
    let mut object = json!(backup);
    let name = object["path"].as_str().map(|path| shown(path.as_ref()));
    object["name"] = json!(name.unwrap_or_default());
    object
}

fn shown(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn of_target(error: cli::CliError) -> Refusal {
    refused(RefusalKind::Failed, "backup", error.to_string())
}

fn of_passphrase(error: PassphraseError) -> Refusal {
    match &error {
        PassphraseError::NoSource { of } => {
            let text = format!(
                "there is no passphrase: give it as `passphrase`, or the runtime one with `{}` or the systemd credential `{}`",
                of.variable(),
                of.credential()
            );
            refused(RefusalKind::Misuse, "no_passphrase", text)
        }
        PassphraseError::TooShort { .. } => refused(RefusalKind::Misuse, "bad_request", error.to_string()),
        _ => refused(RefusalKind::Failed, "passphrase", error.to_string()),
    }
}

fn of_backup(error: BackupError) -> Refusal {
    let text = error.to_string();
    match error {
        BackupError::WrongPassphrase { .. } => refused(RefusalKind::Misuse, "wrong_passphrase", text),
        BackupError::Cancelled => refused(RefusalKind::Busy, "cancelled", text),
        BackupError::Restoring { .. } => refused(RefusalKind::Busy, "busy", text),
        BackupError::Passphrase(error) => of_passphrase(error),
        BackupError::Store(StoreError::Passphrase(_)) => refused(RefusalKind::Failed, "passphrase", text),
        error => match Exit::from_code(error.exit_code()) {
            Some(Exit::Damaged) => refused(RefusalKind::Conflict, "damaged", text),
            Some(Exit::Version) => refused(RefusalKind::Conflict, "newer_format", text),
            Some(Exit::Full) => refused(RefusalKind::Failed, "no_space", text),
            _ => refused(RefusalKind::Failed, "backup", text),
        },
    }
}
