//! Backups of a store that others write to, and restores of what no store of ours would hold.
//!
//! `INTERLOCK_TEST_ROUNDS=50 cargo test -p interlock-actors backups` is the soak size.

use std::sync::atomic::AtomicBool;

use zeroize::Zeroizing;

use super::{
    processes::{Other, rounds},
    *,
};
use crate::backup::{
    self, BackupError, CreateOptions, Installation, Progress, RestoreOptions, Watcher, forge, limits,
};

/// As cheap as is allowed: what is tested here is not how dear guessing is.
const CHEAP: CreateOptions = CreateOptions {
    cost: interlock_bus::crypto::PassphraseCost {
        passes: *limits::PASSES.start(),
        memory_kib: *limits::MEMORY_KIB.start(),
    },
    chunk_bytes: *limits::CHUNK_BYTES.start(),
};

fn passphrase() -> Passphrase {
    Passphrase::new(Zeroizing::new(b"correct horse battery".to_vec()), "a test").unwrap()
}

fn watched<T>(work: impl FnOnce(&mut Watcher<'_>) -> T) -> T {
    let cancel = AtomicBool::new(false);
    work(&mut Watcher { tell: &mut |_: Progress| {}, cancel: &cancel })
}

impl Place {
    fn installation(&self) -> Installation {
        Installation { root: self.directory.path().to_owned(), config: None }
    }

    fn back_up(&self, file: &Path) -> Result<backup::Created, BackupError> {
        let (installation, key) = (self.installation(), self.key());
        watched(|watcher| backup::create(&installation, &key, &passphrase(), file, CHEAP, watcher))
    }

    fn restore(&self, file: &Path) -> Result<backup::Restored, BackupError> {
        let options = RestoreOptions::default();
        watched(|watcher| backup::restore(&self.installation(), file, &passphrase(), options, watcher))
    }
}

/// Moves amounts between two rows, so that their sum stays; what a child does until it is killed.
pub(super) fn move_amounts(place: &Path, say: &dyn Fn(String)) {
    let key = DataKey::load(&place.join("keys"), &place.join(DATABASE_FILE)).unwrap();
    let connection = connection::open(&place.join(DATABASE_FILE), &key, connection::Role::Writer).unwrap();
    for round in 0.. {
        // Locks are not handed on in order: who gets none for long tries again.
        let moved = connection.execute_batch(
                "BEGIN IMMEDIATE; UPDATE accounts SET amount = amount - 7 WHERE id = abs(random()) % 2; \
                 UPDATE accounts SET amount = amount + 1000 - (SELECT sum(amount) FROM accounts) WHERE id = 0; \
                 INSERT INTO moves DEFAULT VALUES; COMMIT",
            );
        match moved {
            Ok(()) => std::thread::yield_now(),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => continue,
            Err(error) => panic!("{error}"),
        }
        if round % 20 == 0 {
            say(format!("moved {round}\n"));
        }
    }
}

#[test]
fn a_backup_beside_four_processes_that_write_is_of_one_moment() {
    let place = Place::new();
    place.open().close();
    place
        .connection()
        .execute_batch(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL); \
             CREATE TABLE moves (n INTEGER PRIMARY KEY AUTOINCREMENT); \
             INSERT INTO accounts VALUES (0, 500), (1, 500)",
        )
        .unwrap();
    let mut others: Vec<Other> = (0..4).map(|_| Other::start("move", &place)).collect();
    others.iter_mut().for_each(Other::release);
    let mut moves = 0;
    for round in 0..rounds(3) {
        // Each of them has written since the last one.
        for other in &mut others {
            let line = other.line();
            assert!(line.starts_with("moved"), "a writer has ended: {line}");
        }
        let file = place.directory.path().join("backups.ilbk");
        place.back_up(&file).unwrap();
        let elsewhere = Place::new();
        elsewhere.restore(&file).unwrap();
        let restored = elsewhere.connection();
        let number = |sql: &str| restored.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("SELECT sum(amount) FROM accounts"), 1000, "round {round}");
        assert_eq!(number("SELECT count(*) - max(n) FROM moves"), 0, "round {round}");
        let now = number("SELECT count(*) FROM moves");
        assert!(now > moves, "round {round}: {now} moves, {moves} before");
        moves = now;
        let check: String = restored.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

#[test]
fn what_is_sealed_rightly_and_is_not_fit_is_refused_before_anything_is_touched() {
    let live = Place::new();
    live.open().close();
    let live_bytes = live.bytes();
    let origin = Place::new();
    origin.open().close();
    origin
        .connection()
        .execute_batch(
            "INSERT INTO conversations VALUES ('talk', '', 0, 0); \
             INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
             VALUES (randomblob(16), 'talk', '', 'user', 'complete', '', 0)",
        )
        .unwrap();
    let (whole, file) = (origin.directory.path().join("whole"), origin.directory.path().join("forged"));
    origin.back_up(&whole).unwrap();
    let sql = |sql: &'static str| {
        move |path: &Path, key: &DataKey| {
            let connection = Connection::open(path).unwrap();
            connection.execute_batch(&key.pragma()).unwrap();
            connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            connection.execute_batch(sql).unwrap();
        }
    };
    let bad_page = |path: &Path, _: &DataKey| {
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    type Change = Box<dyn Fn(&Path, &DataKey)>;
    let cases: [(&str, u8, &str, Change); 7] = [
        ("a later schema", 9, "schema version 99", Box::new(sql("PRAGMA user_version = 99"))),
        ("another program's", 8, "not one of Interlock", Box::new(sql("PRAGMA application_id = 7"))),
        ("an orphan", 8, "has no row in conversations", Box::new(sql("DELETE FROM conversations"))),
        ("a table less", 8, "table messages", Box::new(sql("DROP TABLE messages"))),
        (
            "a row more",
            8,
            "not what the table of contents says",
            Box::new(sql("INSERT INTO conversations VALUES ('x', '', 0, 0)")),
        ),
        ("a bad page", 8, "is damaged", Box::new(bad_page)),
        (
            "a page less",
            8,
            "is damaged",
            Box::new(|path, _| {
                let bytes = fs::read(path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 4096]).unwrap();
            }),
        ),
    ];
    for (what, exit, why, change) in cases {
        fs::copy(&whole, &file).unwrap();
        forge(&file, &passphrase(), change);
        // It is what somebody sealed with the right passphrase.
        watched(|watcher| backup::verify(&file, &passphrase(), watcher)).unwrap();
        let error = live.restore(&file).err().unwrap_or_else(|| panic!("{what} was restored"));
        assert_eq!(error.exit_code(), exit, "{what}: {error}");
        assert!(error.to_string().contains(why), "{what}: {error}");
        let drilled = watched(|watcher| backup::drill(&live.installation(), &file, &passphrase(), watcher));
        assert_eq!(drilled.unwrap_err().exit_code(), exit, "{what}");
        assert!(live.bytes() == live_bytes, "{what} changed something");
        assert!(!live.names().iter().any(|name| name.to_string_lossy().contains("restore")), "{what}");
    }
    forge(&whole, &passphrase(), |_, _| {});
    live.restore(&whole).unwrap();
    assert_eq!(live.reader().history("talk", 10).map_or(0, |history| history.len()), 0);
}

#[test]
fn nothing_of_a_key_stands_in_an_error_of_the_copy() {
    let place = Place::new();
    let store = place.open();
    let key = DataKey::one_time(Path::new("x"));
    let cancel = std::sync::Arc::new(AtomicBool::new(false));
    for target in ["/none/at/all", "/proc/version", place.directory.path().to_str().unwrap()] {
        let error =
            snapshot::take(&place.database(), &place.key(), Path::new(target), &key, &cancel).unwrap_err();
        for text in [format!("{error}"), format!("{error:?}")] {
            assert!(!text.contains(key.digits().as_str()) && !text.contains("file:"), "{text}");
        }
    }
    store.close();
}
