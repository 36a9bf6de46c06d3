//! Finding damage, mending it on request, and saving what is left.

use rusqlite::config::DbConfig;

use super::*;
use crate::store::{
    checkup::FindingKind,
    repair::{repair, salvage},
    salvage::ORIGINALS,
    status::{DatabaseStatus, tables},
};

/// A closed database with records and a conversation in it.
fn filled(records: usize) -> Place {
    let place = Place::new();
    let store = place.open();
    wait(async {
        for from in (0..records).step_by(500) {
            let to = (from + 500).min(records);
            store
                .append((from..to).map(|number| record(&format!("record number {number}"))).collect())
                .await
                .unwrap();
        }
        store.create_conversation("c", "a title").await.unwrap();
        for number in 0..20 {
            let text = format!("message {number}");
            let message = NewMessage::new("c", Uuid::now_v7(), Role::User, MessageState::Complete, &text);
            store.append_message(message).await.unwrap();
        }
    });
    store.close();
    place
}

fn kinds(place: &Place) -> Vec<FindingKind> {
    let checkup = place.reader().checkup().unwrap();
    let mut kinds: Vec<_> = checkup.findings.iter().map(|finding| finding.kind).collect();
    kinds.dedup();
    kinds
}

#[test]
fn every_table_is_one_that_is_saved_or_one_that_is_made_from_others() {
    let place = Place::new();
    place.open().close();
    let mut known: Vec<String> = ORIGINALS.iter().map(|original| original.table.to_owned()).collect();
    known.extend(["log_blocks", "log_parts", "log_totals", "schema_migrations"].map(str::to_owned));
    known.sort();
    let connection = place.connection();
    let mut found = tables(&connection).unwrap();
    found.retain(|name| !name.starts_with("log_terms_"));
    assert_eq!(found, known, "a new table must be saved by `salvage`, or be made anew after it");
}

#[test]
fn a_well_database_has_exactly_the_schema_and_each_deviation_is_found() {
    let place = filled(10);
    let checkup = place.reader().checkup().unwrap();
    assert!(checkup.is_well(), "{:?}", checkup.findings);
    assert_eq!(checkup.migrations.last().unwrap().version, migrate::known_version(migrate::MIGRATIONS));
    for (change, kind) in [
        ("DROP INDEX conversations_by_use", FindingKind::Missing),
        ("CREATE TABLE theirs (n)", FindingKind::Foreign),
        (
            "DROP INDEX messages_by_conversation; CREATE INDEX messages_by_conversation ON messages (seq)",
            FindingKind::Changed,
        ),
        ("PRAGMA foreign_keys = OFF; DELETE FROM conversations", FindingKind::Orphan),
    ] {
        let place = filled(10);
        place.connection().execute_batch(change).unwrap();
        assert_eq!(kinds(&place), [kind], "{change}");
    }
}

#[test]
fn a_page_that_a_killed_checkpoint_left_half_written_is_no_damage_while_the_log_has_it() {
    let place = Place::new();
    place.open().close();
    let mut other = processes::Other::start("write", &place);
    other.release();
    assert_eq!(other.line(), "opened");
    (0..30).for_each(|_| drop(other.line()));
    other.kill();
    // Of the write-ahead log: 32 bytes of head, then frames of 24 bytes, of which the first four are its number, and a page.
    let wal = fs::read(place.directory.path().join("interlock.db-wal")).unwrap();
    let number = |frame: &[u8]| u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    let logged: Vec<usize> = wal[32..].chunks_exact(24 + 4096).map(number).collect();
    let whole = fs::read(place.database()).unwrap();
    let with = |page: usize, change: fn(&mut [u8])| {
        let mut bytes = whole.clone();
        change(&mut bytes[(page - 1) * 4096..page * 4096]);
        fs::write(place.database(), &bytes).unwrap();
        // Some pages are read before anything can be looked at.
        let checkup = Reader::open(&place.database(), &place.key()).and_then(|reader| reader.checkup());
        checkup.is_ok_and(|checkup| checkup.is_well())
    };
    let pages = || 2..=whole.len() / 4096;
    let half_written = pages().find(|page| logged.contains(page)).unwrap();
    assert!(with(half_written, |page| page[2000..].fill(0)));
    // One that nothing supersedes is damage all the same.
    let others: Vec<usize> = pages().filter(|page| !logged.contains(page)).collect();
    assert!(others.iter().any(|page| !with(*page, |page| page[2000] ^= 1)), "of {others:?}");
}

#[test]
fn what_is_missing_is_made_again_only_on_request_and_tables_empty() {
    let place = filled(10);
    place
        .connection()
        .execute_batch("DROP TABLE messages; DROP TABLE log_terms_3; DROP INDEX conversations_by_use")
        .unwrap();
    let looked = repair(&place.database(), &place.key(), false).unwrap();
    assert!(
        looked.done.is_empty() && looked.left.iter().any(|finding| finding.what == "table messages"),
        "{looked:?}"
    );
    assert!(matches!(
        Store::open(&place.database(), &place.key(), StoreOptions::default()),
        Err(StoreError::SchemaIncomplete { .. })
    ));
    let repaired = repair(&place.database(), &place.key(), true).unwrap();
    assert!(repaired.left.is_empty(), "{repaired:?}");
    assert!(repaired.done.contains(&"made table messages, empty".to_owned()), "{repaired:?}");
    place.open().close();
    let reader = place.reader();
    assert!(reader.conversation("c").unwrap().is_some() && reader.history("c", 100).unwrap().is_empty());
    assert_eq!(
        reader.logs(&LogQuery { text: Some("number 7".into()), ..LogQuery::default() }).unwrap().len(),
        1
    );
}

