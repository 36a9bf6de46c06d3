//! Supervision in OTP's words: children in start order, restarted after failures within a budget, stopped in reverse.
//!
//! Reading order: [`child`] (what is supervised), [`strategy`] (who is restarted, and who with it), [`intensity`] and
//! [`backoff`] (how often, how soon), `machine` (all of it as one pure state machine), then the loop below, which
//! gives the machine the time and carries out what it says. No method of a host waits, so the loop never does.

pub mod backoff;
pub mod child;
pub mod critical_path;
pub mod explain;
pub mod intensity;
mod machine;
mod nested;
pub mod plan;
pub mod report;
pub mod snapshot;
pub mod stall_watch;
pub mod strategy;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use interlock_actors::host::{HostReport, Reports, Stop};
use interlock_bus::PeerName;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::config::schema::nearest;

use self::{
    backoff::Draws,
    child::Member,
    machine::{Action, Machine},
    nested::Above,
    snapshot::Body,
};
pub use self::{
    child::{
        ChildKind, ChildSpecification, Children, Clocks, Condition, Dependencies, SupervisorSpecification,
        TreeError,
    },
    machine::{Outcome, ShutdownPhases, Why},
    plan::Plan,
    report::{Report, ReportContext},
    snapshot::{ChildSnapshot, FailureSnapshot, State, TreeSnapshot},
    strategy::{AutoShutdown, No, Restart, Strategy, WhenSpent},
};

/// Reports that may wait for the supervisor. A further one makes its sender wait: an actor that reports faster than
/// the supervisor reads is slowed down.
const REPORTS_MAX: usize = 1024;

/// Orders that may wait for the supervisor. A further one makes its sender wait.
const ORDERS_MAX: usize = 64;

/// Reports taken between two publications of the tree, if they come without a pause.
const REPORTS_PER_VIEW: usize = 64;

/// How long an order may take to be accepted. The supervisor never waits, so this means that it is gone.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// A supervisor that has not been given its children yet. Its handle can be handed to them already.
#[derive(Debug)]
pub struct Supervisor {
    name: String,
    orders: Receiver<Order>,
    view: watch::Sender<Arc<TreeSnapshot>>,
    handle: SupervisorHandle,
    phases: ShutdownPhases,
}

/// A supervisor at work.
#[derive(Debug)]
pub struct Supervision {
    handle: SupervisorHandle,
    thread: JoinHandle<Outcome>,
}

/// Asks a supervisor, and gives it orders. Cheap to clone; usable from any thread.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    orders: Sender<Order>,
    view: watch::Receiver<Arc<TreeSnapshot>>,
    /// The supervisors among its children, once it has any.
    below: Arc<OnceLock<Vec<SupervisorHandle>>>,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// No child has this name.
    #[error("no component is named `{name}`{}; there are {known}", meant(.nearest))]
    UnknownChild {
        /// The name as given.
        name: String,
        /// The name that was probably meant.
        nearest: Option<String>,
        /// The names there are.
        known: String,
    },
    /// The supervisor of the child is down, and the child with it.
    #[error("`{name}` belongs to `{supervisor}`, which is down; start that")]
    SupervisorDown {
        /// The child.
        name: String,
        /// Its supervisor.
        supervisor: String,
    },
    /// It is shutting down, so nothing is started any more.
    #[error("the supervisor is shutting down; `{name}` was not started")]
    Stopping {
        /// The child.
        name: String,
    },
    /// It has not been started yet, or has ended.
    #[error("the supervisor does not run")]
    NotRunning,
}

/// Why a supervisor could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The list of children contradicts itself.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// No thread for it.
    #[error("the supervisor's thread could not be started")]
    Thread(#[from] io::Error),
}

impl OrderError {
    /// No child has this name; these are the names there are.
    pub(crate) fn unknown<'a, N: Iterator<Item = &'a str>>(name: &str, names: impl Fn() -> N) -> Self {
        let known = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let nearest = nearest(name, names()).map(str::to_owned);
        Self::UnknownChild { name: name.to_owned(), nearest, known }
    }
}

