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
    let before = contents(&place.data.join("keys"));
    let reader = Reader::open(&place.database(), &place.key()).unwrap();
    let text = place.backup("restore", &file, &[], 5);
    assert!(text.contains("open in another process") && text.contains("interlock stop"), "{text}");
    assert_eq!(contents(&place.data.join("keys")), before);
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
