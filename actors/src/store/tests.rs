//! What the store promises, several processes and `kill -9` included.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::Connection;
use uuid::Uuid;

use super::{connection, *};
use crate::log_record::Level;

mod backups;
mod mending;
pub(super) mod opening;
pub(in crate::store) mod processes;
mod sealing;
mod soak;

/// A data directory of a test.
pub(in crate::store) struct Place {
    pub(super) directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join(DATABASE_FILE)
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    pub(super) fn key(&self) -> DataKey {
        DataKey::load_or_create(&self.keys(), &self.database()).unwrap()
    }

    fn open(&self) -> Store {
        Store::open(&self.database(), &self.key(), StoreOptions::default()).unwrap()
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.database(), &self.key()).unwrap()
    }

    /// A bare connection, to do to the database what the store would not.
    fn connection(&self) -> Connection {
        connection::open(&self.database(), &self.key(), connection::Role::Writer).unwrap()
    }

    /// What lies in the directory.
    fn names(&self) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    /// Every byte of the database and of what stands beside it. Only with the store closed.
    fn bytes(&self) -> Vec<u8> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files.iter().flat_map(|file| fs::read(file).unwrap()).collect()
    }
}

pub(in crate::store) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn record(message: &str) -> LogRecord {
    LogRecord::new(Level::Info, "test", message)
}

fn messages(found: &[StoredLog]) -> Vec<&str> {
    found.iter().map(|log| log.record.message.as_str()).collect()
}

#[test]
fn constructing_and_asking_create_nothing() {
    let place = Place::new();
    let elsewhere = Place::new();
    let database = place.database();
    assert_eq!(schema_version(&database, &elsewhere.key()).unwrap(), SchemaVersion::Unknown);
    assert!(matches!(Reader::open(&database, &elsewhere.key()), Err(StoreError::NotInitialised { .. })));
    assert!(matches!(DataKey::load(&place.keys(), &database), Err(StoreError::NotInitialised { .. })));
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 0);

    fs::write(&database, "").unwrap();
    assert_eq!(schema_version(&database, &elsewhere.key()).unwrap().to_string(), "unknown");
    assert_eq!(fs::metadata(&database).unwrap().len(), 0);
}

#[test]
fn the_database_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let database = place.directory.path().join("deep/er/ a name \u{e9}.db");
    let store = Store::open(&database, &place.key(), StoreOptions::default()).unwrap();
    wait(store.append(vec![record("one")])).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for entry in fs::read_dir(database.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(mode(database.parent().unwrap()), 0o700);
    assert_eq!(mode(&place.directory.path().join("deep")), 0o700);
}

#[test]
fn a_record_appended_twice_is_stored_once_and_comes_back_whole() {
    let place = Place::new();
    let store = place.open();
    let mut full = record("text with \u{1f600} and ' and \0");
    full.fields = vec![("key".into(), "value".into()), ("key".into(), String::new())];
    full.spans = vec!["outer".into(), "inner".into()];
    (full.file, full.line) = (Some("src/x.rs".into()), Some(7));
    (full.trace_id, full.conversation) = (Some("00-ab".into()), Some("c1".into()));
    (full.origin, full.incarnation) = (Some("gateway".into()), 3);
    let first = wait(store.append(vec![full.clone(), record("other")])).unwrap();
    assert_eq!((first.stored, first.duplicates), (2, 0));
    let second = wait(store.append(vec![full.clone()])).unwrap();
    assert_eq!((second.stored, second.duplicates), (0, 1));
    let found = place.reader().logs(&LogQuery::default()).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].record, full);
}

