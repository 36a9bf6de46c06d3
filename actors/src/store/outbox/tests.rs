//! What the outbox on disk promises.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use interlock_bus::durable::{
    OutboxStorage,
    storage::{DeliveryId, Leased, NewEntry, Outcome, Put, PutError, Settled, StorageFailure},
};
use rusqlite::Connection;
use uuid::Uuid;

use super::{
    desk::{DeliveryFilter, Edit, MessageId},
    *,
};
use crate::store::{
    connection::{self, Role},
    tests::{Place, wait},
};

impl Place {
    fn outbox_path(&self) -> PathBuf {
        self.directory.path().join(OUTBOX_FILE)
    }

    fn outbox(&self) -> OutboxStore {
        self.outbox_with(roomy())
    }

    fn outbox_with(&self, limits: OutboxLimits) -> OutboxStore {
        OutboxStore::open(&self.outbox_path(), &self.key(), limits, KeepFinished::default()).unwrap()
    }

    fn desk(&self) -> Desk {
        Desk::open(&self.outbox_path(), &self.key()).unwrap().unwrap()
    }

    /// A bare connection, to do to the outbox what it would not.
    fn outbox_connection(&self) -> Connection {
        connection::open(&self.outbox_path(), &self.key(), Role::Writer).unwrap()
    }

    /// What must hold whatever happened: whole, referring to what there is, each delivery in one state, totals equal to
    /// what they count, a body exactly where something is unfinished.
    fn check_outbox(&self) {
        self.check_outbox_in_use();
        // Reads the file beside SQLite: not while others move pages into it.
        let connection = self.outbox_connection();
        let bad = connection.query_row("PRAGMA cipher_integrity_check", [], |row| row.get::<_, String>(0));
        assert!(bad.is_err(), "{bad:?}");
    }

    fn check_outbox_in_use(&self) {
        let connection = self.outbox_connection();
        // One look at one state: others may be at work.
        connection.execute_batch("BEGIN").unwrap();
        let text = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0));
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("PRAGMA integrity_check").unwrap(), "ok");
        assert!(text("PRAGMA foreign_key_check").is_err());
        assert_eq!(Totals::read(&connection).unwrap(), Totals::count(&connection).unwrap());
        let wrong = "SELECT count(*) FROM entries AS e WHERE (finished_ms IS NOT NULL) \
                     <> NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.number = e.number AND state IN (0, 1, 3)) \
                     OR (finished_ms IS NULL) <> EXISTS (SELECT 1 FROM bodies AS b WHERE b.number = e.number) \
                     OR NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.number = e.number)";
        assert_eq!(count(wrong), 0, "messages that are in no state, or in two");
    }
}

mod faults;
pub(in crate::store) mod processes;

/// No limit in the way of a test that is about something else.
fn roomy() -> OutboxLimits {
    OutboxLimits { disk_floor: 0, ..OutboxLimits::default() }
}

fn entry(payload: &str) -> NewEntry {
    NewEntry {
        id: Uuid::now_v7(),
        topic: "orders/new".parse().unwrap(),
        key: "k".to_owned(),
        origin: "shop".parse().unwrap(),
        header: Bytes::from_static(b"header"),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        consumers: vec!["billing".parse().unwrap()],
    }
}

fn put(outbox: &OutboxStore, entry: NewEntry) -> Put {
    wait(outbox.put(entry)).unwrap()
}

fn id(number: u64, consumer: &str) -> DeliveryId {
    DeliveryId { number, consumer: consumer.parse().unwrap() }
}

fn lease(outbox: &OutboxStore, deliveries: &[(u64, &str)]) -> Vec<Leased> {
    wait(outbox.lease(deliveries.iter().map(|(number, consumer)| id(*number, consumer)).collect())).unwrap()
}

fn settle(outbox: &OutboxStore, delivery: (u64, &str), outcome: Outcome) {
    wait(outbox.settle(vec![Settled { id: id(delivery.0, delivery.1), outcome }])).unwrap();
}

