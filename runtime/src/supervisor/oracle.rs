//! A naive model of the supervisor, written from SEMANTICS ("Supervision") and not from the machine: no phases, no
//! timers, every list searched anew. Random histories are played against both; what is started and stopped, and in
//! which order, must be the same.

use std::time::Duration;

use proptest::prelude::*;

use super::scripts::Player;

#[derive(Clone, Debug)]
struct Rule {
    restart: &'static str,
    escalate: bool,
    significant: bool,
}

#[derive(Clone, Debug)]
enum Operation {
    Fail(usize),
    Exit(usize),
    Stop(usize),
    Start(usize),
    Restart(usize),
    After(u64),
    Shutdown,
}

/// A child is up or down; all else follows from what has been written down.
struct Model {
    strategy: &'static str,
    any_significant: bool,
    rules: Vec<Rule>,
    up_since: Vec<Option<Duration>>,
    /// Times of failures since the budget was last made whole, and how long the child had been up.
    failures: Vec<Vec<(Duration, Duration)>>,
    now: Duration,
    over: bool,
    log: Vec<String>,
}

impl Model {
    fn new(strategy: &'static str, any_significant: bool, rules: Vec<Rule>) -> Self {
        let count = rules.len();
        let mut model = Self {
            strategy,
            any_significant,
            rules,
            up_since: vec![None; count],
            failures: vec![Vec::new(); count],
            now: Duration::ZERO,
            over: false,
            log: Vec::new(),
        };
        (0..count).for_each(|child| model.start(child));
        model
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::After(millis) => self.now += Duration::from_millis(millis),
            _ if self.over => {}
            Operation::Shutdown => self.end(),
            Operation::Fail(child) if self.is_up(child) => self.fail(child),
            Operation::Exit(child) if self.is_up(child) => match self.rules[child].restart {
                "permanent" => self.fail(child),
                _ => {
                    self.up_since[child] = None;
                    self.end_if_significant(child);
                }
            },
            Operation::Stop(child) if self.is_up(child) => self.stop(child),
            Operation::Start(child) => {
                self.failures[child].clear();
                if !self.is_up(child) {
                    self.start(child);
                }
            }
            Operation::Restart(child) => {
                self.failures[child].clear();
                if self.is_up(child) {
                    self.stop(child);
                }
                self.start(child);
            }
            _ => {}
        }
    }

    fn fail(&mut self, child: usize) {
        let up_for = self.now - self.up_since[child].take().unwrap();
        self.failures[child].push((self.now, up_for));
        let Rule { restart, escalate, .. } = self.rules[child];
        if restart == "temporary" {
            return self.end_if_significant(child);
        }
        if self.is_spent(child) {
            if escalate {
                self.end();
            }
            return;
        }
        let along: Vec<usize> = (0..self.rules.len())
            .filter(|&other| self.is_up(other))
            .filter(|&other| match self.strategy {
                "one_for_all" => true,
                "rest_for_one" => other > child,
                _ => false,
            })
            .collect();
        along.iter().rev().for_each(|&other| self.stop(other));
        for other in 0..self.rules.len() {
            if other == child || (along.contains(&other) && self.rules[other].restart != "temporary") {
                self.start(other);
            }
        }
    }

    fn is_spent(&self, child: usize) -> bool {
        let recent = |&&(at, _): &&(Duration, Duration)| self.now - at <= Duration::from_secs(30);
        let unhealthy =
            self.failures[child].iter().rev().take_while(|(_, up_for)| *up_for < Duration::from_secs(60));
        // The failure that ended a healthy time is itself the first of the new count.
        let unhealthy = unhealthy.count();
        let in_a_row = (unhealthy + 1).min(self.failures[child].len());
        self.failures[child].iter().filter(recent).count() > 5 || in_a_row >= 10
    }

    fn end_if_significant(&mut self, child: usize) {
        if self.any_significant && self.rules[child].significant {
            self.end();
        }
    }

    fn end(&mut self) {
        (0..self.rules.len())
            .rev()
            .filter(|&child| self.is_up(child))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|child| self.stop(child));
        self.over = true;
    }

    fn is_up(&self, child: usize) -> bool {
        self.up_since[child].is_some()
    }

    fn start(&mut self, child: usize) {
        self.up_since[child] = Some(self.now);
        self.log.push(format!("start {}", name(child)));
    }

    fn stop(&mut self, child: usize) {
        self.up_since[child] = None;
        self.log.push(format!("stop  {}", name(child)));
    }
}

