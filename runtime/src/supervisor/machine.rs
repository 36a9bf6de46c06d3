//! The supervisor as a pure state machine: reports and the time go in, actions come out. It starts no thread and
//! reads no clock, so that scripts and a random test can drive it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use interlock_actors::{
    actor::Failure,
    host::{Busy, Exit, HostReport, Stop},
};
use interlock_bus::PeerName;

use crate::config::duration;

use super::{
    backoff::{Backoff, Draws},
    child::{Clocks, Condition},
    intensity::{Budget, HEALTHY_AFTER, Verdict},
    plan::Plan,
    report::{Report, ReportContext},
    strategy::{AutoShutdown, Restart, Strategy, WhenSpent},
};

/// How long a killed incarnation may take to end before it is abandoned.
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(2);

/// How much more time an incarnation can ask for at once.
const EXTENSION_MAX: Duration = Duration::from_secs(3600);

/// How long after a restart of what a child needs its failures are laid to that, and how long before it.
const EXCUSED_WITHIN: Duration = Duration::from_secs(5);

/// The rules of one child, places instead of names.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) name: PeerName,
    pub(crate) restart: Restart<bool>,
    pub(crate) when_spent: WhenSpent,
    /// Children that must be ready before each start.
    pub(crate) needs: Vec<usize>,
    /// What must be true of some of them instead.
    pub(crate) until: Vec<(usize, Condition)>,
    /// Whether its first start also waits until all children before it have settled (ready, or failed once).
    pub(crate) in_line: bool,
    pub(crate) clocks: Clocks,
}

/// What the machine wants done. Carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start { child: usize, incarnation: u64 },
    Stop { child: usize, stop: Stop },
    Kill { child: usize, at_fault: bool },
    Abandon { child: usize, at_fault: bool },
    Ask { child: usize, nonce: u64 },
    Report(Report),
}

/// How a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it stopped.
    pub why: Why,
    /// Children that had to be killed: they did not end within their grace or the drain phase, or a second signal came.
    pub forced: Vec<PeerName>,
    /// Children that had not ended when the supervisor gave up waiting.
    pub pending: Vec<PeerName>,
}

/// Why a supervisor stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// It was asked to.
    Asked,
    /// Its significant children had ended.
    AutoShutdown,
    /// The first start of a child with [`WhenSpent::Escalate`] failed.
    StartFailed {
        /// The child.
        child: PeerName,
        /// Why it did not start.
        reason: Failure,
    },
    /// A child with [`WhenSpent::Escalate`] spent its budget.
    Escalated {
        /// The child.
        child: PeerName,
        /// Its last failure.
        reason: Failure,
    },
}

/// How long the phases of a shutdown last, both counted from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownPhases {
    /// Until then children are asked, each with its grace. What is left is killed.
    pub drain: Duration,
    /// Until then killed children are waited for. What is left is reported as pending.
    pub forced: Duration,
}

impl Default for ShutdownPhases {
    fn default() -> Self {
        Self { drain: Duration::from_secs(60), forced: Duration::from_secs(120) }
    }
}

#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    strategy: Strategy,
    auto_shutdown: Option<AutoShutdown>,
    pub(crate) children: Vec<Child>,
    pub(crate) stage: Stage,
    draws: Draws,
    /// When it was made.
    pub(crate) begun: Instant,
    actions: Vec<Action>,
    questions: u64,
    /// Of a shutdown that nobody asked for.
    pub(crate) phases: ShutdownPhases,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    Stopping {
        why: Why,
        /// What children are told.
        stop: Stop,
        kill_at: Instant,
        /// Nobody is asked any more: a second signal, or the end of the last phase.
        at_once: bool,
        give_up_at: Instant,
        forced: Vec<PeerName>,
        pending: Vec<PeerName>,
    },
    Stopped(Outcome),
}

#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) rules: Rules,
    pub(crate) phase: Phase,
    /// Since when it is in its phase, or impaired in it, or so no more.
    pub(crate) since: Instant,
    /// How often it was started; zero before the first time.
    pub(crate) incarnation: u64,
    /// How often it had been started when its supervisor began.
    pub(crate) before: u64,
    /// Since when the present incarnation is ready.
    ready_at: Option<Instant>,
    pub(crate) proof: Option<String>,
    /// Whether the present incarnation has answered a question whether it lives.
    has_answered: bool,
    /// Patterns that a line of the present incarnation matched: those that somebody waits for.
    seen: Vec<String>,
    pub(crate) status: Option<String>,
    /// Why it does less than it should, though it runs.
    pub(crate) impaired: Option<String>,
    pub(crate) last_failure: Option<(Instant, Report)>,
    /// How it came up the first time.
    pub(crate) first: FirstStart,
    /// When the present incarnation, or the last one, was started.
    began: Instant,
    /// What it waits for that is not so, and since when.
    pub(crate) unmet: Vec<Unmet>,
    pub(crate) budget: Budget,
    backoff: Backoff,
    /// Waits drawn so far.
    drawn: u64,
    /// What was counted against it of late, should that turn out not to have been its own fault.
    charge: Option<Charge>,
}

/// A condition that stands in the way of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unmet {
    pub(crate) need: usize,
    pub(crate) condition: Condition,
    pub(crate) since: Instant,
}

/// What its failures of the last seconds took from a child: all as it was before.
#[derive(Debug)]
struct Charge {
    at: Instant,
    budget: Budget,
    backoff: Backoff,
    drawn: u64,
}

