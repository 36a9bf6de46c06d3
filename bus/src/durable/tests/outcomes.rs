//! Each row of the table in `attempt`, and what it comes to over a real broker.

use std::time::Duration;

use super::stage::*;
use crate::{
    durable::{memory::DeliveryState, *},
    envelope::Payload,
};

#[tokio::test]
async fn what_a_peer_publishes_durably_reaches_each_consumer_with_its_facts_and_is_finished() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |delivery| {
        assert_eq!((delivery.message.topic.as_str(), delivery.message.origin.as_str()), ("both/a", "shop"));
        assert_eq!(delivery.message.header.key(), Some("key"));
        Answer::Ack
    });
    let books = books.await;
    let audit = stage.consumer("audit", |_| Answer::Ack).await;
    let shop = stage.connect("shop").await;
    let options = DurableOptions { key: Some("key".to_owned()), ..DurableOptions::default() };
    let accepted =
        shop.publish_durable(&topic("both/a"), Payload::text("first"), &options, DEADLINE).await.unwrap();
    assert_eq!((accepted.number, accepted.again), (1, false));
    stage.drained().await;
    assert_eq!(stage.storage.messages()[&1].entry.id, accepted.id);
    assert_eq!(
        [books.came.all(), audit.came.all()],
        [vec![("first".to_owned(), 1)], vec![("first".to_owned(), 1)]]
    );
    outbox.until("the count", |report| report.counts.acknowledged == 2).await;
    assert_eq!(outbox.stop().await, left(0, 0));
}

#[tokio::test]
async fn a_consumer_that_asks_for_another_attempt_gets_it_later_until_it_acknowledges() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let answer = |delivery: &Delivery| if delivery.attempt < 4 { Answer::Retry } else { Answer::Ack };
    let books = stage.consumer("books", answer).await;
    outbox.put("orders/a", "one").await;
    stage.drained().await;
    let kept = stage.delivery(1, "books");
    assert_eq!((kept.state, kept.attempts), (DeliveryState::Acknowledged, 4));
    assert_eq!(kept.reasons, ["retry: not now"; 3]);
    assert_eq!(books.came.all().iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
    outbox.until("the counts", |report| report.counts.retried == 3 && report.counts.attempts == 4).await;
}

#[tokio::test]
async fn what_is_rejected_is_a_dead_letter_after_one_attempt_and_those_behind_it_go_on() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let answer = |delivery: &Delivery| {
        if delivery.message.text() == Some("bad") { Answer::Reject } else { Answer::Ack }
    };
    let books = stage.consumer("books", answer).await;
    for text in ["one", "bad", "three"] {
        outbox.put("orders/a", text).await;
    }
    stage.drained().await;
    assert_eq!(books.came.texts(), ["one", "bad", "three"]);
    let kept = stage.delivery(2, "books");
    assert_eq!(kept.state, DeliveryState::Dead { reason: "rejected: never".to_owned() });
    assert_eq!(kept.attempts, 1);
    outbox.until("the count", |report| report.counts.dead == 1).await;
}

#[tokio::test]
async fn after_the_last_attempt_a_delivery_is_dead_with_its_reasons_and_no_failure_reset_the_count() {
    let stage = Stage::new();
    let schedule =
        Schedule { base: Duration::from_millis(3), cap: Duration::from_millis(6), attempts_max: 10 };
    let outbox = stage.outbox(OutboxOptions { schedule, ..quick() }).await;
    let books = stage.consumer("books", |_| Answer::Drop).await;
    outbox.put("orders/a", "one").await;
    outbox.put("orders/a", "two").await;
    stage.drained().await;
    for number in [1, 2] {
        let kept = stage.delivery(number, "books");
        let last = "dropped: dropped by the server (attempt 10, the last)";
        assert_eq!(kept.state, DeliveryState::Dead { reason: last.to_owned() });
        assert_eq!((kept.attempts, kept.reasons.len()), (10, 10));
    }
    let expected: Vec<_> = ["one", "two"]
        .into_iter()
        .flat_map(|text| (1..=10).map(move |attempt| (text.to_owned(), attempt)))
        .collect();
    assert_eq!(books.came.all(), expected);
}

#[tokio::test]
async fn an_attempt_without_an_answer_in_time_counts_and_the_next_one_is_not_worked_on_beside_it() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { attempt_deadline: Duration::from_millis(50), ..quick() }).await;
    let options = ConsumeOptions { concurrency: 2, ..ConsumeOptions::default() };
    let books = stage.consumer_with("books", options, |_| Answer::Keep).await;
    outbox.put("orders/a", "one").await;
    let in_hand = "in_hand: an earlier attempt of it is still in hand";
    until("the second attempt", || stage.delivery(1, "books").reasons.iter().any(|reason| reason == in_hand))
        .await;
    let reasons = stage.delivery(1, "books").reasons;
    assert!(reasons[0].contains("was not answered within 50ms"), "{reasons:?}");
    assert_eq!(books.came.texts(), ["one"]);
}