/// Edits the first message if it is in this state; returns how many were changed.
fn edit_one(outbox: &OutboxStore, edit: Edit, state: DeliveryState) -> u64 {
    wait(outbox.edit(edit, vec![(1, "billing".to_owned(), state)], "me".to_owned())).unwrap()
}

fn states(place: &Place) -> Vec<(u64, String, DeliveryState)> {
    let found = place.desk().list(&DeliveryFilter::default()).unwrap();
    found.into_iter().map(|delivery| (delivery.number, delivery.consumer, delivery.state)).collect()
}

fn dead(reason: &str) -> Outcome {
    Outcome::Dead { reason: reason.to_owned() }
}

fn retry(due_ms: u64) -> Outcome {
    Outcome::Retry { due_ms, reason: "no answer".to_owned() }
}

#[test]
fn what_is_put_is_leased_whole_and_finished_when_each_consumer_has_acknowledged_it() {
    let place = Place::new();
    let outbox = place.outbox();
    let mut message = entry("hello");
    message.consumers.push("stock".parse().unwrap());
    let put = put(&outbox, message.clone());
    assert_eq!(put, Put { number: 1, again: false });
    assert_eq!(
        wait(outbox.open_consumers()).unwrap(),
        [("billing".parse().unwrap(), 1), ("stock".parse().unwrap(), 1)]
    );
    let open = wait(outbox.open_deliveries(&message.consumers[0], 0, 10)).unwrap();
    assert_eq!((open[0].id.number, open[0].key.as_str(), open[0].bytes, open[0].attempts), (1, "k", 11, 0));
    assert!(wait(outbox.open_deliveries(&message.consumers[0], 1, 10)).unwrap().is_empty());

    let leased = lease(&outbox, &[(1, "billing"), (1, "stock")]);
    let one = &leased[0];
    assert_eq!(
        (one.attempt, one.message, &one.topic, &one.origin),
        (1, message.id, &message.topic, &message.origin)
    );
    assert_eq!((&one.header, &one.payload), (&message.header, &message.payload));
    assert_eq!(
        wait(outbox.open_deliveries(&message.consumers[0], 0, 10)).unwrap().len(),
        1,
        "leased is open, too"
    );

    settle(&outbox, (1, "billing"), Outcome::Acknowledged);
    assert!(place.desk().message(&MessageId::Number(1)).unwrap().unwrap().finished_ms.is_none());
    settle(&outbox, (1, "stock"), Outcome::Acknowledged);
    let finished = place.desk().message(&MessageId::Id(message.id)).unwrap().unwrap();
    assert!(finished.finished_ms.is_some() && finished.body.is_none(), "{finished:?}");
    assert!(wait(outbox.open_consumers()).unwrap().is_empty());
    place.check_outbox();
}

#[test]
fn a_second_put_with_an_id_is_the_same_message_also_when_it_is_finished() {
    let place = Place::new();
    let outbox = place.outbox();
    let message = entry("hello");
    let first = put(&outbox, message.clone());
    let again = Put { number: first.number, again: true };
    let mut restamped = message.clone();
    restamped.header = Bytes::from_static(b"another header");
    assert_eq!(put(&outbox, restamped), again);
    let other = NewEntry { payload: Bytes::from_static(b"other"), ..message.clone() };
    assert_eq!(wait(outbox.put(other)), Err(PutError::OtherContent { id: message.id }));
    let other = NewEntry { topic: "orders/old".parse().unwrap(), ..message.clone() };
    assert_eq!(wait(outbox.put(other)), Err(PutError::OtherContent { id: message.id }));
    lease(&outbox, &[(1, "billing")]);
    settle(&outbox, (1, "billing"), Outcome::Acknowledged);
    assert_eq!(put(&outbox, message), again);
    assert_eq!(put(&outbox, entry("next")).number, 2);
    place.check_outbox();
}

