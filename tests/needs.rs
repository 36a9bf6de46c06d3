//! Programs that wait for others: for their start, readiness, health, end, or a line of them.

use std::path::Path;

use serde_json::Value;

use crate::harness::{
    eventually,
    runtime::{CONFIG, TestRuntime, tool},
};

fn child(runtime: &TestRuntime, name: &str) -> Value {
    let status = runtime.status();
    let children = status["tree"]["children"].as_array().cloned().unwrap_or_default();
    children.into_iter().find(|child| child["name"] == name).unwrap_or_default()
}

fn await_state(runtime: &TestRuntime, name: &str, state: &str) {
    eventually(&format!("`{name}` to be {state}"), || (child(runtime, name)["state"] == state).then_some(()));
}

/// A program that does `script`, where `GATE` is a file that does not exist yet.
fn program(name: &str, script: &str, more: &str) -> String {
    format!("[[program]]\nname = \"{name}\"\ncommand = \"sh\"\nargs = [\"-c\", \"{script}\"]\n{more}\n")
}

#[test]
pub(crate) fn a_program_waits_for_the_end_and_for_a_line_of_others_also_across_their_restarts() {
    let gates = tempfile::tempdir().unwrap();
    let gate = |name: &str| gates.path().join(name);
    let wait = |path: &Path| format!("while [ ! -e {} ]; do sleep 0.02; done", path.display());
    let settings = [
        program("setup", &format!("{}; exit 0", wait(&gate("setup"))), "restart = \"transient\""),
        // Its first incarnation says nothing and fails; the second speaks when it may.
        program(
            "server",
            &format!(
                "if [ ! -e {0} ]; then touch {0}; exit 1; fi; {1}; echo listening on 7; exec sleep 1000",
                gate("failed").display(),
                wait(&gate("server"))
            ),
            "",
        ),
        program("first", "exec sleep 1000", "needs = [\"setup:completed\"]"),
        program(
            "second",
            "exec sleep 1000",
            "needs = [\"setup:completed\", \"server:log:listening on [0-9]+\"]",
        ),
        program("third", "exec sleep 1000", "needs = [\"server:started\"]"),
    ]
    .concat();
    let runtime = TestRuntime::begin_with(&settings, |_| ());
    await_state(&runtime, "third", "running");
    eventually("the server to be there again", || (child(&runtime, "server")["restarts"] == 1).then_some(()));
    for (name, needs) in [("first", vec!["setup"]), ("second", vec!["setup", "server"])] {
        let child = child(&runtime, name);
        assert_eq!(child["waits_for"], serde_json::json!(needs), "{child}");
    }
    let explained = runtime.interlock(&["explain", "second"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    for unmet in [
        "unmet         `setup` to end by itself, and well, for ",
        "unmet         `server` to write a line that matches `listening on [0-9]+`, for ",
    ] {
        assert!(explained.contains(unmet), "{explained}");
    }
    let unmet = &child(&runtime, "second")["unmet"];
    assert_eq!(unmet[0]["condition"], "completed", "{unmet}");
    assert_eq!(unmet[1]["condition"], "log:listening on [0-9]+", "{unmet}");
    std::fs::write(gate("setup"), "").unwrap();
    await_state(&runtime, "first", "running");
    assert_eq!(child(&runtime, "second")["waits_for"], serde_json::json!(["server"]));
    std::fs::write(gate("server"), "").unwrap();
    await_state(&runtime, "second", "running");
}

#[test]
fn needs_that_can_never_be_met_are_refused_with_their_path_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("interlock.toml");
    let needs = |name: &str, need: &str| program(name, "true", &format!("needs = [\"{need}\"]"));
    std::fs::write(
        &file,
        format!("{CONFIG}{}{}{}", needs("a", "b"), needs("b", "c:healthy"), needs("c", "a")),
    )
    .unwrap();
    let check = tool("interlock").arg("check").arg("--config").arg(&file).output().unwrap();
    assert_eq!(check.status.code(), Some(2), "{check:?}");
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(said.contains("in a circle: a -> b -> c -> a"), "{said}");
}