/// How a child came up the first time, for the question what made the start slow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FirstStart {
    /// When nothing stood in its way any more.
    pub(crate) began: Option<Instant>,
    /// Whose readiness, or first failure, it had waited for last.
    pub(crate) after: Option<usize>,
    /// When it was ready, or had failed, for the first time.
    settled: Option<Instant>,
    /// When it was ready for the first time.
    pub(crate) ready: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not running, about to be started as soon as nothing stands in the way.
    Waiting {
        /// The end of its backoff.
        not_before: Option<Instant>,
        /// Whether it has failed and is tried again.
        retry: bool,
    },
    Starting {
        deadline: Instant,
        /// What the deadline granted, when it was last set.
        granted: Duration,
    },
    Running(Asking),
    /// An incarnation on its way out.
    Ending {
        then: Then,
        step: Step,
    },
    /// Not running, and not started again by itself.
    Down(Down),
}

/// Liveness: one question at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    Silent { next: Instant, missed: u32 },
    Asked { nonce: u64, at: Instant, missed: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Restart,
    Stay,
    /// It is killed for this failure.
    Fail(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To be asked once those that build on it have ended.
    Queued,
    Asked {
        deadline: Instant,
    },
    Killed {
        deadline: Instant,
        at_fault: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Down {
    /// By order.
    Stopped,
    /// By itself, normally.
    Finished,
    /// It failed, and will not be tried again.
    Failed,
}

impl Machine {
    pub(crate) fn new(
        name: String,
        strategy: Strategy,
        auto_shutdown: Option<AutoShutdown>,
        rules: Vec<Rules>,
        draws: Draws,
        now: Instant,
    ) -> Self {
        let children = rules.into_iter().map(|rules| Child::new(rules, now)).collect();
        Self {
            name,
            strategy,
            auto_shutdown,
            children,
            stage: Stage::Running,
            draws,
            begun: now,
            actions: Vec::new(),
            questions: 0,
            phases: ShutdownPhases::default(),
        }
    }

    /// Other phases for a shutdown that nobody asked for.
    pub(crate) fn within(self, phases: ShutdownPhases) -> Self {
        Self { phases, ..self }
    }

    /// What is to be done now.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// How it ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match &self.stage {
            Stage::Stopped(outcome) => Some(outcome),
            Stage::Running | Stage::Stopping { .. } => None,
        }
    }

    /// Starts what can be started. After its end it begins again, with whole budgets; only incarnations go on counting.
    pub(crate) fn start(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Stopped(_)) {
            self.stage = Stage::Running;
            for child in &mut self.children {
                child.before = child.incarnation;
                (child.ready_at, child.proof, child.status, child.impaired) = (None, None, None, None);
                child.forgive();
                child.enter(Phase::Waiting { not_before: None, retry: false }, now);
            }
        }
        self.settle(now);
    }

    /// An incarnation reported. Reports of earlier incarnations are ignored.
    pub(crate) fn on_report(&mut self, index: usize, incarnation: u64, report: HostReport, now: Instant) {
        let child = &mut self.children[index];
        if child.incarnation != incarnation || matches!(child.phase, Phase::Waiting { .. } | Phase::Down(_)) {
            return;
        }
        match report {
            HostReport::Ready { proof } => child.on_ready(proof, now),
            HostReport::Progress(text) => child.on_progress(text, now),
            HostReport::Status(text) => child.status = Some(text),
            HostReport::Seen(pattern) if !child.seen.contains(&pattern) => child.seen.push(pattern),
            HostReport::Impaired(why) => child.on_impaired(why, now),
            HostReport::Extend(by) => child.on_extend(by, now),
            HostReport::Alive { nonce } => child.on_alive(nonce),
            HostReport::Exited(exit) => self.on_exit(index, exit, now),
            _ => {}
        }
        self.settle(now);
    }

    /// What the child was busy with when it was last asked.
    pub(crate) fn on_busy(&mut self, index: usize, busy: Option<Busy>, now: Instant) {
        let child = &self.children[index];
        let Some(busy) = busy.filter(|_| matches!(child.phase, Phase::Running(_))) else { return };
        let busy_for = now.saturating_duration_since(busy.since);
        if busy_for > child.rules.clocks.stuck_after {
            let reason = format!("stuck: busy for {} s with {}", busy_for.as_secs(), busy.with);
            self.fail_running(index, Failure::new(reason), now);
            self.settle(now);
        }
    }

    /// Time has passed.
    pub(crate) fn on_time(&mut self, now: Instant) {
        for index in 0..self.children.len() {
            self.on_time_of(index, now);
        }
        if let Stage::Stopping { kill_at, give_up_at, .. } = self.stage {
            if kill_at <= now {
                self.kill_remaining(now);
            }
            if give_up_at <= now {
                self.kill_at_once(now);
                self.abandon_remaining(now);
            }
        }
        self.settle(now);
    }

    /// When [`Machine::on_time`] is due next, if it was called at `now`. What lay before that waits for an event.
    pub(crate) fn next_timer(&self, now: Instant) -> Option<Instant> {
        let children = self.children.iter().filter_map(|child| match &child.phase {
            Phase::Waiting { not_before, .. } => *not_before,
            Phase::Starting { deadline, .. } => Some(*deadline),
            // Due already where a child is asked more often than an answer may take.
            Phase::Running(Asking::Silent { next, .. }) => Some((*next).max(now + Duration::from_nanos(1))),
            Phase::Running(Asking::Asked { at, .. }) => Some(*at + child.rules.clocks.ask_timeout),
            Phase::Ending { step: Step::Asked { deadline } | Step::Killed { deadline, .. }, .. } => {
                Some(*deadline)
            }
            Phase::Ending { step: Step::Queued, .. } | Phase::Down(_) => None,
        });
        let stage = match &self.stage {
            Stage::Stopping { kill_at, give_up_at, .. } => [Some(*kill_at), Some(*give_up_at)],
            Stage::Running | Stage::Stopped(_) => [None, None],
        };
        children.chain(stage.into_iter().flatten()).filter(|&at| at > now).min()
    }

    /// Starts a child that is down; a child in backoff is tried at once. Its budget is whole again, also if it runs.
    pub(crate) fn order_start(&mut self, index: usize, now: Instant) {
        if self.stage != Stage::Running {
            return;
        }
        let child = &mut self.children[index];
        match &mut child.phase {
            Phase::Waiting { not_before, .. } => *not_before = None,
            Phase::Down(_) => child.enter(Phase::Waiting { not_before: None, retry: false }, now),
            Phase::Ending { then, .. } if *then == Then::Stay => *then = Then::Restart,
            Phase::Starting { .. } | Phase::Running(_) | Phase::Ending { .. } => {}
        }
        child.forgive();
        self.settle(now);
    }

    /// Stops a child and keeps it down.
    pub(crate) fn order_stop(&mut self, index: usize, now: Instant) {
        self.children[index].end(Then::Stay, now);
        self.settle(now);
    }

    /// Stops a child if it runs, and starts it.
    pub(crate) fn order_restart(&mut self, index: usize, now: Instant) {
        if self.stage != Stage::Running {
            return;
        }
        let child = &mut self.children[index];
        if matches!(child.phase, Phase::Starting { .. } | Phase::Running(_)) {
            child.forgive();
            child.end(Then::Restart, now);
            return self.settle(now);
        }
        self.order_start(index, now);
    }

    /// Begins the shutdown. A second call makes it shorter, never longer.
    pub(crate) fn shutdown(&mut self, phases: ShutdownPhases, now: Instant) {
        self.shutdown_for(Stop::Final, phases, now);
    }

    /// [`Machine::shutdown`]; for a restart children leave their queues to their next incarnations.
    pub(crate) fn shutdown_for(&mut self, stop: Stop, phases: ShutdownPhases, now: Instant) {
        self.stop_all(Why::Asked, stop, phases, now);
        self.on_time(now);
    }

    fn stop_all(&mut self, because: Why, wanted: Stop, phases: ShutdownPhases, now: Instant) {
        let (kill, give_up) = (now + phases.drain, now + phases.forced);
        match &mut self.stage {
            Stage::Running => {
                self.stage = Stage::Stopping {
                    why: because,
                    stop: wanted,
                    kill_at: kill,
                    at_once: phases.drain.is_zero(),
                    give_up_at: give_up,
                    forced: Vec::new(),
                    pending: Vec::new(),
                };
                for index in 0..self.children.len() {
                    self.children[index].end(Then::Stay, now);
                    // One that was asked to stop for a restart leaves its queue; now it is to take it.
                    if let Phase::Ending { step: Step::Asked { .. }, .. } = self.children[index].phase
                        && wanted == Stop::Final
                    {
                        self.actions.push(Action::Stop { child: index, stop: Stop::Final });
                    }
                }
            }
            Stage::Stopping { kill_at, give_up_at, at_once, .. } => {
                *at_once |= phases.drain.is_zero();
                *kill_at = kill.min(*kill_at);
                *give_up_at = give_up.min(*give_up_at);
            }
            Stage::Stopped(_) => {}
        }
    }

    fn on_exit(&mut self, index: usize, exit: Exit, now: Instant) {
        self.excuse_those_on(index, now);
        let child = &mut self.children[index];
        let was_ready = child.ready_at.is_some();
        let phase = std::mem::replace(&mut child.phase, Phase::Down(Down::Stopped));
        let by_itself = |exit| match exit {
            Exit::Failed(failure) | Exit::Forced(failure) => Some(failure),
            Exit::Killed => Some(Failure::new("killed")),
            Exit::Normal => None,
        };
        match phase {
            Phase::Ending { then, step } => {
                let failure = match (step, exit) {
                    (_, Exit::Failed(failure)) => Some(failure),
                    (Step::Asked { .. }, Exit::Forced(failure)) => {
                        self.note_forced(index);
                        Some(failure)
                    }
                    _ => None,
                };
                self.on_ended(index, then, failure, now);
            }
            Phase::Starting { .. } | Phase::Running(_) => match (by_itself(exit), child.rules.restart) {
                (Some(failure), _) => self.on_failed(index, failure, now),
                (None, Restart::Permanent) if was_ready => {
                    self.on_failed(index, Failure::new("ended without being asked"), now);
                }
                (None, Restart::Permanent) => {
                    self.on_failed(index, Failure::new("ended before it was ready"), now)
                }
                (None, Restart::Transient { .. } | Restart::Temporary { .. }) => {
                    child.enter(Phase::Down(Down::Finished), now);
                    self.on_significant_end(index, now);
                }
            },
            Phase::Waiting { .. } | Phase::Down(_) => unreachable!("only incarnations that exist report"),
        }
    }

    /// An incarnation that was on its way out has ended, or was abandoned.
    fn on_ended(&mut self, index: usize, then: Then, failure: Option<Failure>, now: Instant) {
        if let (Some(failure), Then::Restart | Then::Stay) = (failure, &then) {
            self.report(index, ReportContext::ShutdownError, failure, now);
        }
        let child = &mut self.children[index];
        match then {
            Then::Fail(failure) => self.on_failed(index, failure, now),
            Then::Restart => child.enter(Phase::Waiting { not_before: None, retry: false }, now),
            Then::Stay => child.enter(Phase::Down(Down::Stopped), now),
        }
    }

    /// A child failed. Whether that is its own fault.
    fn on_failed(&mut self, index: usize, failure: Failure, now: Instant) {
        let failure = match self.ground_lost(index, self.children[index].began, now) {
            Some(need) if self.stage == Stage::Running => {
                let need = &self.children[need].rules.name;
                let failure = failure.context(format!("`{need}`, which it needs, went away"));
                return self.on_ground_lost(index, failure, now);
            }
            _ => failure,
        };
        self.on_own_failure(index, failure, now);
    }

    /// A child failed because of another: it is started again as soon as that is there, and nothing is counted.
    fn on_ground_lost(&mut self, index: usize, failure: Failure, now: Instant) {
        let child = &self.children[index];
        let (was_ready, restart) = (child.ready_at.is_some(), child.rules.restart);
        let context = if was_ready { ReportContext::ChildTerminated } else { ReportContext::StartError };
        self.report(index, context, failure, now);
        let child = &mut self.children[index];
        child.first.settled.get_or_insert(now);
        if matches!(restart, Restart::Temporary { .. }) {
            child.enter(Phase::Down(Down::Failed), now);
            return self.on_significant_end(index, now);
        }
        child.enter(Phase::Waiting { not_before: None, retry: true }, now);
        self.take_followers_along(index, now);
    }

    /// A child failed by itself: report, judge, restart it and its followers, or not.
    fn on_own_failure(&mut self, index: usize, failure: Failure, now: Instant) {
        let child = &mut self.children[index];
        let was_ready = child.ready_at.is_some();
        let ready_for = child.ready_at.map_or(Duration::ZERO, |ready| now.saturating_duration_since(ready));
        if ready_for >= HEALTHY_AFTER {
            child.backoff.reset();
        }
        let is_recent = |charge: &&Charge| now.saturating_duration_since(charge.at) <= EXCUSED_WITHIN;
        if child.charge.as_ref().filter(is_recent).is_none() {
            let (budget, backoff, drawn) = (child.budget.clone(), child.backoff, child.drawn);
            child.charge = Some(Charge { at: now, budget, backoff, drawn });
        }
        let verdict = child.budget.record(now, ready_for);
        let first_start = child.starts() == 1 && !was_ready;
        let (restart, when_spent, name) =
            (child.rules.restart, child.rules.when_spent, child.rules.name.clone());
        let context = match (&self.stage, was_ready) {
            (Stage::Running, true) => ReportContext::ChildTerminated,
            (Stage::Running, false) => ReportContext::StartError,
            (Stage::Stopping { .. } | Stage::Stopped(_), _) => ReportContext::ShutdownError,
        };
        let ends_start = first_start && self.stage == Stage::Running && when_spent == WhenSpent::Escalate;
        self.report(index, context, failure.clone(), now);
        if ends_start && !matches!(restart, Restart::Temporary { .. }) {
            self.pass_on_last_report();
        }

        let child = &mut self.children[index];
        child.first.settled.get_or_insert(now);
        child.enter(Phase::Down(Down::Failed), now);
        if self.stage != Stage::Running {
            return;
        }
        match (restart, when_spent, verdict) {
            (Restart::Temporary { .. }, ..) => self.on_significant_end(index, now),
            (_, WhenSpent::Escalate, _) if first_start => {
                self.stop_all(
                    Why::StartFailed { child: name, reason: failure },
                    Stop::Restart,
                    self.phases,
                    now,
                );
            }
            (_, WhenSpent::Escalate, Verdict::GiveUp) => {
                self.stop_all(
                    Why::Escalated { child: name, reason: failure },
                    Stop::Restart,
                    self.phases,
                    now,
                );
            }
            (_, WhenSpent::LeaveFailed, Verdict::GiveUp) => {}
            (_, _, Verdict::Restart) => {
                let wait = child.backoff.next(self.draws.draw(index, child.drawn));
                child.drawn += 1;
                child.enter(Phase::Waiting { not_before: Some(now + wait), retry: true }, now);
                self.take_followers_along(index, now);
            }
        }
    }

    /// What a child stood on since `began` and that is not there any more, or not the same: of all that it needs while
    /// it lives, through others as well.
    fn ground_lost(&self, index: usize, began: Instant, now: Instant) -> Option<usize> {
        self.children[index].rules.needs.iter().copied().filter(|&need| self.stands_on(index, need)).find_map(
            |need| {
                let other = &self.children[need];
                let is_another =
                    other.began > began && now.saturating_duration_since(other.began) <= EXCUSED_WITHIN;
                if is_another || !self.is_met(index, need) {
                    return Some(need);
                }
                self.ground_lost(need, began, now)
            },
        )
    }

    /// Whether a child needs the other while it lives, and not only to have done something.
    fn stands_on(&self, index: usize, need: usize) -> bool {
        let lasts = |condition: &Condition| !matches!(condition, Condition::Completed | Condition::Line(_));
        self.conditions(index, need).into_iter().any(lasts)
    }

    /// An incarnation is lost. Those that stood on it may have failed for that and been quicker to say so: what was
    /// counted against them is taken back.
    fn excuse_those_on(&mut self, lost: usize, now: Instant) {
        if self.stage != Stage::Running
            || !matches!(self.children[lost].phase, Phase::Starting { .. } | Phase::Running(_))
        {
            return;
        }
        for index in lost + 1..self.children.len() {
            if !self.is_below(index, lost) {
                continue;
            }
            let child = &mut self.children[index];
            let Some(charge) = child.charge.take() else { continue };
            if now.saturating_duration_since(charge.at) > EXCUSED_WITHIN {
                continue;
            }
            (child.budget, child.backoff, child.drawn) = (charge.budget, charge.backoff, charge.drawn);
            let is_down =
                matches!(child.phase, Phase::Waiting { retry: true, .. } | Phase::Down(Down::Failed));
            if is_down && !matches!(child.rules.restart, Restart::Temporary { .. }) {
                child.enter(Phase::Waiting { not_before: None, retry: true }, now);
            }
        }
    }

    /// Whether `index` stands on `ground`, through others as well.
    fn is_below(&self, index: usize, ground: usize) -> bool {
        let needs = &self.children[index].rules.needs;
        needs
            .iter()
            .any(|&need| self.stands_on(index, need) && (need == ground || self.is_below(need, ground)))
    }

    fn take_followers_along(&mut self, failed: usize, now: Instant) {
        for (sibling, child) in self.children.iter_mut().enumerate() {
            if self.strategy.follows(sibling, failed) {
                let temporary = matches!(child.rules.restart, Restart::Temporary { .. });
                match child.phase {
                    Phase::Starting { .. } | Phase::Running(_) if temporary => child.end(Then::Stay, now),
                    Phase::Starting { .. } | Phase::Running(_) => child.end(Then::Restart, now),
                    // Those that wait, wait on; those that end, end; those that are down stay down.
                    Phase::Waiting { .. } | Phase::Ending { .. } | Phase::Down(_) => {}
                }
            }
        }
    }

    /// A child has ended for good by itself. Whether that ends the supervisor.
    fn on_significant_end(&mut self, index: usize, now: Instant) {
        let Some(rule) = self.auto_shutdown else { return };
        let ends = match rule {
            AutoShutdown::AnySignificant => self.children[index].is_significant(),
            AutoShutdown::AllSignificant => {
                self.children[index].is_significant()
                    && self.children.iter().filter(|child| child.is_significant()).all(Child::is_over)
            }
        };
        if ends {
            self.stop_all(Why::AutoShutdown, Stop::Final, self.phases, now);
        }
    }

    /// Kills a running incarnation for a failure that it did not notice itself.
    fn fail_running(&mut self, index: usize, failure: Failure, now: Instant) {
        self.excuse_those_on(index, now);
        let step = Step::Killed { deadline: now + KILL_GRACE, at_fault: true };
        self.children[index].phase = Phase::Ending { then: Then::Fail(failure), step };
        self.actions.push(Action::Kill { child: index, at_fault: true });
    }

    fn on_time_of(&mut self, index: usize, now: Instant) {
        let child = &mut self.children[index];
        let clocks = child.rules.clocks;
        match &mut child.phase {
            Phase::Starting { deadline, granted } if *deadline <= now => {
                let granted = duration::brief(*granted);
                let last = child.last_said();
                let reason = format!("not ready within {granted} of its last progress{last}");
                self.fail_running(index, Failure::new(reason), now);
            }
            Phase::Running(Asking::Silent { next, missed }) if *next <= now => {
                self.questions += 1;
                let nonce = self.questions;
                child.phase = Phase::Running(Asking::Asked { nonce, at: now, missed: *missed });
                self.actions.push(Action::Ask { child: index, nonce });
            }
            Phase::Running(Asking::Asked { at, missed, .. }) if *at + clocks.ask_timeout <= now => {
                let missed = *missed + 1;
                if missed >= clocks.asks_missed_max {
                    let last = child.last_said();
                    let timeout = duration::brief(clocks.ask_timeout);
                    let reason =
                        format!("not alive: {missed} questions in a row went unanswered for {timeout}{last}");
                    return self.fail_running(index, Failure::new(reason), now);
                }
                child.phase = Phase::Running(Asking::Silent { next: *at + clocks.ask_every, missed });
            }
            Phase::Ending { step, .. } => match *step {
                Step::Asked { deadline } if deadline <= now => {
                    *step = Step::Killed { deadline: now + KILL_GRACE, at_fault: false };
                    self.note_forced(index);
                    self.actions.push(Action::Kill { child: index, at_fault: false });
                    let reason = format!(
                        "did not stop within its grace of {}, killed",
                        duration::brief(clocks.stop_grace)
                    );
                    self.report(index, ReportContext::ShutdownError, Failure::new(reason), now);
                }
                Step::Killed { deadline, at_fault } if deadline <= now => self.abandon(index, at_fault, now),
                _ => {}
            },
            _ => {}
        }
    }

    /// It had to be killed. Whether that happened in a shutdown, which then says so.
    fn note_forced(&mut self, index: usize) {
        if let Stage::Stopping { forced, .. } = &mut self.stage {
            forced.push(self.children[index].rules.name.clone());
        }
    }

    fn abandon(&mut self, index: usize, at_fault: bool, now: Instant) {
        self.actions.push(Action::Abandon { child: index, at_fault });
        let child = &mut self.children[index];
        let Phase::Ending { then, .. } = std::mem::replace(&mut child.phase, Phase::Down(Down::Stopped))
        else {
            unreachable!("only what is ending is abandoned")
        };
        if let Stage::Stopping { pending, .. } = &mut self.stage {
            pending.push(child.rules.name.clone());
        }
        self.on_ended(index, then, Some(Failure::new("did not end when killed, abandoned")), now);
    }

    /// Kills what was asked and has not ended. What nobody could ask yet, because others build on it, is asked when they are
    /// gone, and has [`KILL_GRACE`].
    fn kill_remaining(&mut self, now: Instant) {
        let Stage::Stopping { at_once, .. } = self.stage else { return };
        for (index, child) in self.children.iter_mut().enumerate().rev() {
            let Phase::Ending { step, .. } = &mut child.phase else { continue };
            let has_time = match step {
                Step::Killed { .. } => true,
                Step::Queued => !at_once,
                Step::Asked { deadline } => !at_once && *deadline <= now + KILL_GRACE,
            };
            if !has_time {
                *step = Step::Killed { deadline: now + KILL_GRACE, at_fault: false };
                self.actions.push(Action::Kill { child: index, at_fault: false });
                if let Stage::Stopping { forced, .. } = &mut self.stage {
                    forced.push(child.rules.name.clone());
                }
            }
        }
    }

    fn kill_at_once(&mut self, now: Instant) {
        if let Stage::Stopping { at_once, .. } = &mut self.stage {
            *at_once = true;
        }
        self.kill_remaining(now);
    }

    fn abandon_remaining(&mut self, now: Instant) {
        for index in 0..self.children.len() {
            if let Phase::Ending { step: Step::Killed { at_fault, .. }, .. } = self.children[index].phase {
                self.abandon(index, at_fault, now);
            }
        }
    }

    /// Stops and starts whatever nothing stands in the way of any more; notices that all is over.
    fn settle(&mut self, now: Instant) {
        for index in (0..self.children.len()).rev() {
            self.stop_if_free(index, now);
        }
        for index in 0..self.children.len() {
            if self.may_start(index, now) {
                let after = self.waited_for_last(index);
                let first = &mut self.children[index].first;
                if first.began.is_none() {
                    (first.began, first.after) = (Some(now), after);
                }
                let child = &mut self.children[index];
                let incarnation = child.begin(now);
                self.actions.push(Action::Start { child: index, incarnation });
            }
        }
        for index in 0..self.children.len() {
            self.note_unmet(index, now);
        }
        if let Stage::Stopping { why, forced, pending, .. } = &self.stage
            && self.children.iter().all(|child| matches!(child.phase, Phase::Down(_)))
        {
            let (why, forced, pending) = (why.clone(), forced.clone(), pending.clone());
            self.stage = Stage::Stopped(Outcome { why, forced, pending });
        }
    }

    /// Asks a child to stop once everything that builds on it and is ending too has ended.
    fn stop_if_free(&mut self, index: usize, now: Instant) {
        let Phase::Ending { step: Step::Queued, then } = &self.children[index].phase else { return };
        let stop = match (&self.stage, then) {
            (_, Then::Restart) => Stop::Restart,
            (Stage::Stopping { stop, .. }, _) => *stop,
            _ => Stop::Final,
        };
        if !self.ends_after(index).is_empty() {
            return;
        }
        let child = &mut self.children[index];
        let grace = child.rules.clocks.stop_grace;
        let grace = match self.stage {
            Stage::Stopping { kill_at, .. } if kill_at <= now => grace.min(KILL_GRACE),
            _ => grace,
        };
        let deadline = now + grace;
        if let Phase::Ending { step, .. } = &mut child.phase {
            *step = Step::Asked { deadline };
        }
        self.actions.push(Action::Stop { child: index, stop });
    }

    /// Whether `one` is started after `other` for a reason, and so stopped before it.
    fn builds_on(&self, one: usize, other: usize) -> bool {
        let rules = &self.children[one].rules;
        let in_line = rules.in_line || self.is_strict();
        rules.needs.contains(&other) || (in_line && other < one)
    }

    /// Those that have to end before a child is asked to.
    pub(crate) fn ends_after(&self, index: usize) -> Vec<usize> {
        let ends_before = |&other: &usize| self.children[other].is_ending() && self.builds_on(other, index);
        (0..self.children.len()).filter(ends_before).collect()
    }

    fn may_start(&self, index: usize, now: Instant) -> bool {
        let Phase::Waiting { not_before, .. } = self.children[index].phase else { return false };
        not_before.is_none_or(|at| at <= now) && self.waits_for(index).is_empty()
    }

    /// Those that stand in the way of the start of a child that waits for it.
    pub(crate) fn waits_for(&self, index: usize) -> Vec<usize> {
        let child = &self.children[index];
        let Phase::Waiting { retry, .. } = child.phase else { return Vec::new() };
        let in_line = self.is_strict() || (child.rules.in_line && !retry && child.starts() == 0);
        let stands_in_the_way = |&other: &usize| {
            let is_needed = child.rules.needs.contains(&other);
            (is_needed && !self.is_met(index, other))
                || (in_line && other < index && !self.has_settled(other))
                || (self.is_strict() && self.children[other].is_ending())
        };
        (0..self.children.len()).filter(stands_in_the_way).collect()
    }

    /// Whether what a child waits for is true of one that it needs.
    fn is_met(&self, index: usize, need: usize) -> bool {
        self.conditions(index, need).into_iter().all(|condition| self.children[need].meets(condition))
    }

    /// The conditions that a child sets to one that it needs.
    fn conditions(&self, index: usize, need: usize) -> Vec<&Condition> {
        let until = self.children[index].rules.until.iter();
        let set: Vec<_> = until.filter(|(place, _)| *place == need).map(|(_, condition)| condition).collect();
        if set.is_empty() { vec![&Condition::Ready] } else { set }
    }

    /// Brings up to date which conditions a child waits for; each keeps the time from when on it was not met.
    fn note_unmet(&mut self, index: usize, now: Instant) {
        let child = &self.children[index];
        let mut unmet = Vec::new();
        if let Phase::Waiting { .. } = child.phase {
            let needs: BTreeSet<usize> = child.rules.needs.iter().copied().collect();
            for need in needs {
                let conditions = self.conditions(index, need).into_iter();
                unmet.extend(conditions.filter(|condition| !self.children[need].meets(condition)).map(
                    |condition| {
                        let before = child
                            .unmet
                            .iter()
                            .find(|before| before.need == need && before.condition == *condition);
                        let since = before.map_or(now, |before| before.since);
                        Unmet { need, condition: condition.clone(), since }
                    },
                ));
            }
        }
        self.children[index].unmet = unmet;
    }

    /// Who of those that stood in the way of the first start of a child was the last to do so.
    fn waited_for_last(&self, index: usize) -> Option<usize> {
        let rules = &self.children[index].rules;
        let earlier = (0..index).filter(|_| rules.in_line || self.is_strict());
        let in_line = earlier.filter_map(|other| Some((self.children[other].first.settled?, other)));
        let needed = rules.needs.iter().filter_map(|&need| Some((self.children[need].first.ready?, need)));
        needed.chain(in_line).max().map(|(_, other)| other)
    }

    /// What will be done if the child fails `fails_after` after each start from now on, never having been ready.
    pub(crate) fn plan(&self, index: usize, fails_after: Duration, now: Instant) -> Plan {
        let child = &self.children[index];
        let name = child.rules.name.to_string();
        let (waits_until, down) = match &child.phase {
            Phase::Waiting { not_before, retry: true } => (Some(not_before.unwrap_or(now)), None),
            Phase::Down(Down::Failed) => (None, Some(child.rules.when_spent)),
            _ => (None, None),
        };
        let mut plan = Plan::new(name, child.rules.restart, child.rules.when_spent, fails_after);
        if down.is_some() {
            plan.is_down();
            return plan;
        }
        if matches!(child.rules.restart, Restart::Temporary { .. }) {
            return plan;
        }
        let (mut budget, mut backoff, mut drawn) = (child.budget.clone(), child.backoff, child.drawn);
        let mut at = now;
        if let Some(until) = waits_until {
            plan.waits(until.saturating_duration_since(now));
            at = until.max(now) + fails_after;
        } else if let Some(ready) = child.ready_at
            && now.saturating_duration_since(ready) >= HEALTHY_AFTER
        {
            // The failure that is supposed for now would find it healthy.
            backoff.reset();
        }
        let mut ready_for = match (waits_until, child.ready_at) {
            (None, Some(ready)) => now.saturating_duration_since(ready),
            _ => Duration::ZERO,
        };
        while budget.record(at, std::mem::take(&mut ready_for)) == Verdict::Restart {
            let bound = backoff.bound();
            let wait = backoff.next(self.draws.draw(index, drawn));
            drawn += 1;
            plan.tries(wait, bound, at + wait - now);
            at += wait + fails_after;
        }
        plan.gives_up(at.saturating_duration_since(now));
        plan
    }

    /// Whether later children need not wait for this one any longer. Under a strategy with followers the
    /// order is strict: a child that is tried again is waited for until its budget is spent.
    fn has_settled(&self, index: usize) -> bool {
        let child = &self.children[index];
        match child.phase {
            Phase::Running(_) | Phase::Down(_) => true,
            Phase::Waiting { retry: true, .. } if !self.is_strict() => true,
            Phase::Starting { .. } if !self.is_strict() => child.starts() > 1,
            // Waits for one that will not come up soon. Needs lie earlier, so this ends.
            Phase::Waiting { .. } => {
                child.rules.needs.iter().any(|&need| !self.is_met(index, need) && self.has_settled(need))
            }
            Phase::Starting { .. } | Phase::Ending { .. } => false,
        }
    }

    fn is_strict(&self) -> bool {
        self.strategy != Strategy::OneForOne
    }

    fn report(&mut self, index: usize, context: ReportContext, reason: Failure, now: Instant) {
        let child = &mut self.children[index];
        let report = Report {
            supervisor: self.name.clone(),
            context,
            reason,
            offender: child.rules.name.clone(),
            incarnation: child.incarnation,
            is_passed_on: false,
        };
        child.last_failure = Some((now, report.clone()));
        self.actions.push(Action::Report(report));
    }

    /// What was reported last is why the start fails: it is told by who asked for the start.
    fn pass_on_last_report(&mut self) {
        if let Some(Action::Report(report)) = self.actions.last_mut() {
            report.is_passed_on = true;
        }
    }
}

