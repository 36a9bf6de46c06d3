//! The way of a log record from the program to the store: layer, buffer, gate, drain.
//!
//! ```text
//! tracing event -> layer -> buffer ----- drain ----> logs/<component>/<level> -> log consumer -> store
//!                    |       (bounded)     ^  |                                      ^
//!        own events  |                   gate |------- confirm: "are these stored?" -|
//!                    v
//!              standard error (bounded)
//! ```
//!
//! **Nothing is lost when the consumer, the broker or this component dies**, because a record leaves
//! the buffer only when the consumer has answered that it is committed:
//!
//! 1. The [`drain`] takes a window of records and publishes each on its topic, in order; the last one
//!    acknowledged, so that all are in the consumer's queue.
//! 2. It asks the consumer to confirm the ids of the window. The consumer answers after its commit,
//!    naming what it has not seen.
//! 3. Confirmed records leave the buffer, unconfirmed ones are sent again. The store keeps one row for
//!    each id, so sending twice is harmless.
//!
//! Considered and left: acknowledged publishes alone (they end in the consumer's queue, which dies
//! with it) and records as requests (nobody could watch `logs/#` with the tool).
//!
//! The [`gate`] says when to send: after a probe came back through the consumer, not before. The
//! [`buffer`] belongs to the process, not to the component: it survives its restarts.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
};

pub mod buffer;
mod captured;
pub mod drain;
pub mod gate;
pub mod journal;
pub mod layer;
pub mod levels;
mod path;
mod replay;
mod sending;
pub mod sink;
#[cfg(test)]
mod tests;

pub use buffer::LogBuffer;
pub use drain::{Drain, DrainError, DrainReport};
pub use layer::{Identity, LogLayer};
pub use levels::{LevelRules, LevelSwitch, Threshold};
pub(crate) use path::OnLogPath;
pub use path::{is_marked, is_own_target, mark_thread, on_log_path};
pub use sink::{Sink, SinkReport};

/// How often the status is brought up to date while records flow. Phases are told at once.
pub(crate) const STATUS_EVERY: Duration = Duration::from_secs(1);

/// The log transport as a component. It is ready when its first probe has a verdict: the gate is open,
/// or there is no log consumer yet and it will hear of one.
#[derive(Debug)]
pub struct LogTransport {
    buffer: LogBuffer,
    sink: Option<Sink>,
    latest: Rc<Cell<Option<DrainReport>>>,
    told: Option<(DrainReport, SinkReport)>,
}

impl LogTransport {
    /// A transport for the buffer of this process.
    pub fn new(buffer: LogBuffer) -> Self {
        Self { buffer, sink: None, latest: Rc::default(), told: None }
    }

    /// The same, whose status also tells what became of the log path's own events.
    pub fn with_sink(self, sink: Sink) -> Self {
        Self { sink: Some(sink), ..self }
    }
}

impl Actor for LogTransport {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let drain = Drain::new(context.client().clone(), self.buffer.clone());
        let (verdict, first_verdict) = oneshot::channel();
        let (latest, told) = (Rc::clone(&self.latest), context.clone());
        let mut verdict = Some(verdict);
        let on_report = move |report: DrainReport| {
            let before = latest.replace(Some(report));
            if before.is_none_or(|before| before.phase != report.phase) {
                told.status(report.to_string());
            }
            if matches!(report.phase, gate::Phase::Open { .. } | gate::Phase::Waiting)
                && let Some(verdict) = verdict.take()
            {
                // Nobody waits when the start was given up.
                let _ = verdict.send(());
            }
        };
        let stopping = context.stopping();
        context.spawn(async move { Ok(drain.run(on_report, stopping).await?) });
        first_verdict
            .await
            .map_err(|_| Failure::new("the log transport ended before its first probe had an answer"))
    }

    async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
        // Everything comes to the drain; this actor subscribes to nothing itself.
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(STATUS_EVERY)
    }

    async fn tick(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(latest) = self.latest.get() else { return Ok(()) };
        let journal = self.buffer.journal_report();
        if journal.is_some_and(|journal| journal.trouble.is_some()) {
            self.buffer.look_at_journal();
        }
        let own = self.sink.as_ref().map(Sink::report).unwrap_or_default();
        let now = (DrainReport { buffer: self.buffer.report(), journal, ..latest }, own);
        if self.told != Some(now) {
            let SinkReport { seen, suppressed, .. } = own;
            let own = format!("own events {seen}, {suppressed} of them suppressed");
            context.status(if seen > 0 { format!("{}; {own}", now.0) } else { now.0.to_string() });
            let trouble = journal.and_then(|journal| journal.trouble);
            if trouble != self.told.and_then(|(told, _)| told.journal?.trouble) {
                context.impaired(trouble.map(|trouble| format!("its journal cannot be used: {trouble}")));
            }
        }
        self.told = Some(now);
        Ok(())
    }
}