fn meant(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|nearest| format!("; `{nearest}`?")).unwrap_or_default()
}

#[derive(Debug)]
struct Order {
    kind: OrderKind,
    answer: Sender<Result<Answer, OrderError>>,
}

#[derive(Debug)]
enum OrderKind {
    Start(String),
    Stop(String),
    Restart(String),
    Plan {
        name: String,
        fails_after: Duration,
    },
    Look,
    Shutdown(ShutdownPhases),
    /// A supervisor above stops this one.
    End(Stop, ShutdownPhases),
    /// A supervisor above asks whether this one lives.
    Alive(u64),
    /// Nothing but an answer.
    Answer,
}

impl OrderKind {
    /// The child it is about.
    fn child(&self) -> Option<&str> {
        match self {
            Self::Start(name) | Self::Stop(name) | Self::Restart(name) | Self::Plan { name, .. } => {
                Some(name)
            }
            Self::Look | Self::Shutdown(_) | Self::End(..) | Self::Alive(_) | Self::Answer => None,
        }
    }
}

#[derive(Debug)]
enum Answer {
    Done,
    Plan(Plan),
    Tree(Arc<TreeSnapshot>),
}

/// Everything that can wake the supervisor. There is no other way in.
enum Event {
    Timer,
    Order(Order),
    Report { child: usize, incarnation: u64, report: HostReport },
}

impl Supervisor {
    /// A supervisor without children.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let (orders_in, orders) = bounded(ORDERS_MAX);
        let empty = TreeSnapshot {
            name: name.clone(),
            state: State::Stopped,
            at: Timestamp::now(),
            children: Vec::new(),
        };
        let (view, seen) = watch::channel(Arc::new(empty));
        Self {
            name,
            orders,
            view,
            handle: SupervisorHandle { orders: orders_in, view: seen, below: Arc::default() },
            phases: ShutdownPhases::default(),
        }
    }

    /// Other phases for a shutdown that nobody gives phases to: one by itself, or by the supervisor above.
    pub fn within(self, phases: ShutdownPhases) -> Self {
        Self { phases, ..self }
    }

    /// Its handle. Orders fail with [`OrderError::NotRunning`] until it is started.
    pub fn handle(&self) -> SupervisorHandle {
        self.handle.clone()
    }

    /// Starts the children of `specification` in order, on a thread of its own. Returns at once: watch the handle.
    pub fn start(self, strategy: Strategy, children: Children) -> Result<Supervision, StartError> {
        self.start_drawing(strategy, children, Draws::Seeded(seed()))
    }

    /// [`Supervisor::start`] without waits before restarts, for tests.
    pub(crate) fn start_eagerly(
        self,
        strategy: Strategy,
        children: Children,
    ) -> Result<Supervision, StartError> {
        self.start_drawing(strategy, children, Draws::Always(0.0))
    }

    fn start_drawing(
        self,
        strategy: Strategy,
        children: Children,
        draws: Draws,
    ) -> Result<Supervision, StartError> {
        let (name, handle) = (self.name.clone(), self.handle.clone());
        let mut running = self.running(strategy, children, draws)?;
        // Joined by `Supervision::join`.
        let thread = std::thread::Builder::new().name(name).spawn(move || running.run())?;
        Ok(Supervision { handle, thread })
    }

    fn running(self, strategy: Strategy, children: Children, draws: Draws) -> Result<Running, TreeError> {
        let specification = SupervisorSpecification { name: self.name.clone(), strategy, children };
        let (rules, members, until) = specification.take_apart()?;
        let (reports_in, reports) = bounded(REPORTS_MAX);
        let places = rules.iter().enumerate().map(|(place, rules)| (rules.name.to_string(), place)).collect();
        let below = members.iter().filter_map(|member| member.below.clone()).collect();
        // It is empty: this is the only place that fills it, and it is passed once.
        let _ = self.handle.below.set(below);
        let now = Instant::now();
        Ok(Running {
            machine: Machine::new(self.name.clone(), strategy, until, rules, draws, now).within(self.phases),
            name: self.name,
            members,
            places,
            orders: self.orders,
            reports_in,
            reports,
            view: self.view,
            timed: now,
            above: None,
        })
    }
}