fn name(child: usize) -> char {
    char::from(b'a' + u8::try_from(child).unwrap())
}

/// The script line for a tree.
fn tree(strategy: &str, any_significant: bool, rules: &[Rule]) -> String {
    let children = rules.iter().enumerate().map(|(child, rule)| {
        let escalate = if rule.escalate { " escalate" } else { "" };
        let significant = if rule.significant && rule.restart != "permanent" { " significant" } else { "" };
        format!("{}({}{escalate}{significant})", name(child), rule.restart)
    });
    let until = if any_significant { " until=any_significant" } else { "" };
    format!("strategy={strategy}{until} children={}", children.collect::<Vec<_>>().join(","))
}

fn script(operation: &Operation) -> String {
    match *operation {
        Operation::Fail(child) => format!("fail {} x", name(child)),
        Operation::Exit(child) => format!("exit {}", name(child)),
        Operation::Stop(child) => format!("stop {}", name(child)),
        Operation::Start(child) => format!("start {}", name(child)),
        Operation::Restart(child) => format!("restart {}", name(child)),
        Operation::After(millis) => format!("after {millis}ms"),
        Operation::Shutdown => "shutdown".to_owned(),
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let restart = prop::sample::select(vec!["permanent", "permanent", "transient", "temporary"]);
    let rule = (restart, prop::bool::weighted(0.2), prop::bool::weighted(0.2)).prop_map(
        |(restart, escalate, significant)| Rule {
            restart,
            escalate,
            significant: significant && restart != "permanent",
        },
    );
    prop::collection::vec(rule, 1..6)
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let child = 0..6_usize;
    // Short waits fill the 30 s, long ones are health.
    let wait = prop_oneof![4 => 0..5_000_u64, 2 => 5_000..31_000_u64, 1 => 55_000..65_000_u64];
    let operation = prop_oneof![
        12 => child.clone().prop_map(Operation::Fail),
        3 => child.clone().prop_map(Operation::Exit),
        2 => child.clone().prop_map(Operation::Stop),
        2 => child.clone().prop_map(Operation::Start),
        1 => child.prop_map(Operation::Restart),
        8 => wait.prop_map(Operation::After),
        1 => prop::bool::weighted(0.1).prop_map(|end| if end { Operation::Shutdown } else { Operation::After(1) }),
    ];
    prop::collection::vec(operation, 0..120)
}

proptest! {
    #[test]
    fn the_machine_starts_and_stops_what_the_model_does(
        strategy in prop::sample::select(vec!["one_for_one", "rest_for_one", "one_for_all"]),
        any_significant: bool,
        rules in rules(),
        operations in operations(),
    ) {
        let mut model = Model::new(strategy, any_significant, rules.clone());
        // The start is part of the first comparison.
        let mut player = Player::new(&tree(strategy, any_significant, &rules));
        for operation in &operations {
            if let Operation::Fail(child) | Operation::Exit(child) | Operation::Stop(child) | Operation::Start(child)
                | Operation::Restart(child) = *operation
                && child >= rules.len()
            {
                continue;
            }
            model.apply(operation);
            player.command(&script(operation));
            let did: Vec<_> = player
                .take_log()
                .lines()
                .filter(|line| line.starts_with("start ") || line.starts_with("stop "))
                .map(str::to_owned)
                .collect();
            prop_assert_eq!(&did, &std::mem::take(&mut model.log), "after {:?} at {:?}", operation, model.now);
            prop_assert_eq!(player.is_over(), model.over);
        }
    }
}