#[test]
fn attempts_rise_with_each_lease_go_back_only_when_nothing_was_sent_and_are_kept_with_their_reasons() {
    let place = Place::new();
    let outbox = place.outbox();
    put(&outbox, entry("hello"));
    let attempt = || lease(&outbox, &[(1, "billing")])[0].attempt;
    assert_eq!(attempt(), 1);
    assert!(lease(&outbox, &[(1, "billing")]).is_empty(), "leased twice");
    settle(&outbox, (1, "billing"), retry(7));
    settle(&outbox, (1, "billing"), dead("too late: it is not leased any more"));
    let open = wait(outbox.open_deliveries(&"billing".parse().unwrap(), 0, 10)).unwrap();
    assert_eq!((open[0].attempts, open[0].due_ms), (1, 7));
    assert_eq!(attempt(), 2);
    settle(&outbox, (1, "billing"), Outcome::Unsent);
    assert_eq!(attempt(), 2);
    settle(&outbox, (1, "billing"), dead("rejected"));
    assert!(lease(&outbox, &[(1, "billing")]).is_empty(), "a dead letter was leased");

    let message = place.desk().message(&MessageId::Number(1)).unwrap().unwrap();
    let attempts: Vec<(u32, &str)> =
        message.attempts.iter().map(|attempt| (attempt.attempt, attempt.reason.as_str())).collect();
    assert_eq!(attempts, [(1, "no answer"), (2, "rejected")]);
    assert!(
        message.attempts.iter().all(|attempt| attempt.begun_ms > 0 && attempt.ended_ms >= attempt.begun_ms)
    );
    assert_eq!(states(&place), [(1, "billing".to_owned(), DeliveryState::Dead)]);
    place.check_outbox();
}

#[test]
fn a_dead_letter_begins_anew_with_its_id_when_it_is_retried_and_keeps_what_was_tried_before() {
    let place = Place::new();
    let outbox = place.outbox();
    let message = entry("hello");
    put(&outbox, message.clone());
    lease(&outbox, &[(1, "billing")]);
    settle(&outbox, (1, "billing"), dead("rejected"));
    let edit = |edit, state| edit_one(&outbox, edit, state);
    assert_eq!(wait(outbox.standing()).unwrap().open, 0);
    assert_eq!(edit(Edit::Retry, DeliveryState::Pending), 0, "it is in another state by now");
    assert_eq!(edit(Edit::Retry, DeliveryState::Dead), 1);
    assert_eq!(wait(outbox.standing()).unwrap().open, 1);
    let leased = lease(&outbox, &[(1, "billing")]);
    assert_eq!((leased[0].attempt, leased[0].message), (1, message.id));
    settle(&outbox, (1, "billing"), dead("again"));
    let reasons = |place: &Place| -> Vec<String> {
        let message = place.desk().message(&MessageId::Number(1)).unwrap().unwrap();
        message.attempts.into_iter().map(|attempt| attempt.reason).collect()
    };
    assert_eq!(reasons(&place), ["rejected", "retried by me", "again"]);

    assert_eq!(edit(Edit::Drop, DeliveryState::Dead), 1);
    assert_eq!(edit(Edit::Retry, DeliveryState::Dropped), 0, "what was dropped came back");
    assert_eq!(reasons(&place)[3], "dropped by me");
    assert_eq!(states(&place), [(1, "billing".to_owned(), DeliveryState::Dropped)]);
    assert_eq!(wait(outbox.standing()).unwrap(), desk::Standing::default());
    place.check_outbox();
}

#[test]
fn what_was_dropped_while_it_was_sent_is_settled_by_nobody() {
    let place = Place::new();
    let outbox = place.outbox();
    put(&outbox, entry("hello"));
    lease(&outbox, &[(1, "billing")]);
    assert_eq!(edit_one(&outbox, Edit::Drop, DeliveryState::Leased), 1);
    settle(&outbox, (1, "billing"), retry(0));
    assert_eq!(states(&place), [(1, "billing".to_owned(), DeliveryState::Dropped)]);
    place.check_outbox();
}

