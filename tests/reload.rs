//! A configuration that changes while the runtime runs: what is in force at once, what is restarted for it, what waits,
//! and that a mistake changes nothing.

use std::{
    process::Output,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    clock::Clock,
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

/// Leaves more log records at each start than the store takes between two looks at what is too old.
const CHATTY: &str = r#"
[[program]]
name = "chatty"
command = "sh"
args = ["-c", "seq 600; exec sleep 1000"]
"#;

#[test]
fn records_that_are_kept_too_long_go_without_a_new_start() {
    let clock = Clock::new();
    clock.jump(-2 * 86_400);
    let mut runtime = TestRuntime::begin_with(CHATTY, |command| {
        command.envs(clock.environment());
    });
    // The same clock for whoever asks: a machine has one.
    runtime.environment = clock.environment().into();
    runtime.wait_until_ready();
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    runtime.environment.clear();
    runtime.restart();
    let day_ago = (SystemTime::now() - Duration::from_secs(86_400)).duration_since(UNIX_EPOCH).unwrap();
    let old = || {
        // Of few: what is not among the newest thousand is not shown.
        let logs = runtime.interlock(&["logs", "--text", "ready", "--json"]);
        let records: Vec<Value> = logs
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        records
            .iter()
            .filter(|record| u128::from(record["time_ns"].as_u64().unwrap()) < day_ago.as_nanos())
            .count()
    };
    assert!(old() > 0, "two days are within the default");
    edit(&runtime, &format!("[logs]\nretention = \"1d\"\n{CHATTY}"));
    reload(&runtime);
    assert!(restarts(&runtime).is_empty());
    assert!(runtime.interlock(&["restart", "chatty"]).status.success());
    eventually("the old records to go", || (old() == 0).then_some(()));
}

#[test]
fn a_reload_that_cannot_set_the_rights_of_a_program_changes_nothing() {
    let program = |name: &str, filter: &str| {
        format!(
            "[[program]]\nname = \"{name}\"\ncommand = \"sleep\"\nargs = [\"1000\"]\npublish = [\"{filter}\"]\n"
        )
    };
    let runtime = TestRuntime::start_with(&(program("first", "a/#") + &program("second", "a/#")));
    let registry = runtime.data().join("keys/authorized.toml");
    let whole = std::fs::read_to_string(&registry).unwrap();
    // The rights of one of them can be set, those of the other cannot.
    let renamed =
        whole.replace("[peers.second]", "[peers.another]").replace("[peers.second.", "[peers.another.");
    assert_ne!(renamed, whole, "{whole}");
    std::fs::write(&registry, &renamed).unwrap();
    let changed =
        "[logs]\nretention = \"3d\"\n".to_owned() + &program("first", "b/#") + &program("second", "b/#");
    edit(&runtime, &changed);
    let refused = runtime.interlock(&["reload"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(said(&refused).contains("second"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&registry).unwrap(), renamed, "no right of the first has changed");

    std::fs::write(&registry, &whole).unwrap();
    let report = reload(&runtime).to_string();
    for part in ["logs.retention", "rights of program `first`", "rights of program `second`"] {
        assert!(report.contains(part), "`{part}` was in force already: {report}");
    }
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
