//! Groups of actors on a real binary, `examples/workshop.rs`: restarted together, given up together, ended together.

use std::{path::Path, process::Command};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    TestProcess, eventually,
    runtime::{TestRuntime, tool},
};

/// The same command with the workshop in the place of `interlock`.
fn in_the_workshop(command: &mut Command, tray: &Path) {
    let mut workshop = tool("workshop");
    workshop.args(command.get_args());
    for (name, value) in command.get_envs() {
        value.map(|value| workshop.env(name, value));
    }
    workshop.env("WORKSHOP_TRAY", tray);
    *command = workshop;
}

/// The workshop with this tray and more settings, when commands are answered.
fn workshop(tray: &Path, settings: &str) -> TestRuntime {
    let runtime = TestRuntime::begin_with(settings, |command| in_the_workshop(command, tray));
    eventually("the workshop to answer", || runtime.interlock(&["ps"]).status.success().then_some(()));
    runtime
}

fn child(runtime: &TestRuntime, name: &str) -> Value {
    let output = runtime.interlock(&["ps", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut children = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    children.find(|child| child["name"] == name).unwrap_or_default()
}

fn states(runtime: &TestRuntime, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| child(runtime, name)["state"].as_str().unwrap_or("unknown").to_owned()).collect()
}

fn await_states(runtime: &TestRuntime, names: &[&str], wanted: &[&str]) {
    eventually(&format!("{names:?} to be {wanted:?}"), || (states(runtime, names) == wanted).then_some(()));
}

fn ask(runtime: &TestRuntime, part: &str, what: &str) -> String {
    let output = runtime.bus(&["request", &format!("workshop/{part}/v1"), what]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_group_is_restarted_as_its_strategy_says_given_up_as_a_whole_and_started_again_by_order() {
    let directory = tempfile::tempdir().unwrap();
    let tray = directory.path().join("tray");
    std::fs::write(&tray, "").unwrap();
    let runtime = workshop(&tray, "");
    await_states(&runtime, &["press", "feeder", "roller"], &["running", "running", "running"]);

    // One fails: both begin anew, the group and the others do not.
    assert!(ask(&runtime, "feeder", "break").contains('2'), "the next incarnation answers");
    await_states(&runtime, &["press", "feeder", "roller"], &["running", "running", "running"]);
    let restarts: Vec<_> = ["press", "feeder", "roller", "helper", "printer"]
        .iter()
        .map(|name| child(&runtime, name)["restarts"].as_u64().unwrap())
        .collect();
    assert_eq!(restarts, [0, 1, 1, 0, 0]);
    assert_eq!(child(&runtime, "roller")["supervisor"], "press");

    // Its essential part does not start any more: the group is tried again as a whole until its budget is spent.
    std::fs::remove_file(&tray).unwrap();
    assert!(runtime.interlock(&["restart", "press", "--no-wait"]).status.success());
    await_states(&runtime, &["press", "job"], &["error", "running"]);
    let press = child(&runtime, "press");
    assert_eq!(press["budget"]["spent"], true, "{press}");
    let reason = press["last_failure"]["reason"].as_str().unwrap();
    assert!(reason.contains("`roller` did not start") && reason.contains("is missing"), "{reason}");
    assert_eq!(states(&runtime, &["feeder"]), ["stopped"], "nothing of it runs");
    assert_eq!(runtime.interlock(&["status"]).status.code(), Some(3));
    let below = runtime.interlock(&["start", "roller"]);
    let said = String::from_utf8_lossy(&below.stderr).into_owned();
    assert!(said.contains("`roller` belongs to `press`, which is down; start that"), "{said}");

    std::fs::write(&tray, "").unwrap();
    assert!(runtime.interlock(&["start", "press"]).status.success());
    await_states(&runtime, &["press", "feeder", "roller"], &["running", "running", "running"]);
    assert_eq!(child(&runtime, "press")["budget"]["failures"], 0);
}

#[test]
fn a_group_ends_with_its_significant_actor_which_is_no_failure_and_comes_back_by_order() {
    let directory = tempfile::tempdir().unwrap();
    let tray = directory.path().join("tray");
    std::fs::write(&tray, "").unwrap();
    let runtime = workshop(&tray, "");
    await_states(&runtime, &["job", "helper", "printer"], &["running", "running", "running"]);

    // A failure of the significant one is not its end.
    assert!(ask(&runtime, "printer", "break").contains('2'));
    await_states(&runtime, &["job", "printer"], &["running", "running"]);

    ask(&runtime, "printer", "done");
    await_states(
        &runtime,
        &["job", "helper", "printer", "press"],
        &["stopped", "stopped", "stopped", "running"],
    );
    let job = child(&runtime, "job");
    assert_eq!((&job["restarts"], &job["last_failure"]), (&Value::from(0), &Value::Null), "{job}");
    eventually("the whole to be as it should", || {
        runtime.interlock(&["status"]).status.success().then_some(())
    });

    assert!(runtime.interlock(&["start", "job"]).status.success());
    await_states(&runtime, &["job", "helper", "printer"], &["running", "running", "running"]);
    assert_eq!(ask(&runtime, "printer", "hello").trim(), "3");
}

/// A program that does not want to end, with a child that has left its process group.
const STAYS: &str = r#"
[[program]]
name = "stays"
command = "sh"
args = ["-c", '''
trap "" TERM
setsid sh -c 'while :; do sleep 1; done' &
echo here
while :; do sleep 1; done
''']
readiness = "line:here"
grace = "500ms"
"#;

#[test]
fn a_runtime_with_groups_that_is_killed_leaves_nobody_and_the_next_one_has_all_of_them_again() {
    let directory = tempfile::tempdir().unwrap();
    let tray = directory.path().join("tray");
    std::fs::write(&tray, "").unwrap();
    let mut runtime = workshop(&tray, STAYS);
    let all = ["press", "feeder", "roller", "job", "helper", "printer", "stays"];
    for _ in 0..2 {
        await_states(&runtime, &all, &["running"; 7]);
        let before = runtime.processes();
        assert!(before.len() >= 4, "the runtime, a guardian, a program and its child: {before:?}");
        runtime.signal(Signal::SIGKILL);
        assert_eq!(runtime.process.exit_code(), None);
        // While the next one starts, they go within their grace.
        let mut command = TestRuntime::command(runtime.directory.path());
        in_the_workshop(&mut command, &tray);
        runtime.process = TestProcess::spawn(command);
        eventually("those of before to go", || runtime.processes().is_disjoint(&before).then_some(()));
    }
    await_states(&runtime, &all, &["running"; 7]);
    let restarts = all.map(|name| child(&runtime, name)["restarts"].as_u64().unwrap());
    assert_eq!(restarts, [0; 7], "a start of its own");
    runtime.signal(Signal::SIGTERM);
    // The one that does not want to end was killed when its grace was over.
    assert_eq!(runtime.process.exit_code(), Some(10));
    assert!(runtime.processes().is_empty());
}
