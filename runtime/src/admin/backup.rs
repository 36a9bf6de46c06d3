//! Backups on request: one at a time, on a thread of its own, told part by part.
//!
//! The passphrase never travels: the request names a file that the runtime reads, or it takes what its own environment has.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use interlock_actors::{
    actor::Failure,
    backup::{self, BackupError, CreateOptions, Created, Phase, Progress, Watcher},
    store::{Passphrase, PassphraseSources, passphrase::PassphraseOf},
};
use interlock_bus::{Payload, PeerName, Request, keys::audit::Act};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{cli, exit::Exit, site::Site};

/// Words about how far it is that wait for the requester. Further ones are left out: what comes later says more.
const WORDS_MAX: usize = 16;

/// Asks for a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupOrder {
    /// The new file, or the directory for it, as an absolute path; without it, one named by the time in `backups` in the data
    /// directory.
    pub file: Option<PathBuf>,
    /// File with the passphrase of the backup, which the runtime can read; without it what its own environment names.
    pub passphrase_file: Option<PathBuf>,
}

/// Makes backups for the runtime. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct BackupDesk {
    site: Arc<Site>,
    is_busy: Arc<AtomicBool>,
}

/// Says that none is being made, however it ended; and stops the one that nobody waits for.
struct Turn {
    is_busy: Arc<AtomicBool>,
    cancel: Arc<AtomicBool>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// Why there is no backup, in a word for programs and a sentence for people.
struct Failed {
    exit: Exit,
    text: String,
}

impl BackupDesk {
    pub(crate) fn new(site: &Arc<Site>) -> Self {
        Self { site: Arc::clone(site), is_busy: Arc::clone(&site.backing_up) }
    }

    /// Makes one, and tells the requester of each step. Ends with the request; a requester who wants no more ends the backup.
    pub(crate) async fn make(self, request: Request) -> Result<(), Failure> {
        let order = match &request.message.payload[..] {
            b"" => Ok(BackupOrder::default()),
            payload => serde_json::from_slice(payload),
        };
        let order: BackupOrder = match order {
            Ok(order) => order,
            Err(error) => {
                let text = format!("a backup is asked for with `file` and `passphrase_file`: {error}");
                return answered(request.fail("misuse", &text).await);
            }
        };
        if self.is_busy.swap(true, Ordering::Relaxed) {
            return answered(request.fail("busy", "another backup is being made; wait for its end").await);
        }
        let cancel = Arc::new(AtomicBool::new(false));
        let (told, mut words) = mpsc::channel(WORDS_MAX);
        let turn = Turn { is_busy: Arc::clone(&self.is_busy), cancel: Arc::clone(&cancel) };
        tracing::info!(by = %request.message.origin, "backup asked for");
        let is_busy = Arc::clone(&turn.is_busy);
        let site = Arc::clone(&self.site);
        let by = request.message.origin.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let outcome = create(&site, &by, order, &told, &cancel);
            // Here, because this is what another one would be in the way of.
            is_busy.store(false, Ordering::Relaxed);
            outcome
        });
        let unwanted = request.cancelled();
        let outcome = loop {
            tokio::select! {
                biased;
                Some(word) = words.recv() => {
                    if let Ok(payload) = Payload::json(&word)
                        && request.reply(payload).await.is_err()
                    {
                        turn.cancel.store(true, Ordering::Relaxed);
                    }
                }
                outcome = &mut work => break outcome?,
                () = unwanted.wait(), if !turn.cancel.load(Ordering::Relaxed) => {
                    turn.cancel.store(true, Ordering::Relaxed);
                }
            }
        };
        match outcome {
            Ok(created) => {
                tracing::info!(path = %created.path.display(), bytes = created.bytes, "backup made");
                let done = serde_json::json!({ "phase": Phase::Done, "percent": 100, "result": created });
                answered(request.end(Payload::json(&done)?).await)
            }
            Err(Failed { exit, text }) => {
                tracing::error!(error = %text, "no backup was made");
                let failed = serde_json::json!({ "phase": Phase::Error, "error": text, "exit": exit.code() });
                let code = exit.meaning();
                answered(request.fail_with(code, &text, Payload::json(&failed)?).await)
            }
        }
    }
}

fn create(
    site: &Site,
    by: &PeerName,
    order: BackupOrder,
    told: &mpsc::Sender<Progress>,
    cancel: &AtomicBool,
) -> Result<Created, Failed> {
    let installation = site.installation();
    if let Some(path) = order.file.as_ref().filter(|path| !path.is_absolute()) {
        let text =
            format!("`{}` is no absolute path, and the runtime has a directory of its own", path.display());
        return Err(Failed { exit: Exit::Misuse, text });
    }
    let target = cli::backup_target(order.file.as_deref(), &installation)
        .map_err(|error| Failed { exit: error.exit(), text: error.to_string() })?;
    let failed = |error: BackupError| Failed {
        exit: Exit::from_code(error.exit_code()).unwrap_or(Exit::Failed),
        text: error.to_string(),
    };
    let sources = PassphraseSources::of(PassphraseOf::Backup, order.passphrase_file);
    let passphrase = sources.ask_for_new().map_err(|error| failed(error.into()))?;
    let mut tell = |word: Progress| {
        if !matches!(word.phase, Phase::Done | Phase::Error) {
            // Full: the requester is slow, and hears of what comes later.
            let _ = told.try_send(word);
        }
    };
    let mut watcher = Watcher { tell: &mut tell, cancel };
    make(site, by, &target, &passphrase, &mut watcher).map_err(failed)
}

/// Makes a backup of this installation at `target`, for this peer.
pub(crate) fn make(
    site: &Site,
    by: &PeerName,
    target: &Path,
    passphrase: &Passphrase,
    watcher: &mut Watcher<'_>,
) -> Result<Created, BackupError> {
    let key = site.vault.open()?;
    let act = Act::new("backup-create").with(format!("{}, asked for by `{by}`", target.display()));
    cli::backup_noted(&site.data_dir.keys(), Some(by), act, || {
        let installation = site.installation();
        backup::create(&installation, &key, passphrase, target, CreateOptions::default(), watcher)
    })
}

/// That nobody waits any more is no failure of ours.
fn answered<E: std::fmt::Display>(outcome: Result<(), E>) -> Result<(), Failure> {
    if let Err(error) = outcome {
        tracing::debug!(%error, "nobody waited for the answer");
    }
    Ok(())
}
