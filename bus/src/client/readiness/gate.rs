//! When a gated publisher may send: a state machine whose every transition is a proven fact. Pure.
//!
//! | phase | what is proven | leaves it |
//! |---|---|---|
//! | `NoLink` | nothing | the broker has authenticated us |
//! | `Asking` | broker up, connected | it has told who receives the topic |
//! | `Waiting` | ... and it tells us of every change | each consumer that is needed has subscribed |
//! | `Probing` | ... and all are in the routing table | each of them has answered its probe |
//! | `Open` | the whole path to each | one of them, or the link, is lost |
//! | `Refused` | the broker does not let us | it is asked again |
//!
//! No clock takes part. Probes go on while it is open: each one that comes back through all proves that what was sent
//! before it has been taken.

use super::{
    Proof,
    receivers::{Change, Present, Receiver},
    report::{NeedReport, NeedState},
};
use crate::{native::Overflow, peer::PeerName};

/// A consumer that is needed, and how far it must be proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) peer: PeerName,
    pub(super) proof: Proof,
}

/// The way to one consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) peer: PeerName,
    pub(super) session: String,
    pub(super) subscription: u32,
    overflow: Overflow,
}

impl Route {
    fn of(receiver: &Receiver) -> Self {
        Self {
            peer: receiver.peer.clone(),
            session: receiver.session.clone(),
            subscription: receiver.subscription,
            overflow: receiver.overflow,
        }
    }
}

/// How much is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    NoLink,
    Asking,
    Waiting,
    Probing,
    Open,
    Refused { reason: String },
}

/// Something that has been proven, or is no longer true.
#[derive(Debug)]
pub(super) enum Fact {
    /// The broker has authenticated us: a new session.
    LinkReady,
    /// The session has ended.
    LinkLost,
    /// The broker tells who receives the topic.
    Told(Change),
    /// A round of probes is back, with how many messages of ours were dropped for each so far.
    Proven { round: u64, dropped: Vec<u64> },
    /// A probe of a round was lost; `gone` if the consumer is, too.
    ProbeLost { round: u64, session: String, gone: bool },
    /// The broker does not let us publish, or ask.
    Refused { reason: String },
    /// Somebody wants to know whether it does now.
    AskAgain,
}

/// What to do because of a fact.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Stay,
    /// Ask the broker who receives the topic.
    Ask,
    /// Send a probe to each; what is under way is void.
    Probe(Round),
    /// Send, beginning at the cursor.
    Open,
    /// What was sent before this round is taken.
    Confirm,
    /// Stop sending; what is under way is void.
    Hold,
}

/// Probes to be sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) number: u64,
    pub(super) routes: Vec<Route>,
}

#[derive(Debug)]
pub(super) struct Gate {
    needs: Vec<Need>,
    phase: Phase,
    present: Present,
    /// The routes that are probed, or were proven when it opened.
    routes: Vec<Route>,
    /// Messages dropped for each of them when it opened.
    dropped: Vec<u64>,
    round: u64,
    openings: u64,
}

impl Gate {
    pub(super) fn new(needs: Vec<Need>) -> Self {
        Self {
            needs,
            phase: Phase::NoLink,
            present: Present::default(),
            routes: Vec::new(),
            dropped: Vec::new(),
            round: 0,
            openings: 0,
        }
    }

    pub(super) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// How often it has opened.
    pub(super) fn openings(&self) -> u64 {
        self.openings
    }

