//! A supervisor as the child of another: the same loop, which reports to the one above as any body does.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::bounded;
use interlock_actors::{
    actor::Failure,
    host::{Busy, Exit, Host, HostReport, Load, Reports, Stop},
};

use super::{
    Order, OrderKind, Running, Supervisor, SupervisorHandle, SupervisorSpecification,
    backoff::Draws,
    child::TreeError,
    machine::{KILL_GRACE, Outcome, ShutdownPhases, Why},
    seed,
    snapshot::{State, TreeSnapshot},
};

/// Hosts a supervisor. Its children, with what waits in front of them, outlive its incarnations.
pub(crate) struct Nested {
    handle: SupervisorHandle,
    /// Empty while it runs: its thread has it.
    rest: Arc<Mutex<Option<Running>>>,
    killed: Arc<AtomicBool>,
    /// Of each stop. The one above may have less time, and then kills it.
    phases: ShutdownPhases,
}

impl Nested {
    pub(crate) fn new(
        specification: SupervisorSpecification,
        phases: ShutdownPhases,
    ) -> Result<Self, TreeError> {
        let supervisor = Supervisor::new(specification.name).within(phases);
        let handle = supervisor.handle();
        let draws = Draws::Seeded(seed());
        let mut running = supervisor.running(specification.strategy, specification.children, draws)?;
        // From here on the names below are known.
        running.publish();
        Ok(Self { handle, rest: Arc::new(Mutex::new(Some(running))), killed: Arc::default(), phases })
    }

    pub(crate) fn handle(&self) -> SupervisorHandle {
        self.handle.clone()
    }

    /// Gives an order and waits for nothing, as a body must not.
    fn order(&self, kind: OrderKind) {
        let order = Order { kind, answer: bounded(1).0 };
        if self.handle.orders.try_send(order).is_err() {
            tracing::error!("a supervisor does not take orders; what was ordered shows in its deadlines");
        }
    }
}

impl Host for Nested {
    fn start(&mut self, incarnation: u64, reports: Reports) {
        self.killed.store(false, Ordering::Relaxed);
        let (rest, killed) = (self.rest.clone(), self.killed.clone());
        let Some(mut running) = rest.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            let failure = Failure::new("its thread of before did not end and still has its children");
            return reports.send(HostReport::Exited(Exit::Failed(failure)));
        };
        // Orders to an earlier incarnation are void; whoever gave them was told that it does not run.
        while running.orders.try_recv().is_ok() {}
        running.above = Some(Above::new(reports.clone()));
        let name = format!("{}-{incarnation}", running.name);
        let life = move || {
            let outcome = running.run();
            *rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
            // The children are back in their place before the one above hears of the end, and may start it again.
            exit_of(outcome, killed.load(Ordering::Relaxed))
        };
        let told = reports.clone();
        // Not joined: its last act is the report.
        let thread =
            std::thread::Builder::new().name(name).spawn(move || told.send(HostReport::Exited(life())));
        if let Err(error) = thread {
            let failure = Failure::from(error).context("no thread could be started");
            reports.send(HostReport::Exited(Exit::Failed(failure)));
        }
    }

    fn stop(&mut self, stop: Stop) {
        self.order(OrderKind::End(stop, self.phases));
    }

    fn kill(&mut self, _: bool) {
        self.killed.store(true, Ordering::Relaxed);
        let phases = ShutdownPhases { drain: Duration::ZERO, forced: KILL_GRACE / 2 };
        self.order(OrderKind::End(Stop::Restart, phases));
    }

    fn abandon(&mut self, _: bool) {}

    fn ask(&mut self, nonce: u64) {
        self.order(OrderKind::Alive(nonce));
    }

    fn busy(&self) -> Option<Busy> {
        None
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

/// What the end of a supervisor is to the one above.
pub(super) fn exit_of(outcome: Outcome, killed: bool) -> Exit {
    match outcome.why {
        Why::Asked if killed => Exit::Killed,
        Why::Asked | Why::AutoShutdown if !(outcome.forced.is_empty() && outcome.pending.is_empty()) => {
            Exit::Forced(Failure::new(outcome.to_string()))
        }
        Why::Asked | Why::AutoShutdown => Exit::Normal,
        Why::StartFailed { .. } | Why::Escalated { .. } => Exit::Failed(Failure::new(outcome.to_string())),
    }
}

/// The one above, as a supervisor knows it.
pub(super) struct Above {
    reports: Reports,
    standing: Standing,
}

impl Above {
    fn new(reports: Reports) -> Self {
        Self { reports, standing: Standing::default() }
    }

    /// The tree has changed. The one above looks for itself; it is told what it cannot see.
    pub(super) fn tell(&mut self, tree: &TreeSnapshot) {
        for report in self.standing.follow(tree) {
            self.reports.send(report);
        }
    }

    pub(super) fn answer(&self, nonce: u64) {
        self.reports.send(HostReport::Alive { nonce });
    }
}

/// What the one above was told last. Pure.
#[derive(Debug, Default)]
pub(super) struct Standing {
    was_ready: bool,
    ready_children: usize,
    impaired: Option<String>,
}

impl Standing {
    /// What it is to be told now.
    ///
    /// It is ready once no child is on its way up for the first time. From then on it is impaired while a part of it is
    /// not as it should be: its state is that of its parts.
    pub(super) fn follow(&mut self, tree: &TreeSnapshot) -> Vec<HostReport> {
        let own = || tree.children.iter().filter(|child| child.supervisor.is_none());
        let (ready, all) = (own().filter(|child| child.state == State::Running).count(), own().count());
        let summary = format!("{ready} of {all} children are running");
        let mut told = Vec::new();
        if !self.was_ready && tree.state == State::Starting && ready > self.ready_children {
            told.push(HostReport::Progress(summary.clone()));
        }
        self.ready_children = ready;
        if matches!(tree.state, State::Running | State::Degraded | State::Error) {
            if !self.was_ready {
                self.was_ready = true;
                told.push(HostReport::Ready { proof: summary.clone() });
            }
            let down = own().find(|child| !matches!(child.state, State::Running | State::Stopping));
            let impaired = (tree.state != State::Running).then(|| match down {
                Some(child) => format!("`{}` is {}", child.name, child.state.as_str()),
                None => tree.state.as_str().to_owned(),
            });
            if impaired != self.impaired {
                self.impaired.clone_from(&impaired);
                told.push(HostReport::Impaired(impaired));
            }
        }
        // Last, and always: it makes the one above look.
        told.push(HostReport::Status(summary));
        told
    }
}