impl Child {
    fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            phase: Phase::Waiting { not_before: None, retry: false },
            since: now,
            incarnation: 0,
            before: 0,
            ready_at: None,
            proof: None,
            has_answered: false,
            seen: Vec::new(),
            status: None,
            impaired: None,
            last_failure: None,
            first: FirstStart::default(),
            began: now,
            unmet: Vec::new(),
            budget: Budget::default(),
            backoff: Backoff::default(),
            drawn: 0,
            charge: None,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn begin(&mut self, now: Instant) -> u64 {
        self.incarnation += 1;
        self.began = now;
        self.ready_at = None;
        self.proof = None;
        self.status = None;
        self.impaired = None;
        self.has_answered = false;
        self.seen.clear();
        let granted = self.rules.clocks.start_deadline;
        self.enter(Phase::Starting { deadline: now + granted, granted }, now);
        self.incarnation
    }

    fn meets(&self, condition: &Condition) -> bool {
        let is_ready = matches!(self.phase, Phase::Running(_));
        let is_up = is_ready || matches!(self.phase, Phase::Starting { .. });
        let has_completed = matches!(self.phase, Phase::Down(Down::Finished));
        match condition {
            Condition::Started => is_up,
            Condition::Ready => is_ready,
            Condition::Healthy => is_ready && self.has_answered,
            Condition::Completed => has_completed,
            Condition::Line(pattern) => (is_up || has_completed) && self.seen.contains(pattern),
        }
    }

