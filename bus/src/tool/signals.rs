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
                let (mut interrupt, mut terminate) =
                    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
                        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
                        (Err(error), _) | (_, Err(error)) => {
                            return started.send(Err(error)).unwrap_or_default();
                        }
                    };
                started.send(Ok(())).unwrap_or_default();
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        () = tell.closed() => return,
                    }
                    if let Err(mpsc::error::TrySendError::Full(())) = tell.try_send(()) {
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