#[tokio::test]
async fn an_absent_consumer_costs_no_attempt_and_gets_everything_when_it_says_that_it_serves() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    for text in ["one", "two", "three"] {
        outbox.put("orders/a", text).await;
    }
    let is_absent = |report: &OutboxReport| {
        report
            .consumers
            .get(&name("books"))
            .is_some_and(|books| books.absent_since_ms.is_some() && books.waiting == 3)
    };
    outbox.until("absence", is_absent).await;
    assert_eq!(stage.deliveries().values().map(|kept| kept.attempts).sum::<u32>(), 0);
    let steps = stage.storage.steps();
    let books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    assert_eq!(books.came.all(), ["one", "two", "three"].map(|text| (text.to_owned(), 1)));
    // Nothing was tried in between: the steps are those of the drain.
    assert!(stage.storage.steps() - steps < 10, "{steps} then {}", stage.storage.steps());
    outbox.until("presence", |report| report.consumers[&name("books")].absent_since_ms.is_none()).await;
}

#[tokio::test]
async fn a_sweep_finds_a_consumer_that_did_not_say_that_it_serves() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { sweep_interval: Duration::from_millis(20), ..quick() }).await;
    outbox.put("orders/a", "one").await;
    outbox.until("absence", |report| report.consumers[&name("books")].absent_since_ms.is_some()).await;
    // It serves its inbox by hand, and says nothing.
    let books = stage.connect("books").await;
    let mut service = books.serve(&"inbox/books/#".parse().unwrap(), Default::default()).await.unwrap();
    let request = soon("the delivery", service.next()).await.unwrap();
    let mark = request.message.header.delivery().cloned().unwrap();
    assert_eq!((request.message.topic.as_str(), mark.attempt), ("inbox/books/orders/a", 1));
    request.end_empty().await.unwrap();
    stage.drained().await;
}

#[tokio::test]
async fn a_consumer_that_was_lost_in_the_middle_gets_the_same_message_as_soon_as_it_is_back() {
    let stage = Stage::new();
    // The wait is a random one: long enough that no short one comes by chance.
    let age = Duration::from_secs(1 << 30);
    let schedule = Schedule { base: age, cap: age, ..Schedule::default() };
    let outbox = stage.outbox(OutboxOptions { schedule, ..quick() }).await;
    // Lost in good order, which lets go of what it has in hand, and without.
    for (number, reason) in [(1, "dropped"), (2, "lost")] {
        let books = stage.consumer("books", |_| Answer::Keep).await;
        outbox.put("orders/a", "one").await;
        books.came_times(1).await;
        match reason {
            "lost" => books.client.close().await,
            _ => books.dies().await,
        }
        until("the failure", || stage.delivery(number, "books").reasons.len() == 1).await;
        let kept = stage.delivery(number, "books");
        assert!(kept.reasons[0].contains(reason), "{kept:?}");
        let again = stage.consumer("books", |_| Answer::Ack).await;
        stage.drained().await;
        assert_eq!(again.came.all(), [("one".to_owned(), 2)]);
        again.dies().await;
    }
}

#[tokio::test]
async fn a_consumer_the_outbox_may_not_deliver_to_impairs_it_and_every_attempt_counts() {
    let stage = Stage::new();
    let only_audit = crate::Permissions::from_lists(&[], &[], &["outbox/#"], &["inbox/audit/#"]).unwrap();
    stage.store.set_permissions(&name("outbox"), &only_audit).unwrap();
    let outbox = stage.outbox(quick()).await;
    let audit = stage.consumer("audit", |_| Answer::Ack).await;
    outbox.put("both/a", "one").await;
    outbox
        .until("impairment", |report| report.state == OutboxState::Impaired && report.counts.retried > 1)
        .await;
    let reason = outbox.handle.report().reasons.join("; ");
    assert!(reason.contains("may not request `inbox/books/both/a`"), "{reason}");
    assert_eq!(audit.came.texts(), ["one"]);
}

#[tokio::test]
async fn a_link_that_is_lost_brings_the_message_again_when_everybody_is_back() {
    let mut stage = Stage::new();
    let schedule = Schedule { base: Duration::from_secs(3000), attempts_max: 2, ..Schedule::default() };
    let outbox = stage.outbox(OutboxOptions { schedule, ..quick() }).await;
    let answer =
        |delivery: &Delivery| if delivery.attempt == 1 { Answer::UntilCancelled } else { Answer::Ack };
    let books = stage.consumer("books", answer).await;
    outbox.put("orders/a", "one").await;
    books.came_times(1).await;
    stage.restart_broker().await;
    stage.drained().await;
    let kept = stage.delivery(1, "books");
    assert_eq!((kept.state, kept.attempts), (DeliveryState::Acknowledged, 2));
    // Whichever session the broker ended first.
    let reason = kept.reasons.join("; ");
    assert!(
        reason.starts_with("the link to the broker was lost") || reason.starts_with("the server was lost"),
        "{reason}"
    );
    let was_impaired = |report: &OutboxReport| report.state == OutboxState::Impaired;
    assert!(outbox.reports.lock().unwrap().iter().any(was_impaired));
    outbox.until("it runs again", |report| report.state == OutboxState::Running).await;
}