#[test]
fn a_query_finds_by_level_time_component_text_and_conversation() {
    let place = Place::new();
    let store = place.open();
    let (mut records, base) = (Vec::new(), interlock_bus::envelope::now_ns());
    for (number, level) in Level::ALL.into_iter().enumerate() {
        let mut record =
            LogRecord::new(level, if number % 2 == 0 { "even" } else { "odd" }, format!("n{number} 100%_a"));
        record.time_ns = base + number as u64;
        record.conversation = (number == 3).then(|| "c".to_owned());
        record.fields = vec![("peer".to_owned(), format!("p{number}"))];
        records.push(record);
    }
    records.reverse();
    wait(store.append(records)).unwrap();
    let reader = place.reader();
    let find = |query: LogQuery| -> String {
        let found = reader.logs(&query).unwrap();
        found.iter().map(|log| log.record.message[1..2].to_owned()).collect()
    };
    let all = LogQuery::default;
    assert_eq!(find(all()), "01234", "in the order of time, not of arrival");
    assert_eq!(find(LogQuery { min_level: Some(Level::Warn), ..all() }), "34");
    assert_eq!(find(LogQuery { min_level: Some(Level::Info), ..all() }), "234");
    assert_eq!(find(LogQuery { since_ns: Some(base + 1), until_ns: Some(base + 3), ..all() }), "12");
    assert_eq!(find(LogQuery { components: vec!["odd".into()], ..all() }), "13");
    assert_eq!(find(LogQuery { text: Some("N2".into()), ..all() }), "2");
    assert_eq!(find(LogQuery { text: Some("P4".into()), ..all() }), "4");
    assert_eq!(find(LogQuery { text: Some("%_A".into()), ..all() }), "01234");
    assert_eq!(find(LogQuery { text: Some("0_a".into()), ..all() }), "", "the words are 100 and a");
    assert_eq!(find(LogQuery { conversation: Some("c".into()), ..all() }), "3");
    assert_eq!(find(LogQuery { limit: 2, ..all() }), "34", "the newest two");
}

#[test]
fn a_follower_sees_each_record_once_and_is_told_cheaply_when_to_look() {
    let place = Place::new();
    let store = place.open();
    wait(store.append(vec![record("before")])).unwrap();
    let mut follower = place.reader();
    let mut after = follower.newest_log_seq().unwrap();
    assert!(follower.has_changed().unwrap());
    assert!(!follower.has_changed().unwrap());
    let mut seen = Vec::new();
    for number in 0..5 {
        wait(store.append(vec![record(&format!("a{number}")), record(&format!("b{number}"))])).unwrap();
        assert!(follower.has_changed().unwrap());
        let new = follower.logs(&LogQuery { after_seq: Some(after), ..LogQuery::default() }).unwrap();
        after = new.last().unwrap().seq;
        seen.extend(messages(&new).into_iter().map(str::to_owned));
        assert!(!follower.has_changed().unwrap());
    }
    assert_eq!(seen, ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]);
}

#[test]
fn what_was_said_survives_a_restart_in_order() {
    let place = Place::new();
    let turn = Uuid::now_v7();
    let say = |role, state, text: &str| NewMessage::new("c1", turn, role, state, text);
    let question = say(Role::User, MessageState::Complete, "question");
    {
        let store = place.open();
        assert!(wait(store.create_conversation("c1", "a title")).unwrap());
        assert!(!wait(store.create_conversation("c1", "another")).unwrap());
        assert!(wait(store.append_message(question.clone())).unwrap());
        assert!(!wait(store.append_message(question.clone())).unwrap(), "the same message was saved twice");
        wait(store.append_message(say(Role::Assistant, MessageState::Failed, "ans"))).unwrap();
        store.close();
    }
    let store = place.open();
    let history = wait(store.history("c1", 10)).unwrap();
    assert_eq!(
        history.iter().map(|said| said.message.text.as_str()).collect::<Vec<_>>(),
        ["question", "ans"]
    );
    assert_eq!(history[0].message, question);
    assert_eq!((history[1].message.role, history[1].message.state), (Role::Assistant, MessageState::Failed));
    let last = wait(store.history("c1", 1)).unwrap();
    assert_eq!(last[0].message.text, "ans");

    let listed = place.reader().conversations(10).unwrap();
    assert_eq!((listed[0].title.as_str(), listed[0].messages), ("a title", 2));
    assert!(wait(store.delete_conversation("c1")).unwrap());
    assert!(!wait(store.delete_conversation("c1")).unwrap());
    assert!(wait(store.history("c1", 10)).unwrap().is_empty());
    let orphans: i64 =
        place.connection().query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(orphans, 0, "the messages outlived their conversation");
}

