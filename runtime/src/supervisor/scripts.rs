//! Plays the scripts in `scripts/` against the machine. Above a `---` what is done, below it exactly what follows.
//!
//! Commands:
//! - `below NAME strategy=S ... children=...` before the tree: child `NAME` is a supervisor, with these children.
//! - `tree strategy=S [jitter=1] [until=any_significant] children=a,b(word word)...` starts a tree. Words: `escalate`,
//!   `until:x:started|ready|healthy|completed|line:TEXT` (needs, and waits for that),
//!   `transient`, `temporary`, `significant`, `on:x` (needs, and is out of line), `slow` (not ready by itself), `deaf` (does not stop
//!   when asked), `frozen` (nor when killed), `mute` (answers no question),
//!   `brisk` (is asked twice a second, more often than an answer may take).
//! - `fail NAME REASON`, `exit NAME`, `ready NAME`, `progress NAME`, `extend NAME 5s`, `line NAME TEXT`, `busy NAME SECONDS`: an incarnation does that.
//! - `after 5s` lets time pass, timer by timer. `start|stop|restart NAME`, `shutdown` or, with other phases, `shutdown 10s 20s`, `now` (a second signal).
//! - `budget NAME` shows what it used of it, `unmet NAME` what it waits for. `status` shows the states, `plan NAME 5s` what is done if each start fails after 5 s, `starts` how each came up first.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    time::{Duration, Instant},
};

use interlock_actors::{
    actor::Failure,
    host::{Busy, Exit, HostReport, Stop},
};

use interlock_bus::PeerName;

use super::{
    backoff::Draws,
    child::{Clocks, Condition, Dependencies, check},
    machine::{Action, KILL_GRACE, Machine, Phase, Rules, ShutdownPhases},
    nested::{Standing, exit_of},
    snapshot::Body,
    strategy::{AutoShutdown, Restart, Strategy, WhenSpent},
};

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { play(include_str!(concat!("scripts/", stringify!($name), ".txt"))); })*
    };
}

scripts! {
    one_for_one_restarts_the_failed_child_only,
    rest_for_one_restarts_the_failed_child_and_those_after_it,
    one_for_all_restarts_everything_but_temporary_children,
    a_spent_budget_leaves_the_child_or_escalates,
    the_first_start_of_an_escalating_child_is_not_retried,
    a_start_deadline_is_moved_by_progress,
    more_time_is_granted_to_a_start_and_to_a_stop,
    backoff_doubles_and_is_forgotten_after_health,
    dependencies_order_start_and_stop,
    a_failure_for_want_of_another_is_not_counted,
    what_is_waited_for_is_told_with_its_condition_and_since_when,
    what_is_waited_for_may_be_less_or_more_than_readiness,
    shutdown_asks_then_kills_then_gives_up,
    significant_children_end_the_supervisor,
    silence_and_a_stuck_handler_are_failures,
    orders_from_people,
    a_plan_is_what_then_happens,
    the_first_start_remembers_what_it_waited_for,
    a_supervisor_below_fails_when_a_child_of_it_escalates,
    a_supervisor_below_has_the_state_of_its_parts_and_ends_with_its_significant_children,
    a_stop_goes_through_supervisors_in_reverse_order,
}

/// `x:completed`, `x:line:TEXT`.
fn condition(text: &str) -> (PeerName, Condition) {
    let (name, condition) = text.split_once(':').unwrap();
    let condition = match condition {
        "started" => Condition::Started,
        "ready" => Condition::Ready,
        "healthy" => Condition::Healthy,
        "completed" => Condition::Completed,
        other => Condition::Line(other.strip_prefix("line:").unwrap().to_owned()),
    };
    (name.parse().unwrap(), condition)
}

fn play(script: &str) {
    let mut player = None;
    let mut below = Vec::new();
    let mut differs = false;
    let mut played = String::new();
    for block in script.split("\n\n") {
        let (done, expected) = block.split_once("---").unwrap_or((block, ""));
        let commands = done.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let mut log = String::new();
        for command in commands {
            if let Some(tree) = command.strip_prefix("below ") {
                below.push(tree.split_once(' ').unwrap());
                continue;
            }
            if let Some(tree) = command.strip_prefix("tree ") {
                player = Some(Player::with_below(tree, &std::mem::take(&mut below)));
            } else {
                player.as_mut().expect("a script begins with a tree").command(command);
            }
            log += &std::mem::take(&mut player.as_mut().unwrap().log);
        }
        differs |= log.trim() != expected.trim();
        let _ = writeln!(played, "{done}---\n{log}");
    }
    assert!(!differs, "something else was expected; this is what followed:\n{played}");
}

