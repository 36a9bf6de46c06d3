//! How a connection is opened: in which order, with which settings, and what an open store does when its file is replaced.

use std::{
    cell::RefCell,
    sync::Mutex,
    time::{Duration, Instant},
};

use interlock_bus::blocking::wait_until;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::*;
use crate::{
    host::HostReport,
    store::{PassphraseSources, StoreActor, StoreSeat, Vault},
    test_stage::Stage,
};

thread_local! {
    /// Where the statements of connections that this thread opens are written down.
    static HEARD: RefCell<Option<Arc<Mutex<Vec<String>>>>> = const { RefCell::new(None) };
}

/// `connection`, heard if this thread listens.
pub(in crate::store) fn traced(mut connection: Connection) -> Connection {
    if let Some(heard) = HEARD.with(|heard| heard.borrow().clone()) {
        let hear = move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(statement, _) = event {
                heard.lock().unwrap().push(statement.sql().into_owned());
            }
        };
        connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(hear)).unwrap();
    }
    connection
}

/// What `work` has connections do that it opens on this thread.
fn statements(work: impl FnOnce()) -> Vec<String> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    HEARD.with(|held| *held.borrow_mut() = Some(Arc::clone(&heard)));
    work();
    HEARD.with(|held| *held.borrow_mut() = None);
    std::mem::take(&mut heard.lock().unwrap())
}

#[test]
fn a_connection_is_opened_in_the_one_order_that_works() {
    let place = Place::new();
    place.open().close();
    let order = statements(|| drop(place.reader()));
    let at = |wanted: &str| {
        let found = order.iter().position(|statement| statement.starts_with(wanted));
        found.unwrap_or_else(|| panic!("no `{wanted}` in {order:?}"))
    };
    let wanted = [
        "PRAGMA cipher_log_level = NONE",
        "PRAGMA key",
        // sqlite3_busy_timeout is a call, not a statement.
        "SELECT count(*) FROM sqlite_schema",
        "PRAGMA journal_mode",
        "PRAGMA foreign_keys = ON",
        "PRAGMA foreign_keys",
        "PRAGMA synchronous = FULL",
        "PRAGMA query_only = ON",
    ];
    let places: Vec<usize> = wanted.iter().map(|wanted| at(wanted)).collect();
    assert_eq!(places[..3], [0, 1, 2], "{order:?}");
    assert!(
        places.windows(2).all(|pair| pair[0] < pair[1] || wanted[5] == "PRAGMA foreign_keys"),
        "{order:?}"
    );
    let last = order.iter().rposition(|statement| statement == "PRAGMA foreign_keys").unwrap();
    assert_eq!(last, places[4] + 1, "it is not read back at once: {order:?}");
}

#[test]
fn every_connection_has_the_settings_the_store_depends_on() {
    let place = Place::new();
    let _store = place.open();
    for role in [connection::Role::Writer, connection::Role::Reader] {
        let connection = connection::open(&place.database(), &place.key(), role).unwrap();
        let setting = |name: &str| {
            connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(
            (setting("foreign_keys"), setting("synchronous"), setting("busy_timeout")),
            (1, 2, 10_000)
        );
        let is_reader = role == connection::Role::Reader;
        assert_eq!((setting("query_only"), setting("trusted_schema")), (i64::from(is_reader), 0));
        assert_eq!((setting("mmap_size"), setting("cell_size_check")), (0, 1));
        assert_eq!(setting("wal_autocheckpoint"), if is_reader { 0 } else { 1000 });
        assert_eq!(setting("journal_size_limit"), limits::WAL_BYTES as i64);
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }
}

#[test]
fn a_second_start_changes_nothing() {
    let place = Place::new();
    place.open().close();
    // Without the writing thread, whose retention may look already.
    let again = statements(|| drop(crate::store::initialise(&place.database(), &place.key()).unwrap()));
    let changes = [
        "CREATE",
        "INSERT",
        "UPDATE",
        "DELETE",
        "DROP",
        "ALTER",
        "BEGIN",
        "PRAGMA user_version =",
        "PRAGMA journal_mode =",
    ];
    // The reference schema is made in memory, by a connection that is not heard.
    let found: Vec<_> = again
        .iter()
        .filter(|statement| {
            changes.iter().any(|change| statement.to_uppercase().starts_with(&change.to_uppercase()))
        })
        .collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(again.len() > 10, "{again:?}");
}

#[test]
fn a_thousand_connections_open_in_less_than_two_seconds_each_with_the_raw_key() {
    let place = Place::new();
    let store = place.open();
    let begun = std::time::Instant::now();
    let opens = 100;
    for _ in 0..opens {
        place.reader();
    }
    // Deriving a key from a passphrase would take a tenth of a second each.
    assert!(begun.elapsed() < Duration::from_secs(opens / 20), "{opens} opens took {:?}", begun.elapsed());
    store.close();
}

#[test]
fn a_store_whose_file_is_replaced_goes_on_with_the_new_one() {
    let (place, elsewhere) = (Place::new(), Place::new());
    fs::create_dir(elsewhere.keys()).unwrap();
    let store = place.open();
    for name in ["data.key", "wrap.key"] {
        fs::copy(place.keys().join(name), elsewhere.keys().join(name)).unwrap();
    }
    let other = elsewhere.open();
    wait(other.append(vec![record("from the copy")])).unwrap();
    other.close();
    wait(store.append(vec![record("before")])).unwrap();
    let count =
        |store: &Store| wait(store.read(|reader| reader.logs(&LogQuery::default()))).map(|found| found.len());
    assert_eq!(count(&store).unwrap(), 1);
    let mut follower = place.reader();
    assert!(follower.has_changed().unwrap() && !follower.has_changed().unwrap());

    // As a restore does it.
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(place.directory.path().join(format!("{DATABASE_FILE}{suffix}"))).unwrap();
    }
    fs::rename(elsewhere.database(), place.database()).unwrap();
    assert!(follower.has_changed().unwrap(), "a follower did not notice");
    wait(store.append(vec![record("after")])).unwrap();
    let found = wait(store.read(|reader| reader.logs(&LogQuery::default()))).unwrap();
    assert_eq!(messages(&found), ["from the copy", "after"]);
    assert_eq!(messages(&place.reader().logs(&LogQuery::default()).unwrap()), ["from the copy", "after"]);

    // And one whose file is gone says so, until there is one.
    fs::rename(place.database(), place.directory.path().join("away")).unwrap();
    assert!(matches!(count(&store), Err(StoreError::NotInitialised { .. })));
    let refused = wait(store.append(vec![record("nowhere")])).unwrap_err();
    assert_eq!(refused.error.exit_code(), 6, "{refused}");
    fs::rename(place.directory.path().join("away"), place.database()).unwrap();
    wait(store.append(refused.work.unwrap())).unwrap();
    assert_eq!(count(&store).unwrap(), 3);
    store.close();
    place.reader().check().unwrap();
}