#[test]
fn an_index_that_contradicts_its_table_is_made_anew_and_nothing_is_lost() {
    let place = filled(100);
    // The index no longer knows a row that the table has.
    place
        .connection()
        .execute_batch(
            "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, '(updated_ns)', '(updated_ns) WHERE 0') \
             WHERE name = 'conversations_by_use'; PRAGMA writable_schema = RESET; REINDEX conversations_by_use; \
             PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' WHERE 0', '') \
             WHERE name = 'conversations_by_use'; PRAGMA writable_schema = RESET",
        )
        .unwrap();
    assert_eq!(kinds(&place), [FindingKind::Structure]);
    let repaired = repair(&place.database(), &place.key(), false).unwrap();
    assert!(repaired.left.is_empty() && repaired.done.len() == 1, "{repaired:?}");
    assert!(kinds(&place).is_empty());
    assert_eq!(place.reader().conversations(10).unwrap().len(), 1);
}

#[test]
fn repair_and_salvage_refuse_while_anybody_has_the_database_open() {
    let place = filled(10);
    let reader = place.reader();
    for error in [
        repair(&place.database(), &place.key(), true).unwrap_err(),
        salvage(&place.database(), &place.key()).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::InUse { .. }) && error.exit_code() == 5, "{error}");
    }
    drop(reader);
    assert!(repair(&place.database(), &place.key(), true).unwrap().left.is_empty());
    place.open().close();
}

#[test]
fn salvage_refuses_what_another_program_wrote_and_touches_nothing() {
    for change in [
        "INSERT INTO schema_migrations VALUES (999, 'of the future', 'x', 0)",
        "PRAGMA user_version = 999",
        "UPDATE schema_migrations SET checksum = 'x' WHERE version = 1",
        "DELETE FROM schema_migrations WHERE version = 1",
    ] {
        for wal_stays in [false, true] {
            let place = filled(10);
            let connection = place.connection();
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_stays).unwrap();
            connection.execute_batch(change).unwrap();
            drop(connection);
            let (bytes, names) = (place.bytes(), place.names());
            assert_eq!(names.iter().any(|name| name == "interlock.db-wal"), wal_stays);
            let error = salvage(&place.database(), &place.key()).unwrap_err();
            assert_eq!(error.exit_code(), 9, "{change}: {error}");
            assert_eq!(place.names(), names, "{change}");
            assert!(place.bytes() == bytes, "{change}: something was changed");
        }
    }
}

#[test]
fn what_can_be_read_of_a_damaged_database_is_saved_and_the_damaged_one_is_kept() {
    let records = 5000;
    let place = filled(records);
    let whole = fs::read(place.database()).unwrap();
    let pages = whole.len() / 4096;
    // Every 40th page but the first ones, with the schema in them.
    let mut damaged = whole.clone();
    let hit: Vec<usize> = (60..pages).step_by(40).collect();
    for page in &hit {
        damaged[page * 4096 + 1000..page * 4096 + 1008].fill(0xa5);
    }
    fs::write(place.database(), &damaged).unwrap();
    assert!(kinds(&place).contains(&FindingKind::Seal));
    let salvaged = salvage(&place.database(), &place.key()).unwrap();
    assert!(fs::read(&salvaged.kept).unwrap() == damaged, "the damaged one was changed");
    assert!(kinds(&place).is_empty(), "{salvaged:?}");
    let saved = salvaged.rows["logs"] as usize;
    let lost = salvaged.unreadable.get("logs").copied().unwrap_or(0) as usize;
    assert!(
        saved + lost == records && salvaged.given_up.iter().all(|table| *table != "logs"),
        "{salvaged:?}"
    );
    assert!(saved < records && saved > records - hit.len() * 40, "{} pages: {salvaged:?}", hit.len());
    // It goes on from there, and what was saved is found.
    let store = place.open();
    wait(store.append(vec![record("after")])).unwrap();
    store.close();
    let found = place.reader().logs(&LogQuery { limit: 10_000, ..LogQuery::default() }).unwrap();
    assert_eq!(found.len(), saved + 1);
    assert_eq!(messages(&found).first(), Some(&"record number 0"));
}

#[test]
fn a_status_asks_for_no_key_and_makes_nothing_where_there_is_nothing() {
    let place = Place::new();
    let no_key = || -> Result<DataKey, StoreError> { panic!("the key was asked for") };
    let status = DatabaseStatus::of(&place.database(), &place.keys(), no_key).unwrap();
    assert_eq!((status.exists, status.schema_version, status.wrap), (false, SchemaVersion::Unknown, None));
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 0);

    let place = filled(10);
    let status = DatabaseStatus::of(&place.database(), &place.keys(), || Ok(place.key())).unwrap();
    let content = status.content.unwrap();
    assert_eq!(
        (content.rows["logs"], content.rows["messages"], content.journal_mode.as_str()),
        (10, 20, "wal")
    );
    assert_eq!((content.mmap_bytes, content.page_bytes, status.wrap), (0, 4096, Some("keystore")));
    assert!(content.migrated_ns > 1_700_000_000_000_000_000 && content.pages * 4096 == content.bytes);
}
