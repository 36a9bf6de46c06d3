//! SIGINT and SIGTERM for verbs that have something to finish.

use std::thread;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::Failure;
use crate::exit::Exit;

/// Signals that wait to be heard.
const UNHEARD_MAX: usize = 2;

/// Whether somebody wants the verb to end.
#[derive(Debug)]
pub(super) struct Signals(Option<mpsc::Receiver<()>>);

impl Signals {
    /// Takes both signals from here on. By handlers, not by a mask: programs that are started do not inherit them. If one
    /// more comes than wait to be heard, the verb hangs, and the process ends.
    pub(super) fn take() -> Result<Self, Failure> {
        Self::take_with(false, || ())
    }

    /// The same, and SIGHUP: the terminal has gone. `restore` is called before too many of them end the process.
    pub(super) fn take_for_terminal(restore: fn()) -> Result<Self, Failure> {
        Self::take_with(true, restore)
    }

    fn take_with(hangup: bool, restore: fn()) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Io, format!("cannot wait for signals: {error}"));
        let (tell, told) = mpsc::channel(UNHEARD_MAX);
        let (started, has_started) = std::sync::mpsc::channel();
        let watch = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
                Ok(runtime) => runtime,
                Err(error) => return started.send(Err(error)).unwrap_or_default(),
            };
            runtime.block_on(async move {
                let hangup = hangup.then(|| signal(SignalKind::hangup())).transpose();
                let (interrupt, terminate) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
                let (mut interrupt, mut terminate, mut hangup) = match (interrupt, terminate, hangup) {
                    (Ok(interrupt), Ok(terminate), Ok(hangup)) => (interrupt, terminate, hangup),
                    (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                        return started.send(Err(error)).unwrap_or_default();
                    }
                };
                let mut hung_up = async || match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                };
                started.send(Ok(())).unwrap_or_default();
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hung_up() => {}
                        () = tell.closed() => return,
                    }
                    if let Err(mpsc::error::TrySendError::Full(())) = tell.try_send(()) {
                        restore();
                        std::process::exit(Exit::Forced.code().into());
                    }
                }
            });
        };
        thread::Builder::new().name("bus-signals".to_owned()).spawn(watch).map_err(failed)?;
        match has_started.recv() {
            Ok(started) => started.map_err(failed)?,
            Err(_) => {
                return Err(Failure::new(Exit::Failed, "cannot wait for signals: the thread has ended"));
            }
        }
        Ok(Self(Some(told)))
    }

    /// Nobody asks: signals end the process as usual.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Ends with the next signal.
    pub(super) async fn next(&mut self) {
        let told = match &mut self.0 {
            Some(told) => told.recv().await,
            None => None,
        };
        if told.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
