//! The tree from the command line of the real binary: what is asked, what is ordered, and the exit codes.

use std::process::Output;

use serde_json::Value;

use crate::harness::{eventually, runtime::TestRuntime};

/// Standard output and standard error.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a verb that must end with `code`; what it said.
fn ask(runtime: &TestRuntime, arguments: &[&str], code: i32) -> String {
    let output = runtime.interlock(arguments);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(output.stdout.is_ascii() && output.stderr.is_ascii(), "{said}");
    said
}

/// Lines of JSON that a verb printed.
fn lines(runtime: &TestRuntime, arguments: &[&str]) -> Vec<Value> {
    let output = runtime.interlock(arguments);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One component as `ps` shows it.
fn ps(runtime: &TestRuntime, name: &str) -> Value {
    let children = lines(runtime, &["ps", "--json"]);
    children.into_iter().find(|child| child["name"] == name).unwrap_or_else(|| panic!("no `{name}`"))
}

#[test]
fn one_component_is_stopped_started_and_restarted_by_name_and_a_wrong_name_is_refused() {
    let runtime = TestRuntime::start();

    ask(&runtime, &["stop", "conversation"], 0);
    assert_eq!(ps(&runtime, "conversation")["state"], "stopped");
    assert!(ask(&runtime, &["status"], 3).contains("degraded"), "a part is missing");
    assert!(
        ask(&runtime, &["explain", "conversation"], 0).contains("`interlock start conversation` starts it")
    );
    ask(&runtime, &["start", "conversation"], 0);
    assert!(ask(&runtime, &["start", "conversation"], 0).contains("was running already"));
    ask(&runtime, &["status"], 0);

    let before = ps(&runtime, "model");
    ask(&runtime, &["restart", "model"], 0);
    let after = ps(&runtime, "model");
    assert_eq!(after["state"], "running");
    assert_eq!(after["incarnation"].as_u64(), before["incarnation"].as_u64().map(|before| before + 1));
    assert_ne!(before["load"]["process"], after["load"]["process"]);

    // Also that through which orders come.
    ask(&runtime, &["restart", "broker"], 0);
    assert_eq!(ps(&runtime, "broker")["incarnation"], 2);
    assert!(ask(&runtime, &["stop", "runtime"], 2).contains("no order would reach the runtime"));

    for verb in ["restart", "start", "stop", "explain", "plan"] {
        let said = ask(&runtime, &[verb, "modle"], 2);
        assert!(
            said.contains("no component is named `modle`; `model`?") && said.contains("`gateway`"),
            "{said}"
        );
    }
}

#[test]
fn what_weighs_on_each_component_and_what_made_the_start_slow_is_shown() {
    let runtime = TestRuntime::start();
    runtime.turn("weights", "Hello");

    let conversation = ps(&runtime, "conversation");
    let load = &conversation["load"];
    assert!(load["handled"].as_u64() >= Some(1), "{conversation}");
    let [p50, p99] = ["handler_p50_us", "handler_p99_us"].map(|which| load[which].as_u64().unwrap());
    assert!(p50 <= p99, "{conversation}");
    let model = ps(&runtime, "model");
    assert!(model["load"]["memory_bytes"].as_u64() > Some(1 << 20), "{model}");
    assert!(ask(&runtime, &["ps"], 0).lines().any(|line| line.starts_with("model") && line.ends_with("MiB")));

    let path = lines(&runtime, &["critical-path", "--json"]);
    let names: Vec<_> = path.iter().map(|stretch| stretch["name"].as_str().unwrap()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("broker", "gateway"), "the tree starts in line");
    let told = |stretch: &Value, which: &str| stretch[which].as_u64().unwrap();
    for pair in path.windows(2) {
        assert!(told(&pair[0], "ready_us") <= told(&pair[1], "began_us"), "{path:?}");
    }
    assert!(ask(&runtime, &["critical-path"], 0).contains("longest chain of waits"));
}

#[test]
fn a_program_that_spent_its_budget_is_explained_and_can_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let mended = directory.path().join("mended");
    let script = format!("test -e {} && exec sleep 1000; echo no heart >&2; exit 3", mended.display());
    let program = format!(
        "[[program]]\nname = \"clumsy\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", \"{script}\"]\nready_timeout = \"20s\"\n"
    );
    let runtime = TestRuntime::start_degraded_with(&program);

    // Told in advance and then done: five tries, each after at most 200 ms, doubled each time.
    let waited = eventually("the budget to be spent", || {
        let clumsy = ps(&runtime, "clumsy");
        (clumsy["budget"]["spent"] == true).then_some(clumsy)
    });
    assert_eq!((waited["state"].as_str(), waited["incarnation"].as_u64()), (Some("error"), Some(6)));
    assert!(ask(&runtime, &["plan", "clumsy"], 0).contains("is given up"));
    // The log is on its way to the store meanwhile.
    eventually("the log of the failure", || {
        let told = ask(&runtime, &["explain", "clumsy"], 0);
        assert!(told.contains("exited with code 3: no heart"), "{told}");
        assert!(told.contains(": spent") && told.contains("interlock start clumsy"), "{told}");
        (told.contains("last logged") && told.contains("no heart program=clumsy")).then_some(())
    });

    let refused = ask(&runtime, &["start", "clumsy", "--no-wait"], 0);
    assert!(refused.contains("ordered"), "{refused}");
    std::fs::write(&mended, "").unwrap();
    eventually("the program to live", || {
        let clumsy = ps(&runtime, "clumsy");
        (clumsy["state"] == "running" && clumsy["load"]["memory_bytes"].as_u64() > Some(0)).then_some(())
    });

    let plan = &lines(&runtime, &["plan", "gateway", "--json"])[0];
    let tries = plan["tries"].as_array().unwrap();
    assert_eq!(tries.len(), 5);
    assert!(tries.iter().all(|planned| planned["wait_us"].as_u64() <= Some(3_200_000)), "{plan}");
    assert_eq!(&lines(&runtime, &["plan", "gateway", "--json"])[0], plan, "what is drawn stays drawn");
}

#[test]
fn restarts_of_the_broker_are_nobody_elses_failures_however_many_there_are() {
    let program = "[[program]]\nname = \"helper\"\ncommand = \"sh\"\nargs = [\"-c\", \"exec sleep 1000\"]\n";
    let runtime = TestRuntime::start_with(program);
    // Two more than a budget has.
    for restarts in 1..=7 {
        ask(&runtime, &["restart", "broker"], 0);
        eventually("everything to be there again", || {
            let status = runtime.interlock(&["status"]).status;
            status.success().then_some(())
        });
        assert_eq!(ps(&runtime, "broker")["restarts"], restarts);
    }
    for child in lines(&runtime, &["ps", "--json"]) {
        assert_eq!(child["budget"]["failures"], 0, "{child}");
        assert_eq!(child["budget"]["unhealthy_failures"], 0, "{child}");
    }
    assert!(!ask(&runtime, &["explain", "log-consumer"], 0).contains("way out"));
}
