use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use interlock_actors::store::{DATABASE_FILE, DataKey, Store, StoreOptions};
use serde_json::{Value, json};

use crate::harness::{
    dice::{self, Dice},
    runtime::{TestRuntime, binaries, tool},
};

fn interlock(data: &Path, arguments: &[&str]) -> Output {
    tool("interlock").args(arguments).arg("--data-dir").arg(data).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// Every name below `directory` and its mode.
fn listing(directory: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
        found.insert(path.display().to_string(), mode);
        if path.is_dir() {
            found.extend(listing(&path));
        }
    }
    found
}

#[test]
fn where_nothing_is_initialised_no_verb_makes_anything_and_each_says_what_does() {
    let place = tempfile::tempdir().unwrap();
    for data in [place.path().to_owned(), place.path().join("not/there")] {
        for verb in [
            &["db", "check"][..],
            &["db", "repair"],
            &["db", "repair", "--salvage"],
            &["logs"],
            &["keys", "passphrase"],
        ] {
            let output = interlock(&data, verb);
            assert_eq!(output.status.code(), Some(1), "{verb:?}: {}", said(&output));
            assert!(said(&output).contains("`interlock"), "{verb:?}: {}", said(&output));
        }
        let status = interlock(&data, &["db", "status", "--json"]);
        assert_eq!(status.status.code(), Some(0), "{}", said(&status));
        let status = json_of(&status);
        assert_eq!((&status["schema_version"], &status["exists"]), (&json!("unknown"), &json!(false)));
    }
    assert_eq!(listing(place.path()), BTreeMap::new());
    // An empty file is not initialised either, and stays empty.
    std::fs::write(place.path().join(DATABASE_FILE), "").unwrap();
    let status = json_of(&interlock(place.path(), &["db", "status", "--json"]));
    assert_eq!((&status["schema_version"], &status["exists"]), (&json!("unknown"), &json!(true)));
    assert_eq!(interlock(place.path(), &["db", "check"]).status.code(), Some(1));
    assert_eq!(listing(place.path()).len(), 1);
}

#[test]
fn init_makes_a_private_database_once_on_a_path_of_any_depth_and_letters() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("deep/er/with blanks/and \u{e9}\u{4e16}/data");
    let first = interlock(&data, &["db", "init", "--json"]);
    assert!(first.status.success(), "{}", said(&first));
    let first = json_of(&first);
    assert_eq!((&first["made"], first["applied"].as_array().unwrap().is_empty()), (&json!(true), false));
    for (path, mode) in listing(&place.path().join("deep")) {
        let wanted = if Path::new(&path).is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{path} has mode {mode:o}");
    }
    let second = json_of(&interlock(&data, &["db", "init", "--json"]));
    assert_eq!((&second["made"], &second["applied"]), (&json!(false), &json!([])));
    assert_eq!(second["schema_version"], first["schema_version"]);
    let check = interlock(&data, &["db", "check"]);
    assert!(check.status.success() && said(&check).contains("is well"), "{}", said(&check));
}

#[test]
fn status_and_check_work_beside_a_running_runtime_and_repair_refuses() {
    let runtime = TestRuntime::start();
    runtime.turn("talk", "remember this");
    let data = runtime.data();
    let status = interlock(&data, &["db", "status", "--json"]);
    assert!(status.status.success(), "{}", said(&status));
    let status = json_of(&status);
    assert_eq!(
        (&status["content"]["rows"]["conversations"], &status["wrap"]),
        (&json!(1), &json!("keystore"))
    );
    assert_eq!(
        (&status["content"]["journal_mode"], &status["content"]["mmap_bytes"]),
        (&json!("wal"), &json!(0))
    );
    let text = said(&interlock(&data, &["db", "status"]));
    assert!(text.contains("SQLCipher") && text.contains("sealed: keystore"), "{text}");
    for _ in 0..5 {
        let check = interlock(&data, &["db", "check", "--json"]);
        assert!(check.status.success(), "{}", said(&check));
        let check = json_of(&check);
        let objects = check["objects"].as_array().unwrap();
        assert!(
            objects.iter().any(|object| object["name"] == "messages" && object["sha256"].is_string()),
            "{check}"
        );
        assert_eq!((&check["ok"], &check["findings"]), (&json!(true), &json!([])));
    }
    for repair in [&["db", "repair"][..], &["db", "repair", "--salvage"]] {
        let refused = interlock(&data, repair);
        assert_eq!(refused.status.code(), Some(5), "{}", said(&refused));
        assert!(said(&refused).contains("interlock stop"), "{}", said(&refused));
    }
    runtime.turn("talk", "and this");
}

