use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    runtime::{TestRuntime, events},
    web::{ask, given, refused, token},
};

fn told(runtime: &TestRuntime, arguments: &[&str]) -> Value {
    let output = runtime.interlock(arguments);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What is the same however often it is asked for.
fn settled(mut status: Value) -> Value {
    for field in ["bytes", "wal_bytes", "pages", "free_pages", "rows"] {
        status["content"][field] = Value::Null;
    }
    status
}

#[test]
fn the_database_is_shown_and_checked_as_on_the_command_line_while_it_is_in_use() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let looks = token(&runtime, "looks", &["inspect"]);
    let status = given(&runtime, &looks, Method::GET, "/v1/admin/database", None);
    assert!(status["content"]["rows"]["conversations"].is_u64(), "{status}");
    assert_eq!(settled(status), settled(told(&runtime, &["db", "status", "--json"])));
    let path = "/v1/admin/database/check";
    assert_eq!(refused(ask(&runtime, &looks, Method::POST, path, None)).1, "forbidden");
    let mut checked = given(&runtime, &operator, Method::POST, path, None);
    assert_eq!((&checked["ok"], &checked["findings"]), (&json!(true), &json!([])));
    let mut said = told(&runtime, &["db", "check", "--json"]);
    for object in [&mut checked, &mut said] {
        assert!(object["pages"].take().as_u64() > Some(1));
    }
    assert_eq!(checked, said);
    let request = runtime.http().post(runtime.url(path).unwrap()).bearer_auth(&operator);
    let streamed = events(request.header("Accept", "text/event-stream").send().unwrap());
    assert_eq!((streamed[0].0.as_str(), &streamed[0].1["ok"]), ("end", &json!(true)), "{streamed:?}");
    let (status, _, text) =
        refused(ask(&runtime, &operator, Method::POST, "/v1/admin/database/check?fix=1", None));
    assert!(status == 400 && text.contains("`fix`"), "{text}");
}

const PROGRAM: &str = "[[program]]\nname = \"sleeper\"\ncommand = \"sleep\"\nargs = [\"1000\"]\nreadiness = \"started\"\n[program.environment]\nKEY = \"hush-hush\"\n";

#[test]
fn the_configuration_in_force_is_shown_with_origins_and_without_secrets() {
    let runtime = TestRuntime::start_with(&format!("[logs]\nlevel = \"debug\"\n{PROGRAM}"));
    let operator = runtime.token().unwrap();
    let path = "/v1/admin/configuration";
    let whole = given(&runtime, &operator, Method::GET, path, None);
    let file = runtime.directory.path().join("interlock.toml");
    let mut said = told(&runtime, &["--config", file.to_str().unwrap(), "config", "show", "--json"]);
    said["file"] = json!(file);
    assert_eq!(whole, said);
    let level = &whole["settings"]["logs.level"];
    assert_eq!(level["value"], "debug");
    assert_eq!(level["origin"], format!("{}:6", file.display()), "{level}");
    assert_eq!(whole["settings"]["gateway.workers"]["origin"], "default");
    assert_eq!(whole["settings"]["runtime.data_dir"]["origin"], "--data-dir");
    assert_eq!(whole["programs"][0]["args"], json!(["1000"]));
    // What a program is called with may be a secret: it is for who may give orders.
    let looks = token(&runtime, "looks", &["inspect"]);
    let less = given(&runtime, &looks, Method::GET, path, None);
    assert_eq!(less["programs"][0]["args"], json!(["(hidden)"]));
    assert_eq!(less["settings"], whole["settings"]);
    for shown in [less, whole] {
        assert!(!shown.to_string().contains("hush-hush"));
    }
}

#[test]
fn a_configuration_is_judged_line_by_line_and_nothing_is_changed_or_read_for_it() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let path = "/v1/admin/configuration/check";
    let check = |text: &str| {
        let request = runtime.http().post(runtime.url(path).unwrap()).bearer_auth(&operator);
        let response =
            request.header("Content-Type", "application/toml").body(text.to_owned()).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let before = given(&runtime, &operator, Method::GET, "/v1/admin/configuration", None);
    let (status, judged) =
        check("[logs]\nlevel = \"debug\"\n\n[bus]\nsend_queue_mesages = 5\n[gateway]\nworkers = 0\n");
    assert_eq!((status, &judged["valid"], &judged["reload"]), (200, &json!(false), &Value::Null));
    let problems = judged["problems"].as_array().unwrap();
    let lines: Vec<_> =
        problems.iter().map(|problem| (problem["line"].as_u64(), problem["key"].as_str().unwrap())).collect();
    assert_eq!(lines, [(Some(5), "bus.send_queue_mesages"), (Some(7), "gateway.workers")], "{judged}");
    assert!(
        problems[0]["text"].as_str().unwrap().contains("did you mean `bus.send_queue_messages`"),
        "{judged}"
    );
    let (_, judged) = check("[logs\n");
    assert_eq!((&judged["valid"], &judged["problems"][0]["line"]), (&json!(false), &json!(1)));

    // One that is well: what a reload would come to.
    let ports = "[bus]\nendpoints = [\"ipc\", \"tcp://127.0.0.1:0\"]\n[gateway]\nlisten = \"127.0.0.1:0\"\n";
    let (_, judged) = check(&format!("{ports}[logs]\nlevel = \"debug\"\n[runtime]\n{PROGRAM}"));
    assert_eq!((&judged["valid"], &judged["problems"]), (&json!(true), &json!([])), "{judged}");
    let reload = &judged["reload"];
    assert_eq!(reload["changed"][0]["key"], "logs.level");
    assert!(reload["next_start"][0].as_str().unwrap().contains("sleeper"), "{judged}");
    let (_, judged) =
        check(&format!("{}listen = \"0.0.0.0:0\"\n", ports.replace("listen = \"127.0.0.1:0\"\n", "")));
    assert!(
        judged["warnings"][0].as_str().unwrap().contains("WITHOUT TLS")
            || judged["warnings"][0].as_str().unwrap().contains("without TLS"),
        "{judged}"
    );

    // A file that is named is not looked at: what is in it could be told by the answer.
    let named = runtime.data().join("keys/broker.toml");
    let (_, judged) = check(&format!("{ports}[model]\nscript = \"{}\"\n", named.display()));
    assert_eq!(judged["valid"], true);
    assert!(!judged.to_string().contains("secret"), "{judged}");
    let request = runtime.http().post(runtime.url(path).unwrap()).bearer_auth(&operator);
    let (status, _, text) = refused(request.body(b"[logs]\n\xff".to_vec()).send().unwrap());
    assert!(status == 400 && text.contains("after byte 7"), "{text}");
    let looks = token(&runtime, "looks", &["inspect"]);
    assert_eq!(refused(ask(&runtime, &looks, Method::POST, path, None)).1, "forbidden");
    assert_eq!(given(&runtime, &operator, Method::GET, "/v1/admin/configuration", None), before);
}