#[test]
fn leases_of_a_sender_that_ended_are_taken_back_with_their_attempts_counted() {
    let place = Place::new();
    let first = place.outbox();
    assert_eq!(wait(first.become_sender()).unwrap(), 0);
    (0..3).for_each(|_| _ = put(&first, entry("x")));
    assert_eq!(lease(&first, &[(1, "billing"), (2, "billing")]).len(), 2);
    assert_eq!(wait(first.become_sender()).unwrap(), 2, "a second call takes leases back");
    assert_eq!(lease(&first, &[(1, "billing")])[0].attempt, 2);

    let second = place.outbox();
    let mut waiting = Box::pin(second.become_sender());
    wait(async {
        let soon = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(soon.is_err(), "two senders at once");
    });
    first.close();
    drop(first);
    assert_eq!(wait(waiting).unwrap(), 1);
    let leased = lease(&second, &[(1, "billing"), (3, "billing")]);
    assert_eq!(leased.iter().map(|one| one.attempt).collect::<Vec<_>>(), [3, 1]);
    let message = place.desk().message(&MessageId::Number(1)).unwrap().unwrap();
    assert!(message.attempts.iter().all(|attempt| attempt.reason == lease::SENDER_ENDED));
    assert_eq!(message.attempts.len(), 2);
    place.check_outbox();
}

#[test]
fn all_states_count_and_what_is_above_a_limit_is_refused_with_current_and_maximum() {
    let place = Place::new();
    let outbox = place.outbox_with(OutboxLimits { pending_max: 3, bytes_max: 60, ..roomy() });
    (0..3).for_each(|_| _ = put(&outbox, entry("12345678")));
    let refused = |payload: &str| wait(outbox.put(entry(payload))).unwrap_err();
    let full = PutError::Full { current: 3, max: 3 };
    assert_eq!(refused("x"), full);
    lease(&outbox, &[(1, "billing"), (2, "billing")]);
    settle(&outbox, (2, "billing"), retry(u64::MAX >> 8));
    assert_eq!(refused("x"), full, "leased and waiting ones count");
    assert!(full.to_string().contains("3 of 3"), "{full}");
    // A dead letter counts no more among the unfinished, but its bytes do.
    settle(&outbox, (1, "billing"), dead("no"));
    let at_most = 60 - 3 * 14 - 6;
    assert_eq!(refused(&"x".repeat(at_most + 1)), PutError::BytesFull { current: 42, wanted: 19, max: 60 });
    put(&outbox, entry(&"x".repeat(at_most)));
    assert_eq!(refused(""), PutError::BytesFull { current: 60, wanted: 6, max: 60 });
    lease(&outbox, &[(3, "billing")]);
    settle(&outbox, (3, "billing"), Outcome::Acknowledged);
    put(&outbox, entry("room"));
    place.check_outbox();

    outbox.configure(OutboxLimits { pending_max: 0, bytes_max: 0, ..roomy() }, KeepFinished::default());
    (0..5).for_each(|_| _ = put(&outbox, entry("any number")));
    outbox.configure(OutboxLimits { disk_floor: u64::MAX, ..roomy() }, KeepFinished::default());
    assert!(matches!(refused("x"), PutError::DiskLow { floor: u64::MAX, .. }));
    place.check_outbox();
}