impl Supervision {
    /// Its handle.
    pub fn handle(&self) -> &SupervisorHandle {
        &self.handle
    }

    /// Waits until it has ended: after a shutdown, or by itself.
    pub fn join(self) -> Outcome {
        // The loop has no panic of its own; if it has one, this is the place to be loud.
        self.thread.join().expect("the supervisor's loop does not panic")
    }
}

impl SupervisorHandle {
    /// The tree as it was after the last event. Never waits.
    pub fn snapshot(&self) -> Arc<TreeSnapshot> {
        self.view.borrow().clone()
    }

    /// Changes with every event of the tree.
    pub fn watch(&self) -> watch::Receiver<Arc<TreeSnapshot>> {
        self.view.clone()
    }

    /// Waits until `wanted` is true of the tree. `Err` has the tree at the deadline, or at the supervisor's end.
    pub async fn wait_until(
        &self,
        wanted: impl Fn(&TreeSnapshot) -> bool,
        deadline: Duration,
    ) -> Result<Arc<TreeSnapshot>, Arc<TreeSnapshot>> {
        let mut view = self.view.clone();
        let waited = tokio::time::timeout(deadline, view.wait_for(|tree| wanted(tree))).await;
        match waited {
            Ok(Ok(tree)) => Ok(tree.clone()),
            Ok(Err(_)) | Err(_) => Err(self.snapshot()),
        }
    }

    /// The tree as it is now: other than [`snapshot`](Self::snapshot), with the present load of each child. Waits for
    /// the supervisor.
    pub fn look(&self) -> Result<Arc<TreeSnapshot>, OrderError> {
        for below in self.below.get().into_iter().flatten() {
            // One that does not run has no load.
            let _ = below.look();
        }
        match self.ask(OrderKind::Look)? {
            Answer::Tree(tree) => Ok(tree),
            Answer::Done | Answer::Plan(_) => Err(OrderError::NotRunning),
        }
    }

    /// What will be done with a child if each start of it fails after `fails_after`.
    pub fn plan(&self, name: &str, fails_after: Duration) -> Result<Plan, OrderError> {
        match self.ask(OrderKind::Plan { name: name.to_owned(), fails_after })? {
            Answer::Plan(plan) => Ok(plan),
            Answer::Done | Answer::Tree(_) => Err(OrderError::NotRunning),
        }
    }

    /// Starts a child that is down, or whose next try is still to come. Its budget is whole again, also if it runs.
    pub fn start(&self, name: &str) -> Result<(), OrderError> {
        self.order(OrderKind::Start(name.to_owned()))
    }

    /// Stops a child and keeps it down. Returns when it has been asked; watch for the end.
    pub fn stop(&self, name: &str) -> Result<(), OrderError> {
        self.order(OrderKind::Stop(name.to_owned()))
    }

    /// Stops a child if it runs, and starts it. Its budget is whole again.
    pub fn restart(&self, name: &str) -> Result<(), OrderError> {
        self.order(OrderKind::Restart(name.to_owned()))
    }

    /// Stops all children in reverse order, then the supervisor. Called again, it can only make it faster:
    /// [`ShutdownPhases`] with zero for `drain` kills now.
    pub fn shutdown(&self, phases: ShutdownPhases) -> Result<(), OrderError> {
        self.order(OrderKind::Shutdown(phases))
    }

    /// Whether it answers: it is itself watched. Waits for the answer.
    pub fn responds(&self) -> bool {
        self.order(OrderKind::Answer).is_ok()
    }

    fn order(&self, kind: OrderKind) -> Result<(), OrderError> {
        self.ask(kind).map(|_| ())
    }

