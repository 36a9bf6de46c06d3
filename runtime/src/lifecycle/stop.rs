//! What ends an instance: a signal, the shutdown file, or a request on the bus; and what a second signal means.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};
use uuid::Uuid;

/// Name of the shutdown file in the run directory. It holds the id of the instance it is meant for.
pub const STOP_FILE: &str = "interlock.shutdown";

/// How often the shutdown file is looked for: one `stat` each time, which costs nothing.
const FILE_POLL: Duration = Duration::from_millis(500);

/// Bytes of a shutdown file that are read; a longer one is not ours.
const STOP_FILE_BYTES_MAX: u64 = 64;

/// Stop requests that wait to be seen. One is enough; more change nothing.
const REQUESTS_MAX: usize = 4;

/// Why an instance is asked to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A signal of this name.
    Signal(&'static str),
    /// The shutdown file.
    File,
    /// A request by this peer.
    Request(String),
    /// The supervision tree ended by itself, for this reason.
    Tree(String),
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => formatter.write_str(name),
            Self::File => write!(formatter, "the file `{STOP_FILE}`"),
            Self::Request(peer) => write!(formatter, "a request of `{peer}`"),
            Self::Tree(reason) => formatter.write_str(reason),
        }
    }
}

/// Everything that can ask for a stop. Belongs to a tokio runtime.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Caught so that a file that may not grow is an error of whoever writes it, not the end of the process.
    _file_too_large: Signal,
    file: PathBuf,
    instance: Uuid,
    poll: Interval,
    requests: mpsc::Receiver<StopReason>,
    requester: mpsc::Sender<StopReason>,
}

impl StopSignals {
    /// Begins to listen. A shutdown file of an earlier run is removed; its text is returned, to be logged.
    ///
    /// # Errors
    /// The system refuses a signal handler.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(run_dir: &Path, instance: Uuid) -> io::Result<(Self, Option<String>)> {
        let file = run_dir.join(STOP_FILE);
        let stale = read_and_remove(&file);
        let mut poll = interval(FILE_POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (requester, requests) = mpsc::channel(REQUESTS_MAX);
        let signals = Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            _file_too_large: signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?,
            file,
            instance,
            poll,
            requests,
            requester,
        };
        Ok((signals, stale))
    }

    /// Where others in this process ask for a stop.
    pub fn requester(&self) -> mpsc::Sender<StopReason> {
        self.requester.clone()
    }

    /// Waits until something asks for a stop.
    pub async fn next(&mut self) -> StopReason {
        loop {
            tokio::select! {
                biased;
                signal = next_signal(&mut self.interrupt, &mut self.terminate, &mut self.hang_up) => return StopReason::Signal(signal),
                Some(reason) = self.requests.recv() => return reason,
                _ = self.poll.tick() => {
                    if let Some(text) = self.file.exists().then(|| read_and_remove(&self.file)).flatten() {
                        if text.trim() == self.instance.to_string() {
                            return StopReason::File;
                        }
                        tracing::warn!(file = %self.file.display(), "a shutdown file for another instance was ignored and removed");
                    }
                }
            }
        }
    }

    /// Waits for a signal: the second one, which means now.
    pub async fn next_signal(&mut self) -> &'static str {
        next_signal(&mut self.interrupt, &mut self.terminate, &mut self.hang_up).await
    }
}

impl Drop for StopSignals {
    /// A file that came too late to be seen stops nobody any more.
    fn drop(&mut self) {
        if fs::read_to_string(&self.file).is_ok_and(|text| text.trim() == self.instance.to_string()) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

async fn next_signal(interrupt: &mut Signal, terminate: &mut Signal, hang_up: &mut Signal) -> &'static str {
    tokio::select! {
        Some(()) = interrupt.recv() => "SIGINT",
        Some(()) = terminate.recv() => "SIGTERM",
        Some(()) = hang_up.recv() => "SIGHUP",
        else => std::future::pending().await,
    }
}

/// The text of a shutdown file, which is gone afterwards; `None` if there is none.
fn read_and_remove(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(STOP_FILE_BYTES_MAX).read_to_end(&mut bytes));
    if let Err(error) = &read
        && error.kind() == io::ErrorKind::NotFound
    {
        return None;
    }
    let _ = fs::remove_file(path);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
