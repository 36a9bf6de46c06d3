//! What the tree looks like now, for `interlock status`, the admin API and health. Derived from the parts each time,
//! never assigned, so that a start cannot hide a crash.

use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    child::ChildKind,
    machine::{Child, Down, Machine, Phase, Stage, Then},
    strategy::WhenSpent,
};

/// The state of a child, or of the whole tree.
///
/// | | child | tree, first that applies |
/// |---|---|---|
/// | `Stopped` | not running, by order or at its normal end | all are down |
/// | `Stopping` | on its way out | it is shutting down |
/// | `Error` | failed, and not tried again | a child that escalates has failed |
/// | `Degraded` | failed, and waits for its next try | another child has failed, or was stopped by order |
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
    /// In start order.
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
    /// How readiness was proven; `None` while it is not ready.
    pub readiness: Option<String>,
    /// What it says about itself.
    pub status: Option<String>,
    /// Its last failure, of whatever incarnation.
    pub last_failure: Option<FailureSnapshot>,
    /// When it is tried again; `None` if it is not waiting for that.
    pub next_try: Option<Timestamp>,
    /// Children it waits for.
    pub waits_for: Vec<String>,
    /// Inputs waiting in front of it.
    pub queued: usize,
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

impl TreeSnapshot {
    /// The child named `name`.
    pub fn child(&self, name: &str) -> Option<&ChildSnapshot> {
        self.children.iter().find(|child| child.name == name)
    }
}

impl Machine {
    /// The tree now. `bodies` gives kind and queue length of each child.
    pub(crate) fn snapshot(&self, name: &str, bodies: &[(ChildKind, usize)], now: Instant) -> TreeSnapshot {
        let at = Timestamp::now();
        let wall = |instant: Instant| {
            let (ahead, behind) =
                (instant.saturating_duration_since(now), now.saturating_duration_since(instant));
            let shifted = at.checked_add(ahead).and_then(|at| at.checked_sub(behind));
            shifted.unwrap_or(at)
        };
        let children = self.children.iter().zip(bodies).map(|(child, &(kind, queued))| {
            let (next_try, waits_for) = match child.phase {
                Phase::Waiting { not_before, .. } => {
                    (not_before.filter(|&at| at > now), self.waits_for(child))
                }
                _ => (None, Vec::new()),
            };
            ChildSnapshot {
                name: child.rules.name.to_string(),
                kind,
                state: child.state(),
                since: wall(child.since),
                restarts: child.incarnation.saturating_sub(1),
                readiness: child.proof.clone().filter(|_| child.state() == State::Running),
                status: child.status.clone(),
                last_failure: child.last_failure.as_ref().map(|(at, report)| FailureSnapshot {
                    at: wall(*at),
                    reason: report.reason.to_string(),
                    context: report.context.as_str().to_owned(),
                    incarnation: report.incarnation,
                }),
                next_try: next_try.map(wall),
                waits_for,
                queued,
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
            (State::Degraded | State::Error, _, WhenSpent::Escalate) => State::Error,
            (State::Error, ..) | (_, Phase::Down(Down::Stopped), _) => State::Degraded,
            // A finished child has done what it was for.
            (_, Phase::Down(Down::Finished), _) => State::Running,
            // Coming back: a restart must not look like a start.
            (State::Starting, phase, when_spent) if child.incarnation > 1 || child.has_run(phase) => {
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

    fn waits_for(&self, child: &Child) -> Vec<String> {
        let needs = child.rules.needs.iter().map(|&need| &self.children[need]);
        needs.filter(|need| need.state() != State::Running).map(|need| need.rules.name.to_string()).collect()
    }
}

impl Child {
    /// Whether it ran before it came to wait in `phase`.
    fn has_run(&self, phase: &Phase) -> bool {
        self.incarnation == 1 && matches!(phase, Phase::Waiting { .. })
    }

    pub(crate) fn state(&self) -> State {
        match &self.phase {
            Phase::Waiting { retry: true, .. } => State::Degraded,
            Phase::Waiting { retry: false, .. } | Phase::Starting { .. } => State::Starting,
            Phase::Running(_) => State::Running,
            // Killed for a failure: it is down already, only not gone.
            Phase::Ending { then: Then::Fail(_), .. } => State::Degraded,
            Phase::Ending { .. } => State::Stopping,
            Phase::Down(Down::Stopped | Down::Finished) => State::Stopped,
            Phase::Down(Down::Failed) => State::Error,
        }
    }
}
