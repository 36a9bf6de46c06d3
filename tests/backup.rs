use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use interlock_actors::store::{
    DATABASE_FILE, DataKey, MessageState, NewMessage, Reader, Role, Store, StoreOptions, StoredMessage,
    repair,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::runtime::{TestRuntime, final_text, tool};

mod elsewhere;
mod foreign;
mod killed;
mod large;
mod refused;

const PASSPHRASE: &str = "correct horse battery staple";

/// An installation, a passphrase file, and a place for backups.
struct Place {
    directory: tempfile::TempDir,
    data: PathBuf,
}

impl Place {
    /// With an empty database.
    fn new() -> Self {
        let place = Self::bare();
        let made = place.interlock(&["db", "init"]);
        assert!(made.status.success(), "{}", said(&made));
        place
    }

    /// With nothing.
    fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Self { data: directory.path().join("data"), directory };
        place.passphrase_file("passphrase", PASSPHRASE);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn passphrase_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A command on the data directory, in a home of its own, that takes the passphrase from the file.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tool("interlock");
        command.args(arguments).arg("--data-dir").arg(&self.data);
        command.env("HOME", self.directory.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
        command.env("INTERLOCK_BACKUP_PASSPHRASE_FILE", self.path("passphrase"));
        command
    }

    fn interlock(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `interlock backup VERB FILE ...`, which must end with `exit`.
    fn backup(&self, verb: &str, file: &Path, more: &[&str], exit: i32) -> String {
        let output = self.command(&["backup", verb]).arg(file).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{verb} {}: {}", file.display(), said(&output));
        said(&output)
    }

    fn database(&self) -> PathBuf {
        self.data.join(DATABASE_FILE)
    }

    fn key(&self) -> DataKey {
        DataKey::load(&self.data.join("keys"), &self.database()).unwrap()
    }

    fn execute(&self, sql: &str) {
        repair::execute(&self.database(), &self.key(), sql).unwrap();
    }

    /// One message of a conversation, by SQL: what the runtime would have stored.
    fn say(&self, text: &str) {
        self.execute(&format!(
            "INSERT OR IGNORE INTO conversations VALUES ('talk', '', 0, 0); \
             INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
             VALUES (randomblob(16), 'talk', '00000000-0000-0000-0000-000000000000', 'user', 'complete', '{text}', 0)"
        ));
    }

    fn texts(&self) -> Vec<String> {
        let reader = Reader::open(&self.database(), &self.key()).unwrap();
        reader.history("talk", 1000).unwrap().into_iter().map(text_of).collect()
    }

    fn is_well(&self) {
        let check = self.interlock(&["db", "check"]);
        assert!(check.status.success(), "{}", said(&check));
    }

    /// What a backup or restore must not leave: anything temporary, in the data directory or beside a file.
    fn nothing_is_left(&self) {
        for name in names(&self.data).into_iter().chain(names(self.directory.path())) {
            assert!(!name.contains(".tmp-") && !name.contains("pending"), "`{name}` was left");
        }
    }
}

fn text_of(message: StoredMessage) -> String {
    message.message.text
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a restore would exchange, to be compared.
fn live(place: &Place) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut live = contents(&place.data);
    // Who tried is written down, whatever came of it.
    let audit = place.data.join("keys/audit.jsonl");
    live.retain(|path, _| !path.starts_with(place.data.join("run")) && *path != audit);
    live
}

/// The content of each file below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(contents(&path)),
            path => {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn message(text: &str) -> NewMessage {
    NewMessage::new("talk", Uuid::nil(), Role::User, MessageState::Complete, text)
}

#[test]
fn what_is_committed_and_only_in_the_write_ahead_log_is_in_the_backup() {
    let place = Place::new();
    let store = Store::open(&place.database(), &place.key(), StoreOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        store.create_conversation("talk", "").await.unwrap();
        for text in ["one", "two", "three"] {
            store.append_message(message(text)).await.unwrap();
        }
    });
    let wal = fs::metadata(place.path("data/interlock.db-wal")).unwrap();
    assert!(wal.len() > 0, "the case is not the one that is meant");
    let file = place.path("a backup");
    place.backup("create", &file, &[], 0);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let elsewhere = Place::bare();
    elsewhere.backup("restore", &file, &[], 0);
    assert_eq!(elsewhere.texts(), ["one", "two", "three"]);
    elsewhere.is_well();
    for place in [&place, &elsewhere] {
        place.nothing_is_left();
    }
}

#[test]
fn a_backup_of_a_running_runtime_restores_on_a_machine_that_has_nothing_but_file_and_passphrase() {
    let runtime = TestRuntime::start();
    let said_first = final_text(&runtime.turn("talk", "remember this"));
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    place.passphrase_file("passphrase", PASSPHRASE);
    let file = place.path("b.ilbk");
    let config = runtime.directory.path().join("interlock.toml");
    let config = config.exists().then(|| config.display().to_string());
    let more: Vec<&str> = config.iter().flat_map(|config| ["--config", config]).collect();
    place.backup("create", &file, &more, 0);
    runtime.turn("talk", "and not this");
    // A restore needs it stopped, and a drill does not.
    let refused = place.backup("restore", &file, &[], 5);
    assert!(refused.contains("running"), "{refused}");
    place.backup("restore", &file, &["--dry-run"], 0);
    place.backup("verify", &file, &["--drill"], 0);
    drop(runtime);

    let elsewhere = Place::bare();
    let restored = elsewhere.backup("restore", &file, &[], 0);
    assert!(restored.contains("interlock.db"), "{restored}");
    let texts = elsewhere.texts();
    assert_eq!(texts, ["remember this", &said_first]);
    // The peers and the configuration are those of the old machine; it starts.
    assert!(elsewhere.data.join("keys/operator.toml").exists());
    if config.is_some() {
        let restored = fs::read_to_string(elsewhere.data.join("interlock.toml")).unwrap();
        assert!(restored.contains("[bus]"), "{restored}");
    }
    let mut command = elsewhere.command(&["run", "--set", "gateway.listen=127.0.0.1:0"]);
    command.arg("--set").arg("bus.endpoints=[\"ipc\"]");
    let mut process = crate::harness::TestProcess::spawn(command);
    while !process.line().contains("gateway       running") {}
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn a_hot_write_ahead_log_of_the_old_database_never_meets_the_restored_one() {
    let mut runtime = TestRuntime::start();
    runtime.turn("talk", "in the backup");
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    place.passphrase_file("passphrase", PASSPHRASE);
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let before = place.texts();
    runtime.turn("talk", "after it");
    runtime.process.kill();
    assert!(fs::metadata(place.data.join("interlock.db-wal")).unwrap().len() > 0);
    place.backup("restore", &file, &["--leave-config"], 0);
    assert_eq!(place.texts(), before);
    place.is_well();
    // The old one is kept, with what was in its write-ahead log alone.
    let kept = names(&place.data).into_iter().find(|name| name.ends_with('Z')).unwrap();
    assert!(kept.starts_with("interlock.db.pre-restore-"), "{kept}");
    assert!(place.data.join(format!("{kept}-wal")).exists());
    let kept_keys = place.data.join(kept.replace("interlock.db", "keys"));
    let old = Reader::open(&place.data.join(&kept), &DataKey::load(&kept_keys, &kept_keys).unwrap());
    let old: Vec<_> = old.unwrap().history("talk", 100).unwrap().into_iter().map(text_of).collect();
    assert!(old.contains(&"after it".to_owned()), "{old:?}");
}

#[test]
fn settings_and_ids_of_the_database_survive() {
    let place = Place::new();
    place.say("one");
    let file = place.path("b.ilbk");
    let facts = |place: &Place| -> Value {
        let status = place.interlock(&["db", "status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let content = &status["content"];
        serde_json::json!([
            status["schema_version"],
            content["journal_mode"],
            content["page_bytes"],
            content["rows"],
        ])
    };
    place.backup("create", &file, &[], 0);
    let elsewhere = Place::bare();
    elsewhere.backup("restore", &file, &[], 0);
    assert_eq!(facts(&elsewhere), facts(&place));
    // The same data key: what else was sealed with it still opens.
    let keys = [&place, &elsewhere].map(|place| place.key().derive("test").to_vec());
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn any_path_works_as_database_and_as_backup() {
    for name in ["it's \"quoted\"; DROP TABLE logs", "a?b#c%41&key=x", "new\nline \u{1f600}"] {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join(name);
        fs::create_dir(&inner).unwrap();
        let directory = tempfile::tempdir_in(&inner).unwrap();
        let place = Place { data: directory.path().join(name), directory };
        place.passphrase_file("passphrase", PASSPHRASE);
        assert!(place.interlock(&["db", "init"]).status.success(), "{name}");
        place.say("kept");
        let file = place.path(name).with_extension("ilbk");
        place.backup("create", &file, &[], 0);
        place.backup("verify", &file, &["--drill"], 0);
        place.execute("DELETE FROM messages");
        place.backup("restore", &file, &[], 0);
        assert_eq!(place.texts(), ["kept"], "{name}");
        place.nothing_is_left();
    }
    let place = Place::new();
    for bytes in [255, 256] {
        let file = place.path(&"x".repeat(bytes));
        place.backup("create", &file, &[], if bytes == 255 { 0 } else { 6 });
    }
    let file = place.directory.path().join(std::ffi::OsStr::from_bytes(b"not \xff UTF-8"));
    place.backup("create", &file, &[], 0);
    place.backup("verify", &file, &[], 0);
    place.nothing_is_left();
}

#[test]
fn two_backups_at_once_both_succeed_and_have_nothing_in_common() {
    let place = Place::new();
    place.say("one");
    let files = ["a", "b"].map(|name| place.path(name));
    let running: Vec<_> =
        files.iter().map(|file| place.command(&["backup", "create"]).arg(file).spawn().unwrap()).collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let sealed = files.each_ref().map(|file| {
        place.backup("verify", file, &[], 0);
        fs::read(file).unwrap()
    });
    let blocks = |bytes: &[u8]| -> std::collections::HashSet<Vec<u8>> {
        bytes[128..].chunks_exact(16).map(<[u8]>::to_vec).collect()
    };
    assert!(blocks(&sealed[0]).is_disjoint(&blocks(&sealed[1])));
    place.nothing_is_left();
}

#[test]
fn nothing_that_is_backed_up_can_be_read_in_any_file_or_any_write() {
    const MARKER: &str = "marker-5d1c0e7f9a3b42868f11";
    let place = Place::new();
    place.say(MARKER);
    place.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
         INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
         SELECT randomblob(16), 'talk', '00000000-0000-0000-0000-000000000000', 'user', 'complete', '{MARKER}', 0 FROM n"
    ));
    let (file, trace) = (place.path("b.ilbk"), place.path("trace"));
    let elsewhere = Place::bare();
    let plain = ["SQLite format 3", MARKER];
    for (place, verb) in [(&place, "create"), (&elsewhere, "restore")] {
        let interlock = place.command(&["backup", verb]);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-s", "9999999", "-e", "trace=write,pwrite64,writev,pwritev", "-o"]);
        traced.arg(&trace).arg(interlock.get_program()).args(interlock.get_args()).arg(&file);
        for (name, value) in interlock.get_envs() {
            match value {
                Some(value) => traced.env(name, value),
                None => traced.env_remove(name),
            };
        }
        let done = traced.output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        let writes = String::from_utf8_lossy(&fs::read(&trace).unwrap()).into_owned();
        assert!(writes.lines().count() > 10, "nothing was traced");
        for text in plain {
            assert!(!writes.contains(text), "`{text}` was written by {verb}");
        }
        fs::remove_file(&trace).unwrap();
    }
    for (path, content) in
        contents(place.directory.path()).into_iter().chain(contents(elsewhere.directory.path()))
    {
        for text in plain {
            let found = content.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "`{text}` is in `{}`", path.display());
        }
    }
    assert_eq!(elsewhere.texts().len(), 1000);
}

#[test]
fn a_data_key_under_a_passphrase_opens_with_that_of_the_backup_unless_it_is_to_stay_as_it_was() {
    let place = Place::new();
    place.say("one");
    let old = place.passphrase_file("of-the-key", "the passphrase of the data key");
    let sealed =
        place.command(&["keys", "passphrase"]).arg("--new-passphrase-file").arg(&old).output().unwrap();
    assert!(sealed.status.success(), "{}", said(&sealed));
    let file = place.path("b.ilbk");
    // The flag of the verb is about the backup; the data key's has another name.
    let data = ["--data-passphrase-file", old.to_str().unwrap()];
    place.backup("create", &file, &[], 4);
    place.backup("create", &file, &data, 0);
    for (more, opens) in [(&[][..], "passphrase"), (&["--keep-seal"][..], "of-the-key")] {
        let elsewhere = Place::bare();
        elsewhere.passphrase_file("of-the-key", "the passphrase of the data key");
        elsewhere.backup("restore", &file, more, 0);
        for name in ["passphrase", "of-the-key"] {
            let mut check = elsewhere.command(&["db", "check"]);
            let check = check.arg("--passphrase-file").arg(elsewhere.path(name)).output().unwrap();
            let exit = if name == opens { 0 } else { 4 };
            assert_eq!(check.status.code(), Some(exit), "{more:?}, {name}: {}", said(&check));
        }
    }
}

#[test]
fn the_configuration_is_restored_where_it_is_read_and_the_old_one_kept() {
    let place = Place::new();
    let config = place.path("my.toml");
    fs::write(&config, "[logs]\nlevel = \"debug\"\n").unwrap();
    let with = ["--config", config.to_str().unwrap()];
    let file = place.path("b.ilbk");
    place.backup("create", &file, &with, 0);
    for (more, text, kept) in [(&["--leave-config"][..], "warn", 0), (&[], "debug", 1)] {
        fs::write(&config, "[logs]\nlevel = \"warn\"\n").unwrap();
        place.backup("restore", &file, &[&with[..], more].concat(), 0);
        assert!(fs::read_to_string(&config).unwrap().contains(text));
        let old = names(place.directory.path()).into_iter().filter(|name| name.starts_with("my.toml."));
        assert_eq!(old.count(), kept);
    }
}

#[test]
fn progress_is_told_in_order_never_falls_and_is_a_hundred_only_when_the_file_is_there() {
    let place = Place::new();
    place.say("one");
    let file = place.path("b.ilbk");
    let mut command = place.command(&["backup", "create", "--json"]);
    command.arg(&file);
    let process = crate::harness::TestProcess::spawn(command);
    let (mut events, phases) =
        (Vec::new(), ["init", "snapshot", "encrypting", "verifying", "finalizing", "done"]);
    loop {
        let event = process.json();
        let is_done = event["phase"] == "done";
        assert!(is_done == (event["percent"] == 100), "{event}");
        assert!(!is_done || file.exists());
        events.push(event);
        if is_done {
            break;
        }
    }
    let place_of = |event: &Value| phases.iter().position(|phase| event["phase"] == *phase).unwrap();
    assert!(events.windows(2).all(|pair| place_of(&pair[0]) <= place_of(&pair[1])), "{events:?}");
    assert!(phases.iter().all(|phase| events.iter().any(|event| event["phase"] == *phase)), "{events:?}");
    let percent = |event: &Value| event["percent"].as_u64().unwrap();
    assert!(events.windows(2).all(|pair| percent(&pair[0]) <= percent(&pair[1])), "{events:?}");
    assert_eq!(events.last().unwrap()["result"]["contents"]["seal"], "keystore");
    // Nothing secret is in it.
    let key = place.key();
    let shown = serde_json::to_string(&events).unwrap();
    assert!(!shown.contains("_key\"") && !shown.contains(&format!("{key:?}")), "{shown}");
    // One that fails ends with an error, and never reaches a hundred.
    let other = place.passphrase_file("other", "another horse battery");
    let failed = place.backup("verify", &file, &["--json", "--passphrase-file", other.to_str().unwrap()], 4);
    let last: Value =
        serde_json::from_str(failed.lines().rfind(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!((&last["phase"], &last["exit"]), (&"error".into(), &4.into()));
}

#[test]
fn list_shows_what_is_there_and_what_is_cut_without_a_passphrase() {
    let place = Place::new();
    place.interlock(&["backup", "create"]);
    let file = place.data.join("backups");
    let file = file.join(&names(&file)[0]);
    let whole = fs::read(&file).unwrap();
    fs::write(file.with_file_name("cut.ilbk"), &whole[..whole.len() - 1]).unwrap();
    fs::write(file.with_file_name("other.txt"), "not one").unwrap();
    let listed =
        place.command(&["backup", "list", "--json"]).env_remove("INTERLOCK_BACKUP_PASSPHRASE_FILE").output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2, "{listed:?}");
    for backup in &listed {
        let is_cut = backup["path"].as_str().unwrap().ends_with("cut.ilbk");
        assert_eq!(backup["problem"].is_null(), !is_cut, "{backup}");
    }
    assert!(said(&place.interlock(&["backup", "list"])).contains("cut.ilbk"));
}

#[test]
fn the_runtime_makes_a_backup_on_request_and_tells_each_step() {
    let runtime = TestRuntime::start();
    runtime.turn("talk", "remember this");
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    let passphrase = place.passphrase_file("passphrase", PASSPHRASE);
    let file = place.path("b.ilbk");
    let ask = |order: Value| {
        let answer = runtime.bus(&["request", "interlock/runtime/backup/v1", &order.to_string(), "--raw"]);
        (answer.status.code(), said(&answer))
    };
    let (exit, told) = ask(serde_json::json!({ "file": file, "passphrase_file": passphrase }));
    assert_eq!(exit, Some(0), "{told}");
    let at =
        |phase: &str| told.find(&format!("\"{phase}\"")).unwrap_or_else(|| panic!("no {phase} in {told}"));
    let places = ["init", "snapshot", "encrypting", "verifying", "done"].map(at);
    assert!(places.is_sorted(), "{told}");
    place.backup("verify", &file, &["--drill"], 0);
    // A relative path, none, and a short passphrase are refused in words; it still runs.
    let short = place.passphrase_file("short", "too short");
    for (order, what) in [
        (serde_json::json!({ "file": "b.ilbk", "passphrase_file": passphrase }), "no absolute path"),
        (serde_json::json!({ "file": file, "passphrase_file": short }), "at least 12"),
        (serde_json::json!({ "file": file, "passphrase": PASSPHRASE }), "unknown field"),
        (serde_json::json!({ "file": place.database(), "passphrase_file": passphrase }), "data directory"),
    ] {
        let (exit, told) = ask(order);
        assert!(exit != Some(0) && told.contains(what), "{told}");
    }
    assert!(!runtime.turn("talk", "and this").is_empty());
    place.nothing_is_left();
}
