use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::json;

use crate::harness::{
    TestProcess,
    dice::{self, Dice},
    eventually,
    runtime::{TestRuntime, binaries, final_text, tool},
};

const FIRST: &str = "correct horse battery";
const SECOND: &str = "another fine passphrase";

/// A file that only its owner can read.
fn private(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A person at a terminal types these answers; what it showed, the exit code, and the rest.
fn at_a_terminal(answers: &[(&str, &str)], data: &Path, arguments: &[&str]) -> serde_json::Value {
    let (answers, binary) = (json!(answers).to_string(), binaries().join("interlock"));
    let mut whole = vec![answers.as_str(), text(&binary), "--data-dir", text(data)];
    whole.extend(arguments);
    TestProcess::python("terminal.py", &whole).json()
}

#[test]
fn a_passphrase_set_while_the_runtime_runs_is_needed_from_then_on_and_loses_nothing() {
    let mut runtime = TestRuntime::start();
    let place = runtime.directory.path().to_owned();
    let [first, second, wrong] = [("first", FIRST), ("second", SECOND), ("wrong", "not the right one")]
        .map(|(name, content)| private(&place, name, content));
    final_text(&runtime.turn("talk", "remember this"));
    let set = runtime.interlock(&["keys", "passphrase", "--new-passphrase-file", text(&first), "--json"]);
    assert!(set.status.success(), "{}", said(&set));
    let done: serde_json::Value = serde_json::from_slice(&set.stdout).unwrap();
    assert_eq!(
        (&done["was"], &done["wrap"], &done["changed"]),
        (&json!("keystore"), &json!("passphrase"), &json!(true))
    );
    assert!(!runtime.data().join("keys/wrap.key").exists());

    // Who runs has the key; who comes needs the passphrase.
    final_text(&runtime.turn("talk", "and this"));
    assert_eq!(messages(&runtime), 4);
    let logs = |more: &[&str]| runtime.interlock(&[&["logs"], more].concat());
    let refused = logs(&[]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    for way in ["--passphrase-file", "INTERLOCK_PASSPHRASE_FILE", "interlock.passphrase", "terminal"] {
        assert!(said(&refused).contains(way), "{}", said(&refused));
    }
    let key_file = std::fs::read(runtime.data().join("keys/data.key")).unwrap();
    let refused = logs(&["--passphrase-file", text(&wrong)]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    assert!(said(&refused).contains("passphrase does not open"), "{}", said(&refused));
    assert_eq!(std::fs::read(runtime.data().join("keys/data.key")).unwrap(), key_file);
    assert!(logs(&["--passphrase-file", text(&first)]).status.success());

    // A store that is started again asks nobody.
    assert!(runtime.interlock(&["restart", "store"]).status.success());
    eventually("a turn to be saved again", || {
        let turn = runtime.turn("talk", "and this");
        turn.last().filter(|(name, _)| name == "final").map(drop)
    });
    assert_eq!(messages(&runtime), 6);

    let change = runtime.interlock(&[
        "keys",
        "passphrase",
        "--passphrase-file",
        text(&first),
        "--new-passphrase-file",
        text(&second),
    ]);
    assert!(change.status.success(), "{}", said(&change));
    assert_eq!(logs(&["--passphrase-file", text(&first)]).status.code(), Some(4));
    assert!(runtime.interlock(&["stop"]).status.success());

    // The next start needs it too, and nothing that it starts gets to see where it is.
    let ended = TestRuntime::command(&place).output().unwrap();
    assert_eq!(ended.status.code(), Some(4), "{}", said(&ended));
    let mut command = TestRuntime::command(&place);
    command.env("INTERLOCK_PASSPHRASE_FILE", &second).env("CREDENTIALS_DIRECTORY", &place);
    runtime.process = TestProcess::spawn(command);
    runtime.wait_until_ready();
    let environments: Vec<Vec<u8>> = runtime
        .processes()
        .into_iter()
        .filter_map(|pid| std::fs::read(format!("/proc/{pid}/environ")).ok())
        .filter(|environment| contains(environment, b"INTERLOCK_COMPONENT="))
        .collect();
    assert_eq!(environments.len(), 1, "the model service");
    for hidden in [&b"PASSPHRASE"[..], b"CREDENTIALS_DIRECTORY", SECOND.as_bytes()] {
        assert!(!contains(&environments[0], hidden), "{}", String::from_utf8_lossy(&environments[0]));
    }
    final_text(&runtime.turn("talk", "and this"));
    assert_eq!(messages(&runtime), 8);

    let remove = runtime.interlock(&["keys", "passphrase", "--remove", "--passphrase-file", text(&second)]);
    assert!(remove.status.success(), "{}", said(&remove));
    assert!(runtime.interlock(&["logs"]).status.success());
    let again = runtime.interlock(&["keys", "passphrase", "--remove", "--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&again.stdout).unwrap()["changed"], false);
}

/// How many messages the conversation has.
fn messages(runtime: &TestRuntime) -> usize {
    let history: serde_json::Value = runtime.get("/v1/conversations/talk").json().unwrap();
    history["messages"].as_array().unwrap_or_else(|| panic!("{history}")).len()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// A stopped installation with something in its database.
fn stopped() -> TestRuntime {
    let runtime = TestRuntime::start();
    assert!(runtime.interlock(&["stop"]).status.success());
    runtime
}

#[test]
fn a_person_is_asked_once_sees_nothing_typed_and_may_change_their_mind() {
    let runtime = stopped();
    let data = runtime.data();
    let twice =
        [("new passphrase: ", "correct horse battery\r"), ("the same again: ", "correct horse battery\r")];
    let set = at_a_terminal(&twice, &data, &["keys", "passphrase"]);
    assert_eq!((&set["code"], &set["unasked"]), (&json!(0), &json!(0)), "{set}");
    let read =
        at_a_terminal(&[("data.key`: ", "correct horse batterx\u{7f}y\r")], &data, &["logs", "-n", "3"]);
    assert_eq!(read["code"], 0, "{read}");
    assert_eq!(read["shown"].as_str().unwrap().matches("passphrase of").count(), 1, "{read}");
    let wrong = at_a_terminal(&[("data.key`: ", "something else\r")], &data, &["logs"]);
    assert_eq!(wrong["code"], 4, "{wrong}");
    let mind = at_a_terminal(&[("data.key`: ", "correct ho\u{3}")], &data, &["logs"]);
    assert!(
        mind["code"] == 4 && mind["shown"].as_str().unwrap().contains("no passphrase was typed"),
        "{mind}"
    );
    let differ =
        [("data.key`: ", "correct horse battery\r"), twice[0], ("the same again: ", "correct hors\r")];
    let differ = at_a_terminal(&differ, &data, &["keys", "passphrase"]);
    assert_eq!(differ["code"], 2, "{differ}");
    let short = [("data.key`: ", "correct horse battery\r"), ("new passphrase: ", "short\r")];
    let short = at_a_terminal(&short, &data, &["keys", "passphrase"]);
    assert_eq!(short["code"], 2, "{short}");
    // Ended from outside it ends, and puts the terminal back first.
    for (signal, number) in [("SIGTERM", 15), ("SIGHUP", 1), ("SIGINT", 2)] {
        for verb in [&["logs"][..], &["run"]] {
            let ended = at_a_terminal(&[("data.key`: ", signal)], &data, verb);
            assert!(ended["code"] == -number && ended["echo"] == true, "{signal}: {ended}");
        }
    }
    for seen in [&set, &read, &wrong, &mind, &differ, &short] {
        assert!(!seen["shown"].as_str().unwrap().contains("horse"), "{seen}");
        assert_eq!(seen["echo"], true, "the terminal stays silent: {seen}");
    }
}

#[test]
fn each_source_that_cannot_be_used_is_named_with_what_is_wrong_and_a_damaged_file_is_no_wrong_passphrase() {
    let runtime = stopped();
    let place = runtime.directory.path();
    let first = private(place, "first", FIRST);
    let set = runtime.interlock(&["keys", "passphrase", "--new-passphrase-file", text(&first)]);
    assert!(set.status.success(), "{}", said(&set));
    let ends = |flag: &Path, code: i32, part: &str| {
        let output = runtime.interlock(&["logs", "--passphrase-file", text(flag)]);
        assert!(output.status.code() == Some(code) && said(&output).contains(part), "{output:?}");
    };
    ends(&place.join("missing"), 6, "missing");
    ends(&private(place, "empty", ""), 4, "empty");
    ends(&private(place, "long", &"x".repeat(2000)), 2, "1024");
    let exposed = private(place, "exposed", FIRST);
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o644)).unwrap();
    ends(&exposed, 2, "chmod 600");
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o640)).unwrap();
    ends(&exposed, 2, "chmod 600");
    let link = place.join("link");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    ends(&link, 2, "a symbolic link");
    ends(place, 2, "not a plain file");

    let credentials = tempfile::tempdir().unwrap();
    let with_credential = || {
        let mut logs = tool("interlock");
        logs.args(["logs", "--data-dir", text(&runtime.data())]);
        logs.env("CREDENTIALS_DIRECTORY", credentials.path()).output().unwrap()
    };
    assert_eq!(with_credential().status.code(), Some(4), "there is no such credential yet");
    std::fs::write(credentials.path().join("interlock.passphrase"), FIRST).unwrap();
    let mode = |mode| {
        let path = credentials.path().join("interlock.passphrase");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o444);
    assert_eq!(with_credential().status.code(), Some(2));
    mode(0o440);
    assert!(with_credential().status.success(), "{:?}", with_credential());

    let path = runtime.data().join("keys/data.key");
    let whole = std::fs::read_to_string(&path).unwrap();
    let at = whole.find("key = \"").unwrap() + 20;
    let digit = if &whole[at..=at] == "0" { "1" } else { "0" };
    std::fs::write(&path, format!("{}{digit}{}", &whole[..at], &whole[at + 1..])).unwrap();
    ends(&first, 8, "damaged");
}

/// `INTERLOCK_TEST_ROUNDS=300 cargo test -p interlock-tests --test spec killed_while_it_changes` is the soak size.
#[test]
fn a_command_killed_while_it_changes_the_passphrase_leaves_exactly_one_that_works() {
    let rounds = dice::environment("INTERLOCK_TEST_ROUNDS").unwrap_or(6);
    let mut dice = Dice(dice::seed("a killed change of the passphrase"));
    let runtime = TestRuntime::start();
    let place = runtime.directory.path();
    let [first, second] =
        [("first", FIRST), ("second", SECOND)].map(|(name, text)| private(place, name, text));
    let set = runtime.interlock(&["keys", "passphrase", "--new-passphrase-file", text(&first)]);
    assert!(set.status.success(), "{}", said(&set));
    let (mut now, mut next) = (&first, &second);
    let mut changed = 0;
    for round in 0..rounds {
        let mut command = tool("interlock");
        command.args(["keys", "passphrase", "--data-dir", text(&runtime.data())]);
        command.arg("--passphrase-file").arg(now).arg("--new-passphrase-file").arg(next);
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(std::time::Duration::from_millis(dice.below(500)));
        let _ = child.kill();
        child.wait().unwrap();
        let opens = |file: &Path| {
            let output = runtime.interlock(&["logs", "-n", "1", "--passphrase-file", text(file)]);
            let code = output.status.code();
            assert!(code == Some(0) || code == Some(4), "round {round}: {output:?}");
            code == Some(0)
        };
        match (opens(now), opens(next)) {
            (true, false) => {}
            (false, true) => {
                changed += 1;
                std::mem::swap(&mut now, &mut next);
            }
            both => panic!("round {round}: old and new open: {both:?}"),
        }
    }
    // A whole one still works, over whatever the killed ones left.
    let change = runtime.interlock(&[
        "keys",
        "passphrase",
        "--passphrase-file",
        text(now),
        "--new-passphrase-file",
        text(next),
    ]);
    assert!(change.status.success(), "after {changed} of {rounds}: {}", said(&change));
    let left = std::fs::read_dir(runtime.data().join("keys")).unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".data.key.")).count();
    assert_eq!(left, 0, "files of killed commands");
}

#[test]
fn a_key_that_opens_another_database_or_is_gone_is_not_sealed_anew() {
    let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let run = |place: &Path, arguments: &[&str]| {
        tool("interlock").arg("--data-dir").arg(place).args(arguments).output().unwrap()
    };
    for place in [&one, &other] {
        assert!(run(place.path(), &["db", "init"]).status.success());
    }
    let new = private(one.path(), "new", FIRST);
    let change = ["keys", "passphrase", "--new-passphrase-file", text(&new)];
    for file in ["data.key", "wrap.key"] {
        std::fs::copy(other.path().join("keys").join(file), one.path().join("keys").join(file)).unwrap();
    }
    let before = std::fs::read(one.path().join("keys/data.key")).unwrap();
    let refused = run(one.path(), &change);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    assert_eq!(std::fs::read(one.path().join("keys/data.key")).unwrap(), before);
    std::fs::remove_file(one.path().join("keys/data.key")).unwrap();
    let missing = run(one.path(), &change);
    assert_eq!(missing.status.code(), Some(4), "{}", said(&missing));
}
