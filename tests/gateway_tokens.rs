use std::{
    io::Read,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::{Method, blocking::Response};
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, eventually,
    runtime::{TestRuntime, events},
};

/// A model that takes its time: an answer lasts longer than any test.
fn slow() -> (tempfile::NamedTempFile, String) {
    let script = tempfile::NamedTempFile::new().unwrap();
    let answer = vec!["word"; 4000].join(" ");
    let text = format!("name = \"slow\"\notherwise = [\"{answer}\"]\nsilence = [\"-\"]\nkeywords = []\n");
    std::fs::write(&script, text).unwrap();
    let settings = format!("[model]\nscript = \"{}\"\nscript_pause = \"50ms\"\n", script.path().display());
    (script, settings)
}

/// Issues a token on the command line; itself, and where it is.
fn issue(runtime: &TestRuntime, name: &str, more: &[&str]) -> (String, PathBuf) {
    let path = runtime.directory.path().join(format!("{name}.token"));
    let mut arguments = vec!["tokens", "issue", name, "--out", path.to_str().unwrap()];
    arguments.extend(more);
    let output = runtime.interlock(&arguments);
    assert!(output.status.success(), "{output:?}");
    (std::fs::read_to_string(&path).unwrap().trim().to_owned(), path)
}

fn ask(runtime: &TestRuntime, token: &str, method: Method, path: &str, body: Option<Value>) -> Response {
    let mut request = runtime.http().request(method, runtime.url(path).unwrap()).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().unwrap()
}

/// Status and code of an error.
fn refused(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn get(runtime: &TestRuntime, token: &str, path: &str) -> Response {
    ask(runtime, token, Method::GET, path, None)
}

/// Begins a turn that lasts.
fn long_turn(runtime: &TestRuntime, token: &str, conversation: &str) -> Response {
    let path = format!("/v1/conversations/{conversation}/messages");
    let mut response = ask(runtime, token, Method::POST, &path, Some(json!({ "text": "go on" })));
    assert_eq!(response.status(), 200);
    // It has begun when something of it is there.
    let mut first = [0; 1];
    response.read_exact(&mut first).unwrap();
    response
}

fn audit_text(runtime: &TestRuntime) -> String {
    std::fs::read_to_string(runtime.data().join("keys/audit.jsonl")).unwrap()
}

#[test]
fn a_token_opens_what_its_scopes_say_and_is_kept_nowhere_and_each_refusal_is_in_the_audit_file() {
    let runtime = TestRuntime::start();
    let (token, path) = issue(&runtime, "ada", &["--scope", "chat"]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get(&runtime, &token, "/v1/conversations").status(), 200);
    let response = get(&runtime, &token, "/v1/status");
    assert_eq!(refused(response), (403, "forbidden".to_owned()));
    let message = get(&runtime, &token, "/v1/admin/tokens").text().unwrap();
    assert!(message.contains("scope `inspect`") && message.contains("interlock tokens issue"), "{message}");
    assert_eq!(refused(get(&runtime, "interlock_00", "/v1/conversations")), (401, "unauthorized".to_owned()));

    let audit = eventually("both refusals in the audit file", || {
        let text = audit_text(&runtime);
        (text.contains("\"forbidden\"") && text.contains("\"unauthorized\"")).then_some(text)
    });
    assert!(audit.contains("token-issue") && audit.contains("from 127.0.0.1, token `ada`"), "{audit}");
    eventually("its use", || {
        let row = runtime.interlock(&["tokens", "list", "--json"]).stdout;
        let row: Value = serde_json::from_slice(&row).unwrap();
        assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some("ada"), Some("active")));
        (!row["last_used"].is_null()).then_some(())
    });
    for entry in std::fs::read_dir(runtime.data().join("keys")).unwrap().flatten() {
        let content = std::fs::read(entry.path()).unwrap();
        let digits = token.strip_prefix("interlock_").unwrap().as_bytes();
        assert!(!content.windows(digits.len()).any(|part| part == digits), "{:?}", entry.path());
    }
    // Nobody reads it from here, so it is not made.
    let output = runtime.interlock(&["tokens", "issue", "bob", "--scope", "chat"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!String::from_utf8_lossy(&runtime.interlock(&["tokens", "list"]).stdout).contains("bob"));
}