pub(super) struct Player {
    machine: Machine,
    begin: Instant,
    now: Instant,
    words: HashMap<usize, Vec<String>>,
    reports: VecDeque<(usize, u64, HostReport)>,
    waits: Vec<Option<Instant>>,
    log: String,
    below: Vec<Below>,
}

/// A child that is a supervisor.
struct Below {
    child: usize,
    player: Player,
    standing: Standing,
    runs: bool,
    killed: bool,
}

impl Player {
    pub(super) fn new(line: &str) -> Self {
        Self::with_below(line, &[])
    }

    fn with_below(line: &str, below: &[(&str, &str)]) -> Self {
        let now = Instant::now();
        let mut player = Self::build("root", line, now);
        for (name, line) in below {
            let player_below = Self::build(name, line, now);
            let child = player.place(name).expect("a child of the tree below which there are more");
            player.machine.children[child].rules.clocks = Clocks::SUPERVISOR;
            player.below.push(Below {
                child,
                player: player_below,
                standing: Standing::default(),
                runs: false,
                killed: false,
            });
        }
        player.machine.start(now);
        player.follow();
        player
    }

    fn build(name: &str, line: &str, now: Instant) -> Self {
        let (head, children) = line.split_once("children=").unwrap();
        let head: HashMap<&str, &str> =
            head.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
        let mut parts = Vec::new();
        for child in children.split(',') {
            let (name, words) = child.trim_end_matches(')').split_once('(').unwrap_or((child, ""));
            parts.push((name, words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()));
        }
        let listed: Vec<_> = parts
            .iter()
            .map(|(name, words)| {
                let needs: Vec<_> = words
                    .iter()
                    .filter_map(|word| word.strip_prefix("on:"))
                    .map(|need| need.parse().unwrap())
                    .collect();
                let until: Vec<(PeerName, Condition)> =
                    words.iter().filter_map(|word| word.strip_prefix("until:")).map(condition).collect();
                let needs: Vec<_> =
                    needs.into_iter().chain(until.iter().map(|(need, _)| need.clone())).collect();
                let in_line = needs.is_empty();
                (name.parse().unwrap(), Dependencies { needs, until, in_line })
            })
            .collect();
        let needs = check(listed.iter().map(|(name, dependencies)| (name, dependencies))).unwrap();
        let rules =
            parts.iter().zip(&listed).zip(needs).map(|(((_, words), (name, dependencies)), needs)| {
                let has = |word: &str| words.iter().any(|there| there == word);
                let significant = has("significant");
                Rules {
                    name: name.clone(),
                    restart: match (has("transient"), has("temporary")) {
                        (true, _) => Restart::Transient { significant },
                        (_, true) => Restart::Temporary { significant },
                        _ => Restart::Permanent,
                    },
                    when_spent: if has("escalate") { WhenSpent::Escalate } else { WhenSpent::LeaveFailed },
                    needs,
                    until: dependencies
                        .until
                        .iter()
                        .map(|(need, condition)| {
                            let place = listed.iter().position(|(name, _)| name == need).unwrap();
                            (place, condition.clone())
                        })
                        .collect(),
                    in_line: dependencies.in_line,
                    clocks: match has("brisk") {
                        true => Clocks { ask_every: Duration::from_millis(500), ..Clocks::ACTOR },
                        false => Clocks::ACTOR,
                    },
                }
            });
        let strategy = match head["strategy"] {
            "one_for_one" => Strategy::OneForOne,
            "rest_for_one" => Strategy::RestForOne,
            "one_for_all" => Strategy::OneForAll,
            other => panic!("{other}"),
        };
        let until = head.get("until").map(|until| match *until {
            "any_significant" => AutoShutdown::AnySignificant,
            "all_significant" => AutoShutdown::AllSignificant,
            other => panic!("{other}"),
        });
        let draws = Draws::Always(if head.get("jitter") == Some(&"1") { 1.0 } else { 0.0 });
        let machine = Machine::new(name.to_owned(), strategy, until, rules.collect(), draws, now);
        let waits = vec![None; machine.children.len()];
        let words = parts.into_iter().map(|(_, words)| words).enumerate().collect();
        let (reports, log, below) = (VecDeque::new(), String::new(), Vec::new());
        Self { machine, begin: now, now, words, reports, waits, log, below }
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.machine.children.iter().position(|child| child.rules.name.as_str() == name)
    }