#[test]
fn a_bad_row_does_not_lose_the_others_of_its_batch() {
    let place = Place::new();
    let store = place.open();
    // A rule that no record of ours breaks by itself; it stands for whatever SQLite may refuse.
    place
        .connection()
        .execute_batch(
            "CREATE TRIGGER no_poison BEFORE INSERT ON logs WHEN new.message = 'poison' \
             BEGIN SELECT raise(ABORT, 'poison is refused'); END",
        )
        .unwrap();
    let (poison, turn) = (record("poison"), Uuid::now_v7());
    let message = NewMessage::new("nobody", turn, Role::User, MessageState::Complete, "text");
    let (mixed, good, orphan) = wait(async {
        // Polled together, so that they share a batch.
        futures_util::join!(
            store.append(vec![record("good one"), poison.clone(), record("good two")]),
            store.append(vec![record("good three")]),
            store.append_message(message.clone()),
        )
    });
    let mixed = mixed.unwrap();
    assert_eq!((mixed.stored, mixed.refused.len(), mixed.refused[0].0), (2, 1, poison.id));
    assert!(mixed.refused[0].1.contains("poison is refused"), "{:?}", mixed.refused);
    assert_eq!(good.unwrap().stored, 1);
    let orphan = orphan.unwrap_err();
    assert!(matches!(orphan.error, StoreError::NoSuchConversation { .. }), "{orphan}");
    assert_eq!(orphan.work, Some(message), "the refused work was not given back");
    assert_eq!(messages(&place.reader().logs(&LogQuery::default()).unwrap()).len(), 3);
}

#[test]
fn callers_that_come_together_share_a_commit() {
    let place = Place::new();
    let store = place.open();
    let before = store.statistics();
    let blocker = place.connection();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let callers = 200;
    wait(async {
        let calls = (0..callers).map(|number| store.append(vec![record(&number.to_string())]));
        let all = futures_util::future::join_all(calls);
        futures_util::pin_mut!(all);
        // One poll queues them all; the writer waits for the lock that we hold.
        assert!(futures_util::poll!(&mut all).is_pending());
        blocker.execute_batch("COMMIT").unwrap();
        for outcome in all.await {
            assert_eq!(outcome.unwrap().stored, 1);
        }
    });
    let commits = store.statistics().commits - before.commits;
    assert!(commits <= 4, "{callers} callers needed {commits} commits");
    assert_eq!(place.reader().logs(&LogQuery::default()).unwrap().len(), callers);
}

#[test]
fn a_full_queue_refuses_at_once_and_gives_the_work_back() {
    let place = Place::new();
    let options = StoreOptions { queue_jobs: 2, ..StoreOptions::default() };
    let store = Store::open(&place.database(), &place.key(), options).unwrap();
    let blocker = place.connection();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    wait(async {
        let mut waiting = Vec::new();
        // The writer takes some while it waits for the lock; sooner or later the two places stay taken.
        let refused = loop {
            let mut call = Box::pin(store.append(vec![record("text")]));
            match futures_util::poll!(&mut call) {
                std::task::Poll::Pending => waiting.push(call),
                std::task::Poll::Ready(outcome) => break outcome.unwrap_err(),
            }
            assert!(waiting.len() <= 2 + limits::GROUP_JOBS_MAX, "the queue has no bound");
        };
        assert!(matches!(refused.error, StoreError::QueueFull { limit: 2 }), "{refused}");
        assert_eq!((refused.error.exit_code(), refused.work.unwrap()[0].message.as_str()), (7, "text"));
        blocker.execute_batch("COMMIT").unwrap();
        for call in waiting {
            assert_eq!(call.await.unwrap().stored, 1);
        }
    });
}