#[test]
fn the_oldest_makes_room_as_a_dead_letter_unless_it_is_being_sent() {
    let place = Place::new();
    let limits = OutboxLimits { pending_max: 2, when_full: WhenFull::OldestToDeadLetter, ..roomy() };
    let outbox = place.outbox_with(limits);
    let mut to_both = entry("1");
    to_both.consumers.push("stock".parse().unwrap());
    put(&outbox, to_both);
    put(&outbox, entry("2"));
    lease(&outbox, &[(1, "stock")]);
    put(&outbox, entry("3"));
    let dead = |place: &Place| -> Vec<u64> {
        let states = states(place);
        states
            .iter()
            .filter(|(.., state)| *state == DeliveryState::Dead)
            .map(|(number, ..)| *number)
            .collect()
    };
    assert_eq!(dead(&place), [2], "1 is being sent");
    settle(&outbox, (1, "stock"), retry(0));
    put(&outbox, entry("4"));
    assert_eq!(dead(&place), [1, 1, 2]);
    let message = place.desk().message(&MessageId::Number(2)).unwrap().unwrap();
    assert!(message.attempts[0].reason.contains("2 messages were unfinished"), "{message:?}");
    assert!(message.body.is_some(), "a dead letter was deleted");
    lease(&outbox, &[(3, "billing"), (4, "billing")]);
    assert_eq!(wait(outbox.put(entry("5"))), Err(PutError::Full { current: 2, max: 2 }));
    place.check_outbox();
}

#[test]
fn a_message_that_was_damaged_is_a_dead_letter_and_the_others_go_on() {
    let place = Place::new();
    let outbox = place.outbox();
    (0..100).for_each(|number| _ = put(&outbox, entry(&format!("payload {number}"))));
    let damage = [
        "UPDATE bodies SET payload = x'00ff' WHERE number = 10",
        "UPDATE bodies SET header = x'00ff' WHERE number = 20",
        "DELETE FROM bodies WHERE number = 30",
        "UPDATE entries SET topic = 'a//b' WHERE number = 40",
        "UPDATE entries SET origin = '' WHERE number = 50",
        "UPDATE deliveries SET consumer = 'no name' WHERE number = 60",
    ];
    damage.iter().for_each(|sql| place.outbox_connection().execute_batch(sql).unwrap());
    assert_eq!(wait(outbox.open_consumers()).unwrap(), [("billing".parse().unwrap(), 99)]);
    let open = wait(outbox.open_deliveries(&"billing".parse().unwrap(), 0, 1000)).unwrap();
    let leased = wait(outbox.lease(open.into_iter().map(|open| open.id).collect())).unwrap();
    assert_eq!(leased.len(), 94);
    let found =
        place.desk().list(&DeliveryFilter { states: vec![DeliveryState::Dead], ..Default::default() });
    let found = found.unwrap();
    assert_eq!(found.iter().map(|one| one.number).collect::<Vec<_>>(), [10, 20, 30, 40, 50, 60]);
    assert!(
        found.iter().all(|one| one.reason.as_ref().unwrap().starts_with("cannot be read: ")),
        "{found:?}"
    );
}

#[test]
fn a_message_on_a_damaged_page_is_a_dead_letter_and_the_others_go_on() {
    let place = Place::new();
    let outbox = place.outbox();
    let big = "x".repeat(40_000);
    (0..20).for_each(|number| _ = put(&outbox, entry(&format!("{number} {big}"))));
    outbox.close();
    let path = place.outbox_path();
    let mut bytes = std::fs::read(&path).unwrap();
    // Nearly all pages are the rest of a payload; one of them is torn.
    let middle = bytes.len() / 2 / 4096 * 4096 + 100;
    bytes[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&path, bytes).unwrap();

    let outbox = place.outbox();
    let all: Vec<DeliveryId> = (1..=20).map(|number| id(number, "billing")).collect();
    let leased = wait(outbox.lease(all)).unwrap();
    assert_eq!(leased.len(), 19);
    let dead = place.desk().list(&DeliveryFilter { states: vec![DeliveryState::Dead], ..Default::default() });
    let dead = dead.unwrap();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(dead[0].reason.as_ref().unwrap().contains("damaged"), "{dead:?}");
    leased.iter().for_each(|one| settle(&outbox, (one.id.number, "billing"), Outcome::Acknowledged));
    put(&outbox, entry("after"));
    let shown = place.desk().message(&MessageId::Number(dead[0].number)).unwrap().unwrap();
    assert!(shown.body.is_none() && shown.damage.is_some(), "{shown:?}");
}

