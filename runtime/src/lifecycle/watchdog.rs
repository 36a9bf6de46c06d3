//! The last resort of a stop: a thread that ends the process at its deadline, whatever hangs.

use std::{
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, Sender};

use crate::exit::{Exit, leave};

/// How long the last words may take: standard error may be a pipe that nobody empties.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How much longer than `shutdown.forced` a stop may take before the process is ended.
pub const WATCHDOG_SLACK: Duration = Duration::from_secs(5);

/// An armed watchdog. Dropping it disarms it.
#[derive(Debug)]
pub struct Watchdog {
    disarm: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watchdog {
    /// At `deadline`, if it has not been dropped, `say` is called and the process ends with [`Exit::Forced`].
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn arm(deadline: Instant, say: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (disarm, disarmed) = crossbeam_channel::bounded(1);
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            if matches!(disarmed.recv_deadline(deadline), Err(RecvTimeoutError::Timeout)) {
                end_process(Exit::Forced, say);
            }
        })?;
        Ok(Self { disarm: Some(disarm), thread: Some(thread) })
    }
}

/// Ends the process, whatever hangs, and be it the words.
pub fn end_process(exit: Exit, say: impl FnOnce() + Send + 'static) {
    let (said_in, said) = crossbeam_channel::bounded(1);
    // Not joined: the process ends.
    let _ = thread::Builder::new().name("last-words".to_owned()).spawn(move || {
        say();
        let _ = said_in.send(());
    });
    let _ = said.recv_timeout(LAST_WORDS);
    leave(exit);
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.disarm.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
