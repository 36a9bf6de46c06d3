use std::{collections::BTreeSet, process::Command};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    DEADLINE, TestProcess, eventually,
    runtime::{TestRuntime, final_text, tool},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_turn_is_streamed_as_deltas_with_an_index_and_ends_in_exactly_one_final_message() {
    let runtime = TestRuntime::start();
    let turn = runtime.turn("first", "Hello, my name is Ada.");
    let names: Vec<&str> = turn.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.first(), Some(&"started"), "{turn:?}");
    assert_eq!(names.iter().filter(|name| ["final", "error"].contains(name)).count(), 1, "{turn:?}");
    assert_eq!(names.last(), Some(&"final"));
    let deltas: Vec<&Value> = turn.iter().filter(|(name, _)| name == "delta").map(|(_, data)| data).collect();
    assert!(deltas.len() > 1, "{turn:?}");
    for (index, delta) in deltas.iter().enumerate() {
        assert_eq!(delta["index"], index);
    }
    let joined: String = deltas.iter().map(|delta| delta["text"].as_str().unwrap()).collect();
    assert_eq!(joined, final_text(&turn), "deltas never repeat text");
}

#[test]
fn what_was_said_is_remembered_across_kill_9_and_a_new_start() {
    let mut runtime = TestRuntime::start();
    final_text(&runtime.turn("memory", "My name is Ada."));
    runtime.process.kill();
    runtime.restart();
    let answer = final_text(&runtime.turn("memory", "What is my name?"));
    assert!(answer.contains("Ada"), "{answer}");
    let history: Value = runtime.get("/v1/conversations/memory").json().unwrap();
    let messages = history["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4, "{history}");
    assert!(messages[0].to_string().contains("My name is Ada."));
}

#[test]
fn every_way_of_asking_drains_and_exits_with_0() {
    type Ask = fn(&TestRuntime);
    let ways: [(&str, Ask); 4] = [
        ("SIGTERM", |runtime| runtime.signal(Signal::SIGTERM)),
        ("SIGINT", |runtime| runtime.signal(Signal::SIGINT)),
        ("interlock stop", |runtime| assert!(runtime.interlock(&["stop"]).status.success())),
        ("shutdown file", |runtime| {
            let instance = std::fs::read(runtime.data().join("run/instance.json")).unwrap();
            let instance: Value = serde_json::from_slice(&instance).unwrap();
            let id = instance["instance"].as_str().unwrap();
            std::fs::write(runtime.data().join("run/interlock.shutdown"), id).unwrap();
        }),
    ];
    let mut runtime = TestRuntime::start();
    for (name, ask) in ways {
        final_text(&runtime.turn("stopping", "Hello"));
        ask(&runtime);
        assert_eq!(runtime.process.exit_code(), Some(0), "{name}");
        assert_eq!(runtime.processes(), BTreeSet::new(), "{name} left a process behind");
        runtime.restart();
    }
}

#[test]
fn a_stale_shutdown_file_is_ignored_and_removed() {
    let mut runtime = TestRuntime::start();
    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    let file = runtime.data().join("run/interlock.shutdown");
    std::fs::write(&file, "00000000-0000-7000-8000-000000000000").unwrap();
    runtime.restart();
    assert!(!file.exists());
    final_text(&runtime.turn("alive", "Hello"));
}

#[test]
fn no_process_outlives_a_runtime_that_was_killed() {
    let mut runtime = TestRuntime::start();
    assert!(runtime.processes().len() >= 2, "the model service is a process of its own");
    runtime.process.kill();
    eventually("the model service to go", || runtime.processes().is_empty().then_some(()));
}

#[test]
fn the_model_service_is_restarted_when_it_is_killed_and_the_others_go_on() {
    let runtime = TestRuntime::start();
    let before = runtime.status().to_string();
    assert!(before.contains("model"), "{before}");
    for pid in model_processes(&runtime) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
    eventually("a turn to be answered again", || {
        let turn = runtime.turn("again", "Hello");
        (turn.last().unwrap().0 == "final").then_some(())
    });
    let restarts = |status: &Value| status.to_string().contains("\"restarts\":1");
    assert!(restarts(&runtime.status()), "{}", runtime.status());
}

/// Processes of this runtime but itself: the guardian and the model service.
fn model_processes(runtime: &TestRuntime) -> BTreeSet<u32> {
    let mut processes = runtime.processes();
    processes.remove(&runtime.process.id());
    processes
}

#[test]
fn a_hundred_turns_with_the_model_killed_in_the_middle_have_a_hundred_endings_and_none_is_mixed() {
    let runtime = TestRuntime::start_with("[model]\nscript_pause = \"30ms\"\n");
    let endings: Vec<(usize, Vec<(String, Value)>)> = std::thread::scope(|scope| {
        let turns: Vec<_> = (0..100)
            .map(|number| {
                let runtime = &runtime;
                scope.spawn(move || {
                    (number, runtime.turn(&format!("many-{number}"), &format!("My name is Name{number}x.")))
                })
            })
            .collect();
        eventually("the first words", || {
            text(&runtime.bus(&["topics"]).stdout).contains("conversation/turn/delta").then_some(())
        });
        for pid in model_processes(&runtime) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        turns.into_iter().map(|turn| turn.join().unwrap()).collect()
    });
    for (number, turn) in &endings {
        let ends =
            turn.iter().filter(|(name, _)| ["final", "error", "refused"].contains(&name.as_str())).count();
        assert_eq!(ends, 1, "turn {number}: {turn:?}");
        assert!(["final", "error", "refused"].contains(&turn.last().unwrap().0.as_str()), "{turn:?}");
        let whole = format!("{turn:?}");
        for other in (0..100).filter(|other| other != number) {
            assert!(
                !whole.contains(&format!("Name{other}x")),
                "turn {number} holds text of {other}: {whole}"
            );
        }
    }
    let broken =
        endings.iter().filter(|(_, turn)| turn.last().is_some_and(|(name, _)| name == "error")).count();
    assert!(broken > 0, "the model was killed too late to be in the middle of anything");
    eventually("turns to be answered again", || {
        (runtime.turn("after", "Hello").last().unwrap().0 == "final").then_some(())
    });
}

#[test]
fn the_bus_tool_finds_the_instance_by_itself_and_shows_the_turn() {
    let runtime = TestRuntime::start();
    let mut command = tool("bus");
    command.args(["sub", "conversation/#", "--json", "--data-dir"]).arg(runtime.data());
    let subscriber = TestProcess::spawn(command);
    eventually("the subscription", || {
        text(&runtime.bus(&["peers", "--json"]).stdout).contains("\"subscriptions\":1").then_some(())
    });
    final_text(&runtime.turn("watched", "Good morning"));
    let seen = eventually("the turn's end", || {
        let line = subscriber.line();
        line.contains("conversation/turn/final").then_some(line)
    });
    assert!(seen.contains("watched"), "the payload is decoded: {seen}");
    let topics = text(&runtime.bus(&["topics"]).stdout);
    for topic in ["conversation/turn/final/v1", "modelservice/completions/v1"] {
        assert!(topics.contains(topic), "{topics}");
    }
    assert!(text(&runtime.bus(&["peers"]).stdout).contains("gateway"));
    let audit = runtime.bus(&["audit"]);
    assert!(audit.status.success(), "{audit:?}");
    let nobody = runtime.bus(&["request", "modelservice/nothing", "x"]);
    assert!(!nobody.status.success());
    assert!(text(&nobody.stderr).starts_with("bus: "), "{nobody:?}");
}

#[test]
fn what_the_broker_refuses_is_in_the_log_and_its_bounds_are_those_of_the_configuration() {
    let runtime = TestRuntime::start();
    let file = runtime.directory.path().join("stranger.toml");
    let operator = runtime.data().join("keys/operator.toml");
    let mut stranger = interlock_bus::Credentials::load(&operator).unwrap();
    stranger.keys = interlock_bus::crypto::KeyPair::generate();
    stranger.save(&file).unwrap();
    let refused = runtime.bus(&["--creds", file.to_str().unwrap(), "topics"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    eventually("the refusal in the log", || {
        let output =
            runtime.interlock(&["logs", "--since", "10m", "--component", "broker", "--level", "warn"]);
        text(&output.stdout).contains("refused (unknown_key)").then_some(())
    });
    let registry = runtime.data().join("keys/authorized.toml");
    let damaged = std::fs::read_to_string(&registry).unwrap().replacen("public_key", "publik_key", 1);
    std::fs::write(&registry, damaged).unwrap();
    eventually("the damaged registry in the log", || {
        let output =
            runtime.interlock(&["logs", "--since", "10m", "--component", "broker", "--level", "error"]);
        text(&output.stdout).contains("the old rules stay").then_some(())
    });
    let info = runtime.bus(&["request", "$sys/broker/info"]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(
        (&info["limits"]["sessions_max"], &info["limits"]["send_queue_bytes"]),
        (&8192.into(), &(16 << 20).into())
    );
}

#[test]
fn logs_are_in_the_store_while_it_runs_and_after_it_has_stopped() {
    let mut runtime = TestRuntime::start();
    let component = |name: &str| {
        let output = runtime.interlock(&["logs", "--since", "10m", "--component", name]);
        (!output.stdout.is_empty()).then_some(())
    };
    eventually("log records of the runtime", || component("runtime").or_else(|| component("broker")));
    assert!(runtime.interlock(&["stop"]).status.success());
    assert_eq!(runtime.process.exit_code(), Some(0));
    let after = runtime.interlock(&["logs", "--since", "10m", "--json"]);
    assert!(after.status.success() && !after.stdout.is_empty(), "{after:?}");
    for line in text(&after.stdout).lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let empty = runtime.interlock(&["logs", "--level", "error", "--since", "10m"]);
    assert!(empty.stdout.is_empty(), "a clean run logs no error: {}", text(&empty.stdout));
}

#[test]
fn health_needs_a_token_but_liveness_does_not_and_answers_are_typed() {
    let runtime = TestRuntime::start();
    let url = |path: &str| runtime.url(path).unwrap();
    let code = |path: &str| runtime.http().get(url(path)).send().unwrap().status().as_u16();
    assert_eq!(code("/health/live"), 200);
    for path in ["/health", "/health/ready", "/v1/status", "/v1/conversations"] {
        assert_eq!(code(path), 401, "{path}");
    }
    assert_eq!(runtime.get("/no/such/path").status().as_u16(), 404);
    let post = |body: &'static str| {
        let url = url("/v1/conversations/bad/messages");
        let request = runtime.http().post(url).bearer_auth(runtime.token().unwrap());
        request.header("content-type", "application/json").body(body).send().unwrap()
    };
    for body in ["{", "[]", "{\"text\":7}", "{\"txt\":\"x\"}"] {
        let answer = post(body);
        assert_eq!(answer.status().as_u16(), 400, "{body}");
        let error: Value = answer.json().unwrap();
        assert!(error["error"]["message"].is_string(), "{error}");
    }
    let large = runtime
        .http()
        .post(url("/v1/conversations/bad/messages"))
        .bearer_auth(runtime.token().unwrap())
        .json(&serde_json::json!({ "text": "x".repeat(2_000_000) }))
        .send()
        .unwrap();
    assert_eq!(large.status().as_u16(), 413);
}

#[test]
fn health_says_which_version_the_tables_of_the_database_have() {
    let runtime = TestRuntime::start();
    let version = eventually("the store to say how it is", || {
        let health: Value = runtime.get("/health").json().unwrap();
        let store = health["parts"].as_array()?.iter().find(|part| part["name"] == "store")?.clone();
        let (version, _) = store["detail"].as_str()?.strip_prefix("schema version ")?.split_once(';')?;
        version.parse::<u64>().ok()
    });
    let output = runtime.interlock(&["db", "status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["schema_version"], version, "{status}");
}

#[test]
fn a_bad_start_names_the_thing_and_the_way_out_and_leaves_nothing_running() {
    let mut runtime = TestRuntime::start();
    let second = runtime.interlock(&["run"]);
    assert_eq!(second.status.code(), Some(5), "{second:?}");
    let gateway = runtime.url("").unwrap();
    let taken = gateway.trim_start_matches("http://").to_owned();

    let other = tempfile::tempdir().unwrap();
    let config = format!("[bus]\nendpoints = [\"ipc\"]\n[gateway]\nlisten = \"{taken}\"\n");
    std::fs::write(other.path().join("c.toml"), config).unwrap();
    let run = |data: &std::path::Path| {
        let mut command = tool("interlock");
        command.arg("run").arg("--config").arg(other.path().join("c.toml")).arg("--data-dir").arg(data);
        command.output().unwrap()
    };
    let port = run(&other.path().join("data"));
    assert!(!port.status.success());
    let message = text(&port.stderr);
    assert!(message.contains(&taken) && message.contains("gateway.listen"), "{message}");

    runtime.signal(Signal::SIGTERM);
    assert_eq!(runtime.process.exit_code(), Some(0));
    let keys = runtime.data().join("keys");
    let readable = |mode: &str, path: &std::path::Path| {
        assert!(Command::new("chmod").arg(mode).arg(path).status().unwrap().success());
    };
    readable("640", &keys.join("broker.toml"));
    let exposed = run(&runtime.data());
    assert!(!exposed.status.success());
    assert!(text(&exposed.stderr).contains("chmod 600"), "{exposed:?}");
    readable("600", &keys.join("broker.toml"));

    let key = std::fs::read(keys.join("data.key")).unwrap();
    let before = std::fs::read(runtime.data().join("interlock.db")).unwrap();
    let stranger = TestRuntime::start();
    std::fs::copy(stranger.data().join("keys/data.key"), keys.join("data.key")).unwrap();
    let wrong = run(&runtime.data());
    assert_eq!(wrong.status.code(), Some(4), "a database made with another key: {wrong:?}");
    assert_eq!(std::fs::read(runtime.data().join("interlock.db")).unwrap(), before);
    std::fs::write(keys.join("data.key"), key).unwrap();
    runtime.restart();
    final_text(&runtime.turn("fine", "Hello"));
}

#[test]
fn output_is_ascii_and_status_shows_the_tree() {
    let runtime = TestRuntime::start();
    let status = runtime.interlock(&["status"]);
    assert!(status.status.success());
    assert!(status.stdout.is_ascii());
    for component in ["broker", "store", "log", "model", "conversation", "gateway"] {
        assert!(text(&status.stdout).contains(component), "{}", text(&status.stdout));
    }
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = tool("interlock");
    command.arg("status").arg("--data-dir").arg(nowhere.path().join("none"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(!nowhere.path().join("none").exists(), "asking creates nothing");
    let _ = DEADLINE;
}

#[test]
fn stock_sockets_and_a_native_client_take_part_in_a_conversation_with_keys_that_one_command_issued() {
    let runtime = TestRuntime::start();
    let file = runtime.directory.path().join("guest.toml");
    let path = file.to_str().unwrap();
    let rights = ["--publish", "note/#", "--subscribe", "conversation/#", "--subscribe", "note/#"];
    let request = ["--request", "conversation/user/input/v1", "--out", path];
    let issued = runtime.interlock(&[&["keys", "issue", "guest"], &rights[..], &request[..]].concat());
    assert!(issued.status.success(), "{issued:?}");

    let python = |arguments: &[&str]| {
        let all = [&[arguments[0], path], &arguments[1..]].concat();
        TestProcess::python("stock.py", &all)
    };
    let input = |text: &str| serde_json::json!({ "conversation": "stock", "text": text }).to_string();
    let subscriber = python(&["sub", "note/"]);
    subscriber.json();
    let asked = python(&["req", "conversation/user/input/v1", &input("My name is Ada.")]).json();
    assert_eq!(asked["frames"][0], "final", "{asked}");
    let dealer = python(&["dealer", "conversation/user/input/v1", &input("What is my name?")]);
    let mut statuses = Vec::new();
    let answer = loop {
        let frames = dealer.json()["frames"].clone();
        statuses.push(frames[0].as_str().unwrap().to_owned());
        if frames[0] != "more" {
            break frames[1].to_string();
        }
    };
    assert!(statuses.len() > 2 && answer.contains("Ada"), "{statuses:?} {answer}");
    let denied = python(&["req", "modelservice/models/v1", ""]).json();
    assert_eq!(denied["frames"][0], "denied");

    eventually("the subscription of the SUB socket", || {
        text(&runtime.bus(&["peers"]).stdout).contains("stock_subscriber").then_some(())
    });
    let client = interlock_bus::Client::connect_blocking(interlock_bus::client::ConnectOptions::new(
        interlock_bus::Credentials::load(&file).unwrap(),
    ))
    .unwrap();
    let note = "note/one".parse().unwrap();
    let seen = eventually("a note to reach the SUB socket", || {
        client.publish(&note, interlock_bus::Payload::text("native")).unwrap();
        subscriber.line_within(std::time::Duration::from_millis(200))
    });
    assert!(seen.contains("native"), "{seen}");
    let mut publisher = python(&["plain_pub", "note/two", "stock"]);
    eventually("a message of the PUB socket", || subscriber.line().contains("stock").then_some(()));
    publisher.kill();
}

#[test]
fn a_peer_enrolled_by_hand_hears_which_of_its_messages_were_set_aside_and_nothing_of_others() {
    use interlock_bus::{Client, ConnectOptions, Credentials, Payload, SubscribeOptions, blocking::wait};
    let runtime = TestRuntime::start();
    let [sender, other] = ["sender", "other"].map(|name| {
        let issued = runtime.interlock(&["keys", "issue", name, "--publish", "work/#"]);
        assert!(issued.status.success(), "{issued:?}");
        let credentials = Credentials::load(&runtime.data().join(format!("keys/{name}.toml"))).unwrap();
        Client::connect_blocking(ConnectOptions::new(credentials).timeout(DEADLINE)).unwrap()
    });
    let subscribe =
        |filter: &str| wait(sender.subscribe(&filter.parse().unwrap(), SubscribeOptions::default()));
    let mut letters = subscribe("$dlq/+/sender").unwrap();
    assert!(subscribe("$dlq/+/other").is_err(), "what was set aside of others");
    let set_aside = |client: &Client, topic: &str| {
        wait(client.publish_acknowledged(
            &topic.parse().unwrap(),
            Payload::text("it broke"),
            Default::default(),
        ))
    };
    set_aside(&other, "$dlq/other/sender").unwrap();
    let heard = letters.next_blocking(std::time::Instant::now() + DEADLINE).unwrap();
    assert!(format!("{heard:?}").contains("$dlq/other/sender"), "{heard:?}");
    assert!(set_aside(&other, "$dlq/model/sender").is_err(), "in the name of another");
    // Somebody without any right stays without any.
    assert!(runtime.interlock(&["keys", "issue", "nobody"]).status.success());
    let listed = text(&runtime.interlock(&["keys", "list"]).stdout);
    let nobody = listed.lines().find(|line| line.starts_with("nobody")).unwrap();
    assert!(nobody.ends_with(" none"), "{listed}");
}
