//! A storage that fails at every step in turn, and from a step on.

use std::{sync::Arc, time::Duration};

use super::stage::*;
use crate::{
    durable::{
        memory::{DeliveryState, Failing},
        storage::StorageFailure,
        *,
    },
    envelope::{Header, Payload},
};

/// What is put while steps fail.
const MESSAGES: usize = 4;

/// Publishes until it is accepted, as a careful publisher does. Gives whether a step failed meanwhile.
async fn publish_until_accepted(outbox: &Running, text: &str) -> bool {
    let options = DurableOptions { id: Some(Header::new().id), ..DurableOptions::default() };
    let mut has_failed = false;
    loop {
        match outbox.handle.put(&topic("both/a"), Payload::text(text), &options, DEADLINE).await {
            Ok(_) => return has_failed,
            Err(DurableError::Storage { kind: StorageFailure::Disk, .. }) => has_failed = true,
            Err(error) => panic!("{error}"),
        }
    }
}

/// One run with a step that fails: everything accepted is acknowledged, effects happen once and in order, and the figures
/// are those of the storage. Gives whether the failure came.
async fn run_with(failing: Failing, answer: fn(&Delivery) -> Answer) -> bool {
    let stage = Stage::new();
    let schedule =
        Schedule { base: Duration::from_millis(1), cap: Duration::from_millis(2), attempts_max: 100 };
    let options = OutboxOptions { schedule, storage_pause: Duration::from_millis(1), ..quick() };
    stage.storage.fail(failing);
    let outbox = stage.outbox(options).await;
    let inbox = || ConsumeOptions { inbox: Arc::new(MemoryInbox::default()), ..ConsumeOptions::default() };
    let books = stage.consumer_with("books", inbox(), answer).await;
    let audit = stage.consumer_with("audit", inbox(), |_| Answer::Ack).await;
    let mut failures = 0;
    for number in 0..MESSAGES {
        failures += u64::from(publish_until_accepted(&outbox, &number.to_string()).await);
    }
    stage.drained().await;
    let expected: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
    assert_eq!([books.effects(), audit.effects()], [expected.clone(), expected], "{failing:?}");
    let kept = stage.deliveries();
    assert_eq!(kept.len(), 2 * MESSAGES, "{failing:?}");
    assert!(kept.values().all(|kept| kept.state == DeliveryState::Acknowledged), "{failing:?}: {kept:?}");
    outbox
        .until("the figures", |report| {
            report.state == OutboxState::Running
                && report.open() == 0
                && report.counts.acknowledged == 2 * MESSAGES as u64
        })
        .await;
    failures += outbox.handle.report().counts.storage_failures;
    stage.storage.fail(Failing::Never);
    assert_eq!(outbox.stop().await.open, Some(0));
    failures > 0
}

/// Runs with the N-th step failing, for N from 1 on, until it does not come any more.
async fn every_step(failing: impl Fn(u64) -> Failing, answer: fn(&Delivery) -> Answer) {
    let mut step = 1;
    while run_with(failing(step), answer).await {
        step += 1;
        assert!(step < 200, "the run does not end");
    }
    assert!(step > 8, "{step} steps: nothing was tried");
}

#[tokio::test]
async fn a_storage_that_fails_once_at_any_step_costs_no_message_and_repeats_no_effect() {
    every_step(Failing::Once, |_| Answer::Ack).await;
}

#[tokio::test]
async fn a_step_that_was_done_and_not_answered_costs_no_message_and_repeats_no_effect() {
    every_step(Failing::Unanswered, |_| Answer::Ack).await;
}

#[tokio::test]
async fn the_same_with_a_consumer_that_fails_as_well() {
    let answer: fn(&Delivery) -> Answer =
        |delivery| if delivery.attempt % 2 == 1 { Answer::Retry } else { Answer::Ack };
    every_step(Failing::Once, answer).await;
}

#[tokio::test]
async fn a_storage_that_fails_for_long_refuses_puts_and_sends_nothing_and_goes_on_when_it_can() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    outbox.put("orders/a", "one").await;
    outbox.until("absence", |report| report.consumers[&name("books")].absent_since_ms.is_some()).await;
    stage.storage.fail(Failing::From(1));
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let options = DurableOptions::default();
    let refused = outbox.handle.put(&topic("orders/a"), Payload::text("two"), &options, DEADLINE).await;
    assert!(matches!(refused, Err(DurableError::Storage { kind: StorageFailure::Disk, .. })), "{refused:?}");
    outbox.until("impairment", |report| report.state == OutboxState::Impaired).await;
    let reasons = outbox.handle.report().reasons;
    assert!(reasons[0].contains("cannot write down that attempts begin"), "{reasons:?}");
    outbox.until("failures", |report| report.counts.storage_failures > 3).await;
    assert_eq!(books.came.texts(), Vec::<String>::new());
    stage.storage.fail(Failing::Never);
    stage.drained().await;
    assert_eq!(books.came.all(), [("one".to_owned(), 1)]);
    outbox.until("it runs", |report| report.state == OutboxState::Running).await;
}