    pub(super) fn command(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (verb, name, rest) =
            (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let now = self.now;
        let place = self.place(name);
        if let (None, Some(below)) =
            (place, self.below.iter_mut().find(|below| below.player.place(name).is_some()))
        {
            below.player.command(line);
            return self.follow();
        }
        let child = || place.unwrap_or_else(|| panic!("no child `{name}` in `{line}`"));
        match verb {
            "fail" => self.exits(child(), Exit::Failed(Failure::new(rest))),
            "exit" => self.exits(child(), Exit::Normal),
            "ready" => self.says(child(), HostReport::Ready { proof: String::new() }),
            "progress" => self.says(child(), HostReport::Progress(rest.to_owned())),
            "line" => self.says(child(), HostReport::Seen(rest.to_owned())),
            "extend" => self.says(child(), HostReport::Extend(parse_duration(rest))),
            "busy" => {
                let since = now - Duration::from_secs(rest.parse().unwrap());
                self.machine.on_busy(child(), Some(Busy { since, with: "message on `a/b`".to_owned() }), now);
            }
            "start" => self.machine.order_start(child(), now),
            "stop" => self.machine.order_stop(child(), now),
            "restart" => self.machine.order_restart(child(), now),
            "shutdown" if name.is_empty() => self.machine.shutdown(ShutdownPhases::default(), now),
            "shutdown" => {
                let phases = ShutdownPhases { drain: parse_duration(name), forced: parse_duration(rest) };
                self.machine.shutdown(phases, now);
            }
            "now" => {
                self.machine.shutdown(ShutdownPhases { drain: Duration::ZERO, ..Default::default() }, now)
            }
            "after" => self.pass(parse_duration(name)),
            "status" => self.status(),
            "plan" => {
                let plan = self.machine.plan(child(), parse_duration(rest), now).text();
                let _ = writeln!(self.log, "{plan}");
            }
            "starts" => self.starts(),
            "budget" => {
                let (recent, unhealthy) = self.machine.children[child()].budget.used(now);
                let _ = writeln!(self.log, "{name} {recent} in 30 s, {unhealthy} without health");
            }
            "unmet" => self.unmet(child()),
            _ => panic!("unknown command `{line}`"),
        }
        self.follow();
    }

    /// What followed since this was last asked.
    pub(super) fn take_log(&mut self) -> String {
        std::mem::take(&mut self.log)
    }

    pub(super) fn is_over(&self) -> bool {
        self.machine.outcome().is_some()
    }

    fn exits(&mut self, child: usize, exit: Exit) {
        self.says(child, HostReport::Exited(exit));
    }

    fn says(&mut self, child: usize, report: HostReport) {
        self.reports.push_back((child, self.machine.children[child].incarnation, report));
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(timer) = self.next_timer().filter(|&timer| timer <= end) {
            self.on_time(timer);
            self.follow();
        }
        self.set_now(end);
    }

    fn next_timer(&self) -> Option<Instant> {
        let below = self.below.iter().filter_map(|below| below.player.next_timer());
        below.chain(self.machine.next_timer(self.now)).min()
    }

    fn on_time(&mut self, at: Instant) {
        self.set_now(at);
        self.machine.on_time(at);
        for below in &mut self.below {
            if !below.player.is_over() {
                below.player.on_time(at);
                below.player.follow();
            }
        }
    }

    fn set_now(&mut self, now: Instant) {
        self.now = now;
        self.below.iter_mut().for_each(|below| below.player.set_now(now));
    }

    /// Writes down what the machine wants, and lets the children answer.
    fn follow(&mut self) {
        let ended = self.machine.outcome().is_some();
        loop {
            for action in self.machine.take_actions() {
                self.act(action);
            }
            self.note_waits();
            self.hear_from_below();
            let Some((child, incarnation, report)) = self.reports.pop_front() else { break };
            self.machine.on_report(child, incarnation, report, self.now);
        }
        if let Some(outcome) = self.machine.outcome()
            && !ended
        {
            let _ = writeln!(self.log, "ended {outcome}");
        }
    }

    /// What supervisors below did, and what they say of it.
    fn hear_from_below(&mut self) {
        for below in &mut self.below {
            self.log += &below.player.take_log();
            if !below.runs {
                continue;
            }
            let (child, machine) = (below.child, &below.player.machine);
            let incarnation = self.machine.children[child].incarnation;
            let bodies: Vec<_> = machine.children.iter().map(|_| Body::default()).collect();
            let tree = machine.snapshot("below", &bodies, self.now);
            let told = below.standing.follow(&tree);
            let news = told.into_iter().filter(|report| !matches!(report, HostReport::Status(_)));
            self.reports.extend(news.map(|report| (child, incarnation, report)));
            if let Some(outcome) = machine.outcome() {
                below.runs = false;
                let exit = HostReport::Exited(exit_of(outcome.clone(), below.killed));
                self.reports.push_back((child, incarnation, exit));
            }
        }
    }

    /// Whether the action is for a supervisor below, which then does it its way.
    fn act_below(&mut self, action: &Action) -> bool {
        let (Action::Start { child, .. }
        | Action::Stop { child, .. }
        | Action::Kill { child, .. }
        | Action::Ask { child, .. }) = *action
        else {
            return false;
        };
        let now = self.now;
        let Some(below) = self.below.iter_mut().find(|below| below.child == child) else { return false };
        let machine = &mut below.player.machine;
        let word = match action {
            Action::Start { .. } => {
                (below.killed, below.runs, below.standing) = (false, true, Standing::default());
                machine.start(now);
                "start"
            }
            Action::Stop { stop, .. } => {
                machine.shutdown_for(*stop, ShutdownPhases::default(), now);
                "stop "
            }
            Action::Kill { .. } => {
                below.killed = true;
                let phases = ShutdownPhases { drain: Duration::ZERO, forced: KILL_GRACE / 2 };
                machine.shutdown_for(Stop::Restart, phases, now);
                "kill "
            }
            Action::Ask { nonce, .. } => {
                let incarnation = self.machine.children[child].incarnation;
                self.reports.push_back((child, incarnation, HostReport::Alive { nonce: *nonce }));
                return true;
            }
            _ => return false,
        };
        let _ = writeln!(self.log, "{word} {}", self.machine.children[child].rules.name);
        below.player.follow();
        true
    }

    fn act(&mut self, action: Action) {
        if self.act_below(&action) {
            return;
        }
        let is = |child: usize, word: &str| self.words[&child].iter().any(|there| there == word);
        let name = |child: usize| self.machine.children[child].rules.name.clone();
        let (line, answer) = match action {
            Action::Start { child, incarnation } => {
                let ready = HostReport::Ready { proof: String::new() };
                (
                    format!("start {}", name(child)),
                    (!is(child, "slow")).then_some((child, incarnation, ready)),
                )
            }
            Action::Stop { child, .. } => {
                let stops = !is(child, "deaf") && !is(child, "frozen");
                (format!("stop  {}", name(child)), stops.then(|| self.ended(child, Exit::Normal)))
            }
            Action::Kill { child, at_fault } => {
                let fault = if at_fault { " at_fault" } else { "" };
                let ends = (!is(child, "frozen")).then(|| self.ended(child, Exit::Killed));
                (format!("kill  {}{fault}", name(child)), ends)
            }
            Action::Abandon { child, .. } => (format!("abandon {}", name(child)), None),
            Action::Ask { child, .. } if is(child, "mute") => (format!("ask   {}", name(child)), None),
            Action::Ask { child, nonce } => {
                let incarnation = self.machine.children[child].incarnation;
                return self.reports.push_back((child, incarnation, HostReport::Alive { nonce }));
            }
            Action::Report(report) => (report.to_string(), None),
        };
        let _ = writeln!(self.log, "{line}");
        self.reports.extend(answer);
    }

    fn ended(&self, child: usize, exit: Exit) -> (usize, u64, HostReport) {
        (child, self.machine.children[child].incarnation, HostReport::Exited(exit))
    }

    fn note_waits(&mut self) {
        for (child, noted) in self.machine.children.iter().zip(&mut self.waits) {
            let waits = match child.phase {
                Phase::Waiting { not_before, .. } => not_before.filter(|&at| at > self.now),
                _ => None,
            };
            if waits != *noted {
                *noted = waits;
                if let Some(at) = waits {
                    let _ = writeln!(self.log, "wait  {} {:?}", child.rules.name, at - self.now);
                }
            }
        }
    }

    fn starts(&mut self) {
        for child in &self.machine.children {
            let first = &child.first;
            let at = |at: Option<Instant>| {
                at.map_or("-".to_owned(), |at| format!("{:?}", at - self.machine.begun))
            };
            let after = first.after.map_or("-", |after| self.machine.children[after].rules.name.as_str());
            let (began, ready, name) = (at(first.began), at(first.ready), &child.rules.name);
            let _ = writeln!(self.log, "{name} began at {began}, after {after}, ready at {ready}");
        }
    }

    fn unmet(&mut self, child: usize) {
        for unmet in &self.machine.children[child].unmet {
            let need = self.machine.children[unmet.need].rules.name.as_str();
            let _ = writeln!(self.log, "{} for {:?}", unmet.condition.words(need), self.now - unmet.since);
        }
    }

    fn status(&mut self) {
        let at = self.now - self.begin;
        let _ = write!(self.log, "{at:?} {}:", self.machine.state().as_str());
        for child in &self.machine.children {
            let _ = write!(self.log, " {}={}", child.rules.name, child.state().as_str());
        }
        for child in self.below.iter().flat_map(|below| &below.player.machine.children) {
            let _ = write!(self.log, " {}={}", child.rules.name, child.state().as_str());
        }
        self.log.push('\n');
    }
}

fn parse_duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(millis) => Duration::from_millis(millis.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    }
}
