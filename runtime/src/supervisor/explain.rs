//! One child in words: what it waits for, why it is down, when it is tried next. Pure, out of the tree's snapshot.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    intensity::{INTENSITY, UNHEALTHY_FAILURES},
    snapshot::{ChildSnapshot, State, TreeSnapshot},
};
use crate::config::duration::brief;

/// Lines of a heading and words.
type Lines = Vec<(&'static str, String)>;

/// What there is to say about the child named `name`; `None` if there is none.
pub fn explain(tree: &TreeSnapshot, name: &str) -> Option<String> {
    let child = tree.child(name)?;
    let mut lines = Lines::new();
    waiting(tree, child, &mut lines);
    history(tree, child, &mut lines);
    work(child, &mut lines);
    way_out(tree, child, &mut lines);
    let mut text = format!("`{name}` is {} for {}", child.state.as_str(), brief(age(tree.at, child.since)));
    text += &match child.restarts {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        restarts => format!(", restarted {restarts} times"),
    };
    for (heading, words) in lines {
        text += &format!("\n  {heading:<12}  {words}");
    }
    Some(text)
}

/// What stands in its way, back to the first that waits for nobody.
fn waiting(tree: &TreeSnapshot, child: &ChildSnapshot, lines: &mut Lines) {
    for need in &child.unmet {
        lines.push(("unmet", format!("{}, for {}", need.words, brief(age(tree.at, need.since)))));
    }
    let mut open: Vec<&str> = child.waits_for.iter().map(String::as_str).collect();
    let mut said = vec![child.name.as_str()];
    while let Some(name) = open.pop() {
        if said.contains(&name) {
            continue;
        }
        said.push(name);
        let Some(other) = tree.child(name) else { continue };
        let mut words =
            format!("`{name}`, which is {} for {}", other.state.as_str(), brief(age(tree.at, other.since)));
        if let Some(failure) = other.last_failure.as_ref().filter(|_| other.state != State::Running) {
            words += &format!(": {}", failure.reason);
        }
        if let Some(at) = other.next_try {
            words += &format!("; tried next in {}", brief(age(at, tree.at)));
        }
        if let Some(status) = &other.status {
            words += &format!("; says: {status}");
        }
        lines.push(("waits for", words));
        open.extend(other.waits_for.iter().map(String::as_str));
    }
    if let Some(at) = child.next_try {
        lines.push(("tried next", format!("at {at:.0}, in {}", brief(age(at, tree.at)))));
    }
    if let Some(at) = child.deadline {
        let what = if child.state == State::Starting { "not ready" } else { "not gone" };
        lines.push(("deadline", format!("killed in {} if it is {what} then", brief(age(at, tree.at)))));
    }
}

fn history(tree: &TreeSnapshot, child: &ChildSnapshot, lines: &mut Lines) {
    if let Some(supervisor) = &child.supervisor {
        lines.push(("supervisor", format!("`{supervisor}`")));
    }
    if let Some(why) = &child.impaired {
        lines.push(("impaired", why.clone()));
    }
    if let Some(proof) = &child.readiness {
        lines.push(("ready", proof.clone()));
    }
    if let Some(status) = &child.status {
        let is_there = matches!(child.state, State::Running | State::Starting | State::Stopping);
        lines.push((if is_there { "says" } else { "said last" }, status.clone()));
    }
    if let Some(failure) = &child.last_failure {
        let ago = brief(age(tree.at, failure.at));
        lines.push((
            "last failure",
            format!(
                "{ago} ago, incarnation {}, {}: {}",
                failure.incarnation, failure.context, failure.reason
            ),
        ));
        let used = &child.budget;
        lines.push((
            "budget",
            format!(
                "{} of {INTENSITY} failures in 30 s, {} of {} without a minute of health{}",
                used.failures,
                used.unhealthy_failures,
                UNHEALTHY_FAILURES - 1,
                if used.spent { ": spent" } else { "" }
            ),
        ));
    }
}

fn work(child: &ChildSnapshot, lines: &mut Lines) {
    let load = &child.load;
    if child.queued > 0 {
        let oldest =
            load.oldest_ms.map(|ms| format!(", the oldest for {}", brief(Duration::from_millis(ms))));
        lines.push((
            "queued",
            format!("{} inputs, {} bytes{}", child.queued, load.queued_bytes, oldest.unwrap_or_default()),
        ));
    }
    if let Some(busy) = &load.busy {
        lines.push(("busy", format!("for {} with {}", brief(Duration::from_millis(busy.for_ms)), busy.with)));
    }
    if let (Some(p50), Some(p99)) = (load.handler_p50_us, load.handler_p99_us) {
        let [p50, p99] = [p50, p99].map(|us| brief(Duration::from_micros(us)));
        lines.push(("handled", format!("{} inputs; of late p50 {p50}, p99 {p99}", load.handled)));
    }
    if let Some(process) = load.process {
        lines.push(("process", process.to_string()));
    }
}

/// What a person can do.
fn way_out(tree: &TreeSnapshot, child: &ChildSnapshot, lines: &mut Lines) {
    let name = &child.name;
    let words = match child.state {
        State::Error => format!("`interlock start {name}` tries again, with a whole budget"),
        State::Stopped if tree.state != State::Stopped => format!("`interlock start {name}` starts it"),
        State::Degraded if child.next_try.is_some() => {
            format!("`interlock start {name}` tries now; `interlock plan {name}` shows the tries to come")
        }
        _ => return,
    };
    lines.push(("way out", words));
}

/// From `before` to `after`; zero the other way round.
fn age(after: Timestamp, before: Timestamp) -> Duration {
    Duration::try_from(after.duration_since(before)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{
        child::ChildKind,
        snapshot::{BudgetSnapshot, FailureSnapshot, LoadSnapshot},
    };

    fn child(name: &str, state: State) -> ChildSnapshot {
        ChildSnapshot {
            name: name.to_owned(),
            kind: ChildKind::Actor,
            state,
            since: Timestamp::UNIX_EPOCH,
            restarts: 0,
            incarnation: 1,
            readiness: None,
            status: None,
            impaired: None,
            supervisor: None,
            last_failure: None,
            next_try: None,
            waits_for: Vec::new(),
            unmet: Vec::new(),
            deadline: None,
            queued: 0,
            load: LoadSnapshot::default(),
            budget: BudgetSnapshot::default(),
            first_start: None,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn what_a_child_waits_for_is_followed_to_its_cause() {
        let mut broker = child("broker", State::Degraded);
        broker.last_failure = Some(FailureSnapshot {
            at: at(8),
            reason: "address already in use".to_owned(),
            context: "start_error".to_owned(),
            incarnation: 3,
        });
        broker.next_try = Some(at(12));
        broker.budget = BudgetSnapshot { failures: 3, unhealthy_failures: 3, spent: false };
        let mut store = child("store", State::Starting);
        store.waits_for = vec!["broker".to_owned()];
        let mut gateway = child("gateway", State::Starting);
        gateway.waits_for = vec!["store".to_owned()];
        let tree = TreeSnapshot {
            name: "root".to_owned(),
            state: State::Error,
            at: at(10),
            children: vec![broker, store, gateway],
        };
        assert_eq!(
            explain(&tree, "gateway").unwrap(),
            "`gateway` is starting for 10 s\n  \
             waits for     `store`, which is starting for 10 s\n  \
             waits for     `broker`, which is degraded for 10 s: address already in use; tried next in 2 s"
        );
        assert_eq!(
            explain(&tree, "broker").unwrap(),
            "`broker` is degraded for 10 s\n  \
             tried next    at 1970-01-01T00:00:12Z, in 2 s\n  \
             last failure  2 s ago, incarnation 3, start_error: address already in use\n  \
             budget        3 of 5 failures in 30 s, 3 of 9 without a minute of health\n  \
             way out       `interlock start broker` tries now; `interlock plan broker` shows the tries to come"
        );
        assert_eq!(explain(&tree, "nobody"), None);
    }

    #[test]
    fn a_circle_of_waits_in_a_damaged_answer_ends() {
        let mut one = child("one", State::Starting);
        one.waits_for = vec!["two".to_owned()];
        let mut two = child("two", State::Starting);
        two.waits_for = vec!["one".to_owned(), "gone".to_owned()];
        let (name, state) = ("root".to_owned(), State::Starting);
        let tree = TreeSnapshot { name, state, at: at(1), children: vec![one, two] };
        assert!(explain(&tree, "one").is_some());
    }
}
