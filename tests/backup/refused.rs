//! What is refused, how it is told, and that nothing is touched then.

use super::*;

/// Bytes of a chunk on the disk.
const SEALED: usize = (1 << 20) + 17;

#[test]
fn a_wrong_passphrase_damage_and_a_later_version_are_told_apart_and_touch_nothing() {
    let place = Place::new();
    place.say("live");
    place.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
         INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
         SELECT randomblob(16), 'talk', '00000000-0000-0000-0000-000000000000', 'user', 'complete', hex(randomblob(4000)), 0 FROM n",
    );
    let (file, changed) = (place.path("b.ilbk"), place.path("changed"));
    place.backup("create", &file, &[], 0);
    let whole = fs::read(&file).unwrap();
    assert!(whole.len() > 128 + 2 * SEALED, "the case is not the one that is meant");
    let before = live(&place);
    let other = place.passphrase_file("other", "another horse battery");
    let wrong = ["--passphrase-file", other.to_str().unwrap()];
    for verb in ["verify", "restore"] {
        let text = place.backup(verb, &file, &wrong, 4);
        assert!(text.contains("passphrase does not open") && !text.contains("damaged"), "{text}");
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            fs::write(&changed, bytes).unwrap();
            place.backup(verb, &changed, &[], 8)
        };
        for chunk in 0..3 {
            let text = with(&|bytes| bytes[128 + chunk * SEALED + 100] ^= 1);
            assert!(text.contains(&format!("chunk {}", chunk + 1)), "{text}");
        }
        let text = with(&|bytes| bytes.truncate(128 + 2 * SEALED));
        assert!(text.contains("chunk 3") && text.contains("ends before its last chunk"), "{text}");
        with(&|bytes| bytes.push(0));
        with(&|bytes| bytes.extend_from_slice(&whole));
        with(&|bytes| drop(bytes.drain(128..128 + SEALED)));
        for at in [0, 8, 16, 20, 24, 40, 48, 64, 80, 104, 120] {
            let text = with(&|bytes| bytes[at] ^= 1);
            assert!(text.contains("header"), "byte {at}: {text}");
        }
        with(&|bytes| bytes.clear());
        with(&|bytes| *bytes = b"SQLite format 3\0".repeat(100));
        assert!(live(&place) == before, "{verb} changed something");
    }
    place.backup("verify", &place.path("none"), &[], 6);
    place.nothing_is_left();
}

#[test]
fn who_tries_the_passphrase_of_a_backup_is_written_down_and_waits_after_three_wrong_ones() {
    let place = Place::new();
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let other = place.passphrase_file("other", "another horse battery");
    let wrong = ["--passphrase-file", other.to_str().unwrap()];
    for (verb, more) in [("verify", &[][..]), ("verify", &["--drill"]), ("restore", &[])] {
        let text = place.backup(verb, &file, &[&wrong[..], more].concat(), 4);
        assert!(!text.contains("this one waits"), "{text}");
    }
    let began = std::time::Instant::now();
    let text = place.backup("verify", &file, &[], 0);
    assert!(text.contains("this one waits 1 s") && began.elapsed().as_secs() >= 1, "{text}");
    // The right one ends that, for backups; with the data key it has nothing to do.
    let text = place.backup("verify", &file, &[], 0);
    assert!(!text.contains("this one waits"), "{text}");
    let audit = interlock_bus::keys::Audit::of(&place.data.join("keys")).last().unwrap();
    let acts: Vec<(&str, bool)> = audit
        .iter()
        .filter(|entry| entry.outcome != interlock_bus::keys::audit::Outcome::Begun)
        .map(|entry| (entry.act.action.as_str(), entry.outcome == interlock_bus::keys::audit::Outcome::Done))
        .filter(|(action, _)| action.contains("backup"))
        .collect();
    let tried = [("unlock-backup", false), ("backup-verify", false)];
    let wanted = [
        &[("backup-create", true)][..],
        &tried,
        &[tried[0], ("backup-drill", false)],
        &[tried[0], ("backup-restore", false)],
        &[("unlock-backup", true), ("backup-verify", true), ("backup-verify", true)],
    ];
    assert_eq!(acts, wanted.concat());
    // What was restored says so, too.
    place.backup("restore", &file, &[], 0);
    let audit = interlock_bus::keys::Audit::of(&place.data.join("keys")).last().unwrap();
    let last = &audit.last().unwrap().act;
    assert_eq!((last.action.as_str(), last.detail.as_deref()), ("backup-restore", file.to_str()));
}

