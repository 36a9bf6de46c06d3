use std::{
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use interlock_bus::keys::{Audit, audit::Outcome};
use reqwest::{Method, blocking::Response};
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, eventually,
    runtime::{TestRuntime, events, final_text, tool},
    web::{ask, given, refused, token},
};

const PASSPHRASE: &str = "correct horse battery staple";
const PATH: &str = "/v1/admin/backups";

fn passphrase_file(runtime: &TestRuntime) -> PathBuf {
    let path = runtime.directory.path().join("passphrase");
    std::fs::write(&path, format!("{PASSPHRASE}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn post(runtime: &TestRuntime, path: &str, body: Value) -> Response {
    ask(runtime, &runtime.token().unwrap(), Method::POST, path, Some(body))
}

/// The answer of a post, as a stream.
fn stream(runtime: &TestRuntime, path: &str, body: &Value) -> Response {
    let request = runtime.http().post(runtime.url(path).unwrap()).bearer_auth(runtime.token().unwrap());
    request.header("Accept", "text/event-stream").json(body).send().unwrap()
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether a passphrase stands in the log or in any file that is not sealed.
fn is_told(runtime: &TestRuntime, text: &str) -> bool {
    let logs = runtime.interlock(&["logs", "--json", "--text", text]).stdout;
    let audit = std::fs::read(runtime.data().join("keys/audit.jsonl")).unwrap();
    !logs.is_empty() || audit.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn a_backup_that_was_made_over_http_is_verified_and_restored_elsewhere_on_the_command_line() {
    let runtime = TestRuntime::start();
    let said = final_text(&runtime.turn("kitchen", "hello"));
    let made = post(&runtime, PATH, json!({ "name": "first", "passphrase": PASSPHRASE }));
    assert_eq!(made.status(), 200);
    let made: Value = made.json().unwrap();
    let file = runtime.data().join("backups/first.ilbk");
    assert_eq!((&made["name"], &made["path"]), (&json!("first.ilbk"), &json!(file)));
    let parts = made["contents"]["parts"].as_array().unwrap();
    assert!(
        ["database", "key", "config"].iter().all(|kind| parts.iter().any(|part| part["kind"] == *kind)),
        "{made}"
    );
    let passphrase = passphrase_file(&runtime);
    let passphrase = ["--passphrase-file", passphrase.to_str().unwrap()];
    let file_text = file.to_str().unwrap();
    let verified = runtime.interlock(&[&["backup", "verify", file_text][..], &passphrase].concat());
    assert!(verified.status.success(), "{verified:?}");

    let listed = given(&runtime, &runtime.token().unwrap(), Method::GET, PATH, None);
    let row: Value =
        serde_json::from_slice(&runtime.interlock(&["backup", "list", "--json"]).stdout).unwrap();
    let mut shown = listed["backups"][0].clone();
    assert_eq!(shown.as_object_mut().unwrap().remove("name"), Some(json!("first.ilbk")));
    assert_eq!((shown, &listed["directory"]), (row, &json!(runtime.data().join("backups"))));
    let verified: Value =
        post(&runtime, &format!("{PATH}/first.ilbk/verify"), json!({ "passphrase": PASSPHRASE }))
            .json()
            .unwrap();
    assert_eq!(verified["contents"], made["contents"]);
    assert!(!is_told(&runtime, PASSPHRASE));
    let entries = Audit::of(&runtime.data().join("keys")).last().unwrap();
    for action in ["backup-create", "backup-verify"] {
        let by = |by: &str| {
            entries.iter().any(|entry| {
                entry.act.action == action
                    && entry.by.as_ref().is_some_and(|name| name.as_str() == by)
                    && entry.outcome == Outcome::Done
            })
        };
        assert!(by("operator"), "{action}: {entries:?}");
    }

    let elsewhere = tempfile::tempdir().unwrap();
    let mut restore = tool("interlock");
    restore
        .args(["backup", "restore", file_text])
        .args(passphrase)
        .arg("--data-dir")
        .arg(elsewhere.path().join("data"));
    restore.env("HOME", elsewhere.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    let restored = restore.output().unwrap();
    assert!(restored.status.success(), "{restored:?}");
    std::fs::create_dir(elsewhere.path().join("tmp")).unwrap();
    std::fs::copy(runtime.directory.path().join("interlock.toml"), elsewhere.path().join("interlock.toml"))
        .unwrap();
    drop(runtime);
    let again = TestRuntime::on(elsewhere);
    again.wait_until_ready();
    let history: Value = again.get("/v1/conversations/kitchen").json().unwrap();
    assert_eq!(history["messages"][1]["text"], said.as_str(), "{history}");
}

#[test]
fn a_stream_tells_how_far_a_backup_is_and_ends_with_it_or_with_a_reason() {
    let runtime = TestRuntime::start();
    let told = events(stream(&runtime, PATH, &json!({ "name": "streamed", "passphrase": PASSPHRASE })));
    let percent: Vec<u64> = told
        .iter()
        .filter(|(name, _)| name == "progress")
        .map(|(_, word)| word["percent"].as_u64().unwrap())
        .collect();
    assert!(
        percent.len() > 1 && percent.is_sorted() && percent.iter().all(|percent| *percent < 100),
        "{told:?}"
    );
    let (name, result) = told.last().unwrap();
    assert_eq!((name.as_str(), &result["name"]), ("end", &json!("streamed.ilbk")));
    let path = format!("{PATH}/streamed.ilbk/verify");
    let told = events(stream(&runtime, &path, &json!({ "passphrase": "another horse battery" })));
    let (name, error) = told.last().unwrap();
    assert_eq!((name.as_str(), &error["code"]), ("error", &json!("wrong_passphrase")), "{told:?}");
    // What cannot begin is an answer of its own.
    let again = stream(&runtime, PATH, &json!({ "name": "streamed", "passphrase": PASSPHRASE }));
    let (status, code, text) = refused(again);
    assert_eq!((status, code.as_str()), (409, "exists"), "{text}");
}

#[test]
fn a_client_that_goes_away_ends_its_backup_which_leaves_nothing() {
    let runtime = TestRuntime::start();
    let last = || {
        let entries = Audit::of(&runtime.data().join("keys")).last().unwrap();
        entries.into_iter().rfind(|entry| entry.act.action == "backup-create")
    };
    // One that is over before anybody could go away proves nothing: then once more.
    let gave_up = (0..10).any(|round| {
        let before = last().map(|entry| entry.id);
        let body = json!({ "name": format!("round-{round}"), "passphrase": PASSPHRASE });
        let mut given_up = stream(&runtime, PATH, &body);
        given_up.read_exact(&mut [0; 16]).unwrap();
        // One at a time.
        let second =
            post(&runtime, PATH, json!({ "name": format!("other-{round}"), "passphrase": PASSPHRASE }));
        let was_busy = second.status() == 503 && refused(second).1 == "busy";
        drop(given_up);
        let end = eventually("its end", || last().filter(|entry| Some(entry.id) != before));
        let was_stopped = matches!(&end.outcome, Outcome::Failed(why) if why.contains("stopped"));
        files(&runtime.data().join("backups")).iter().for_each(|name| {
            assert!(!was_stopped || !name.contains(&format!("round-{round}")), "{name} was left");
            std::fs::remove_file(runtime.data().join("backups").join(name)).unwrap();
        });
        was_busy && was_stopped
    });
    assert!(gave_up, "{:?}", last());
    assert_eq!(files(&runtime.data().join("backups")), [""; 0]);
    assert!(
        files(&runtime.data()).iter().all(|name| !name.contains(".tmp-")),
        "{:?}",
        files(&runtime.data())
    );
    // The next one may come a moment before the last one has let go.
    eventually("the next one", || {
        let made = post(&runtime, PATH, json!({ "passphrase": PASSPHRASE }));
        (made.status() == 200).then_some(())
    });
    let names = files(&runtime.data().join("backups"));
    assert!(
        names.len() == 1 && names[0].starts_with("interlock-") && names[0].ends_with(".ilbk"),
        "{names:?}"
    );
}

#[test]
fn the_passphrase_of_a_backup_comes_in_the_body_or_from_the_runtimes_own_environment_and_is_never_repeated() {
    let mut runtime = TestRuntime::start();
    let (status, code, text) = refused(post(&runtime, PATH, json!({ "name": "x" })));
    assert_eq!((status, code.as_str()), (400, "no_passphrase"));
    assert!(text.contains("INTERLOCK_BACKUP_PASSPHRASE_FILE") && text.contains("`passphrase`"), "{text}");
    for (body, part) in [
        (json!({ "passphrase": "too short 1" }), "at least 12"),
        (json!({ "passphrase": "" }), "empty"),
        (json!({ "passphrase": ["correct horse battery staple"] }), "column"),
        (json!(PASSPHRASE), "column"),
        (json!({ "passphrase": PASSPHRASE, "name": "../outside" }), "../outside"),
        (json!({ "passphrase": PASSPHRASE, "name": "/tmp/outside" }), "/tmp/outside"),
        (json!({ "passphrase": PASSPHRASE, "file": "/tmp/outside" }), "unknown field"),
        (json!({ PASSPHRASE: "passphrase" }), "unknown field"),
        (json!([PASSPHRASE]), "it is a list"),
    ] {
        let (status, code, text) = refused(post(&runtime, PATH, body));
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{text}");
        assert!(text.contains(part) && !text.contains("horse") && !text.contains("too short 1"), "{text}");
    }
    let (status, code, _) = refused(post(&runtime, PATH, json!({ "passphrase": "x".repeat(9000) })));
    assert_eq!((status, code.as_str()), (413, "body_too_large"));
    assert_eq!(files(&runtime.data().join("backups")), [""; 0]);

    let file = passphrase_file(&runtime);
    runtime.process.kill();
    let mut command = TestRuntime::command(runtime.directory.path());
    command.env("INTERLOCK_BACKUP_PASSPHRASE_FILE", &file);
    runtime.process = crate::harness::TestProcess::spawn(command);
    runtime.wait_until_ready();
    assert_eq!(post(&runtime, PATH, json!({ "name": "own" })).status(), 200);
    assert_eq!(post(&runtime, &format!("{PATH}/own.ilbk/verify"), json!({})).status(), 200);
    assert_eq!(
        post(&runtime, &format!("{PATH}/own.ilbk/verify"), json!({ "passphrase": PASSPHRASE })).status(),
        200
    );
}

#[test]
fn who_may_look_makes_no_backup_and_a_damaged_or_unknown_one_is_said_by_name() {
    let runtime = TestRuntime::start();
    let looks = token(&runtime, "looks", &["inspect"]);
    let new = json!({ "passphrase": PASSPHRASE });
    assert_eq!(refused(ask(&runtime, &looks, Method::POST, PATH, Some(new.clone()))).1, "forbidden");
    assert_eq!(given(&runtime, &looks, Method::GET, PATH, None)["backups"], json!([]));
    assert_eq!(post(&runtime, PATH, json!({ "name": "one", "passphrase": PASSPHRASE })).status(), 200);
    let verify = |name: &str, passphrase: &str| {
        refused(post(&runtime, &format!("{PATH}/{name}/verify"), json!({ "passphrase": passphrase })))
    };
    let forbidden = ask(&runtime, &looks, Method::POST, &format!("{PATH}/one.ilbk/verify"), Some(new));
    assert_eq!(refused(forbidden).1, "forbidden");
    let (status, code, text) = verify("one", PASSPHRASE);
    assert_eq!((status, code.as_str()), (404, "unknown_backup"));
    assert!(text.contains("did you mean `one.ilbk`"), "{text}");
    assert_eq!(verify("..%2Fdata", PASSPHRASE).0, 400);
    let (status, code, _) = verify("one.ilbk", "another horse battery");
    assert_eq!((status, code.as_str()), (400, "wrong_passphrase"));
    let file = runtime.data().join("backups/one.ilbk");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (status, code, text) = verify("one.ilbk", PASSPHRASE);
    assert_eq!((status, code.as_str()), (409, "damaged"));
    assert!(text.contains("chunk"), "{text}");
}

#[test]
fn after_several_wrong_passphrases_the_next_one_waits() {
    let runtime = TestRuntime::start();
    assert_eq!(post(&runtime, PATH, json!({ "name": "one", "passphrase": PASSPHRASE })).status(), 200);
    let path = format!("{PATH}/one.ilbk/verify");
    for _ in 0..4 {
        assert_eq!(
            refused(post(&runtime, &path, json!({ "passphrase": "another horse battery" }))).1,
            "wrong_passphrase"
        );
    }
    // The fifth: two seconds, which somebody who goes away does not have to.
    let begun = Instant::now();
    assert_eq!(post(&runtime, &path, json!({ "passphrase": PASSPHRASE })).status(), 200);
    assert!(
        begun.elapsed() > Duration::from_secs(2) && begun.elapsed() < DEADLINE * 2,
        "{:?}",
        begun.elapsed()
    );
}