#[test]
fn whoever_waits_for_a_place_in_a_full_queue_gets_one_in_turn_and_is_told_of_the_end() {
    let place = Place::new();
    let options = StoreOptions { queue_jobs: 2, ..StoreOptions::default() };
    let store = Store::open(&place.database(), &place.key(), options).unwrap();
    let blocker = place.connection();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let calls = 3 * limits::GROUP_JOBS_MAX;
    wait(async {
        let mut waiting = Vec::new();
        for _ in 0..calls {
            let mut call = Box::pin(store.append_waiting(vec![record("text")]));
            assert!(futures_util::poll!(&mut call).is_pending());
            waiting.push(call);
        }
        assert!(store.statistics().waiting <= 2, "{:?}", store.statistics());
        blocker.execute_batch("COMMIT").unwrap();
        for call in waiting {
            assert_eq!(call.await.unwrap().stored, 1);
        }
    });
    assert_eq!(place.reader().logs(&LogQuery::default()).unwrap().len(), calls);
    store.close();
    let refused = wait(store.append_waiting(vec![record("late")])).unwrap_err();
    assert!(matches!(refused.error, StoreError::Closed) && refused.work.is_some(), "{refused}");
}

#[test]
fn a_closed_store_has_written_what_was_queued_and_says_that_it_is_closed() {
    let place = Place::new();
    let store = place.open();
    wait(async {
        let call = store.append(vec![record("last")]);
        futures_util::pin_mut!(call);
        let _ = futures_util::poll!(&mut call);
        store.close();
        assert_eq!(call.await.unwrap().stored, 1);
        let refused = store.append(vec![record("too late")]).await.unwrap_err();
        assert!(matches!(refused.error, StoreError::Closed) && refused.work.is_some());
    });
    assert!(!store.is_open());
    assert_eq!(messages(&place.reader().logs(&LogQuery::default()).unwrap()), ["last"]);
}

#[test]
fn logs_are_trimmed_by_count_and_by_age() {
    let place = Place::new();
    let options = StoreOptions {
        logs: LogRetention { rows_max: 100, ..LogRetention::default() },
        ..StoreOptions::default()
    };
    let store = Store::open(&place.database(), &place.key(), options).unwrap();
    let mut ancient = record("ancient");
    ancient.time_ns = 1;
    wait(store.append(vec![ancient])).unwrap();
    for _ in 0..4 {
        wait(store.append((0..limits::TRIM_EVERY_ROWS).map(|number| record(&number.to_string())).collect()))
            .unwrap();
    }
    store.close();
    let found = place.reader().logs(&LogQuery { limit: 10_000, ..LogQuery::default() }).unwrap();
    let newest = (limits::TRIM_EVERY_ROWS - 1).to_string();
    assert!(found.len() <= 100 + limits::TRIM_EVERY_ROWS, "{} rows are left", found.len());
    assert_eq!(messages(&found).last(), Some(&newest.as_str()));
    assert!(!messages(&found).contains(&"ancient"));
}

#[test]
fn a_wrong_key_is_its_own_error_and_changes_nothing() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let store = place.open();
    wait(store.append(vec![record("text")])).unwrap();
    store.close();
    drop(store);
    let before = place.bytes();
    for _ in 0..2 {
        let error = Store::open(&place.database(), &elsewhere.key(), StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
        assert_eq!(error.exit_code(), 4);
        assert!(matches!(
            Reader::open(&place.database(), &elsewhere.key()),
            Err(StoreError::WrongKey { .. })
        ));
        assert!(matches!(
            schema_version(&place.database(), &elsewhere.key()),
            Err(StoreError::WrongKey { .. })
        ));
    }
    assert!(place.bytes() == before, "a refused open changed the file");
    fs::remove_file(place.directory.path().join("interlock.db.id")).unwrap();
    assert!(matches!(Reader::open(&place.database(), &elsewhere.key()), Err(StoreError::WrongKey { .. })));
    assert_eq!(messages(&place.reader().logs(&LogQuery::default()).unwrap()), ["text"]);
}

