//! What the tree looks like now, for `interlock status`, the admin API and health. Derived from the parts each time,
//! never assigned, so that a start cannot hide a crash.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use interlock_actors::host::{Busy, Load};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    child::ChildKind,
    machine::{Child, Down, Machine, Phase, Stage, Step, Then, Unmet},
    strategy::WhenSpent,
};

/// From when on it is said what a child is busy with: below it is no news.
const BUSY_SHOWN_MS: u64 = 1000;

/// The state of a child, or of the whole tree.
///
/// | | child | tree, first that applies |
/// |---|---|---|
/// | `Stopped` | not running, by order or at its normal end | all are down |
/// | `Stopping` | on its way out | it is shutting down |
/// | `Error` | failed, and not tried again | a child that escalates has failed |
/// | `Degraded` | failed, and waits for its next try; or runs and does less than it should | another child has failed, or was stopped by order |
/// | `Starting` | waits for others, or is not ready yet | a child is starting |
/// | `Running` | ready, proven | all are |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ready.
    Running,
    /// Not ready yet.
    Starting,
    /// Something is down; the rest goes on.
    Degraded,
    /// Down, and needs a human.
    Error,
    /// On its way out.
    Stopping,
    /// Not running.
    Stopped,
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Degraded => "degraded",
            Self::Error => "error",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// The whole tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSnapshot {
    /// Name of the supervisor.
    pub name: String,
    /// Derived from the children.
    pub state: State,
    /// When this was true.
    pub at: Timestamp,
    /// In start order; those of a supervisor among them follow it.
    pub children: Vec<ChildSnapshot>,
}

/// One child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildSnapshot {
    /// Its name.
    pub name: String,
    /// Thread or program.
    pub kind: ChildKind,
    /// Its state.
    pub state: State,
    /// Since when it is in it.
    pub since: Timestamp,
    /// Starts after the first.
    pub restarts: u64,
    /// How often it was started.
    #[serde(default)]
    pub incarnation: u64,
    /// How readiness was proven; `None` while it is not ready.
    pub readiness: Option<String>,
    /// What it says about itself.
    pub status: Option<String>,
    /// Why it does less than it should, though it runs.
    #[serde(default)]
    pub impaired: Option<String>,
    /// The supervisor it belongs to, if that is not the root.
    #[serde(default)]
    pub supervisor: Option<String>,
    /// Its last failure, of whatever incarnation.
    pub last_failure: Option<FailureSnapshot>,
    /// When it is tried again; `None` if it is not waiting for that.
    pub next_try: Option<Timestamp>,
    /// Children it waits for: to be ready, or before it can be asked to stop, to end.
    pub waits_for: Vec<String>,
    /// What of those that it needs is not so, while it waits to be started.
    #[serde(default)]
    pub unmet: Vec<NeedSnapshot>,
    /// When it is killed if it is not ready, or not gone, until then.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// Inputs waiting in front of it.
    pub queued: usize,
    /// What weighs on it; queue and handler.
    #[serde(default)]
    pub load: LoadSnapshot,
    /// What it used of its budget.
    #[serde(default)]
    pub budget: BudgetSnapshot,
    /// How it came up the first time; `None` if it was never started.
    #[serde(default)]
    pub first_start: Option<StartSnapshot>,
}

/// A condition that stands in the way of the start of a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedSnapshot {
    /// Whose condition it is.
    pub name: String,
    /// Which: in the words of the setting `program.needs`.
    pub condition: String,
    /// The same for people: "`name` to be ready".
    pub words: String,
    /// Since when it is waited for and not so.
    pub since: Timestamp,
}

/// What weighs on a child.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSnapshot {
    /// Bytes of what waits in front of it.
    pub queued_bytes: usize,
    /// How long the oldest input has waited.
    pub oldest_ms: Option<u64>,
    /// Inputs it has handled, of all incarnations.
    pub handled: u64,
    /// Half of the inputs of the last minutes took at most this.
    pub handler_p50_us: Option<u64>,
    /// 99 of 100 inputs of the last minutes took at most this.
    pub handler_p99_us: Option<u64>,
    /// What it has in hand, and for how long, if that is long.
    pub busy: Option<BusySnapshot>,
    /// Its process group, if it is a program that runs.
    pub process: Option<u32>,
    /// Resident memory of that group; `None` if nobody asked.
    pub memory_bytes: Option<u64>,
}

/// What a child has in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusySnapshot {
    /// With what.
    pub with: String,
    /// For how long, or since its last progress.
    pub for_ms: u64,
}