#[test]
fn a_backup_whose_database_is_not_fit_is_refused_and_the_live_one_is_not_touched() {
    // Each change is one that SQLCipher's seal does not show.
    let cases = [
        ("PRAGMA user_version = 99", 9, "schema version"),
        ("PRAGMA application_id = 7", 8, "not one of Interlock"),
        ("PRAGMA foreign_keys = OFF; DELETE FROM conversations", 8, "no row in conversations"),
        ("DROP TABLE messages", 8, "messages"),
        ("DELETE FROM schema_migrations WHERE version = 1", 9, "migration 1"),
    ];
    let live = Place::new();
    live.say("live");
    let good = live.path("good.ilbk");
    live.backup("create", &good, &[], 0);
    let (bytes, before) = (fs::read(&good).unwrap(), super::live(&live));
    for (sql, exit, what) in cases {
        let place = Place::new();
        place.say("one");
        place.execute(sql);
        // Whoever makes a backup is told, and the one that is there stays.
        let target = place.path("b.ilbk");
        fs::copy(&good, &target).unwrap();
        let text = place.backup(
            "create",
            &target,
            &[],
            if exit == 8 && what.contains("Interlock") { 2 } else { exit },
        );
        assert!(text.contains(what), "{sql}: {text}");
        assert_eq!(fs::read(&target).unwrap(), bytes);
        place.nothing_is_left();
    }
    assert!(super::live(&live) == before);
}

#[test]
fn a_damaged_page_of_the_live_database_makes_no_backup_and_leaves_the_old_one() {
    let place = Place::new();
    place.execute(
        "INSERT INTO conversations VALUES ('talk', '', 0, 0); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
         INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
         SELECT randomblob(16), 'talk', '00000000-0000-0000-0000-000000000000', 'user', 'complete', hex(randomblob(4000)), 0 FROM n",
    );
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let good = fs::read(&file).unwrap();
    let mut database = fs::read(place.database()).unwrap();
    let middle = database.len() / 2;
    database[middle] ^= 1;
    fs::write(place.database(), database).unwrap();
    let text = place.backup("create", &file, &[], 8);
    assert!(text.contains("damaged"), "{text}");
    assert_eq!(fs::read(&file).unwrap(), good);
    place.nothing_is_left();
    // Which is what it is for.
    place.backup("restore", &file, &[], 0);
    place.is_well();
}

#[test]
fn a_directory_that_is_named_and_not_there_is_told_and_not_taken_for_an_empty_one() {
    let place = Place::bare();
    let text = place.backup("list", &place.path("nodir"), &[], 6);
    assert!(text.contains("nodir") && text.contains("No such file"), "{text}");
    // That of an installation is made by its first backup.
    let list = place.interlock(&["backup", "list"]);
    assert!(list.status.success() && said(&list).contains("no backups"), "{}", said(&list));
}

#[test]
fn a_backup_replaces_nothing_that_is_none_and_nothing_that_is_live() {
    let place = Place::new();
    let text = place.path("letter.txt");
    fs::write(&text, "dear").unwrap();
    let link = place.path("link");
    std::os::unix::fs::symlink(&text, &link).unwrap();
    for target in [&text, &link, &place.database(), &place.data.join("keys/new"), Path::new("/dev/null")] {
        place.backup("create", target, &[], 2);
    }
    assert_eq!(fs::read(&text).unwrap(), b"dear");
    place.backup("create", &place.path("none/b.ilbk"), &[], 6);
    place.backup("create", &place.path("data"), &[], 2);
    place.is_well();
    let short = place.passphrase_file("short", "too short");
    let refused =
        place.backup("create", &place.path("b.ilbk"), &["--passphrase-file", short.to_str().unwrap()], 2);
    assert!(refused.contains("at least 12"), "{refused}");
    let none =
        place.command(&["backup", "create"]).env_remove("INTERLOCK_BACKUP_PASSPHRASE_FILE").output().unwrap();
    assert_eq!(none.status.code(), Some(4), "{}", said(&none));
    assert!(said(&none).contains("INTERLOCK_BACKUP_PASSPHRASE_FILE"), "{}", said(&none));
    let bare = Place::bare();
    bare.backup("create", &bare.path("b.ilbk"), &[], 1);
    assert!(!bare.data.exists());
}

#[test]
fn a_restore_waits_for_a_reader_and_then_says_who_is_in_the_way() {
    let place = Place::new();
    place.say("one");
    let file = place.path("b.ilbk");
    place.backup("create", &file, &[], 0);
    let keys = || {
        let mut keys = contents(&place.data.join("keys"));
        keys.remove(&place.data.join("keys/audit.jsonl"));
        keys
    };
    let before = keys();
    let reader = Reader::open(&place.database(), &place.key()).unwrap();
    let text = place.backup("restore", &file, &[], 5);
    assert!(text.contains("open in another process") && text.contains("interlock stop"), "{text}");
    assert!(keys() == before);
    assert!(!names(&place.data).iter().any(|name| name.contains("pre-restore")));
    drop(reader);
    place.backup("restore", &file, &["--discard-old"], 0);
    assert_eq!(place.texts(), ["one"]);
    assert!(!names(&place.data).iter().any(|name| name.contains("pre-restore")));
    place.nothing_is_left();
}