#[test]
fn a_damaged_database_is_said_to_be_and_never_recreated() {
    let place = Place::new();
    let store = place.open();
    wait(store.append((0..500).map(|number| record(&"x".repeat(number))).collect())).unwrap();
    store.close();
    drop(store);
    let (database, whole) = (place.database(), fs::read(place.database()).unwrap());
    let damage = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    for (what, content) in [
        ("40 bytes of text", b"this is not a database, it is some text.".to_vec()),
        ("first page zeroed", damage(0, &[0; 4096])),
        ("bits flipped in page 1", damage(100, &[0xff; 8])),
        ("its first bytes overwritten", damage(0, &[0xa5; 16])),
        ("first page overwritten", damage(0, &[0xa5; 4096])),
        ("cut in half", whole[..whole.len() / 2].to_vec()),
    ] {
        fs::write(&database, &content).unwrap();
        let outcome = Store::open(&database, &place.key(), StoreOptions::default()).and_then(|store| {
            // Damage further inside shows when it is read.
            let outcome = Reader::open(&database, &place.key())?.check();
            store.close();
            outcome
        });
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 8, "{what}: {error}");
        assert!(fs::read(&database).unwrap() == content, "{what}: the file was changed");
    }
    // Without the record beside it, pages that are whole still prove which key it was made with.
    let record = place.directory.path().join("interlock.db.id");
    let (kept, content) = (fs::read(&record).unwrap(), damage(100, &[0xff; 8]));
    fs::remove_file(&record).unwrap();
    fs::write(&database, &content).unwrap();
    let error = Reader::open(&database, &place.key()).unwrap_err();
    assert_eq!(error.exit_code(), 8, "{error}");
    fs::write(&record, kept).unwrap();
    // Another database with the record of ours beside it is another database.
    let elsewhere = Place::new();
    elsewhere.open().close();
    fs::copy(elsewhere.database(), &database).unwrap();
    let error = Reader::open(&database, &place.key()).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    fs::write(&database, damage(20 * 4096 + 77, &[0xff; 4])).unwrap();
    let error = place.reader().check().unwrap_err();
    assert_eq!(error.exit_code(), 8, "bits flipped inside: {error}");
}

#[test]
fn a_plain_database_a_newer_schema_and_a_missing_table_are_refused_untouched() {
    let place = Place::new();
    let database = place.database();
    let open = || Store::open(&database, &place.key(), StoreOptions::default()).unwrap_err();
    let key = place.key();
    fs::remove_file(&database).unwrap_or_default();
    Connection::open(&database).unwrap().execute_batch("CREATE TABLE theirs (n)").unwrap();
    let before = fs::read(&database).unwrap();
    let error = Store::open(&database, &key, StoreOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::NotOurs { .. }), "{error}");
    assert!(fs::read(&database).unwrap() == before);
    fs::remove_file(&database).unwrap();

    place.open().close();
    place
        .connection()
        .execute_batch(
            "INSERT INTO schema_migrations VALUES (999, 'of the future', 'x', 0); PRAGMA user_version = 999",
        )
        .unwrap();
    let error = open();
    assert!(matches!(error, StoreError::NewerSchema { found: 999, .. }), "{error}");
    assert_eq!(error.exit_code(), 9);
    assert!(matches!(Reader::open(&database, &key), Err(StoreError::NewerSchema { .. })));

    place
        .connection()
        .execute_batch(&format!(
            "DELETE FROM schema_migrations WHERE version = 999; PRAGMA user_version = {}; DROP TABLE messages",
            migrate::known_version(migrate::MIGRATIONS)
        ))
        .unwrap();
    let error = open();
    assert!(matches!(error, StoreError::SchemaIncomplete { .. }), "{error}");
    assert_eq!(error.exit_code(), 8);
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_names_it() {
    let place = Place::new();
    let blocked = place.directory.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error =
        Store::open(&blocked.join("interlock.db"), &place.key(), StoreOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains(&blocked.display().to_string()), "{error}");
}

#[test]
fn nothing_written_is_readable_in_any_file() {
    let place = Place::new();
    let store = place.open();
    let marker = "MARKER-that-must-stay-secret";
    wait(async {
        store.create_conversation("c", marker).await.unwrap();
        let message = NewMessage::new("c", Uuid::now_v7(), Role::User, MessageState::Complete, marker);
        store.append_message(message).await.unwrap();
        for _ in 0..100 {
            store.append((0..100).map(|_| record(marker)).collect()).await.unwrap();
        }
    });
    // The files are read by another process: reading them here would drop SQLite's locks.
    let search = |when: &str| {
        let found =
            Command::new("grep").args(["-rlaF", marker]).arg(place.directory.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "{when}");
        let files = fs::read_dir(place.directory.path()).unwrap().count();
        assert!(files >= 3, "{when}: only {files} files were searched");
    };
    search("while it is open, with -wal and -shm");
    store.close();
    drop(store);
    search("after it was closed");
}