/// What a child used of its restart budget, and what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetSnapshot {
    /// Failures within the period.
    pub failures: usize,
    /// Failures in a row without a minute of health.
    pub unhealthy_failures: u32,
    /// Whether it is spent: the child is down and will not be tried again by itself.
    pub spent: bool,
}

/// How a child came up the first time. Times count from the start of its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSnapshot {
    /// When nothing stood in its way any more.
    pub began_us: u64,
    /// When it was ready; `None` if it never was.
    pub ready_us: Option<u64>,
    /// Whose readiness, or first failure, it had waited for last.
    pub after: Option<String>,
}

/// A failure of a child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureSnapshot {
    /// When.
    pub at: Timestamp,
    /// Why, with the chain of causes.
    pub reason: String,
    /// OTP's word for the situation.
    pub context: String,
    /// Which incarnation.
    pub incarnation: u64,
}

/// What the loop knows of a body at one moment.
#[cfg_attr(test, derive(Default))]
pub(crate) struct Body {
    pub(crate) kind: ChildKind,
    pub(crate) load: Load,
    pub(crate) busy: Option<Busy>,
}

impl Body {
    fn snapshot(&self, now: Instant) -> LoadSnapshot {
        let millis_since = |since: Instant| micros(now.saturating_duration_since(since)) / 1000;
        let handled = self.load.handled;
        LoadSnapshot {
            queued_bytes: self.load.queued_bytes,
            oldest_ms: self.load.oldest.map(millis_since),
            handled: handled.count,
            handler_p50_us: handled.p50.map(micros),
            handler_p99_us: handled.p99.map(micros),
            busy: self
                .busy
                .as_ref()
                .map(|busy| BusySnapshot { with: busy.with.clone(), for_ms: millis_since(busy.since) })
                .filter(|busy| busy.for_ms >= BUSY_SHOWN_MS),
            process: self.load.process,
            memory_bytes: None,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl TreeSnapshot {
    /// The child named `name`.
    pub fn child(&self, name: &str) -> Option<&ChildSnapshot> {
        self.children.iter().find(|child| child.name == name)
    }
}

impl TreeSnapshot {
    /// Puts the children of each supervisor among the children behind it: `below` has its tree, by place.
    pub(crate) fn insert_below(&mut self, below: &[Option<Arc<TreeSnapshot>>]) {
        if below.iter().all(Option::is_none) {
            return;
        }
        for (mut child, below) in std::mem::take(&mut self.children).into_iter().zip(below) {
            let Some(tree) = below else {
                self.children.push(child);
                continue;
            };
            let (name, after) =
                (child.name.clone(), child.first_start.as_ref().and_then(|first| first.after.clone()));
            // Below it is what took the time: the path of the start leads through its last child.
            let last = tree
                .children
                .iter()
                .filter_map(|child| Some((child.first_start.as_ref()?.ready_us?, &child.name)));
            if let (Some(first), Some((_, last))) = (&mut child.first_start, last.max()) {
                first.after = Some(last.clone());
            }
            self.children.push(child);
            self.children.extend(tree.children.iter().cloned().map(|mut child| {
                child.supervisor.get_or_insert_with(|| name.clone());
                if let Some(first) = &mut child.first_start {
                    first.after = first.after.take().or_else(|| after.clone());
                }
                child
            }));
        }
    }
}

impl Machine {
    /// The tree now. `bodies` gives kind and load of each child.
    pub(crate) fn snapshot(&self, name: &str, bodies: &[Body], now: Instant) -> TreeSnapshot {
        let at = Timestamp::now();
        let wall = |instant: Instant| {
            let (ahead, behind) =
                (instant.saturating_duration_since(now), now.saturating_duration_since(instant));
            let shifted = at.checked_add(ahead).and_then(|at| at.checked_sub(behind));
            shifted.unwrap_or(at)
        };
        let children = self.children.iter().enumerate().zip(bodies).map(|((index, child), body)| {
            let (next_try, waits_for) = match child.phase {
                Phase::Waiting { not_before, .. } => {
                    (not_before.filter(|&at| at > now), self.names(self.waits_for(index)))
                }
                Phase::Ending { step: Step::Queued, .. } => (None, self.names(self.ends_after(index))),
                _ => (None, Vec::new()),
            };
            let deadline = match child.phase {
                Phase::Starting { deadline, .. }
                | Phase::Ending { step: Step::Asked { deadline } | Step::Killed { deadline, .. }, .. } => {
                    Some(wall(deadline))
                }
                _ => None,
            };
            ChildSnapshot {
                name: child.rules.name.to_string(),
                kind: body.kind,
                state: child.state(),
                since: wall(child.since),
                restarts: child.incarnation.saturating_sub(1),
                incarnation: child.incarnation,
                readiness: child.proof.clone().filter(|_| matches!(child.phase, Phase::Running(_))),
                status: child.status.clone(),
                impaired: child.impaired.clone().filter(|_| matches!(child.phase, Phase::Running(_))),
                supervisor: None,
                last_failure: child.last_failure.as_ref().map(|(at, report)| FailureSnapshot {
                    at: wall(*at),
                    reason: report.reason.to_string(),
                    context: report.context.as_str().to_owned(),
                    incarnation: report.incarnation,
                }),
                next_try: next_try.map(wall),
                waits_for,
                unmet: child.unmet.iter().map(|unmet| self.need(unmet, &wall)).collect(),
                deadline,
                queued: body.load.queued,
                load: body.snapshot(now),
                budget: child.budget_snapshot(now),
                first_start: self.first_start(child),
            }
        });
        TreeSnapshot { name: name.to_owned(), state: self.state(), at, children: children.collect() }
    }

    /// The state of the tree: see [`State`].
    pub(crate) fn state(&self) -> State {
        match self.stage {
            Stage::Stopped(_) => return State::Stopped,
            Stage::Stopping { .. } => return State::Stopping,
            Stage::Running => {}
        }
        let counts_as = |child: &Child| match (child.state(), &child.phase, child.rules.when_spent) {
            // It runs: less than it should, but it does.
            (State::Degraded, Phase::Running(_), _) => State::Degraded,
            (State::Degraded | State::Error, _, WhenSpent::Escalate) => State::Error,
            (State::Error, ..) | (_, Phase::Down(Down::Stopped), _) => State::Degraded,
            // A finished child has done what it was for.
            (_, Phase::Down(Down::Finished), _) => State::Running,
            // Coming back: a restart must not look like a start.
            (State::Starting, phase, when_spent) if child.starts() > 1 || child.has_run(phase) => {
                match when_spent {
                    WhenSpent::Escalate => State::Error,
                    WhenSpent::LeaveFailed => State::Degraded,
                }
            }
            // On its way out, to come back or not.
            (State::Stopping, ..) => State::Degraded,
            (state, ..) => state,
        };
        self.children.iter().map(counts_as).max().unwrap_or(State::Running)
    }

    fn first_start(&self, child: &Child) -> Option<StartSnapshot> {
        let since_begin = |at: Instant| micros(at.saturating_duration_since(self.begun));
        let first = &child.first;
        Some(StartSnapshot {
            began_us: since_begin(first.began?),
            ready_us: first.ready.map(since_begin),
            after: first.after.map(|after| self.children[after].rules.name.to_string()),
        })
    }

    fn need(&self, unmet: &Unmet, wall: &impl Fn(Instant) -> Timestamp) -> NeedSnapshot {
        let name = self.children[unmet.need].rules.name.to_string();
        let words = unmet.condition.words(&name);
        NeedSnapshot { name, condition: unmet.condition.to_string(), words, since: wall(unmet.since) }
    }

    fn names(&self, places: Vec<usize>) -> Vec<String> {
        places.into_iter().map(|place| self.children[place].rules.name.to_string()).collect()
    }
}

impl Child {
    /// Whether it ran before it came to wait in `phase`.
    fn has_run(&self, phase: &Phase) -> bool {
        self.starts() == 1 && matches!(phase, Phase::Waiting { .. })
    }

    fn budget_snapshot(&self, now: Instant) -> BudgetSnapshot {
        let (failures, unhealthy_failures) = self.budget.used(now);
        BudgetSnapshot { failures, unhealthy_failures, spent: self.phase == Phase::Down(Down::Failed) }
    }

    pub(crate) fn state(&self) -> State {
        match &self.phase {
            Phase::Waiting { retry: true, .. } => State::Degraded,
            Phase::Waiting { retry: false, .. } | Phase::Starting { .. } => State::Starting,
            Phase::Running(_) if self.impaired.is_some() => State::Degraded,
            Phase::Running(_) => State::Running,
            // Killed for a failure: it is down already, only not gone.
            Phase::Ending { then: Then::Fail(_), .. } => State::Degraded,
            Phase::Ending { .. } => State::Stopping,
            Phase::Down(Down::Stopped | Down::Finished) => State::Stopped,
            Phase::Down(Down::Failed) => State::Error,
        }
    }
}
