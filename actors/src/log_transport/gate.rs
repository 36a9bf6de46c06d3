//! When the log transport may send: a state machine whose every transition is a proven fact. Pure.
//!
//! | phase | what is proven | leaves it |
//! |---|---|---|
//! | `NoLink` | nothing | the broker has authenticated us |
//! | `Linked` | broker up, connected | the subscription to the consumer's announcements is acknowledged |
//! | `Waiting` | ... and we shall hear of the consumer | it announces that its subscription to `logs/#` is acknowledged |
//! | `Probing` | ... and there may be a consumer | its answer to the probe |
//! | `Open` | the whole path | the consumer or the link is lost; then everything is proven again |
//!
//! No clock takes part. The probe is sent only after the announcements are subscribed to, so a
//! consumer that is not there at the probe is heard of when it comes.

use std::fmt;

use uuid::Uuid;

/// How much of the way to the store is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No session with the broker.
    NoLink,
    /// Connected and authenticated.
    Linked,
    /// The consumer's announcements will reach us; nobody has answered a probe.
    Waiting,
    /// A probe is on its way.
    Probing {
        /// Its id; answers to other probes mean nothing.
        probe: Uuid,
        /// Whether a consumer announced itself since it was sent.
        announced: bool,
    },
    /// The probe came back through this incarnation of the consumer: records flow.
    Open {
        /// Which incarnation.
        consumer: Uuid,
    },
}

impl Phase {
    /// The four facts of readiness in order: broker up, connected, consumer subscribed, path proven.
    pub fn proven(&self) -> [bool; 4] {
        let linked = !matches!(self, Self::NoLink);
        let open = matches!(self, Self::Open { .. });
        let announced = matches!(self, Self::Probing { announced: true, .. });
        [linked, linked, open || announced, open]
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoLink => "held: no session with the broker",
            Self::Linked => "held: broker up, connected; subscribing to what the log consumer announces",
            Self::Waiting => "held: broker up, connected; no log consumer answers",
            Self::Probing { announced: false, .. } => {
                "held: broker up, connected; asking whether a log consumer is there"
            }
            Self::Probing { announced: true, .. } => {
                "held: broker up, connected, consumer subscribed; its probe is not back"
            }
            Self::Open { .. } => "open: broker up, connected, consumer subscribed, probe back",
        })
    }
}

/// Something that has been proven, or is no longer true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The broker has authenticated us.
    LinkReady,
    /// The session with the broker has ended.
    LinkLost,
    /// The subscription to the announcements is in the broker's routing table.
    Listening,
    /// A consumer says that its subscription to `logs/#` is in the routing table.
    ConsumerReady {
        /// Which incarnation.
        consumer: Uuid,
    },
    /// A consumer says that it takes nothing more.
    ConsumerStopping {
        /// Which incarnation.
        consumer: Uuid,
    },
    /// A probe came back.
    ProbeReturned {
        /// Which probe.
        probe: Uuid,
        /// Which incarnation of the consumer answered.
        consumer: Uuid,
    },
    /// There is nobody to answer the probe.
    ProbeRefused {
        /// Which probe.
        probe: Uuid,
    },
    /// The probe was lost with whoever had it.
    ProbeLost {
        /// Which probe.
        probe: Uuid,
    },
    /// The consumer did not confirm what was sent to it.
    ConsumerLost {
        /// Which incarnation.
        consumer: Uuid,
    },
}

/// What to do because of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Subscribe to the consumer's announcements.
    Listen,
    /// Send this probe; whatever was under way is void.
    Probe(Uuid),
    /// Send records, beginning with those that were not confirmed.
    Flush,
    /// Stop sending; what is under way is void.
    Hold,
}

/// The gate of one log transport.
#[derive(Clone, Debug)]
pub struct Gate {
    phase: Phase,
    openings: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { phase: Phase::NoLink, openings: 0 }
    }
}

