//! What a supervisor and an incarnation share: the phase it is in, the question whether it lives, what it is busy with.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

/// How far an incarnation has been asked to come to its end. It only ever advances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Takes inputs.
    Run,
    /// Takes what is queued, then stops.
    Drain,
    /// Takes no further input.
    Stop,
    /// `stopping` has returned, and the work it waits for is done.
    Ending,
    /// Drops everything at the next await.
    Kill,
}

/// What an incarnation is busy with, for the detection of stuck handlers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Since when; moved by [`Context::progress`](crate::context::Context::progress).
    pub since: Instant,
    /// With what, for people: "message on `a/b`".
    pub with: String,
}

/// Shared between the host's side (the supervisor's thread) and one incarnation (its own thread).
#[derive(Debug)]
pub(crate) struct Control {
    phase: watch::Sender<Phase>,
    /// The last question asked by the supervisor.
    question: watch::Sender<u64>,
    busy: Mutex<Option<Busy>>,
    /// Whether the incarnation is killed for a failure of its own.
    at_fault: AtomicBool,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Run),
            question: watch::Sender::new(0),
            busy: Mutex::new(None),
            at_fault: AtomicBool::new(false),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Advances to `phase`; does nothing if it is already there or beyond.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|present| {
            let advances = *present < phase;
            *present = phase.max(*present);
            advances
        });
    }

    /// Returns once the phase is `phase` or beyond.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // Cannot fail: the sender is `self`, which outlives this call.
        let _ = phases.wait_for(|present| *present >= phase).await;
    }

    pub(crate) fn kill(&self, at_fault: bool) {
        self.at_fault.store(at_fault, Ordering::Relaxed);
        self.advance(Phase::Kill);
    }

    pub(crate) fn at_fault(&self) -> bool {
        self.at_fault.load(Ordering::Relaxed)
    }

    pub(crate) fn ask(&self, nonce: u64) {
        self.question.send_replace(nonce);
    }

    pub(crate) fn questions(&self) -> watch::Receiver<u64> {
        self.question.subscribe()
    }

    pub(crate) fn begin(&self, with: String) {
        *self.busy() = Some(Busy { since: Instant::now(), with });
    }

    pub(crate) fn end(&self) {
        *self.busy() = None;
    }

    pub(crate) fn progressed(&self) {
        if let Some(busy) = &mut *self.busy() {
            busy.since = Instant::now();
        }
    }

    pub(crate) fn busy_with(&self) -> Option<Busy> {
        self.busy().clone()
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, Option<Busy>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
