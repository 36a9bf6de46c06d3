//! Shows how far a backup is: a bar on a terminal, a line for each event with `--json`; and ends it in order when a signal comes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use interlock_actors::backup::{BackupError, Phase, Progress, Watcher};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{CliError, Output, json, size};
use crate::exit::{Exit, leave};

/// Columns of the bar.
const BAR: usize = 30;

/// Does `work`, shows how far it is, and says how it ended. With `as_json` the last line has the result, or the error.
pub(super) fn watch<T: serde::Serialize>(
    as_json: bool,
    output: &mut Output,
    work: impl FnOnce(&mut Watcher<'_>) -> Result<T, BackupError>,
) -> Result<T, CliError> {
    let signals = Signals::listen()?;
    let mut tell = |progress: Progress| match progress.phase {
        Phase::Done | Phase::Error => {}
        _ if as_json => {
            // Whether or not somebody reads it: the work goes on.
            let _ = json(&progress).and_then(|line| output.line(&line));
        }
        _ => output.bar(Some(&bar(progress))),
    };
    let outcome = work(&mut Watcher { tell: &mut tell, cancel: &signals.cancel });
    output.bar(None);
    drop(signals);
    if as_json {
        let line = match &outcome {
            Ok(result) => serde_json::json!({ "phase": Phase::Done, "percent": 100, "result": result }),
            Err(error) => serde_json::json!({
                "phase": Phase::Error, "error": error.to_string(), "exit": error.exit_code(),
            }),
        };
        let printed = json(&line).and_then(|line| output.line(&line));
        // What failed counts more than that nobody read it.
        let result = outcome.map_err(CliError::from)?;
        return printed.map(|()| result);
    }
    outcome.map_err(CliError::from)
}

fn bar(progress: Progress) -> String {
    let full = BAR * usize::from(progress.percent) / 100;
    let of = match progress.bytes_total {
        0 | 1 => String::new(),
        total => format!("  {} of {}", size(progress.bytes.min(total)), size(total)),
    };
    format!(
        "[{}{}] {:>3} %  {}{of}",
        "#".repeat(full),
        ".".repeat(BAR - full),
        progress.percent,
        progress.phase.as_str()
    )
}

/// A thread that hears signals while it lives: the first one asks for an end in order, the second one ends the process.
struct Signals {
    cancel: Arc<AtomicBool>,
    /// Dropped to end the thread.
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::new(Exit::of_io(&error), format!("signals cannot be handled: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listening = runtime.block_on(async {
            let [interrupt, terminate, hang_up] =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
            Ok((interrupt?, terminate?, hang_up?))
        });
        let (mut interrupt, mut terminate, mut hang_up) = listening.map_err(failed)?;
        let (end, mut ended) = oneshot::channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&cancel);
        let wait = async move {
            loop {
                tokio::select! {
                    _ = &mut ended => return,
                    Some(()) = interrupt.recv() => {}
                    Some(()) = terminate.recv() => {}
                    Some(()) = hang_up.recv() => {}
                }
                if asked.swap(true, Ordering::Relaxed) {
                    Output::quick("ended at once; the next backup wipes what this one leaves");
                    leave(Exit::Forced);
                }
                Output::quick("stopping, and wiping what is unfinished; once more means now");
            }
        };
        // Joined when this is dropped.
        let thread = std::thread::Builder::new()
            .name("backup-signals".to_owned())
            .spawn(move || runtime.block_on(wait))
            .map_err(failed)?;
        Ok(Self { cancel, end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, there is nobody to tell.
            let _ = thread.join();
        }
    }
}
