use std::{path::Path, time::Duration};

use interlock_bus::{
    Client, ConnectError, ConnectOptions, Credentials, Payload,
    blocking::wait,
    keys::{Audit, audit::Outcome},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, eventually,
    runtime::TestRuntime,
    web::{ask, given, refused, token},
};

fn connect(credentials: &Credentials) -> Result<Client, ConnectError> {
    Client::connect_blocking(ConnectOptions::new(credentials.clone()).timeout(DEADLINE))
}

fn credentials(answer: &Value) -> Credentials {
    let text = answer["credentials"].as_str().unwrap_or_else(|| panic!("{answer}"));
    Credentials::from_toml(text, Path::new("the answer")).unwrap()
}

fn told(runtime: &TestRuntime, arguments: &[&str]) -> Vec<Value> {
    let output = runtime.interlock(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Whether a text stands in any file below the data directory.
fn is_kept(runtime: &TestRuntime, text: &str) -> bool {
    fn search(directory: &Path, text: &[u8]) -> bool {
        std::fs::read_dir(directory).unwrap().flatten().any(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => search(&entry.path(), text),
            kind if kind.is_file() => {
                let content = std::fs::read(entry.path()).unwrap_or_default();
                content.windows(text.len()).any(|part| part == text)
            }
            _ => false,
        })
    }
    search(&runtime.data(), text.as_bytes())
}

fn publish(client: &Client, topic: &str) -> Result<(), String> {
    let (topic, payload) = (topic.parse().unwrap(), Payload::text("x"));
    let published = wait(client.publish_acknowledged(&topic, payload, Default::default()));
    published.map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_key_that_was_issued_over_http_does_what_it_may_and_nothing_else_until_it_is_revoked() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let wanted = json!({ "name": "sensor", "publish": ["weather/#"], "expires_in_s": 3600 });
    let response = ask(&runtime, &operator, Method::POST, "/v1/admin/keys", Some(wanted.clone()));
    assert_eq!(
        (response.status().as_u16(), &response.headers()["cache-control"]),
        (201, &"no-store".parse().unwrap())
    );
    let made: Value = response.json().unwrap();
    let sensor = credentials(&made);
    assert_eq!(made["fingerprint"], sensor.keys.public.fingerprint());
    let client = connect(&sensor).unwrap();
    publish(&client, "weather/rain").unwrap();
    let refusal = publish(&client, "kitchen/light").unwrap_err();
    assert!(refusal.contains("kitchen/light"), "{refusal}");

    // The same as the command line says; and its secret is nowhere.
    let path = "/v1/admin/keys/sensor";
    let mut shown = given(&runtime, &operator, Method::GET, path, None);
    let mut said = told(&runtime, &["keys", "show", "sensor", "--json"]).remove(0);
    assert_eq!(shown["sessions"].as_array().unwrap().len(), 1, "{shown}");
    assert!(shown["rules"].as_array().unwrap().iter().any(|rule| rule["filter"] == "weather/#"), "{shown}");
    for object in [&mut shown, &mut said] {
        object["sessions"][0] = Value::Null;
        object["last_use_ms"] = Value::Null;
        object["key_last_use_ms"] = Value::Null;
    }
    assert_eq!(shown, said);
    let listed = given(&runtime, &operator, Method::GET, "/v1/admin/keys", None);
    let names = |rows: &[Value]| rows.iter().map(|row| row["name"].clone()).collect::<Vec<_>>();
    let rows = told(&runtime, &["keys", "list", "--json"]);
    assert_eq!(names(listed["keys"].as_array().unwrap()), names(&rows));
    assert!(!is_kept(&runtime, &sensor.keys.secret.expose_z85()));
    let again = ask(&runtime, &operator, Method::POST, "/v1/admin/keys", Some(wanted));
    assert_eq!(refused(again).1, "peer_exists");

    assert_eq!(ask(&runtime, &operator, Method::DELETE, path, None).status(), 204);
    let reason = eventually("the end of its session", || client.closed_reason());
    assert!(reason.contains("revoked"), "{reason}");
    assert!(matches!(connect(&sensor), Err(ConnectError::KeyRefused { .. })));
    let entries = Audit::of(&runtime.data().join("keys")).last().unwrap();
    let done = |action: &str| {
        entries.iter().any(|entry| {
            entry.act.action == action
                && entry.act.peer.as_ref().is_some_and(|peer| peer.as_str() == "sensor")
                && entry.by.as_ref().is_some_and(|by| by.as_str() == "operator")
                && entry.outcome == Outcome::Done
        })
    };
    assert!(done("issue") && done("revoke"), "{entries:?}");
    // Enrolled again, with a file of an earlier time in the key store.
    sensor.save(&runtime.data().join("keys/sensor.toml")).unwrap();
    let made = given(
        &runtime,
        &operator,
        Method::POST,
        "/v1/admin/keys",
        Some(json!({ "name": "sensor", "serve": ["a"] })),
    );
    assert!(connect(&credentials(&made)).is_ok() && !runtime.data().join("keys/sensor.toml").exists());
}

#[test]
fn a_key_is_replaced_over_http_with_an_overlap_or_at_once() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let post = |path: &str, body: Value| given(&runtime, &operator, Method::POST, path, Some(body));
    let first = credentials(&post("/v1/admin/keys", json!({ "name": "sensor", "publish": ["a"] })));
    let path = "/v1/admin/keys/sensor/rotate";
    let rotated = post(path, json!({ "overlap_s": 3600, "expires_in_s": 86400 }));
    assert_eq!(rotated["before"], first.keys.public.to_string());
    let second = credentials(&rotated);
    eventually("the new key to be read", || connect(&second).ok());
    let old = connect(&first).unwrap();
    let days = rotated["expires_ms"].as_u64().unwrap() - rotated["before_until_ms"].as_u64().unwrap();
    assert!(days.abs_diff(82_800_000) < 60_000, "{rotated}");
    let rotated = post(path, json!({ "overlap_s": 0 }));
    assert_eq!(rotated["before_until_ms"], Value::Null);
    let reason = eventually("the end of the old one", || old.closed_reason());
    assert!(reason.contains("replaced"), "{reason}");
    eventually("the newest key to be read", || connect(&credentials(&rotated)).ok());
    assert!(connect(&second).is_err());
    // Without a body as on the command line: seven days.
    let response = ask(&runtime, &operator, Method::POST, path, None);
    let rotated: Value = response.json().unwrap();
    let shown = &told(&runtime, &["keys", "show", "sensor", "--json"])[0];
    assert_eq!(shown["public_key"], rotated["public_key"]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let week = Duration::from_secs(7 * 86400).as_millis() as u64;
    assert!(rotated["before_until_ms"].as_u64().unwrap().abs_diff(now + week) < 60_000, "{rotated}");
    assert!(!runtime.data().join("keys/sensor.toml").exists());
}

#[test]
fn the_runtime_is_not_cut_off_from_the_web_and_its_own_keys_do_not_leave_it() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    for name in ["operator", "runtime", "gateway", "conversation"] {
        let path = format!("/v1/admin/keys/{name}");
        let (status, code, text) = refused(ask(&runtime, &operator, Method::DELETE, &path, None));
        assert_eq!((status, code.as_str()), (409, "not_by_itself"), "{text}");
        let wanted = json!({ "name": name, "publish": ["#"] });
        let (status, _, text) =
            refused(ask(&runtime, &operator, Method::POST, "/v1/admin/keys", Some(wanted)));
        assert!(status == 400 && text.contains("built-in"), "{text}");
    }
    let file = runtime.data().join("keys/operator.toml");
    let before = Credentials::load(&file).unwrap().keys.public;
    let rotated = given(
        &runtime,
        &operator,
        Method::POST,
        "/v1/admin/keys/operator/rotate",
        Some(json!({ "overlap_s": 0 })),
    );
    assert_eq!((&rotated["credentials"], &rotated["before"]), (&Value::Null, &json!(before.to_string())));
    assert_eq!(rotated["public_key"], Credentials::load(&file).unwrap().keys.public.to_string());
    eventually("the tools to come in with the new key", || {
        runtime.bus(&["peers"]).status.success().then_some(())
    });
    let ends = ask(
        &runtime,
        &operator,
        Method::POST,
        "/v1/admin/keys/operator/rotate",
        Some(json!({ "expires_in_s": 60 })),
    );
    assert!(refused(ends).2.contains("`expires_in_s`"));
    assert_eq!(runtime.is_ready(), Some(()));
}