#[test]
fn finished_messages_are_forgotten_by_age_and_number_and_nothing_else_is() {
    let place = Place::new();
    let outbox = place.outbox();
    (0..500).for_each(|_| _ = put(&outbox, entry("x")));
    let some: Vec<u64> = (1..=450).collect();
    for numbers in some.chunks(50) {
        let ids: Vec<DeliveryId> = numbers.iter().map(|number| id(*number, "billing")).collect();
        wait(outbox.lease(ids.clone())).unwrap();
        let settled = |id: DeliveryId| Settled {
            outcome: if id.number.is_multiple_of(10) { dead("no") } else { Outcome::Acknowledged },
            id,
        };
        wait(outbox.settle(ids.into_iter().map(settled).collect())).unwrap();
    }
    let finished = || place.desk().statistics().unwrap().finished;
    assert_eq!(finished(), 405);
    let until = |wanted: u64| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while finished() != wanted {
            assert!(Instant::now() < deadline, "{} are remembered, not {wanted}", finished());
            std::thread::yield_now();
        }
    };
    outbox.configure(roomy(), KeepFinished { messages_max: 20, ..KeepFinished::default() });
    until(20);
    let newest = place
        .desk()
        .list(&DeliveryFilter { states: vec![DeliveryState::Acknowledged], ..DeliveryFilter::default() });
    assert!(newest.unwrap().iter().all(|one| one.number > 400), "the oldest go first");
    outbox.configure(roomy(), KeepFinished { age_max: Duration::ZERO, ..KeepFinished::default() });
    until(0);
    let standing = wait(outbox.standing()).unwrap();
    assert_eq!((standing.open, standing.dead), (50, 45));
    place.check_outbox();
}

#[test]
fn totals_that_are_wrong_are_counted_anew_when_the_outbox_is_opened() {
    let place = Place::new();
    let outbox = place.outbox();
    (0..3).for_each(|_| _ = put(&outbox, entry("x")));
    outbox.close();
    place
        .outbox_connection()
        .execute_batch("UPDATE totals SET open = 900, bytes = 1, next_number = 1")
        .unwrap();
    let outbox = place.outbox_with(OutboxLimits { pending_max: 4, ..roomy() });
    assert_eq!(put(&outbox, entry("x")).number, 4);
    assert_eq!(wait(outbox.put(entry("x"))), Err(PutError::Full { current: 4, max: 4 }));
    place.check_outbox();
}

#[test]
fn an_outbox_that_is_closed_says_so_and_a_desk_without_one_finds_none() {
    let place = Place::new();
    assert!(Desk::open(&place.outbox_path(), &place.key()).unwrap().is_none());
    assert!(!place.outbox_path().exists());
    let outbox = place.outbox();
    outbox.close();
    let Err(PutError::Storage(error)) = wait(outbox.put(entry("x"))) else { panic!("it was accepted") };
    assert_eq!(error.kind, StorageFailure::Closed);
    let other = Place::new();
    let wrong = OutboxStore::open(&place.outbox_path(), &other.key(), roomy(), KeepFinished::default());
    assert!(matches!(wrong, Err(StoreError::WrongKey { .. })), "{wrong:?}");
}

#[test]
fn nothing_that_was_put_can_be_read_without_the_key() {
    let place = Place::new();
    let outbox = place.outbox();
    put(&outbox, entry("a secret of the customer"));
    lease(&outbox, &[(1, "billing")]);
    settle(&outbox, (1, "billing"), dead("a secret reason"));
    outbox.close();
    for file in std::fs::read_dir(place.directory.path()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            for secret in ["a secret", "orders/new", "billing"] {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "`{secret}` in `{}`", path.display());
            }
        }
    }
}