#[test]
fn a_revoked_token_is_refused_at_once_and_its_open_streams_say_why_they_end() {
    let (_script, settings) = slow();
    let runtime = TestRuntime::start_with(&settings);
    let (token, _) = issue(&runtime, "ada", &["--scope", "chat"]);
    let (other, _) = issue(&runtime, "bob", &["--scope", "chat", "--scope", "admin"]);
    let stream = long_turn(&runtime, &token, "kitchen");
    let unhurt = long_turn(&runtime, &other, "cellar");
    let reader = std::thread::spawn(move || events(stream));
    assert!(runtime.interlock(&["tokens", "revoke", "ada"]).status.success());
    let begun = Instant::now();
    assert_eq!(refused(get(&runtime, &token, "/v1/conversations")), (401, "token_revoked".to_owned()));
    let events = reader.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let ends: Vec<_> = events.iter().filter(|(name, _)| name != "started" && name != "delta").collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!((ends[0].0.as_str(), ends[0].1["code"].as_str()), ("error", Some("token_revoked")));
    // The turn behind it is over, too, and can be asked for anew.
    drop(unhurt);
    assert_eq!(get(&runtime, &other, "/v1/conversations").status(), 200);

    // The same over HTTP, by somebody who revokes itself.
    let stream = long_turn(&runtime, &other, "attic");
    let reader = std::thread::spawn(move || self::events(stream));
    assert_eq!(ask(&runtime, &other, Method::DELETE, "/v1/admin/tokens/bob", None).status(), 204);
    let last = reader.join().unwrap().pop().unwrap();
    assert_eq!((last.0.as_str(), last.1["code"].as_str()), ("error", Some("token_revoked")));
    assert_eq!(refused(get(&runtime, &other, "/v1/conversations")), (401, "token_revoked".to_owned()));
    assert!(audit_text(&runtime).contains("token-revoke"));
}

#[test]
fn a_token_ends_at_its_time_with_its_streams() {
    let (_script, settings) = slow();
    let runtime = TestRuntime::start_with(&settings);
    let (token, _) = issue(&runtime, "guest", &["--scope", "chat", "--expires", "4s"]);
    let events = events(long_turn(&runtime, &token, "hall"));
    let last = events.last().unwrap();
    assert_eq!((last.0.as_str(), last.1["code"].as_str()), ("error", Some("token_expired")));
    assert_eq!(refused(get(&runtime, &token, "/v1/conversations")), (401, "token_expired".to_owned()));
    // Its name is free again.
    let (again, _) = {
        std::fs::remove_file(runtime.directory.path().join("guest.token")).unwrap();
        issue(&runtime, "guest", &["--scope", "chat"])
    };
    assert_eq!(get(&runtime, &again, "/v1/conversations").status(), 200);
}

#[test]
fn tokens_are_issued_and_revoked_over_http_and_while_nothing_runs() {
    let mut runtime = TestRuntime::start();
    let operator = runtime.token().unwrap();
    let wanted = json!({ "name": "board", "scopes": ["inspect"], "expires_in_s": 3600 });
    let response = ask(&runtime, &operator, Method::POST, "/v1/admin/tokens", Some(wanted.clone()));
    assert_eq!(response.status(), 201);
    let made: Value = response.json().unwrap();
    let token = made["token"].as_str().unwrap().to_owned();
    assert_eq!(get(&runtime, &token, "/v1/status").status(), 200);
    let again = ask(&runtime, &operator, Method::POST, "/v1/admin/tokens", Some(wanted));
    assert_eq!(refused(again), (409, "token_exists".to_owned()));
    for (bad, part) in [
        (json!({ "name": "x", "scopes": [] }), "scope"),
        (json!({ "name": "x", "scopes": ["chat"], "publish": ["a"] }), "scope `bus`"),
        (json!({ "name": "x", "scopes": ["everything"] }), "everything"),
        (json!({ "name": "x" }), "scopes"),
        (json!({ "name": "x y", "scopes": ["chat"] }), "x y"),
        (json!({ "name": "x".repeat(61), "scopes": ["chat"] }), "too long"),
        (json!({ "name": "x", "scopes": ["chat"], "expires_in_s": 0 }), "expires_in_s"),
    ] {
        let response = ask(&runtime, &operator, Method::POST, "/v1/admin/tokens", Some(bad.clone()));
        assert_eq!(response.status(), 400, "{bad}");
        let text = response.text().unwrap();
        assert!(text.contains(part), "{text}");
    }
    // Reading is for `inspect`, orders are for `admin`.
    let list: Value = get(&runtime, &token, "/v1/admin/tokens").json().unwrap();
    assert_eq!(list["tokens"][0]["name"], "board");
    let order = ask(&runtime, &token, Method::DELETE, "/v1/admin/tokens/board", None);
    assert_eq!(refused(order), (403, "forbidden".to_owned()));
    let unknown = ask(&runtime, &operator, Method::DELETE, "/v1/admin/tokens/nobody", None);
    assert_eq!(refused(unknown), (404, "unknown_token".to_owned()));

    runtime.process.kill();
    assert!(runtime.interlock(&["tokens", "revoke", "board"]).status.success());
    let (night, _) = issue(&runtime, "night", &["--scope", "inspect"]);
    runtime.restart();
    assert_eq!(get(&runtime, &night, "/v1/status").status(), 200);
    assert_eq!(refused(get(&runtime, &token, "/v1/status")), (401, "token_revoked".to_owned()));
}