#[test]
fn the_peer_of_a_token_goes_with_its_token_and_has_no_key_to_be_given() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let ada = token(&runtime, "ada", &["inspect"]);
    assert_eq!(ask(&runtime, &ada, Method::GET, "/v1/admin/keys/web-ada", None).status(), 200);
    for (path, body) in [
        ("/v1/admin/keys", json!({ "name": "web-eve", "publish": ["#"] })),
        ("/v1/admin/keys/web-ada/rotate", json!({})),
    ] {
        let (status, _, text) = refused(ask(&runtime, &operator, Method::POST, path, Some(body)));
        assert!(status == 400 && text.contains("interlock tokens issue"), "{text}");
    }
    // The command line says the same.
    for arguments in [["keys", "issue", "web-eve"], ["keys", "rotate", "web-ada"]] {
        let output = runtime.interlock(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("interlock tokens issue"), "{output:?}");
    }
    assert_eq!(ask(&runtime, &operator, Method::DELETE, "/v1/admin/keys/web-ada", None).status(), 204);
    let (status, code, _) = refused(ask(&runtime, &ada, Method::GET, "/v1/status", None));
    assert_eq!((status, code.as_str()), (401, "token_revoked"));
}

#[test]
fn who_may_look_changes_no_key_and_what_makes_no_sense_is_refused_by_name() {
    let runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let (looks, orders) = (token(&runtime, "looks", &["inspect"]), token(&runtime, "orders", &["admin"]));
    let post =
        |token: &str, path: &str, body: Value| refused(ask(&runtime, token, Method::POST, path, Some(body)));
    given(
        &runtime,
        &orders,
        Method::POST,
        "/v1/admin/keys",
        Some(json!({ "name": "sensor", "publish": ["a"] })),
    );
    let before = told(&runtime, &["keys", "list", "--json"]);
    let new = json!({ "name": "other", "publish": ["a"] });
    assert_eq!(post(&looks, "/v1/admin/keys", new).1, "forbidden");
    assert_eq!(post(&looks, "/v1/admin/keys/sensor/rotate", json!({})).1, "forbidden");
    assert_eq!(refused(ask(&runtime, &looks, Method::DELETE, "/v1/admin/keys/sensor", None)).1, "forbidden");
    assert_eq!(refused(ask(&runtime, &orders, Method::GET, "/v1/admin/keys", None)).1, "forbidden");
    for (body, part) in [
        (json!({ "name": "x y" }), "x y"),
        (json!({ "name": "x", "publish": ["a/#/b"] }), "a/#/b"),
        (json!({ "name": "x", "expires_in_s": 0 }), "expires_in_s"),
        (json!({ "name": "x", "out": "/etc/passwd" }), "out"),
        (json!({ "publish": ["a"] }), "name"),
    ] {
        let (status, code, text) = post(&operator, "/v1/admin/keys", body);
        assert!(status == 400 && code == "bad_request" && text.contains(part), "{text}");
    }
    for (method, path) in [
        (Method::GET, "/v1/admin/keys/sensr"),
        (Method::DELETE, "/v1/admin/keys/sensr"),
        (Method::POST, "/v1/admin/keys/sensr/rotate"),
    ] {
        let (status, code, text) = refused(ask(&runtime, &operator, method, path, None));
        assert_eq!((status, code.as_str()), (404, "unknown_peer"));
        assert!(text.contains("did you mean `sensor`"), "{text}");
    }
    let (status, _, text) =
        refused(ask(&runtime, &operator, Method::DELETE, "/v1/admin/keys/sensor?now=1", None));
    assert!(status == 400 && text.contains("`now`"), "{text}");
    // An end beyond what anybody means is refused; the furthest that is allowed is no reason to fall over.
    const FURTHEST_S: u64 = 3_153_600_000;
    let far = |seconds: u64| json!({ "name": "far", "publish": ["a"], "expires_in_s": seconds });
    for seconds in [FURTHEST_S + 1, u64::MAX] {
        let (status, _, text) = post(&operator, "/v1/admin/keys", far(seconds));
        assert!(status == 400 && text.contains("a hundred years"), "{text}");
    }
    given(&runtime, &operator, Method::POST, "/v1/admin/keys", Some(far(FURTHEST_S)));
    const ROTATE: &str = "/v1/admin/keys/far/rotate";
    let (status, _, text) = post(&operator, ROTATE, json!({ "overlap_s": u64::MAX }));
    assert!(status == 400 && text.contains("`overlap_s`"), "{text}");
    given(&runtime, &operator, Method::POST, ROTATE, Some(json!({ "overlap_s": FURTHEST_S })));
    let after = told(&runtime, &["keys", "list", "--json"]);
    let keys = |rows: &[Value]| {
        rows.iter()
            .map(|row| (row["name"].clone(), row["public_key"].clone(), row["state"].clone()))
            .collect::<Vec<_>>()
    };
    let mut after = keys(&after);
    after.retain(|(name, _, _)| name != "far");
    assert_eq!(after, keys(&before));
    assert_eq!(runtime.is_ready(), Some(()));
}
