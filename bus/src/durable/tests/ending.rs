//! Stops, kills, and two processes on one storage.

use std::{sync::Arc, time::Duration};

use super::stage::*;
use crate::{
    durable::{memory::DeliveryState, *},
    envelope::Payload,
};

#[tokio::test]
async fn at_a_stop_what_is_in_hand_may_end_and_what_does_not_goes_back_with_its_attempt() {
    let stage = Stage::new();
    let mut outbox = stage.outbox(OutboxOptions { grace: Duration::from_secs(2), ..quick() }).await;
    let books = stage.consumer("books", |_| Answer::Keep).await;
    for text in ["one", "two", "three"] {
        outbox.put("orders/a", text).await;
    }
    books.came_times(1).await;
    let shop = stage.connect("shop").await;
    outbox.ask_stop();
    outbox.until("it stops", |report| report.state == OutboxState::Stopping).await;
    let (late, options) = (topic("orders/a"), DurableOptions::default());
    let refused = Err(DurableError::ShuttingDown);
    assert_eq!(outbox.handle.put(&late, Payload::text("late"), &options, DEADLINE).await, refused);
    assert_eq!(shop.publish_durable(&late, Payload::text("late"), &options, DEADLINE).await, refused);
    assert_eq!(outbox.ended().await.unwrap(), left(3, 1));
    let kept = stage.deliveries();
    let attempts: Vec<u32> = kept.values().map(|kept| kept.attempts).collect();
    assert_eq!(attempts, [1, 0, 0]);
    assert!(kept.values().all(|kept| kept.state == DeliveryState::Pending { due_ms: 0 }), "{kept:?}");
    assert_eq!(kept[&(1, "books".to_owned())].reasons, ["stopped"]);
    // The next start sends at once.
    books.dies().await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let outbox = stage.outbox(quick()).await;
    stage.drained().await;
    assert_eq!(books.came.all(), [("one".to_owned(), 2), ("two".to_owned(), 1), ("three".to_owned(), 1)]);
    assert_eq!(outbox.stop().await, left(0, 0));
}

#[tokio::test]
async fn what_a_person_has_dropped_is_not_cut_off_by_a_stop() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { grace: Duration::ZERO, ..quick() }).await;
    let options = ConsumeOptions { concurrency: 2, ..ConsumeOptions::default() };
    let books = stage.consumer_with("books", options, |_| Answer::Keep).await;
    outbox.put("orders/a", "one").await;
    outbox.put("orders/b", "two").await;
    books.came_times(2).await;
    stage.storage.drop_message(1);
    assert_eq!(outbox.stop().await, left(1, 1));
}

#[tokio::test]
async fn a_component_that_comes_back_says_so_to_those_it_refuses() {
    let stage = Stage::with_storage(MemoryStorage::new(memory::MemoryLimits {
        pending_max: 1,
        ..memory::MemoryLimits::default()
    }));
    let mut outbox = stage.outbox(OutboxOptions { pauses: true, ..quick() }).await;
    outbox.put("orders/a", "one").await;
    let (handle, late, options) = (outbox.handle.clone(), topic("orders/a"), DurableOptions::default());
    let waiting = handle.put(&late, Payload::text("late"), &options, DEADLINE);
    let stopping = async {
        outbox.until("a put that waits", |report| report.counts.puts_waiting == 1).await;
        outbox.handle.comes_back();
        outbox.ask_stop();
    };
    let (refused, ()) = futures_util::future::join(waiting, stopping).await;
    assert_eq!(refused, Err(DurableError::Restarting));
}

#[tokio::test]
async fn who_publishes_while_no_outbox_serves_waits_for_the_next_one_until_the_deadline() {
    let stage = Stage::new();
    let shop = stage.connect("shop").await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let (options, soonest) = (DurableOptions::default(), Duration::from_secs(2));
    let refused = shop.publish_durable(&topic("orders/a"), Payload::text("x"), &options, soonest).await;
    assert!(matches!(refused, Err(DurableError::NoOutbox { .. })), "{refused:?}");
    let first = stage.outbox(quick()).await;
    first.handle.comes_back();
    // Without a word, as it is between two incarnations of the component.
    first.stop().await;
    let to = topic("orders/a");
    let publishing = shop.publish_durable(&to, Payload::text("one"), &options, DEADLINE);
    let (accepted, _outbox) = futures_util::future::join(publishing, async {
        // Its session takes some words more than the refusal of the first try.
        stage.outbox(quick()).await
    })
    .await;
    assert!(!accepted.unwrap().again);
    books.came_times(1).await;
    stage.drained().await;
    assert_eq!(books.effects(), ["one"]);
}

#[tokio::test]
async fn what_a_killed_outbox_had_leased_is_sent_by_the_next_one_and_the_attempt_stays_counted() {
    let stage = Stage::new();
    let outbox = stage.outbox_on(Arc::new(stage.storage.another_process()), quick()).await;
    let books = stage.consumer("books", |_| Answer::UntilCancelled).await;
    outbox.put("orders/a", "one").await;
    books.came_times(1).await;
    outbox.killed().await;
    assert_eq!(stage.delivery(1, "books").state, DeliveryState::Leased);
    books.dies().await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let next = stage.outbox(quick()).await;
    stage.drained().await;
    assert_eq!(books.came.all(), [("one".to_owned(), 2)]);
    next.until("the count", |report| report.counts.taken_back == 1).await;
}

#[tokio::test]
async fn of_two_processes_one_sends_and_the_other_takes_over_when_it_is_gone() {
    let stage = Stage::new();
    let first = stage.outbox_on(Arc::new(stage.storage.another_process()), quick()).await;
    first.until("the first sends", |report| report.state == OutboxState::Running).await;
    let second = stage.outbox_on(Arc::new(stage.storage.another_process()), quick()).await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    assert_eq!(second.handle.report().state, OutboxState::Waiting);
    for number in 0..20 {
        first.put("orders/a", &number.to_string()).await;
    }
    stage.drained().await;
    assert_eq!(second.handle.report().counts.attempts, 0);
    assert_eq!(books.came.texts(), (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    first.killed().await;
    second.until("the second sends", |report| report.state == OutboxState::Running).await;
    second.put("orders/a", "last").await;
    stage.drained().await;
    assert_eq!(books.came.texts().len(), 21);
}