#[tokio::test]
async fn an_outcome_that_cannot_be_saved_is_told_and_kept_and_saved_when_the_storage_can() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |_| Answer::UntilCancelled).await;
    outbox.put("orders/a", "one").await;
    books.came_times(1).await;
    // The attempt and its saving fail at once.
    stage.storage.fail(Failing::From(1));
    books.dies().await;
    outbox
        .until("both are told", |report| {
            report.state == OutboxState::Impaired
                && report.reasons.iter().any(|reason| reason.contains("what became of 1 deliveries"))
                && report.consumers[&name("books")].last_reason.is_some()
        })
        .await;
    assert_eq!(stage.delivery(1, "books").state, DeliveryState::Leased);
    stage.storage.fail(Failing::Never);
    until("it is saved", || stage.delivery(1, "books").reasons.len() == 1).await;
    let _books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    assert_eq!(stage.delivery(1, "books").attempts, 2);
}

#[tokio::test]
async fn a_message_that_was_kept_without_an_answer_is_sent_when_it_is_put_again() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    outbox.put("orders/a", "one").await;
    outbox.until("a drain", |report| report.counts.acknowledged == 1 && report.open() == 0).await;
    stage.storage.fail(Failing::Unanswered(1));
    let (orders, options) =
        (topic("orders/a"), DurableOptions { id: Some(Header::new().id), ..DurableOptions::default() });
    let put = || outbox.handle.put(&orders, Payload::text("two"), &options, DEADLINE);
    assert!(matches!(put().await, Err(DurableError::Storage { .. })));
    assert!(put().await.unwrap().again);
    stage.drained().await;
    assert_eq!(books.effects(), ["one", "two"]);
}

#[tokio::test]
async fn while_outcomes_cannot_be_saved_nothing_more_is_sent_than_what_was_in_hand() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { in_flight_messages: 4, ..quick() }).await;
    for number in 0..50 {
        outbox.put("orders/a", &number.to_string()).await;
    }
    outbox.until("absence", |report| report.consumers[&name("books")].absent_since_ms.is_some()).await;
    let failing = Arc::clone(&stage.storage);
    let answer = move |delivery: &Delivery| {
        if delivery.message.text() == Some("0") {
            failing.fail(Failing::Settles);
        }
        Answer::Ack
    };
    let books = stage.consumer("books", answer).await;
    outbox.until("many failures", |report| report.counts.storage_failures > 20).await;
    let (effects, report) = (books.effects().len(), outbox.handle.report());
    assert!(effects <= 8, "{effects} were sent although nothing could be saved");
    assert_eq!((report.state, report.counts.acknowledged), (OutboxState::Impaired, 0));
    stage.storage.fail(Failing::Never);
    stage.drained().await;
    assert_eq!(books.effects(), (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_acknowledgement_that_was_lost_with_its_outbox_is_given_again_without_the_effect() {
    let stage = Stage::new();
    let outbox = stage.outbox_on(Arc::new(stage.storage.another_process()), quick()).await;
    outbox.until("it runs", |report| report.state == OutboxState::Running).await;
    let outcome = Arc::clone(&stage.storage);
    // From the moment of the effect on nothing can be saved.
    let answer = move |delivery: &Delivery| {
        if delivery.attempt == 1 {
            outcome.fail(Failing::From(1));
        }
        Answer::Ack
    };
    let books = stage.consumer("books", answer).await;
    outbox.put("orders/a", "one").await;
    outbox.until("the failure", |report| report.state == OutboxState::Impaired).await;
    outbox.killed().await;
    assert_eq!(stage.delivery(1, "books").state, DeliveryState::Leased);
    stage.storage.fail(Failing::Never);
    let _outbox = stage.outbox(quick()).await;
    stage.drained().await;
    assert_eq!((stage.delivery(1, "books").attempts, books.effects()), (2, vec!["one".to_owned()]));
}

#[tokio::test]
async fn a_stop_with_a_storage_that_fails_ends_and_the_next_start_has_everything() {
    let stage = Stage::new();
    let process = Arc::new(stage.storage.another_process());
    let outbox =
        stage.outbox_on(process, OutboxOptions { grace: Duration::from_millis(50), ..quick() }).await;
    let books = stage.consumer("books", |_| Answer::UntilCancelled).await;
    outbox.put("orders/a", "one").await;
    books.came_times(1).await;
    stage.storage.fail(Failing::From(1));
    let left = outbox.stop().await;
    assert_eq!(left, Left { open: None, is_saved: false, ..super::stage::left(0, 1) });
    assert!(!left.is_certain());
    books.dies().await;
    stage.storage.fail(Failing::Never);
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let _outbox = stage.outbox(quick()).await;
    stage.drained().await;
    assert_eq!(books.came.all(), [("one".to_owned(), 2)]);
}
