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
    assert_eq!(outbox.ended().await.unwrap(), Left { open: Some(3), cut_off: 1 });
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
    assert_eq!(outbox.stop().await, Left { open: Some(0), cut_off: 0 });
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