    fn ask(&self, kind: OrderKind) -> Result<Answer, OrderError> {
        if let Some(name) = kind.child()
            && let Some((below, tree)) = self.holder(name)
        {
            if tree.state == State::Stopped {
                let (name, supervisor) = (name.to_owned(), tree.name.clone());
                return Err(OrderError::SupervisorDown { name, supervisor });
            }
            return below.ask(kind);
        }
        if self.view.has_changed().is_err() {
            return Err(OrderError::NotRunning);
        }
        let (answer, answered) = bounded(1);
        self.orders
            .send_timeout(Order { kind, answer }, ORDER_TIMEOUT)
            .map_err(|_| OrderError::NotRunning)?;
        answered.recv_timeout(ORDER_TIMEOUT).map_err(|_| OrderError::NotRunning)?
    }
}

impl SupervisorHandle {
    /// The supervisor below that has a child of this name, and its tree.
    fn holder(&self, name: &str) -> Option<(&SupervisorHandle, Arc<TreeSnapshot>)> {
        let trees = self.below.get()?.iter().map(|below| (below, below.snapshot()));
        trees.into_iter().find(|(_, tree)| tree.child(name).is_some())
    }
}

/// The supervisor on its thread.
struct Running {
    name: String,
    machine: Machine,
    members: Vec<Member>,
    places: HashMap<String, usize>,
    orders: Receiver<Order>,
    reports_in: Sender<(usize, u64, HostReport)>,
    reports: Receiver<(usize, u64, HostReport)>,
    view: watch::Sender<Arc<TreeSnapshot>>,
    /// Up to when the machine knows the time.
    timed: Instant,
    /// Who supervises it.
    above: Option<Above>,
}

impl Running {
    fn run(&mut self) -> Outcome {
        let _entered = tracing::info_span!("supervisor", name = self.name).entered();
        self.machine.start(Instant::now());
        let mut unseen = 0;
        loop {
            self.carry_out();
            unseen += 1;
            if self.reports.is_empty() || unseen >= REPORTS_PER_VIEW {
                self.publish();
                unseen = 0;
            }
            if let Some(outcome) = self.machine.outcome().cloned() {
                self.publish();
                self.log_end(&outcome);
                return outcome;
            }
            let event = self.next_event();
            let now = Instant::now();
            match event {
                Event::Timer => {
                    self.timed = now;
                    self.machine.on_time(now);
                }
                Event::Order(order) => self.on_order(order, now),
                Event::Report { child, incarnation, report } => {
                    self.on_report(child, incarnation, report, now)
                }
            }
        }
    }

    /// Waits for one event. Listed by priority: what is due must not wait for a flood of reports.
    fn next_event(&mut self) -> Event {
        let now = Instant::now();
        let due = self.machine.next_timer(self.timed);
        if due.is_some_and(|due| due <= now) {
            return Event::Timer;
        }
        let timer = due.map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        crossbeam_channel::select_biased! {
            recv(timer) -> _ => Event::Timer,
            recv(self.orders) -> order => match order {
                Ok(order) => Event::Order(order),
                Err(_) => {
                    // All handles are gone: nobody can ask it to stop any more, so it does, once.
                    self.orders = crossbeam_channel::never();
                    let kind = OrderKind::Shutdown(self.machine.phases);
                    Event::Order(Order { kind, answer: bounded(1).0 })
                }
            },
            recv(self.reports) -> report => {
                let (child, incarnation, report) = report.expect("the loop holds a sender itself");
                Event::Report { child, incarnation, report }
            }
        }
    }

    fn on_report(&mut self, child: usize, incarnation: u64, report: HostReport, now: Instant) {
        let name = &self.machine.children[child].rules.name;
        match &report {
            HostReport::Ready { proof } => tracing::info!(child = %name, incarnation, proof, "ready"),
            HostReport::Exited(exit) => tracing::debug!(child = %name, incarnation, ?exit, "exited"),
            _ => {}
        }
        self.machine.on_report(child, incarnation, report, now);
    }

    fn on_order(&mut self, Order { kind, answer }: Order, now: Instant) {
        let outcome = self.obey(kind, now);
        // An asker that has gone away needs no answer.
        let _ = answer.try_send(outcome);
    }

