//! A configuration that changes while the runtime runs: what is in force at once, what is restarted for it, what waits,
//! and that a mistake changes nothing.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    eventually,
    runtime::{CONFIG, TestRuntime, final_text, tool},
};

fn edit(runtime: &TestRuntime, settings: &str) {
    std::fs::write(runtime.directory.path().join("interlock.toml"), format!("{CONFIG}{settings}")).unwrap();
}

fn reload(runtime: &TestRuntime) -> Value {
    let output = runtime.interlock(&["reload", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn restarts(runtime: &TestRuntime) -> Vec<(String, u64)> {
    let status = runtime.status();
    let children = status["tree"]["children"].as_array().unwrap();
    let restarted = children.iter().filter(|child| child["restarts"] != 0);
    restarted
        .map(|child| (child["name"].as_str().unwrap().to_owned(), child["restarts"].as_u64().unwrap()))
        .collect()
}

fn is_running(runtime: &TestRuntime) -> Option<()> {
    (runtime.status()["tree"]["state"] == "running").then_some(())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn each_component_takes_over_what_is_its_own_and_the_others_go_on() {
    let runtime = TestRuntime::start();
    let post = |bytes: usize| {
        let url = runtime.url("/v1/chat").unwrap();
        let request = runtime.http().post(url).bearer_auth(runtime.token().unwrap());
        request.body("x".repeat(bytes)).send().map(|answer| answer.status().as_u16())
    };
    let url = runtime.url("");
    assert_eq!(post(2000).unwrap(), 200);

    // The fixed part of the file ends with the section of the gateway.
    edit(&runtime, "body_bytes_max = 1000\n[logs]\nlevel = \"debug\"\n");
    // The report names what it changed, unless the file was looked at just before.
    let report = reload(&runtime);
    let key = &report["changed"][0]["key"];
    assert!(key.is_null() || key == "gateway.body_bytes_max", "{report}");
    eventually("the new limit", || (post(2000).ok()? == 413).then_some(()));
    assert_eq!(runtime.url(""), url, "its port stays");
    eventually("a record of level debug", || {
        let logs = runtime.interlock(&["logs", "--level", "trace", "--since", "10m", "--json"]);
        String::from_utf8_lossy(&logs.stdout).contains("\"level\":\"debug\"").then_some(())
    });

    edit(&runtime, "[conversation]\ninstructions = \"Be brief.\"\n[model]\ntokens_max = 3\n");
    reload(&runtime);
    let expected =
        [("model", 1), ("conversation", 1), ("gateway", 2)].map(|(name, times)| (name.to_owned(), times));
    eventually("each to be restarted, and no other", || (restarts(&runtime) == expected).then_some(()));
    eventually("all to run again", || is_running(&runtime));
    final_text(&runtime.turn("after", "Hello"));
    assert_eq!(reload(&runtime)["changed"], serde_json::json!([]));

    // Whoever was stopped by order stays so.
    assert!(runtime.interlock(&["stop", "conversation"]).status.success());
    edit(&runtime, "[conversation]\ninstructions = \"Be long.\"\n[model]\ntokens_max = 4\n");
    assert!(!reload(&runtime)["restarted"].to_string().contains("conversation"));
    eventually("the model service to be restarted", || {
        restarts(&runtime).contains(&("model".to_owned(), 2)).then_some(())
    });
    let status = runtime.status();
    let children = status["tree"]["children"].as_array().unwrap();
    assert!(
        children.iter().any(|child| child["name"] == "conversation" && child["state"] == "stopped"),
        "{status}"
    );
}

#[test]
fn a_file_with_mistakes_changes_nothing_until_it_is_mended_and_nobody_need_ask() {
    let runtime = TestRuntime::start();
    edit(&runtime, "[model]\ntokens_max = 3\n[logs]\nlevel = \"loud\"\nretension = \"1d\"\n");
    let status = eventually("the refusal in the status", || {
        let status = runtime.status();
        status["config"]["refused"].is_string().then_some(status)
    });
    for part in ["`logs.level` is `\"loud\"`", "did you mean `logs.retention`", "interlock.toml:8"] {
        assert!(status["config"]["refused"].as_str().unwrap().contains(part), "{part}: {status}");
    }
    assert!(restarts(&runtime).is_empty());
    eventually("the tree to be degraded for it", || {
        let status = runtime.status();
        let children = status["tree"]["children"].as_array()?;
        let own = children.iter().find(|child| child["name"] == "runtime")?;
        (own["impaired"] == "its changed configuration is refused" && status["tree"]["state"] == "degraded")
            .then_some(())
    });
    let refused = runtime.interlock(&["reload"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(said(&refused).contains("nothing has changed"), "{refused:?}");
    final_text(&runtime.turn("as-before", "Hello"));

    edit(&runtime, "[model]\ntokens_max = 3\n[shutdown]\nforced = \"3m\"\n");
    eventually("the mended file to be in force", || {
        let status = runtime.status();
        (status["config"]["refused"].is_null()
            && status["config"]["next_start"] == serde_json::json!(["shutdown.forced"]))
        .then_some(())
    });
    eventually("all to run again", || is_running(&runtime));
    assert_eq!(
        restarts(&runtime),
        [("model".to_owned(), 1)],
        "the gateway's and the others' settings are as they were"
    );
}

#[test]
fn a_difference_and_a_schema_are_what_editors_and_scripts_can_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("interlock.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let json = |arguments: &[&str]| -> Value {
        let output = tool("interlock").args(arguments).arg("--config").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let schema = json(&["config", "schema"]);
    assert_eq!(schema["properties"]["gateway"]["properties"]["workers"]["maximum"], 64);
    let difference = json(&["config", "diff", "--json"]);
    let keys: Vec<&String> = difference["settings"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["bus.endpoints", "gateway.listen"]);
}

#[test]
fn a_program_gets_other_rights_without_a_new_start() {
    let program = |filter: &str, more: &str| {
        format!(
            "[[program]]\nname = \"idler\"\ncommand = \"sleep\"\nargs = [\"1000\"]\npublish = [\"{filter}\"]\n{more}"
        )
    };
    let runtime = TestRuntime::start_with(&program("first/#", ""));
    let may = |topic: &str| {
        let why = runtime.bus(&["why", "idler", "publish", topic]);
        String::from_utf8_lossy(&why.stdout).contains("ok  rule ")
    };
    assert!(may("first/a") && !may("second/a"));
    edit(&runtime, &program("second/#", "grace = \"1s\"\n"));
    let report = reload(&runtime);
    assert_eq!(report["next_start"], serde_json::json!(["program `idler`"]), "{report}");
    eventually("the broker to follow", || (may("second/a") && !may("first/a")).then_some(()));
    assert!(restarts(&runtime).is_empty());
}

#[test]
fn a_file_that_is_made_after_the_start_is_read_like_one_that_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("config");
    let file = home.join("interlock/interlock.toml");
    let mut command = tool("interlock");
    command.args(["run", "--set", "gateway.listen=127.0.0.1:0", "--set", "bus.endpoints=[\"ipc\"]"]);
    command.arg("--data-dir").arg(directory.path().join("data")).env("XDG_CONFIG_HOME", home);
    command.env_remove("INTERLOCK_CONFIG");
    let runtime = TestRuntime::on_with(directory, |given| *given = command);
    runtime.wait_until_ready();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, "[[program]]\nname = \"late\"\ncommand = \"true\"\n").unwrap();
    assert_eq!(reload(&runtime)["next_start"], serde_json::json!(["program `late`, which is new"]));
}

#[test]
fn a_reload_and_the_place_of_the_broker_do_not_wait_for_programs_that_take_their_time() {
    let slow = "[[program]]\nname = \"slow\"\ncommand = \"sleep\"\nargs = [\"1000\"]\nreadiness = \"line:never\"\nready_timeout = \"1h\"\n";
    let runtime = TestRuntime::begin_with(slow, |_| ());
    eventually("commands to be answered", || runtime.interlock(&["ps"]).status.success().then_some(()));
    edit(&runtime, &format!("[logs]\nlevel = \"debug\"\n{slow}"));
    let asked = Instant::now();
    reload(&runtime);
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    let status = runtime.status();
    assert_eq!(status["tree"]["state"], "starting");
    let endpoints = status["instance"]["endpoints"].to_string();
    assert!(endpoints.contains("tcp://127.0.0.1:") && !endpoints.contains("127.0.0.1:0"), "{endpoints}");
}