#[test]
fn rows_that_have_lost_what_they_belong_to_show_in_the_status_of_the_store() {
    let place = Place::new();
    place.open().close();
    let connection = place.connection();
    connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    let insert = "INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
                  VALUES (randomblob(16), 'nowhere', 't', 'user', 'complete', 'x', 0)";
    connection.execute_batch(&format!("{insert}; {insert}")).unwrap();
    drop(connection);

    let (keys, database) = (place.keys(), place.database());
    let stage = Stage::new();
    let mut stand = stage.start("runtime", move || {
        let vault = Vault::new(keys.clone(), database.clone(), PassphraseSources::default());
        Ok(StoreActor::new(Arc::new(vault), StoreOptions::default(), StoreSeat::default()))
    });
    let told = stand.wait_for("an impairment", |report| matches!(report, HostReport::Impaired(Some(_))));
    assert!(
        format!("{told:?}").contains("2 rows have lost what they belong to, the first: row "),
        "{told:?}"
    );
    stand.stop();
    place.reader().check().unwrap_err();
}

#[test]
fn a_database_that_has_lost_its_schema_or_everything_is_damaged_and_not_begun_anew() {
    let place = Place::new();
    place.open().close();
    let connection = place.connection();
    connection.execute_batch("PRAGMA writable_schema = ON; DELETE FROM sqlite_schema").unwrap();
    drop(connection);
    let refused = |what: &str| {
        for error in [
            Store::open(&place.database(), &place.key(), StoreOptions::default()).unwrap_err(),
            Reader::open(&place.database(), &place.key()).unwrap_err(),
            schema_version(&place.database(), &place.key()).unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Damaged { .. }) && error.exit_code() == 8, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    };
    refused("schema_migrations");
    fs::write(place.database(), "").unwrap();
    refused("it is empty");
    // One that is gone altogether is somebody's will: a new one is begun, unless what was committed still lies beside it.
    fs::remove_file(place.database()).unwrap();
    let log = place.directory.path().join("interlock.db-wal");
    fs::write(&log, "commits").unwrap();
    let error = Store::open(&place.database(), &place.key(), StoreOptions::default()).unwrap_err();
    assert!(error.exit_code() == 8 && error.to_string().contains("interlock.db-wal` (7 bytes)"), "{error}");
    assert_eq!(fs::read(&log).unwrap(), b"commits");
    fs::remove_file(log).unwrap();
    place.open().close();
    place.reader().check().unwrap();
}

#[test]
fn a_new_schema_is_in_the_file_and_not_only_in_its_log() {
    let place = Place::new();
    let store = place.open();
    let copy = place.directory.path().join("copy.db");
    // Of a store that is open: without its log, as it is when that is lost.
    fs::copy(place.database(), &copy).unwrap();
    fs::copy(place.directory.path().join("interlock.db.id"), place.directory.path().join("copy.db.id"))
        .unwrap();
    assert_eq!(schema_version(&copy, &place.key()).unwrap(), SchemaVersion::At(2));
    store.close();
}

#[test]
fn whoever_waits_for_a_store_that_closes_is_told() {
    let place = Place::new();
    for _ in 0..50 {
        let store = place.open();
        let asker = store.clone();
        let waiting = std::thread::spawn(move || {
            loop {
                let record = LogRecord::new(Level::Info, "test", "again");
                let deadline = Instant::now() + Duration::from_secs(60);
                let told = wait_until(asker.append_waiting(vec![record]), deadline);
                if let Err(refused) = told.expect("nobody answered a job of a store that was closed") {
                    return refused.error;
                }
            }
        });
        store.close();
        let error = waiting.join().unwrap();
        assert!(matches!(error, StoreError::Closed), "{error}");
    }
}