#[test]
fn as_an_actor_it_is_found_while_it_is_open_and_tells_why_it_could_not_be_opened() {
    use crate::host::{ActorHost, Bus, Exit, Host, HostReport, Mailroom, Reports, Stop};
    let (place, elsewhere) = (Place::new(), Place::new());
    let seat = StoreSeat::default();
    let mailroom = Mailroom::open().unwrap();
    let run = |keys: PathBuf| {
        let (database, seat) = (place.database(), seat.clone());
        let factory = move || {
            let vault = Vault::new(keys.clone(), database.clone(), PassphraseSources::default());
            Ok(StoreActor::new(Arc::new(vault), StoreOptions::default(), seat.clone()))
        };
        let mut host = ActorHost::new("store".parse().unwrap(), Bus::none(), &mailroom, factory);
        let (sink, reports) = crossbeam_channel::bounded(64);
        host.start(1, Reports::new(move |report| drop(sink.try_send(report))));
        (host, reports)
    };
    let next = |reports: &crossbeam_channel::Receiver<HostReport>, wanted: fn(&HostReport) -> bool| loop {
        let report = reports.recv_timeout(Duration::from_secs(20)).unwrap();
        if wanted(&report) {
            return report;
        }
    };
    assert!(seat.store().is_err());
    let (mut host, reports) = run(place.keys());
    next(&reports, |report| matches!(report, HostReport::Ready { .. }));
    let store = seat.store().unwrap();
    wait(store.append(vec![record("text")])).unwrap();
    host.stop(Stop::Final);
    let exit = next(&reports, |report| matches!(report, HostReport::Exited(_)));
    assert!(matches!(exit, HostReport::Exited(Exit::Normal)), "{exit:?}");
    assert!(seat.store().is_err() && !store.is_open());

    drop(elsewhere.key());
    let (_host, reports) = run(elsewhere.keys());
    let exit = next(&reports, |report| matches!(report, HostReport::Exited(_)));
    assert!(!matches!(exit, HostReport::Exited(Exit::Normal)), "{exit:?}");
    assert_eq!(seat.last_error().map(|error| error.exit_code()), Some(4));
    assert!(seat.store().is_err());
}

#[test]
fn a_database_of_the_first_version_is_searched_at_once_and_indexed_while_it_is_used() {
    let place = Place::new();
    let key = place.key();
    connection::create_private_file(&place.database()).unwrap();
    let mut old = connection::open(&place.database(), &key, connection::Role::Writer).unwrap();
    migrate::migrate(&mut old, &place.database(), &migrate::MIGRATIONS[..1]).unwrap();
    let insert = "INSERT INTO logs (id, time_ns, level, target, component, process, incarnation, message) \
                  VALUES (randomblob(16), ?1, 3, 't', 'old', 1, 1, 'number ' || ?1)";
    for number in 0..3000 {
        old.execute(insert, [number]).unwrap();
    }
    drop(old);
    let options = StoreOptions {
        logs: LogRetention { age_max: Duration::MAX, ..LogRetention::default() },
        ..StoreOptions::default()
    };
    let store = Store::open(&place.database(), &place.key(), options).unwrap();
    let find = |text: &str| {
        let query = LogQuery { text: Some(text.into()), ..LogQuery::default() };
        place.reader().logs(&query).unwrap().len()
    };
    assert_eq!((find("2999"), find("nu*")), (1, 1000));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut watcher = place.reader();
    loop {
        let indexed: i64 =
            place.connection().query_row("SELECT indexed_to FROM log_totals", [], |row| row.get(0)).unwrap();
        if indexed > 3000 - limits::INDEX_AT_ROWS as i64 {
            break;
        }
        assert!(Instant::now() < deadline, "only {indexed} are indexed");
        while !watcher.has_changed().unwrap() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
    assert_eq!((find("2999"), find("17"), find("nu*")), (1, 1, 1000));
    store.close();
}