impl Gate {
    /// The present phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How often it has opened.
    pub fn openings(&self) -> u64 {
        self.openings
    }

    /// Takes in a fact. `fresh` is the id for a probe, if one has to be sent.
    pub fn learn(&mut self, fact: Fact, fresh: Uuid) -> Step {
        let (phase, step) = match (self.phase, fact) {
            (_, Fact::LinkLost) => (Phase::NoLink, Step::Hold),
            (Phase::NoLink, Fact::LinkReady) => (Phase::Linked, Step::Listen),
            (Phase::Linked, Fact::Listening) => probing(fresh),
            (Phase::Waiting, Fact::ConsumerReady { .. }) => probing(fresh),
            (Phase::Probing { probe, .. }, Fact::ConsumerReady { .. }) => {
                (Phase::Probing { probe, announced: true }, Step::Stay)
            }
            (Phase::Probing { probe, .. }, Fact::ProbeReturned { probe: returned, consumer })
                if probe == returned =>
            {
                self.openings += 1;
                (Phase::Open { consumer }, Step::Flush)
            }
            // It came between the refusal's making and its arrival: ask again.
            (Phase::Probing { probe, announced: true }, Fact::ProbeRefused { probe: refused })
                if probe == refused =>
            {
                probing(fresh)
            }
            (Phase::Probing { probe, .. }, Fact::ProbeRefused { probe: refused }) if probe == refused => {
                (Phase::Waiting, Step::Stay)
            }
            (Phase::Probing { probe, .. }, Fact::ProbeLost { probe: lost }) if probe == lost => {
                probing(fresh)
            }
            (Phase::Open { consumer }, Fact::ConsumerReady { consumer: other }) if consumer != other => {
                probing(fresh)
            }
            (
                Phase::Open { consumer },
                Fact::ConsumerLost { consumer: lost } | Fact::ConsumerStopping { consumer: lost },
            ) if consumer == lost => probing(fresh),
            (phase, _) => (phase, Step::Stay),
        };
        self.phase = phase;
        step
    }
}