    fn on_ready(&mut self, proof: String, now: Instant) {
        if let Phase::Starting { .. } = self.phase {
            self.ready_at = Some(now);
            self.first.settled.get_or_insert(now);
            self.first.ready.get_or_insert(now);
            self.proof = Some(proof);
            let next = now + self.rules.clocks.ask_every;
            self.enter(Phase::Running(Asking::Silent { next, missed: 0 }), now);
        }
    }

    fn on_progress(&mut self, text: String, now: Instant) {
        self.status = Some(text);
        if let Phase::Starting { .. } = self.phase {
            self.on_extend(self.rules.clocks.start_deadline, now);
        }
    }

    /// Its last words about itself, for the reason of a failure that it did not report.
    fn last_said(&self) -> String {
        self.status.as_ref().map(|status| format!("; last said: {status}")).unwrap_or_default()
    }

    /// More time to get ready or to stop, at most [`EXTENSION_MAX`]. The phases of a shutdown bound it all the same.
    fn on_extend(&mut self, by: Duration, now: Instant) {
        let by = by.min(EXTENSION_MAX);
        match &mut self.phase {
            Phase::Starting { deadline, granted } if *deadline < now + by => {
                (*deadline, *granted) = (now + by, by);
            }
            Phase::Ending { step: Step::Asked { deadline }, .. } => *deadline = (now + by).max(*deadline),
            _ => {}
        }
    }

