//! What a supervisor will do with a child that fails again and again, told in advance: `interlock plan`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    intensity::{INTENSITY, PERIOD, UNHEALTHY_FAILURES},
    strategy::{Restart, WhenSpent},
};

/// The waits that lie before a child, if it never gets ready again. They are drawn already: what is planned is what
/// will be waited, unless it has a minute of health, or somebody gives an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The child.
    pub name: String,
    /// What begins the plan.
    pub begins: PlanBegin,
    /// How long each start is supposed to take until it fails.
    pub fails_after_ms: u64,
    /// What will be tried.
    pub tries: Vec<PlannedTry>,
    /// When it is given up, from now on; `None` if it is not tried at all.
    pub gives_up_in_ms: Option<u64>,
    /// What happens then.
    pub then: PlanEnd,
}

/// What begins a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanBegin {
    /// It has not failed; the plan is for the case that it does so now.
    IfItFailsNow,
    /// It has failed and waits for its next try.
    HasFailed,
    /// It is given up already: `interlock start` tries again, with a whole budget.
    GivenUp,
    /// It is temporary, so it is never tried again.
    Never,
}

/// What happens at the end of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanEnd {
    /// The child stays down, the rest goes on.
    LeftFailed,
    /// The supervisor stops its children and fails itself.
    Escalates,
}

/// One planned try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTry {
    /// How long is waited before it, after the failure.
    pub wait_us: u64,
    /// The longest that could have been drawn.
    pub bound_ms: u64,
    /// When it is started, from now on.
    pub in_us: u64,
}

impl Plan {
    pub(crate) fn new(name: String, restart: Restart<bool>, spent: WhenSpent, fails_after: Duration) -> Self {
        Self {
            name,
            begins: match restart {
                Restart::Temporary { .. } => PlanBegin::Never,
                Restart::Permanent | Restart::Transient { .. } => PlanBegin::IfItFailsNow,
            },
            fails_after_ms: millis(fails_after),
            tries: Vec::new(),
            gives_up_in_ms: None,
            then: match spent {
                WhenSpent::Escalate => PlanEnd::Escalates,
                WhenSpent::LeaveFailed => PlanEnd::LeftFailed,
            },
        }
    }

    pub(crate) fn is_down(&mut self) {
        if self.begins != PlanBegin::Never {
            self.begins = PlanBegin::GivenUp;
        }
    }

    /// It waits already, so much longer.
    pub(crate) fn waits(&mut self, left: Duration) {
        self.begins = PlanBegin::HasFailed;
        self.tries.push(PlannedTry { wait_us: micros(left), bound_ms: millis(left), in_us: micros(left) });
    }

    pub(crate) fn tries(&mut self, wait: Duration, bound: Duration, from_now: Duration) {
        self.tries.push(PlannedTry {
            wait_us: micros(wait),
            bound_ms: millis(bound),
            in_us: micros(from_now),
        });
    }

    pub(crate) fn gives_up(&mut self, from_now: Duration) {
        self.gives_up_in_ms = Some(millis(from_now));
    }

    /// For people.
    pub fn text(&self) -> String {
        let name = &self.name;
        let mut lines = match self.begins {
            PlanBegin::Never => return format!("`{name}` is temporary: it is never tried again"),
            PlanBegin::GivenUp => {
                return format!(
                    "`{name}` is given up; `interlock start {name}` tries again, with a whole budget"
                );
            }
            PlanBegin::HasFailed => vec![format!("`{name}` has failed; if each start now fails")],
            PlanBegin::IfItFailsNow => vec![format!("if `{name}` fails now, and each start then fails")],
        };
        lines[0] += &match self.fails_after_ms {
            0 => " at once:".to_owned(),
            ms => format!(" after {}:", seconds(ms * 1000)),
        };
        for (number, planned) in self.tries.iter().enumerate() {
            let drawn = match (number, self.begins) {
                (0, PlanBegin::HasFailed) => "what is left of its wait".to_owned(),
                _ => format!("drawn from up to {}", seconds(planned.bound_ms * 1000)),
            };
            lines.push(format!(
                "  try {}  after {}, {drawn}; {} from now",
                number + 1,
                seconds(planned.wait_us),
                seconds(planned.in_us)
            ));
        }
        let end = match self.then {
            PlanEnd::LeftFailed => "then it is left failed: the rest goes on, the state is degraded",
            PlanEnd::Escalates => "then its supervisor stops everything and fails",
        };
        let when =
            self.gives_up_in_ms.map_or_else(String::new, |ms| format!("{} from now ", seconds(ms * 1000)));
        lines.push(format!("{when}its budget is spent, {end}"));
        lines.push(format!(
            "budget: {INTENSITY} failures in {} s, and fewer than {UNHEALTHY_FAILURES} without a minute of health",
            PERIOD.as_secs()
        ));
        lines.join("\n")
    }
}

fn seconds(micros: u64) -> String {
    format!("{:.3} s", micros as f64 / 1e6)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use interlock_actors::{
        actor::Failure,
        host::{Exit, HostReport},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::supervisor::{
        backoff::Draws,
        child::Clocks,
        machine::{Machine, Phase, Rules},
        strategy::Strategy,
    };

    proptest! {
        #[test]
        fn what_is_planned_is_what_is_then_waited(seed: u64, fails_after_ms in 0..29_000_u64, failed_before in 0..4) {
            let rules = Rules {
                name: "gateway".parse().unwrap(),
                restart: Restart::Permanent,
                when_spent: WhenSpent::LeaveFailed,
                needs: Vec::new(),
                until: Vec::new(),
                in_line: true,
                clocks: Clocks::ACTOR,
            };
            let fails_after = Duration::from_millis(fails_after_ms);
            let mut now = Instant::now();
            let mut machine =
                Machine::new("root".to_owned(), Strategy::OneForOne, None, vec![rules], Draws::Seeded(seed), now);
            let fail = |machine: &mut Machine, at: Instant| {
                let exit = HostReport::Exited(Exit::Failed(Failure::new("x")));
                machine.on_report(0, machine.children[0].incarnation, exit, at);
            };
            let begin_next = |machine: &mut Machine| {
                let Phase::Waiting { not_before: Some(at), .. } = machine.children[0].phase else { return None };
                machine.on_time(at);
                Some(at)
            };
            machine.start(now);
            for _ in 0..failed_before {
                fail(&mut machine, now);
                now = begin_next(&mut machine).unwrap();
            }
            let plan = machine.plan(0, fails_after, now);
            let mut failure_at = now;
            for planned in &plan.tries {
                fail(&mut machine, failure_at);
                let at = begin_next(&mut machine).unwrap();
                prop_assert_eq!(planned.in_us, micros(at - now));
                failure_at = at + fails_after;
            }
            fail(&mut machine, failure_at);
            prop_assert_eq!(begin_next(&mut machine), None);
            prop_assert_eq!(plan.gives_up_in_ms, Some(millis(failure_at - now)));
        }
    }
}
