//! `bus top` on a real terminal: what people see, what their keys do, and how it leaves the terminal.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};

use crate::{
    broker_process::BrokerProcess,
    harness::{
        DEADLINE, TestProcess,
        runtime::{TestRuntime, binaries, tool},
    },
};

/// What is seen when a person at a terminal takes these steps before `bus top` with these arguments.
fn at_a_terminal(steps: &Value, environment: &[&str], arguments: &[&str]) -> Value {
    let process = begin_at_a_terminal(steps, environment, arguments);
    // It comes at the end of all steps, each of which may take its time.
    let line = process.line_within(DEADLINE * 5).unwrap_or_default();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn begin_at_a_terminal(steps: &Value, environment: &[&str], arguments: &[&str]) -> TestProcess {
    let (steps, bus) = (steps.to_string(), binaries().join("bus"));
    let mut whole = vec![steps.as_str(), "env"];
    whole.extend(environment);
    whole.extend([bus.to_str().unwrap(), "top"]);
    whole.extend(arguments);
    TestProcess::python("screen.py", &whole)
}

/// Whether it ended well and the terminal is as it was.
fn is_left_as_it_was(seen: &Value) {
    assert!(
        seen["failed"].is_null(),
        "{}\n{}",
        seen["failed"],
        seen["screens"]["failed"].as_str().unwrap_or_default()
    );
    let left = ["modes_kept", "alternate", "cursor", "code"].map(|field| seen[field].clone());
    assert_eq!(left, [json!(true), json!(false), json!(true), json!(0)], "{seen}");
}

fn screen<'a>(seen: &'a Value, name: &str) -> &'a str {
    seen["screens"][name].as_str().unwrap()
}

fn data(directory: &Path) -> String {
    directory.to_str().unwrap().to_owned()
}

#[test]
fn a_person_finds_topics_peers_actors_and_messages_of_a_runtime_and_gets_the_terminal_back() {
    let runtime = TestRuntime::start();
    let sent = runtime.bus(&["pub", "sensors/kitchen/heat", "21", "--count", "20"]);
    assert!(sent.status.success());
    let refused = runtime.bus(&["pub", "$sys/mine", "x"]);
    assert_eq!(refused.status.code(), Some(4));
    let steps = json!([
        ["wait", "sensors/kitchen/heat"],
        ["look", "topics"],
        ["type", "2"],
        ["wait", "conversation"],
        ["look", "peers"],
        ["type", "3"],
        ["wait", "RESTARTS"],
        ["look", "actors"],
        ["type", "w"],
        ["wait", "why operator publish $sys/mine"],
        ["wait", "only the broker publishes"],
        ["type", "\u{1b}"],
        ["gone", "why operator"],
        ["type", "1"],
        ["wait", "[1 Topics"],
        ["type", "/kitchen\r"],
        ["wait", "only /kitchen"],
        ["gone", "logs/"],
        ["type", "\r"],
        ["wait", "no subscribers"],
        ["look", "detail"],
        ["type", "\u{1b}"],
        ["gone", "no subscribers"],
        ["type", "?"],
        ["wait", "any key closes this"],
        ["type", "x"],
        ["gone", "any key closes this"],
        ["type", "m"],
        ["wait", "[4 Messages]"],
        ["wait", "sensors/kitchen/heat  0 came"],
        ["size", 30, 120],
        ["wait", "[4 Messages]"],
        ["size", 8, 40],
        ["wait", "needs 60 x 10"],
        ["size", 24, 80],
        ["wait", "[4 Messages]"],
        ["type", "1 "],
        ["wait", "PAUSED"],
        ["type", "q"],
    ]);
    let directory = data(&runtime.data());
    let seen = at_a_terminal(&steps, &[], &["--data-dir", &directory, "--interval", "200ms"]);
    is_left_as_it_was(&seen);
    assert!(screen(&seen, "topics").contains("DENIED 1 (last: operator publish $sys/mine)"), "{seen}");
    assert!(
        screen(&seen, "topics").lines().any(|line| line.contains("kitchen/heat") && line.contains("none"))
    );
    assert!(screen(&seen, "peers").contains("log-consumer") && screen(&seen, "peers").contains("QUEUE"));
    assert!(screen(&seen, "actors").contains("running") && screen(&seen, "actors").contains("gateway"));
    assert!(screen(&seen, "detail").contains("20 messages"), "{seen}");
    assert_eq!((&seen["colored"], &seen["after"]), (&json!(true), &json!("")));
}

#[test]
fn a_signal_ends_it_with_the_terminal_as_it_was_and_without_colour_if_nobody_wants_one() {
    let broker = BrokerProcess::start();
    broker.enrol("watcher", &[], &["#"], &[], &["$sys/#", "#"]);
    let credentials = data(&broker.path_of("watcher"));
    for signal in ["SIGTERM", "SIGINT", "SIGHUP"] {
        let steps = json!([["wait", "watcher"], ["send", signal]]);
        let begun = json!([["wait", "bus top"], ["type", "2"], steps[0], steps[1]]);
        let seen = at_a_terminal(&begun, &["NO_COLOR=1"], &["--creds", &credentials]);
        is_left_as_it_was(&seen);
        assert_eq!(seen["colored"], false, "{signal}");
    }
    let steps = json!([["wait", "bus top"], ["type", "3"], ["wait", "stands alone"], ["type", "\u{3}"]]);
    is_left_as_it_was(&at_a_terminal(&steps, &[], &["--creds", &credentials]));
}

#[test]
fn a_broker_that_goes_is_said_and_shown_again_when_it_is_back() {
    let mut broker = BrokerProcess::start();
    broker.enrol("watcher", &[], &["#"], &[], &["$sys/#", "#"]);
    let credentials = data(&broker.path_of("watcher"));
    let steps = json!([
        ["wait", "up "],
        ["tell", "shown"],
        ["wait", "BROKER GONE"],
        ["wait", "does not answer"],
        ["tell", "gone"],
        ["gone", "BROKER GONE"],
        ["wait", "nothing lost or refused"],
        ["type", "q"],
    ]);
    let person = begin_at_a_terminal(&steps, &[], &["--creds", &credentials, "--interval", "200ms"]);
    assert_eq!(person.line(), "shown");
    broker.kill();
    assert_eq!(person.line(), "gone");
    broker.restart();
    is_left_as_it_was(&person.json());
}

#[test]
fn without_a_terminal_it_names_what_works_without_one() {
    let broker = BrokerProcess::start();
    broker.enrol("watcher", &[], &["#"], &[], &["$sys/#", "#"]);
    let credentials = broker.path_of("watcher");
    let top = |more: &[&str]| {
        let mut command = tool("bus");
        command.arg("top").arg("--creds").arg(&credentials).args(more).stdin(Stdio::null());
        command.output().unwrap()
    };
    let refused = top(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && said.contains("`bus top --once`"), "{said}");
    let once = top(&["--once", "--json"]);
    let rows: Vec<Value> = String::from_utf8(once.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        once.status.success() && rows.iter().any(|row| row["kind"] == "peer" && row["peer"] == "watcher")
    );
    let steps = json!([]);
    let dumb = at_a_terminal(&steps, &["TERM=dumb"], &["--creds", credentials.to_str().unwrap()]);
    assert_eq!((&dumb["code"], &dumb["modes_kept"]), (&json!(2), &json!(true)));
    assert!(dumb["after"].as_str().unwrap().contains("--once"), "{dumb}");
}