    fn on_impaired(&mut self, why: Option<String>, now: Instant) {
        if self.impaired.is_some() != why.is_some() && matches!(self.phase, Phase::Running(_)) {
            self.since = now;
        }
        self.impaired = why;
    }

    fn on_alive(&mut self, answered: u64) {
        if let Phase::Running(asking) = &mut self.phase
            && let Asking::Asked { nonce, at, .. } = *asking
            && nonce == answered
        {
            *asking = Asking::Silent { next: at + self.rules.clocks.ask_every, missed: 0 };
            self.has_answered = true;
        }
    }

    /// Sets a running child on its way out, or changes what comes after. A failure on its way stays one.
    fn end(&mut self, to: Then, now: Instant) {
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Running(_) => {
                self.enter(Phase::Ending { then: to, step: Step::Queued }, now);
            }
            Phase::Ending { then: Then::Fail(_), .. } => {}
            Phase::Ending { then, .. } => *then = to,
            Phase::Waiting { .. } if to == Then::Stay => self.enter(Phase::Down(Down::Stopped), now),
            Phase::Waiting { .. } | Phase::Down(_) => {}
        }
    }

    /// How often it was started since its supervisor began.
    pub(crate) fn starts(&self) -> u64 {
        self.incarnation - self.before
    }

    fn forgive(&mut self) {
        self.charge = None;
        self.budget = Budget::default();
        self.backoff.reset();
    }

    fn is_significant(&self) -> bool {
        match self.rules.restart {
            Restart::Permanent => false,
            Restart::Transient { significant } | Restart::Temporary { significant } => significant,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Down(_))
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. })
    }
}

impl std::fmt::Display for Outcome {
    /// One line that says why.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { why, forced, pending } = self;
        write!(formatter, "{why}")?;
        for (names, what) in [(forced, "killed"), (pending, "still pending")] {
            if !names.is_empty() {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                write!(formatter, "; {what}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => formatter.write_str("stopped as asked"),
            Self::AutoShutdown => formatter.write_str("stopped because its significant children had ended"),
            Self::StartFailed { child, reason } => write!(formatter, "`{child}` did not start: {reason}"),
            Self::Escalated { child, reason } => {
                write!(formatter, "`{child}` failed too often; its last failure: {reason}")
            }
        }
    }
}