#[test]
fn wiping_is_in_order_and_honest_and_leaves_what_is_no_plain_file() {
    let place = Place::bare();
    let [file, link, pipe, trace] = ["secret", "link", "pipe", "trace"].map(|name| place.path(name));
    fs::write(&file, vec![b'x'; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let interlock = tool("interlock");
    let mut traced = Command::new("strace");
    traced.args([
        "-f",
        "-qq",
        "-y",
        "-s",
        "40",
        "-e",
        "trace=write,fsync,rename,renameat,renameat2,unlink,unlinkat",
        "-o",
    ]);
    let done = traced.arg(&trace).arg(interlock.get_program()).arg("wipe").arg(&file).output().unwrap();
    assert!(done.status.success() && !file.exists(), "{}", said(&done));
    let calls = fs::read_to_string(&trace).unwrap();
    let ours: Vec<&str> = calls
        .lines()
        .filter(|line| line.contains(place.directory.path().to_str().unwrap()) && !line.contains("wiped"))
        .filter_map(|line| line.split_whitespace().nth(1)?.split('(').next())
        .collect();
    let order = ["write", "write", "write", "fsync", "rename", "fsync", "unlink", "fsync"];
    assert_eq!(ours, order, "{calls}");
    let refused = tool("interlock")
        .arg("wipe")
        .args([&link, &pipe, &place.path("none")])
        .arg("--json")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(6), "{}", said(&refused));
    assert_eq!(said(&refused).matches("\"result\":\"failed\"").count(), 3, "{}", said(&refused));
    assert!(link.exists() && pipe.exists());
    let help = said(&tool("interlock").args(["wipe", "--help"]).output().unwrap());
    assert!(help.contains("best effort") && help.contains("flash"), "{help}");
}

#[test]
fn wipe_refuses_what_an_instance_or_any_process_works_with_and_then_wipes_nothing() {
    let runtime = TestRuntime::start();
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    let other = place.path("other");
    fs::write(&other, "secret").unwrap();
    let wipe = |files: &[&Path], exit: i32| {
        let wiped = tool("interlock").arg("wipe").args(files).output().unwrap();
        assert_eq!(wiped.status.code(), Some(exit), "{files:?}: {}", said(&wiped));
        said(&wiped)
    };
    let pid = format!("process {}", runtime.process.id());
    for name in ["interlock.db", "interlock.db-wal", "keys/operator.toml", "run/gateway-token"] {
        let live = place.data.join(name);
        let text = wipe(&[&other, &live], 5);
        assert!(text.contains(&pid) && text.contains("interlock stop"), "{text}");
        assert!(live.exists() && other.exists(), "{name}");
    }
    // What a restore has kept is nobody's, and other places are not the instance's.
    let kept = place.data.join("interlock.db.pre-restore-20260101T000000Z");
    fs::write(&kept, "old").unwrap();
    wipe(&[&kept, &other], 0);
    assert!(!runtime.turn("talk", "still here").is_empty());
    drop(runtime);

    // A database that a process has open, with no instance anywhere.
    let place = Place::new();
    let reader = Reader::open(&place.database(), &place.key()).unwrap();
    for name in ["interlock.db", "interlock.db-shm"] {
        let text = wipe(&[&place.data.join(name)], 5);
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }
    assert!(place.database().exists());
    drop(reader);
    wipe(&[&place.database()], 0);
}

#[test]
fn wipe_refuses_a_file_with_another_name_and_the_configuration_file_of_an_instance() {
    let runtime = TestRuntime::start();
    let place = Place { directory: tempfile::tempdir().unwrap(), data: runtime.data() };
    let [other, link, database] = ["other", "link", "a.db"].map(|name| place.path(name));
    let key = place.data.join("keys/wrap.key");
    let before = fs::read(&key).unwrap();
    for path in [&other, &database] {
        fs::write(path, "secret").unwrap();
    }
    fs::hard_link(&key, &link).unwrap();
    fs::hard_link(&key, place.path("a.db-wal")).unwrap();
    let wipe = |command: &mut Command, files: &[&Path], exit: i32| {
        let wiped = command.arg("wipe").args(files).output().unwrap();
        assert_eq!(wiped.status.code(), Some(exit), "{files:?}: {}", said(&wiped));
        said(&wiped)
    };
    // Also where it is what stands beside a database.
    for file in [&link, &database] {
        let text = wipe(&mut tool("interlock"), &[&other, file], 5);
        assert!(text.contains("2 other names") && text.contains("-samefile"), "{text}");
        assert!(fs::read(&key).unwrap() == before && other.exists() && file.exists(), "{text}");
    }
    fs::remove_file(place.path("a.db-wal")).unwrap();
    let text = wipe(&mut tool("interlock"), &[&link], 5);
    assert!(text.contains("1 other name "), "{text}");

    // Outside of the data directory: what leads to the instance is a flag, or what the file says itself.
    let config = runtime.directory.path().join("interlock.toml");
    let text = wipe(&mut place.command(&[]), &[&config], 5);
    let pid = format!("process {}", runtime.process.id());
    assert!(text.contains("configuration file of an instance") && text.contains(&pid), "{text}");
    let mut whole = fs::read_to_string(&config).unwrap();
    whole.insert_str(0, &format!("[runtime]\ndata_dir = \"{}\"\n", place.data.display()));
    fs::write(&config, whole).unwrap();
    let text = wipe(&mut tool("interlock"), &[&other, &config], 5);
    assert!(text.contains(&pid) && config.exists() && other.exists(), "{text}");
    drop(runtime);
    wipe(&mut tool("interlock"), &[&other], 0);
}