    fn obey(&mut self, kind: OrderKind, now: Instant) -> Result<Answer, OrderError> {
        match kind {
            OrderKind::Look => {
                self.publish();
                return Ok(Answer::Tree(self.view.borrow().clone()));
            }
            OrderKind::Plan { name, fails_after } => {
                let place = self.place(&name)?;
                return Ok(Answer::Plan(self.machine.plan(place, fails_after, now)));
            }
            OrderKind::Start(name) => {
                self.place_to_start(name).map(|place| self.machine.order_start(place, now))
            }
            OrderKind::Restart(name) => {
                self.place_to_start(name).map(|place| self.machine.order_restart(place, now))
            }
            OrderKind::Stop(name) => self.place(&name).map(|place| self.machine.order_stop(place, now)),
            OrderKind::Shutdown(phases) => {
                self.machine.shutdown(phases, now);
                Ok(())
            }
            OrderKind::End(stop, phases) => {
                self.machine.shutdown_for(stop, phases, now);
                Ok(())
            }
            OrderKind::Alive(nonce) => {
                if let Some(above) = &self.above {
                    above.answer(nonce);
                }
                Ok(())
            }
            OrderKind::Answer => Ok(()),
        }
        .map(|()| Answer::Done)
    }

    fn place_to_start(&self, name: String) -> Result<usize, OrderError> {
        let place = self.place(&name)?;
        match self.machine.state() {
            State::Stopping | State::Stopped => Err(OrderError::Stopping { name }),
            _ => Ok(place),
        }
    }

    fn place(&self, name: &str) -> Result<usize, OrderError> {
        self.places.get(name).copied().ok_or_else(|| {
            let tree = self.view.borrow().clone();
            OrderError::unknown(name, || tree.children.iter().map(|child| child.name.as_str()))
        })
    }

    /// Does what the machine says. Asking a child may make it say more.
    fn carry_out(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { child, incarnation } => {
                tracing::info!(child = %self.name_of(child), incarnation, "start");
                let reports_in = self.reports_in.clone();
                let reports = Reports::new(move |report| {
                    // Fails only when the supervisor has ended, and then nobody wants to know.
                    let _ = reports_in.send((child, incarnation, report));
                });
                self.members[child].host.start(incarnation, reports);
            }
            Action::Stop { child, stop } => {
                tracing::info!(child = %self.name_of(child), ?stop, "stop");
                self.members[child].host.stop(stop);
            }
            Action::Kill { child, at_fault } => {
                tracing::warn!(child = %self.name_of(child), at_fault, "kill");
                self.members[child].host.kill(at_fault);
            }
            Action::Abandon { child, at_fault } => {
                tracing::error!(child = %self.name_of(child), at_fault, "abandon: it did not end when killed");
                self.members[child].host.abandon(at_fault);
            }
            Action::Ask { child, nonce } => {
                let body = &mut self.members[child].host;
                body.ask(nonce);
                let busy = body.busy();
                self.machine.on_busy(child, busy, Instant::now());
            }
            Action::Report(report) => report.log(),
        }
    }

    fn name_of(&self, child: usize) -> &PeerName {
        &self.machine.children[child].rules.name
    }

    fn publish(&mut self) {
        let body =
            |member: &Member| Body { kind: member.kind, load: member.host.load(), busy: member.host.busy() };
        let bodies: Vec<_> = self.members.iter().map(body).collect();
        let mut tree = self.machine.snapshot(&self.name, &bodies, Instant::now());
        let below: Vec<_> =
            self.members.iter().map(|member| member.below.as_ref().map(SupervisorHandle::snapshot)).collect();
        tree.insert_below(&below);
        let tree = Arc::new(tree);
        self.view.send_replace(tree.clone());
        if let Some(above) = &mut self.above {
            above.tell(&tree);
        }
    }

    fn log_end(&self, outcome: &Outcome) {
        let Outcome { why, forced, pending } = outcome;
        for (place, member) in self.members.iter().enumerate() {
            let queued = member.host.load().queued;
            if queued > 0 {
                tracing::warn!(child = %self.name_of(place), queued, "stopped with inputs queued");
            }
        }
        tracing::info!(?why, ?forced, ?pending, "stopped");
    }
}

/// Another one in each process and for each supervisor.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