    /// Takes in a fact.
    pub(super) fn learn(&mut self, fact: Fact) -> Step {
        match fact {
            Fact::LinkLost => {
                self.forget();
                self.phase = Phase::NoLink;
                Step::Hold
            }
            Fact::LinkReady => self.ask(),
            Fact::AskAgain if matches!(self.phase, Phase::Refused { .. }) => self.ask(),
            Fact::AskAgain => Step::Stay,
            Fact::Refused { .. } if self.phase == Phase::NoLink => Step::Stay,
            Fact::Refused { reason } => {
                self.forget();
                self.phase = Phase::Refused { reason };
                Step::Hold
            }
            // Told of an earlier session, or while nothing is asked.
            Fact::Told(_) if matches!(self.phase, Phase::NoLink | Phase::Refused { .. }) => Step::Stay,
            Fact::Told(change) => {
                self.present.apply(change);
                self.judge(false)
            }
            Fact::Proven { round, dropped } if round == self.round => self.on_proven(dropped),
            Fact::ProbeLost { round, session, gone } if round == self.round => {
                if gone {
                    // The broker will tell of it, or of its next subscription.
                    self.present.receivers.remove(&session);
                }
                self.judge(true)
            }
            Fact::Proven { .. } | Fact::ProbeLost { .. } => Step::Stay,
        }
    }

    /// While it is open: a further round, which proves that what was sent until now is taken.
    pub(super) fn probe_again(&mut self) -> Round {
        self.round += 1;
        Round { number: self.round, routes: self.routes.clone() }
    }

    fn ask(&mut self) -> Step {
        self.forget();
        self.phase = Phase::Asking;
        Step::Ask
    }

    fn forget(&mut self) {
        self.present = Present::default();
        self.routes.clear();
        self.round += 1;
    }

    /// Compares who is there with who is needed. `afresh` if what was proven must be proven again.
    fn judge(&mut self, afresh: bool) -> Step {
        let Some(routes) = self.complete() else {
            self.routes.clear();
            self.round += 1;
            self.phase = Phase::Waiting;
            return Step::Hold;
        };
        let stands = matches!(self.phase, Phase::Probing | Phase::Open) && routes == self.routes;
        if stands && !afresh {
            return Step::Stay;
        }
        self.routes = routes;
        self.phase = Phase::Probing;
        Step::Probe(self.probe_again())
    }

    /// The routes to all that are needed, if each is there.
    fn complete(&self) -> Option<Vec<Route>> {
        let mut routes = Vec::new();
        for need in &self.needs {
            let before = routes.len();
            for receiver in self.present.receivers.values().filter(|receiver| receiver.peer == need.peer) {
                if need.proof == Proof::Proven && !receiver.probes {
                    return None;
                }
                routes.push(Route::of(receiver));
            }
            if routes.len() == before {
                return None;
            }
        }
        Some(routes)
    }

    fn on_proven(&mut self, dropped: Vec<u64>) -> Step {
        match self.phase {
            Phase::Probing => {
                self.dropped = dropped;
                self.openings += 1;
                self.phase = Phase::Open;
                Step::Open
            }
            Phase::Open => {
                // A consumer whose policy is to lose older ones wants no second copy of them.
                let must_have_all =
                    |route: &Route| !matches!(route.overflow, Overflow::DropOldest | Overflow::LatestOnly);
                let counts = self.routes.iter().zip(self.dropped.iter().zip(&dropped));
                let has_lost =
                    counts.into_iter().any(|(route, (before, now))| before != now && must_have_all(route));
                self.dropped = dropped;
                if has_lost { self.judge(true) } else { Step::Confirm }
            }
            _ => Step::Stay,
        }
    }

    /// How far each consumer is proven.
    pub(super) fn needs(&self) -> Vec<NeedReport> {
        let state = |need: &Need| {
            let is_its = |receiver: &&Receiver| receiver.peer == need.peer;
            match (&self.phase, self.present.receivers.values().find(is_its)) {
                (Phase::NoLink | Phase::Asking | Phase::Refused { .. }, _) => NeedState::Unknown,
                (Phase::Open, _) if need.proof == Proof::Proven => NeedState::Proven,
                (_, Some(receiver)) if need.proof == Proof::Proven && !receiver.probes => {
                    NeedState::AnswersNoProbes
                }
                (_, Some(_)) => NeedState::Subscribed,
                (_, None) if self.present.connected.contains(&need.peer) => NeedState::Connected,
                (_, None) => NeedState::Absent,
            }
        };
        self.needs.iter().map(|need| NeedReport { peer: need.peer.clone(), state: state(need) }).collect()
    }
}