/// Processes that are released by one lock, all at the same instant.
fn together(data: &Path, gate: &Path, count: usize) -> Vec<Output> {
    let held = std::fs::File::create(gate).unwrap();
    held.lock().unwrap();
    let children: Vec<_> = (0..count)
        .map(|_| {
            let mut command = Command::new("flock");
            command
                .arg("--shared")
                .arg(gate)
                .arg(binaries().join("interlock"))
                .args(["db", "init", "--json"]);
            command.arg("--data-dir").arg(data).env_remove("INTERLOCK_DATA_DIR");
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    drop(held);
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// `INTERLOCK_TEST_ROUNDS=500 cargo test -p interlock-tests --test spec processes_at_once` is the soak size.
#[test]
fn twelve_and_twenty_four_processes_at_once_on_an_empty_directory_make_one_database() {
    for round in 0..dice::environment("INTERLOCK_TEST_ROUNDS").unwrap_or(2) {
        for count in [12, 24] {
            let place = tempfile::tempdir().unwrap();
            let data = place.path().join("data");
            let outputs = together(&data, &place.path().join("gate"), count);
            let mut made = 0;
            for output in &outputs {
                assert!(
                    output.status.success() && output.stderr.is_empty(),
                    "round {round}: {}",
                    said(output)
                );
                let done = json_of(output);
                made += usize::from(!done["applied"].as_array().unwrap().is_empty());
            }
            assert_eq!(made, 1, "round {round}: {made} of {count} applied migrations");
            let check = json_of(&interlock(&data, &["db", "check", "--json"]));
            assert_eq!(check["ok"], true, "round {round}: {check}");
            let status = json_of(&interlock(&data, &["db", "status", "--json"]));
            let versions = check["migrations"].as_array().unwrap().len();
            assert_eq!(status["content"]["rows"]["schema_migrations"], versions, "round {round}");
        }
    }
}

#[test]
fn init_killed_at_any_instant_leaves_all_or_nothing_and_the_next_one_succeeds() {
    let mut dice = Dice(dice::seed("a killed db init"));
    for round in 0..dice::environment("INTERLOCK_TEST_ROUNDS").unwrap_or(12) {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("data");
        let mut command = tool("interlock");
        command.args(["db", "init"]).arg("--data-dir").arg(&data);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(std::time::Duration::from_micros(dice.below(60_000)));
        let _ = child.kill();
        child.wait().unwrap();
        let status = interlock(&data, &["db", "status", "--json"]);
        assert!(status.status.success(), "round {round}: {}", said(&status));
        let status = json_of(&status);
        let known = &status["known_version"];
        assert!([&json!("unknown"), known].contains(&&status["schema_version"]), "round {round}: {status}");
        let init = interlock(&data, &["db", "init"]);
        assert!(init.status.success(), "round {round}: {}", said(&init));
        assert!(interlock(&data, &["db", "check"]).status.success(), "round {round}");
    }
}

/// Runs SQL on a closed database, as somebody who has the key.
fn meddle(data: &Path, sql: &str) {
    let (keys, database) = (data.join("keys"), data.join(DATABASE_FILE));
    let key = DataKey::load(&keys, &database).unwrap();
    interlock_actors::store::repair::execute(&database, &key, sql).unwrap();
}

#[test]
fn each_kind_of_damage_has_its_code_names_what_it_is_and_is_mended_only_on_request() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let init = || assert!(interlock(&data, &["db", "init"]).status.success());
    let ends = |verb: &[&str], code: i32, parts: &[&str]| {
        let output = interlock(&data, verb);
        let text = said(&output);
        assert!(
            output.status.code() == Some(code) && parts.iter().all(|part| text.contains(part)),
            "{verb:?}: {text}"
        );
    };
    init();
    meddle(&data, "DROP TABLE messages");
    ends(&["db", "check"], 8, &["missing: table messages", "--recreate-empty"]);
    ends(&["db", "init"], 8, &["table messages", "left as it is"]);
    ends(&["db", "repair"], 8, &["left as it is: missing: table messages", "--recreate-empty"]);
    ends(&["db", "repair", "--recreate-empty"], 0, &["made table messages, empty"]);
    ends(&["db", "check"], 0, &["is well"]);
    ends(&["db", "repair"], 0, &["nothing to repair"]);

    meddle(&data, "UPDATE schema_migrations SET checksum = 'x' WHERE version = 1");
    for verb in ["check", "init", "status"] {
        ends(&["db", verb], 9, &["migration 1", "another text"]);
    }
    std::fs::remove_dir_all(&data).unwrap();
    init();
    meddle(&data, "INSERT INTO schema_migrations VALUES (999, 'of the future', 'x', 0)");
    let before = std::fs::read(data.join(DATABASE_FILE)).unwrap();
    for verb in ["check", "init", "status", "repair"] {
        ends(&["db", verb], 9, &["schema version 999"]);
    }
    assert!(std::fs::read(data.join(DATABASE_FILE)).unwrap() == before);

    std::fs::remove_dir_all(&data).unwrap();
    init();
    meddle(
        &data,
        "PRAGMA foreign_keys = OFF; INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
         VALUES (randomblob(16), 'gone', 't', 'user', 'complete', 'said', 1)",
    );
    ends(&["db", "check"], 8, &["row 1 of messages has no row in conversations"]);

    // Damaged in the middle: told, left, and saved on request.
    let (keys, database) = (data.join("keys"), data.join(DATABASE_FILE));
    std::fs::remove_dir_all(&data).unwrap();
    init();
    let store =
        Store::open(&database, &DataKey::load(&keys, &database).unwrap(), StoreOptions::default()).unwrap();
    interlock_bus::blocking::wait(store.create_conversation("kept", "a title")).unwrap();
    store.close();
    let mut bytes = std::fs::read(&database).unwrap();
    let at = bytes.len() - 2000;
    bytes[at] ^= 1;
    std::fs::write(&database, &bytes).unwrap();
    ends(&["db", "check"], 8, &["a damaged page", "--salvage"]);
    ends(&["db", "repair"], 8, &["left as it is", "--salvage"]);
    ends(&["db", "repair", "--salvage"], 0, &["1 rows of conversations saved", "is kept as"]);
    ends(&["db", "check"], 0, &["is well"]);
    let kept = std::fs::read_dir(&data).unwrap().flatten().map(|entry| entry.path());
    let kept = { kept }
        .find(|path| {
            path.display()
                .to_string()
                .rsplit(".damaged-")
                .next()
                .is_some_and(|end| end.bytes().all(|digit| digit.is_ascii_digit()))
        })
        .unwrap();
    assert!(std::fs::read(kept).unwrap() == bytes, "the damaged database was changed");

    bytes[..4096].fill(0);
    std::fs::write(&database, &bytes).unwrap();
    for verb in ["check", "init", "status", "repair"] {
        ends(&["db", verb], 8, &["damaged"]);
    }
    assert!(std::fs::read(&database).unwrap() == bytes);
}