#[test]
fn the_rights_of_a_token_are_those_of_its_peer_in_the_registry() {
    let runtime = TestRuntime::start();
    issue(&runtime, "ada", &["--scope", "bus", "--publish", "garden/#", "--subscribe", "weather"]);
    // 3: it may, and nobody receives it; 4: it may not.
    let why = |topic: &str| runtime.bus(&["why", "web-ada", "publish", topic]).status.code();
    eventually("the registry to be read", || (why("garden/gate") == Some(3)).then_some(()));
    assert_eq!(why("kitchen"), Some(4));
    let shown = runtime.interlock(&["keys", "show", "web-ada"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("weather"), "{shown:?}");
    assert!(!runtime.data().join("keys/web-ada.toml").exists(), "nobody needs its key");
    // Taken away there, it is gone here.
    assert!(runtime.interlock(&["tokens", "revoke", "ada"]).status.success());
    eventually("the registry to be read", || (why("garden/gate") == Some(4)).then_some(()));
}

#[test]
fn a_file_of_tokens_with_a_mistake_changes_nothing_and_is_said_until_it_is_mended() {
    let runtime = TestRuntime::start();
    let (token, _) = issue(&runtime, "ada", &["--scope", "chat"]);
    assert_eq!(get(&runtime, &token, "/v1/conversations").status(), 200);
    let path = runtime.data().join("keys/tokens.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole.replace("\"chat\"", "\"chat\", \"everything\"")).unwrap();
    let gateway = || {
        let status = runtime.status();
        let children = status["tree"]["children"].as_array().unwrap().clone();
        children.into_iter().find(|child| child["name"] == "gateway").unwrap()
    };
    eventually("the gateway to say so", || {
        let text = gateway().to_string();
        (text.contains("tokens.json") && text.contains("everything")).then_some(())
    });
    assert_eq!(get(&runtime, &token, "/v1/conversations").status(), 200);
    assert_eq!(runtime.interlock(&["tokens", "list"]).status.code(), Some(8));
    std::fs::write(&path, &whole).unwrap();
    eventually("the gateway to be well", || runtime.is_ready());
    // What is taken out by hand is revoked; what is left is not.
    std::fs::write(&path, whole.replace("\"chat\"", "\"inspect\"")).unwrap();
    eventually("the edit to be in force", || {
        (get(&runtime, &token, "/v1/conversations").status() == 403).then_some(())
    });
    std::fs::write(&path, "{\"tokens\":[]}").unwrap();
    let begun = Instant::now();
    while get(&runtime, &token, "/v1/conversations").status() != 401 {
        assert!(begun.elapsed() < DEADLINE);
    }
}