fn probing(probe: Uuid) -> (Phase, Step) {
    (Phase::Probing { probe, announced: false }, Step::Probe(probe))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> Uuid {
        Uuid::from_bytes([number; 16])
    }

    const CONSUMER: Uuid = Uuid::from_bytes([0xc; 16]);

    #[test]
    fn it_opens_only_after_every_step_is_proven_in_turn() {
        let mut gate = Gate::default();
        let early = [
            Fact::Listening,
            Fact::ConsumerReady { consumer: CONSUMER },
            Fact::ProbeReturned { probe: id(1), consumer: CONSUMER },
        ];
        for fact in early {
            assert_eq!(gate.learn(fact, id(9)), Step::Stay, "{fact:?} opened a gate without a link");
        }
        assert_eq!(gate.learn(Fact::LinkReady, id(9)), Step::Listen);
        assert_eq!(gate.learn(Fact::Listening, id(1)), Step::Probe(id(1)));
        assert_eq!(gate.learn(Fact::ProbeReturned { probe: id(2), consumer: CONSUMER }, id(9)), Step::Stay);
        assert_eq!(gate.phase().proven(), [true, true, false, false]);
        assert_eq!(gate.learn(Fact::ProbeReturned { probe: id(1), consumer: CONSUMER }, id(9)), Step::Flush);
        assert_eq!(gate.phase().proven(), [true; 4]);
    }

    #[test]
    fn a_consumer_that_comes_later_is_probed_when_it_announces_itself() {
        let mut gate = Gate::default();
        gate.learn(Fact::LinkReady, id(0));
        gate.learn(Fact::Listening, id(1));
        assert_eq!(gate.learn(Fact::ProbeRefused { probe: id(1) }, id(2)), Step::Stay);
        assert_eq!(gate.phase(), Phase::Waiting);
        assert_eq!(gate.learn(Fact::ConsumerReady { consumer: CONSUMER }, id(3)), Step::Probe(id(3)));
    }

    #[test]
    fn an_announcement_between_probe_and_refusal_is_not_forgotten() {
        let mut gate = Gate::default();
        gate.learn(Fact::LinkReady, id(0));
        gate.learn(Fact::Listening, id(1));
        assert_eq!(gate.learn(Fact::ConsumerReady { consumer: CONSUMER }, id(2)), Step::Stay);
        assert_eq!(gate.learn(Fact::ProbeRefused { probe: id(1) }, id(3)), Step::Probe(id(3)));
    }

    #[test]
    fn it_closes_when_consumer_or_link_is_lost_and_proves_everything_again() {
        let open = || {
            let mut gate = Gate::default();
            gate.learn(Fact::LinkReady, id(0));
            gate.learn(Fact::Listening, id(1));
            gate.learn(Fact::ProbeReturned { probe: id(1), consumer: CONSUMER }, id(9));
            gate
        };
        let other = id(0xd);
        for (fact, step) in [
            (Fact::ConsumerLost { consumer: CONSUMER }, Step::Probe(id(5))),
            (Fact::ConsumerStopping { consumer: CONSUMER }, Step::Probe(id(5))),
            (Fact::ConsumerReady { consumer: other }, Step::Probe(id(5))),
            (Fact::LinkLost, Step::Hold),
            (Fact::ConsumerLost { consumer: other }, Step::Stay),
            (Fact::ConsumerReady { consumer: CONSUMER }, Step::Stay),
        ] {
            assert_eq!(open().learn(fact, id(5)), step, "{fact:?}");
        }
    }

    proptest! {
        /// Facts in any order, true or stale: open means that the last probe came back after the
        /// last link, and a gate that is told the truth at the end always opens.
        #[test]
        fn no_order_of_facts_opens_it_without_proof_or_shuts_it_for_good(kinds in prop::collection::vec((0..9u8, 0..4u8), 0..60)) {
            let mut gate = Gate::default();
            let (mut fresh, mut sent) = (10, None::<Uuid>);
            for (kind, number) in kinds {
                let probe = if number == 0 { sent.unwrap_or(id(250)) } else { id(number) };
                let consumer = id(number);
                let fact = match kind {
                    0 => Fact::LinkReady,
                    1 => Fact::LinkLost,
                    2 => Fact::Listening,
                    3 => Fact::ConsumerReady { consumer },
                    4 => Fact::ConsumerStopping { consumer },
                    5 => Fact::ProbeReturned { probe, consumer },
                    6 => Fact::ProbeRefused { probe },
                    7 => Fact::ProbeLost { probe },
                    _ => Fact::ConsumerLost { consumer },
                };
                fresh += 1;
                let before = gate.phase();
                match gate.learn(fact, id(fresh)) {
                    Step::Probe(probe) => sent = Some(probe),
                    Step::Hold => sent = None,
                    Step::Flush => {
                        let proof = matches!(fact, Fact::ProbeReturned { probe, .. } if sent == Some(probe));
                        prop_assert!(proof, "opened by {fact:?}");
                    }
                    Step::Stay | Step::Listen => {}
                }
                if matches!(gate.phase(), Phase::Open { .. }) {
                    let proof = gate.phase() == before || matches!(fact, Fact::ProbeReturned { .. });
                    prop_assert!(proof, "opened by {:?}", fact);
                }
            }
            let consumer = id(200);
            let mut probe = None;
            for fact in [Fact::LinkLost, Fact::LinkReady, Fact::Listening] {
                if let Step::Probe(sent) = gate.learn(fact, id(201)) {
                    probe = Some(sent);
                }
            }
            let step = gate.learn(Fact::ProbeReturned { probe: probe.unwrap(), consumer }, id(202));
            prop_assert_eq!(step, Step::Flush);
        }
    }
}
