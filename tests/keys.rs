use std::{
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use interlock_bus::{
    Client, ConnectError, ConnectOptions, Credentials, Event, Payload, Permissions,
    blocking::wait,
    client::SubscribeOptions,
    keys::{LastUse, last_use},
    native::Record,
};
use serde_json::{Value, json};

use crate::{
    harness::{
        DEADLINE, TestBroker, TestProcess, eventually,
        runtime::{TestRuntime, tool},
    },
    raw_peer::RawPeer,
};

fn connect(credentials: &Credentials) -> Client {
    Client::connect_blocking(ConnectOptions::new(credentials.clone()).timeout(DEADLINE)).unwrap()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn keys(data: &Path, arguments: &[&str]) -> Output {
    let mut command = tool("interlock");
    command.arg("--data-dir").arg(data).arg("keys").args(arguments).output().unwrap()
}

/// What a verb of `interlock keys` says on standard output, if it ends well.
fn told(data: &Path, arguments: &[&str]) -> String {
    let output = keys(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn told_json(data: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(told(data, arguments).trim()).unwrap()
}

/// The row of one peer in `list --json`.
fn listed(data: &Path, name: &str) -> Value {
    let rows = told(data, &["list", "--json"]);
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.into_iter().find(|row| row["name"] == name).unwrap()
}

fn issue_until(broker: &TestBroker, name: &str, lasting: Duration) -> (Credentials, u64) {
    let permissions = Permissions::from_lists(&["a"], &["a"], &[], &["$sys/broker/#"]).unwrap();
    let end_ms = now_ms() + lasting.as_millis() as u64;
    let endpoints = broker.handle.endpoints();
    let issued =
        broker.store.issue_until(&name.parse().unwrap(), &permissions, Some(end_ms), endpoints, None);
    (issued.unwrap(), end_ms)
}

/// Ends sessions of every kind, and says when and why.
#[test]
fn a_key_that_expires_ends_its_sessions_at_that_instant_and_is_refused_from_then_on() {
    let broker = TestBroker::start();
    let observer = broker.enrol("observer", &[], &["$sys/#"], &[], &["$sys/broker/#"]);
    let observer = connect(&Credentials::load(&observer).unwrap());
    let filter = "$sys/auth/refused".parse().unwrap();
    let mut refusals = wait(observer.subscribe(&filter, SubscribeOptions::default())).unwrap();
    let (guest, end_ms) = issue_until(&broker, "guest", Duration::from_millis(1500));
    let (memory, _) = issue_until(&broker, "memory", Duration::from_secs(3600));
    let endpoint = &broker.handle.endpoints()[0];
    let mut native = RawPeer::native(endpoint, &guest);
    let other = connect(&Credentials { file: None, ..memory });
    let _stock =
        TestProcess::python("stock.py", &["sub", guest.file.as_ref().unwrap().to_str().unwrap(), "a"]);
    // An edit meanwhile changes nothing of it.
    broker.enrol("another", &["a"], &[], &[], &[]);

    let goodbye = native.record_where(|record| matches!(record, Record::Goodbye { .. })).unwrap();
    let late_ms = now_ms() as i64 - end_ms as i64;
    assert!((0..1000).contains(&late_ms), "{late_ms} ms after its end");
    let Record::Goodbye { code, text } = goodbye else { unreachable!() };
    assert!(
        code == "key_expired" && text.contains("guest") && text.contains("rotate guest --expires"),
        "{text}"
    );
    let peers = || {
        let topic = "$sys/broker/peers".parse().unwrap();
        let reply = wait(observer.request(&topic, Payload::default(), DEADLINE)).unwrap();
        let rows: Value = serde_json::from_slice(&reply.payload).unwrap();
        rows.as_array().unwrap().iter().filter(|row| row["peer"] == "guest").count()
    };
    eventually("the sessions of the guest to be gone", || (peers() == 0).then_some(()));

    let refused = Client::connect_blocking(ConnectOptions::new(guest.clone()).timeout(DEADLINE));
    assert!(matches!(refused, Err(ConnectError::KeyRefused { .. })), "{refused:?}");
    let event = loop {
        match wait(refusals.next()) {
            Some(Event::Message(message)) => break message.decode::<Value>().unwrap(),
            Some(_) => {}
            None => panic!("the events have ended"),
        }
    };
    assert_eq!((&event["code"], &event["peer"]), (&json!("key_expired"), &json!("guest")));
    // Nobody else felt it, and a new key with a new end works at once.
    wait(other.ping()).unwrap();
    let name = guest.name.clone();
    let rotation = broker.store.rotate(&name, Duration::ZERO, None, &[], None);
    assert!(rotation.unwrap_err().to_string().contains("--expires"));
    let rotation = broker.store.rotate(&name, Duration::ZERO, Some(now_ms() + 60_000), &[], None).unwrap();
    connect(&rotation.credentials);
}

#[test]
fn a_client_outlives_the_rotation_of_its_key_with_and_without_an_overlap() {
    let broker = TestBroker::start();
    let path = broker.enrol("member", &["a"], &["a"], &[], &[]);
    let first = Credentials::load(&path).unwrap();
    let client = connect(&first);
    let name = first.name.clone();
    let mut subscription =
        wait(client.subscribe(&"a".parse().unwrap(), SubscribeOptions::default())).unwrap();
    let mut works = |what: &str| {
        eventually(what, || {
            let topic = "a".parse().unwrap();
            wait(client.publish_acknowledged(&topic, Payload::text(what), Default::default())).ok()
        });
        loop {
            match wait(subscription.next()) {
                Some(Event::Message(message)) if message.payload == what.as_bytes() => return,
                Some(_) => {}
                None => panic!("the subscription has ended: {:?}", client.closed_reason()),
            }
        }
    };
    works("before");
    broker.store.rotate(&name, Duration::from_millis(700), None, &[], None).unwrap();
    let mut old = RawPeer::native(&broker.handle.endpoints()[0], &first);
    let goodbye = old.record_where(|record| matches!(record, Record::Goodbye { .. })).unwrap();
    assert!(matches!(&goodbye, Record::Goodbye { code, .. } if code == "key_replaced"), "{goodbye:?}");
    works("after the overlap");
    let rotated = Instant::now();
    broker.store.rotate(&name, Duration::ZERO, None, &[], None).unwrap();
    works("at once");
    assert!(rotated.elapsed() < Duration::from_secs(5), "{:?}", rotated.elapsed());
    // Who has the old key in memory only is told, and tries no more.
    let second = Credentials::load(&path).unwrap();
    let memory = connect(&Credentials { file: None, ..second });
    broker.store.rotate(&name, Duration::ZERO, None, &[], None).unwrap();
    let reason = eventually("the end of the one without a file", || memory.closed_reason());
    assert!(reason.contains("replaced"), "{reason}");
    works("and again");
}

#[test]
fn the_last_use_of_each_key_is_known_while_the_broker_runs_and_after_it() {
    let broker = TestBroker::start();
    let file = broker.keys().join(last_use::FILE);
    let load = |name: &str| Credentials::load(&broker.enrol(name, &["a"], &[], &[], &[])).unwrap();
    let (early, idle, late) = (load("early"), load("idle"), load("late"));
    let of = |credentials: &Credentials| LastUse::load(&file).unwrap().of_key(&credentials.keys.public);
    let began = now_ms();
    let client = connect(&early);
    let written = eventually("the beginning of a session to be written down", || of(&early));
    assert!((began..=now_ms()).contains(&written));
    let closing = now_ms();
    wait(client.close());
    // The end of the broker writes what it still has, and the end of each session is a use.
    let _open = connect(&late);
    let stopping = now_ms();
    broker.handle.stop(Duration::from_secs(1));
    let [early, late] = [&early, &late].map(|credentials| of(credentials).unwrap());
    assert!(early >= closing.min(stopping) && late >= stopping && late <= now_ms(), "{early} {late}");
    assert_eq!(of(&idle), None);
}

#[test]
fn list_and_show_say_of_a_peer_all_there_is() {
    let runtime = TestRuntime::start();
    let data = runtime.data();
    let began = now_ms();
    let issued = told_json(
        &data,
        &["issue", "guest", "--publish", "a/#", "--request", "b", "--expires", "30d", "--json"],
    );
    let file = PathBuf::from(issued["file"].as_str().unwrap());
    let credentials = Credentials::load(&file).unwrap();
    let row = listed(&data, "guest");
    assert_eq!(row["fingerprint"], credentials.keys.public.fingerprint());
    assert_eq!(
        (&row["state"], &row["last_use_ms"], &row["expires_ms"]),
        (&json!("active"), &Value::Null, &issued["expires_ms"])
    );
    let days = |ms: &Value| (ms.as_u64().unwrap() - began) as f64 / 86_400_000.0;
    assert!((days(&row["expires_ms"]) - 30.0).abs() < 0.01 && days(&row["issued_ms"]) < 0.01, "{row}");
    let client = connect(&credentials);
    let used = eventually("its use", || listed(&data, "guest")["last_use_ms"].as_u64());
    assert!((began..=now_ms()).contains(&used));

    let shown = told_json(&data, &["show", "guest", "--json"]);
    assert_eq!(shown["public_key"], credentials.keys.public.to_string());
    assert_eq!(shown["sessions"].as_array().unwrap().len(), 1, "{shown}");
    let registry = std::fs::read_to_string(data.join("keys/authorized.toml")).unwrap();
    let rules = shown["rules"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["filter"] == "a/#").unwrap();
    assert_eq!((&rule["right"], &rule["decision"]), (&json!("publish"), &json!("allow")));
    let line = registry.lines().nth(rule["line"].as_u64().unwrap() as usize - 1).unwrap();
    assert!(line.contains("a/#"), "{line}");

    // The same for people, and for a peer of the tree.
    let text = told(&data, &["show", "guest"]);
    let parts = [
        "active",
        "publish",
        "allow a/#",
        "authorized.toml:",
        "this key, since",
        &credentials.keys.public.fingerprint(),
    ];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(told(&data, &["show", "gateway"]).contains("no key (in process)"));
    let table = told(&data, &["list"]);
    let row = table.lines().find(|line| line.starts_with("guest")).unwrap();
    assert!(row.contains("publish a/#") && row.contains("request b"), "{table}");
    drop(client);

    // Rotated: both keys are shown with the end of the old one; revoked: that is its state.
    let rotated = told_json(&data, &["rotate", "guest", "--overlap", "1h", "--json"]);
    let shown = told_json(&data, &["show", "guest", "--json"]);
    assert_eq!(shown["old_keys"][0]["public_key"], credentials.keys.public.to_string());
    assert_eq!(
        (&shown["old_keys"][0]["until_ms"], &shown["public_key"]),
        (&rotated["before_until_ms"], &rotated["public_key"])
    );
    assert_eq!(told_json(&data, &["revoke", "guest", "--json"])["state"], "revoked");
    assert_eq!(listed(&data, "guest")["state"], "revoked");
    let ends = |arguments: &[&str], code: i32, part: &str| {
        let output = keys(&data, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(part), "{arguments:?}: {output:?}");
    };
    ends(&["rotate", "guest"], 1, "interlock keys issue guest");
    ends(&["show", "nobody"], 1, "interlock keys list");
    ends(&["rotate", "gateway", "--expires", "1d"], 2, "built-in");
    ends(&["issue", "other", "--expires", "0s"], 2, "30d");
    ends(&["rotate"], 2, "--broker");
    ends(&["rotate", "guest", "--broker"], 2, "cannot be used with");
    // Everything goes on after the runtime has ended, and says so.
    assert!(runtime.interlock(&["stop"]).status.success());
    let shown = told_json(&data, &["show", "guest", "--json"]);
    assert_eq!(shown["sessions"], Value::Null);
    assert!(shown["last_use_ms"].as_u64().unwrap() >= used);
}

#[test]
fn an_enrolment_line_makes_the_credentials_file_in_another_shell_and_never_writes_over_another_key() {
    let data = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir().unwrap();
    let line = told(data.path(), &["issue", "guest", "--publish", "a", "--print"]);
    assert_eq!(line.lines().count(), 1);
    let accept = |line: &str, more: &[&str]| {
        let mut command = tool("interlock");
        command.args(["keys", "accept"]).args(more).current_dir(place.path());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(accept(&line, &[]).status.success());
    let file = place.path().join("guest.toml");
    let accepted = Credentials::load(&file).unwrap();
    let own = Credentials::load(&data.path().join("keys/guest.toml")).unwrap();
    assert_eq!((accepted.keys, accepted.broker, accepted.endpoints), (own.keys, own.broker, own.endpoints));
    assert!(accept(&line, &[]).status.success(), "the same again is no mistake");

    told(data.path(), &["rotate", "guest", "--now"]);
    told(data.path(), &["issue", "other", "--publish", "a"]);
    let other =
        told(data.path(), &["issue", "third", "--publish", "a", "--print"]).replace("\"third\"", "\"guest\"");
    let refused = accept(&other, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("--replace"), "{said}");
    assert!(accept(&other, &["--replace"]).status.success());
    let damaged = accept(&line[..line.len() / 2], &["--out", "half.toml"]);
    assert_eq!(damaged.status.code(), Some(8), "{damaged:?}");
    assert!(!place.path().join("half.toml").exists());
}

#[test]
fn the_wrapping_key_is_rotated_while_the_runtime_runs_and_the_next_start_has_it() {
    let mut runtime = TestRuntime::start();
    let data = runtime.data();
    let wrapping = || std::fs::read(data.join("keys/wrap.key")).unwrap();
    let (before, sealed) = (wrapping(), std::fs::read(data.join("keys/data.key")).unwrap());
    told_json(&data, &["rotate", "--wrap", "--json"]);
    assert_ne!(wrapping(), before);
    // A store that is started again finds its key.
    assert!(runtime.interlock(&["restart", "store"]).status.success());
    assert!(runtime.interlock(&["stop"]).status.success());
    // The old wrapping key opens the new seal no more.
    let now = wrapping();
    std::fs::write(data.join("keys/wrap.key"), &before).unwrap();
    assert_eq!(runtime.interlock(&["logs"]).status.code(), Some(4));
    std::fs::write(data.join("keys/wrap.key"), now).unwrap();
    assert_ne!(std::fs::read(data.join("keys/data.key")).unwrap(), sealed);
    runtime.restart();
}

/// The records of changes of keys whose text has this part, oldest first.
fn audited(runtime: &TestRuntime, more: &[&str], part: &str) -> Vec<Value> {
    let output = runtime.interlock(&[&["logs", "--component", "keys", "--json"], more].concat());
    let lines = String::from_utf8(output.stdout).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["message"].as_str().unwrap().contains(part)).collect()
}

fn field<'a>(record: &'a Value, name: &str) -> &'a str {
    let fields = record["fields"].as_array().unwrap();
    fields.iter().find(|field| field[0] == name).map_or("", |field| field[1].as_str().unwrap())
}

#[test]
fn each_change_of_keys_is_in_the_log_once_whether_the_runtime_runs_or_not() {
    let mut runtime = TestRuntime::start();
    let data = runtime.data();
    let issued = told_json(&data, &["issue", "guest", "--publish", "a", "--json"]);
    told(&data, &["rotate", "guest"]);
    told(&data, &["rotate", "--wrap"]);
    told(&data, &["revoke", "guest"]);
    let first = eventually("the revocation to be in the log", || {
        audited(&runtime, &[], "revoke of `guest`: done").pop()
    });
    assert_eq!(first["level"], "info");
    let issue = audited(&runtime, &[], "issue of `guest`: done");
    assert_eq!(issue.len(), 1);
    let uid = nix::unistd::getuid().to_string();
    assert_eq!(
        [field(&issue[0], "fingerprint"), field(&issue[0], "uid"), field(&issue[0], "peer")],
        [issued["fingerprint"].as_str().unwrap(), &uid, "guest"]
    );
    assert_eq!(field(&issue[0], "pid"), issue[0]["process"].to_string());
    for part in ["rotate of `guest`: done", "rotate-wrap: done", "issue of `operator`: done"] {
        assert_eq!(audited(&runtime, &[], part).len(), 1, "{part}");
    }

    // While nothing runs: whoever looks finds it, and the next start does not store it again.
    assert!(runtime.interlock(&["stop"]).status.success());
    told(&data, &["issue", "late", "--publish", "a"]);
    assert_eq!(audited(&runtime, &[], "issue of `late`: done").len(), 1);
    told(&data, &["rotate", "--broker"]);
    // Somebody was killed in the middle, and what was taken over is forgotten: nothing is there twice.
    std::fs::remove_file(data.join("keys/audit.taken")).unwrap();
    let path = data.join("keys/audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let begun = text.lines().find(|line| line.contains("\"late\"") && line.contains("begun")).unwrap();
    let mut killed: Value = serde_json::from_str(begun).unwrap();
    (killed["id"], killed["action"]) = (json!("01900000-0000-7000-8000-000000000001"), json!("revoke"));
    std::fs::write(&path, format!("{text}{killed}\n")).unwrap();
    told(&data, &["issue", "later", "--publish", "a"]);
    runtime.restart();
    eventually("the last change to be in the log", || audited(&runtime, &[], "issue of `later`: done").pop());
    for part in [
        "issue of `guest`",
        "issue of `late`",
        "rotate-broker: done",
        "revoke of `late`: unknown",
        "issue of `later`",
    ] {
        assert_eq!(audited(&runtime, &[], part).len(), 1, "{part}");
    }
}

#[test]
fn wrong_passphrases_are_in_the_log_and_the_fourth_has_to_wait_but_lets_the_owner_in() {
    let runtime = TestRuntime::start();
    let private = |name: &str, text: &str| {
        let path = runtime.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (private("right", "correct horse battery"), private("wrong", "not that one at all"));
    told(&runtime.data(), &["passphrase", "--new-passphrase-file", &right]);
    let tries = |file: &str| {
        let began = Instant::now();
        let output = runtime.interlock(&["logs", "-n", "1", "--passphrase-file", file]);
        (output.status.code(), began.elapsed())
    };
    for _ in 0..3 {
        assert_eq!(tries(&wrong).0, Some(4));
    }
    let (code, waited) = tries(&wrong);
    assert!(code == Some(4) && waited >= Duration::from_secs(1), "{waited:?}");
    let (code, waited) = tries(&right);
    assert!(code == Some(0) && waited >= Duration::from_secs(2), "{waited:?}");
    // The right one ends it.
    assert_eq!(tries(&wrong).0, Some(4));
    let wrong = eventually("them to be in the log", || {
        let found = audited(&runtime, &["--passphrase-file", &right], "unlock: failed: wrong passphrase");
        (found.len() == 5).then_some(found)
    });
    assert!(wrong.iter().all(|record| record["level"] == "warn"));
    let text = std::fs::read_to_string(runtime.data().join("keys/audit.jsonl")).unwrap();
    assert!(!text.contains("horse") && !text.contains("not that one"), "{text}");
}

#[test]
fn exported_keys_open_with_their_passphrase_only_and_work_in_a_fresh_data_directory() {
    let runtime = TestRuntime::start();
    let data = runtime.data();
    let place = runtime.directory.path();
    let private = |name: &str, text: &str| {
        let path = place.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (private("right", "correct horse battery"), private("wrong", "not that one at all"));
    told(&data, &["issue", "guest", "--publish", "a"]);
    let guest = Credentials::load(&data.join("keys/guest.toml")).unwrap();
    let file = place.join("exported");
    let path = file.to_str().unwrap();
    let short = private("short", "too short");
    let ends = |data: &Path, arguments: &[&str], code: i32, part: &str| {
        let output = keys(data, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(part), "{arguments:?}: {output:?}");
    };
    ends(&data, &["export", "--all", "--to", path, "--new-passphrase-file", &short], 2, "12 are needed");
    ends(&data, &["export", "nobody", "--to", path, "--new-passphrase-file", &right], 1, "nobody");
    ends(&data, &["export", "--to", path, "--new-passphrase-file", &right], 2, "--all");
    let done =
        told_json(&data, &["export", "--all", "--to", path, "--new-passphrase-file", &right, "--json"]);
    assert!(done["broker"] == true && done["peers"].as_array().unwrap().contains(&json!("guest")), "{done}");
    ends(&data, &["export", "--all", "--to", path, "--new-passphrase-file", &right], 2, "another name");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

    let fresh = place.join("fresh");
    ends(&fresh, &["import", path, "--passphrase-file", &wrong], 4, "does not open");
    let text = std::fs::read_to_string(&file).unwrap();
    let cut = private("cut", &text[..text.len() - 9]);
    ends(&fresh, &["import", &cut, "--passphrase-file", &right], 8, "not all of it");
    let later = private("later", &text.replacen("\"interlock_keys\":1", "\"interlock_keys\":7", 1));
    ends(&fresh, &["import", &later, "--passphrase-file", &right], 9, "version 7");
    assert!(!fresh.exists(), "nothing was begun");
    let done = told_json(&fresh, &["import", path, "--passphrase-file", &right, "--json"]);
    assert!(done["broker"] == true && done["added"].as_array().unwrap().contains(&json!("guest")), "{done}");
    // A runtime on it has the same keys: the guest's file is good for both.
    let copied = Credentials::load(&fresh.join("keys/guest.toml")).unwrap();
    assert_eq!((copied.keys, copied.broker), (guest.keys.clone(), guest.broker));
    assert!(runtime.interlock(&["stop"]).status.success());
    let moved = tempfile::tempdir().unwrap();
    for name in ["interlock.toml", "tmp"] {
        std::fs::rename(place.join(name), moved.path().join(name)).unwrap();
    }
    std::fs::rename(&fresh, moved.path().join("data")).unwrap();
    let second = TestRuntime::on(moved);
    second.wait_until_ready();
    let endpoints = Credentials::load(&second.data().join("keys/operator.toml")).unwrap().endpoints;
    connect(&Credentials { endpoints, ..guest });

    // Another key is in the way, and the log says who has done what.
    let other = tempfile::tempdir().unwrap();
    told(other.path(), &["issue", "guest", "--publish", "b"]);
    ends(other.path(), &["import", path, "--passphrase-file", &right], 2, "`guest`");
    told(other.path(), &["import", path, "--passphrase-file", &right, "--replace"]);
    let audit = std::fs::read_to_string(other.path().join("keys/audit.jsonl")).unwrap();
    assert!(audit.contains("\"import\"") && audit.contains("`guest`"), "{audit}");
    eventually("the import to be in the log", || audited(&second, &[], "import: done").pop());
}