#[test]
fn a_damaged_list_of_tokens_is_said_by_everybody_blames_no_token_and_hinders_no_revocation() {
    let mut runtime = TestRuntime::start();
    let (ada, _) = issue(&runtime, "ada", &["--scope", "chat"]);
    let (bob, _) = issue(&runtime, "bob", &["--scope", "chat", "--scope", "inspect"]);
    let (eve, _) = issue(&runtime, "eve", &["--scope", "chat"]);
    let (carol, _) = issue(&runtime, "carol", &["--scope", "chat"]);
    for token in [&ada, &bob, &eve, &carol] {
        assert_eq!(get(&runtime, token, "/v1/conversations").status(), 200);
    }
    let path = runtime.data().join("keys/tokens.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole.replacen("\"chat\"", "\"everything\"", 1)).unwrap();
    let stderr = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let checked = runtime.interlock(&["check"]);
    assert_eq!(checked.status.code(), Some(8), "{checked:?}");
    let doctor = runtime.bus(&["doctor", "--json"]);
    assert_eq!(doctor.status.code(), Some(8), "{doctor:?}");
    let rows = String::from_utf8(doctor.stdout).unwrap();
    let finding = rows.lines().find(|line| line.contains("tokens.file")).unwrap();
    let finding: Value = serde_json::from_str(finding).unwrap();
    assert!(finding["do"].as_str().unwrap().ends_with("tokens.json"), "{finding}");
    for said in [stderr(&checked), finding["found"].as_str().unwrap().to_owned()] {
        for part in ["tokens.json", "everything", "line ", "column ", "interlock tokens reset"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    // Whoever was in stays in, unless somebody revokes it, by one command, the other, or over HTTP.
    assert_eq!(get(&runtime, &ada, "/v1/conversations").status(), 200);
    for (arguments, token) in [(["tokens", "revoke", "ada"], &ada), (["keys", "revoke", "web-bob"], &bob)] {
        let revoked = runtime.interlock(&arguments);
        assert_eq!(revoked.status.code(), Some(0), "{revoked:?}");
        assert!(stderr(&revoked).contains("the list of tokens does not say so"), "{revoked:?}");
        assert_eq!(refused(get(&runtime, token, "/v1/conversations")), (401, "token_revoked".to_owned()));
    }
    let operator = runtime.token().unwrap();
    assert_eq!(ask(&runtime, &operator, Method::DELETE, "/v1/admin/tokens/eve", None).status(), 204);
    assert_eq!(refused(get(&runtime, &eve, "/v1/conversations")), (401, "token_revoked".to_owned()));
    let unknown = ask(&runtime, &operator, Method::DELETE, "/v1/admin/tokens/nobody", None);
    assert_eq!(refused(unknown), (404, "unknown_token".to_owned()));

    // After a start nobody knows whose tokens there were: that is not the fault of whoever has one.
    runtime.process.kill();
    let process = TestRuntime::command(runtime.directory.path());
    runtime.process = crate::harness::TestProcess::spawn(process);
    eventually("the gateway to answer", || {
        let url = runtime.url("/v1/status")?;
        let answer = runtime.http().get(url).bearer_auth(runtime.token()?).send().ok()?;
        (answer.status() == 200).then_some(())
    });
    for path in ["/v1/conversations", "/v1/models"] {
        let response = get(&runtime, &carol, path);
        assert_eq!(response.status(), 503);
        let body = response.text().unwrap();
        let content: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(content["error"]["code"], "tokens_unreadable", "{body}");
        assert!(!body.contains("tokens.json") && !body.contains("keys"), "{body}");
    }
    assert_eq!(runtime.http().get(runtime.url("/v1/models").unwrap()).send().unwrap().status(), 401);
    let operator = runtime.token().unwrap();
    let list = get(&runtime, &operator, "/v1/admin/tokens").text().unwrap();
    assert!(list.contains("line ") && !list.contains("keys/tokens.json"), "{list}");
    eventually("the status to say it", || runtime.status().to_string().contains("tokens.json").then_some(()));

    // The way out, on request only, and only then.
    let reset = runtime.interlock(&["tokens", "reset", "--json"]);
    assert_eq!(reset.status.code(), Some(0), "{reset:?}");
    let said: Value = serde_json::from_slice(&reset.stdout).unwrap();
    assert_eq!(said["revoked"], json!(["web-carol"]), "{said}");
    assert!(std::fs::read_to_string(said["aside"].as_str().unwrap()).unwrap().contains("everything"));
    eventually("the gateway to be well", || runtime.is_ready());
    assert_eq!(refused(get(&runtime, &carol, "/v1/conversations")), (401, "unauthorized".to_owned()));
    assert_eq!(runtime.interlock(&["tokens", "reset"]).status.code(), Some(2));
    assert_eq!(runtime.interlock(&["check"]).status.code(), Some(0));
    std::fs::remove_file(runtime.directory.path().join("carol.token")).unwrap();
    let (again, _) = issue(&runtime, "carol", &["--scope", "chat"]);
    assert_eq!(get(&runtime, &again, "/v1/conversations").status(), 200);
    // What comes back from elsewhere opens nothing for those whose peer was revoked.
    std::fs::write(&path, whole).unwrap();
    assert_eq!(refused(get(&runtime, &ada, "/v1/conversations")), (401, "token_revoked".to_owned()));
}

#[test]
fn a_token_gets_nothing_of_the_brokers_own_but_by_its_scopes_and_no_key_is_issued_in_its_name() {
    let runtime = TestRuntime::start();
    let out = runtime.directory.path().join("x.token");
    for (right, filter) in [
        ("--publish", "$sys/#"),
        ("--subscribe", "$sys/#"),
        ("--request", "$sys/broker/#"),
        ("--subscribe", "$dlq/#"),
    ] {
        let output = runtime.interlock(&[
            "tokens",
            "issue",
            "x",
            "--scope",
            "bus",
            right,
            filter,
            "--out",
            out.to_str().unwrap(),
        ]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said.contains(filter) && said.contains("scope `inspect`"), "{said}");
        let wanted = json!({ "name": "x", "scopes": ["bus"], &right[2..]: [filter] });
        let answer = ask(&runtime, &runtime.token().unwrap(), Method::POST, "/v1/admin/tokens", Some(wanted));
        assert_eq!(answer.status(), 400);
    }
    let (token, _) =
        issue(&runtime, "ada", &["--scope", "bus", "--scope", "inspect", "--subscribe", "$sys/#"]);
    assert_eq!(get(&runtime, &token, "/v1/bus/topics").status(), 200);
    let output = runtime.interlock(&["keys", "issue", "web-bob"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("`interlock tokens issue bob`"), "{output:?}");

    // Its peer is told the way by which it came.
    assert!(runtime.interlock(&["tokens", "revoke", "ada"]).status.success());
    eventually("the registry to be read", || {
        let output = runtime.bus(&["why", "web-ada", "publish", "a"]);
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        said.contains("`interlock tokens issue ada`").then_some(())
    });
}

#[test]
fn a_token_that_was_ended_does_not_come_back_whichever_of_two_files_is_damaged_or_put_back() {
    let runtime = TestRuntime::start();
    let keys = runtime.directory.path().join("data/keys");
    let (list, registry) = (keys.join("tokens.json"), keys.join("authorized.toml"));
    let (old, file) = issue(&runtime, "ada", &["--scope", "inspect"]);
    let (bob, _) = issue(&runtime, "bob", &["--scope", "inspect"]);
    let status = |token: &str| get(&runtime, token, "/v1/status").status().as_u16();
    assert_eq!((status(&old), status(&bob)), (200, 200));

    // A list of before the revocation is put back: the registry knows better, also once the name was given anew.
    let before = std::fs::read(&list).unwrap();
    assert!(runtime.interlock(&["tokens", "revoke", "ada"]).status.success());
    std::fs::write(&list, &before).unwrap();
    assert_eq!(status(&old), 401);
    std::fs::remove_file(file).unwrap();
    let (new, _) = issue(&runtime, "ada", &["--scope", "inspect"]);
    assert_eq!((status(&old), status(&new)), (401, 200));
    let after = std::fs::read(&list).unwrap();
    std::fs::write(&list, &before).unwrap();
    assert_eq!((status(&old), status(&bob)), (401, 200));
    std::fs::write(&list, &after).unwrap();
    assert_eq!(status(&new), 200);

    // A registry that cannot be read hinders no revocation, and is said.
    let whole = std::fs::read_to_string(&registry).unwrap();
    std::fs::write(&registry, format!("{whole}\n[[[\n")).unwrap();
    let revoked = runtime.interlock(&["tokens", "revoke", "bob"]);
    let said = String::from_utf8_lossy(&revoked.stderr).into_owned();
    assert!(revoked.status.success() && said.contains("the registry does not"), "{revoked:?}");
    assert_eq!(status(&bob), 401);
    let checked = runtime.interlock(&["check"]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.code() == Some(8) && said.contains("authorized.toml"), "{checked:?}");
    std::fs::write(&registry, whole).unwrap();
    assert!(runtime.interlock(&["check"]).status.success());
}
