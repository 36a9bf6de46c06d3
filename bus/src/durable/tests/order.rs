//! One after the other for each key, and nobody waits for somebody else.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::FutureExt;

use super::stage::*;
use crate::{
    durable::{memory::DeliveryState, *},
    envelope::Payload,
};

async fn put(outbox: &Running, key: &str, text: String) {
    let options = DurableOptions { key: Some(key.to_owned()), ..DurableOptions::default() };
    outbox.handle.put(&topic("orders/a"), Payload::text(text), &options, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_flaky_consumer_acknowledges_the_messages_of_each_key_in_the_order_of_their_acceptance() {
    let stage = Stage::new();
    let schedule =
        Schedule { base: Duration::from_millis(3), cap: Duration::from_millis(9), attempts_max: 100 };
    let outbox = stage.outbox(OutboxOptions { schedule, ..quick() }).await;
    // Every third delivery fails, in one way or another.
    let turn = AtomicUsize::new(0);
    let answer = move |_: &Delivery| match turn.fetch_add(1, Ordering::Relaxed) % 6 {
        0 => Answer::Retry,
        3 => Answer::Drop,
        _ => Answer::Ack,
    };
    let options = ConsumeOptions { concurrency: 8, ..ConsumeOptions::default() };
    let books = stage.consumer_with("books", options, answer).await;
    for number in 0..60 {
        for key in ["a", "b", "c"] {
            put(&outbox, key, format!("{key} {number}")).await;
        }
    }
    stage.drained().await;
    let mut last: HashMap<char, i64> = HashMap::new();
    for (text, _) in books.came.all() {
        let (key, number) = text.split_once(' ').unwrap();
        let number: i64 = number.parse().unwrap();
        let last = last.entry(key.chars().next().unwrap()).or_insert(-1);
        // The same once more, or the next one: never a later one before.
        assert!(number == *last || number == *last + 1, "{text} came after {last}");
        *last = number;
    }
    assert_eq!(last.into_values().collect::<Vec<_>>(), [59; 3]);
}

#[tokio::test]
async fn a_consumer_that_never_answers_and_one_that_is_absent_delay_the_third_by_nothing() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |_| Answer::Keep).await;
    let audit = stage.consumer("audit", |_| Answer::Ack).await;
    for number in 0..200 {
        outbox.put("both/a", &number.to_string()).await;
        outbox.put("lost/a", &number.to_string()).await;
    }
    audit.came_times(200).await;
    assert_eq!(audit.came.texts(), (0..200).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(books.came.texts(), ["0"]);
    outbox
        .until("the standings", |report| {
            let [books, audit, never] =
                ["books", "audit", "never"].map(|peer| &report.consumers[&name(peer)]);
            (books.waiting + books.in_flight, audit.waiting, never.waiting) == (200, 0, 200)
                && books.in_flight == 32
                && never.absent_since_ms.is_some()
        })
        .await;
}

#[tokio::test]
async fn no_more_than_the_limit_is_on_its_way_to_one_consumer() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { in_flight_messages: 5, ..quick() }).await;
    let route = |filter: &str, consumer| (filter.parse().unwrap(), vec![name(consumer)]);
    outbox.handle.set_routes(Routes::new([route("orders/#", "books"), route("audit/#", "audit")]));
    let audit = stage.consumer("audit", |_| Answer::Ack).await;
    let books = stage.connect("books").await;
    let options = ConsumeOptions { concurrency: 100, ..ConsumeOptions::default() };
    let mut consumer = books.consume_durable(&"#".parse().unwrap(), options).await.unwrap();
    for number in 0..50 {
        put(&outbox, &number.to_string(), number.to_string()).await;
    }
    let mut held: VecDeque<Delivery> = VecDeque::new();
    for taken in 0..50 {
        if held.len() == 5 {
            // What is put now for somebody else arrives: a sixth one would have been sent before it.
            outbox.put("audit/a", "x").await;
            audit.came_times(taken - 4).await;
            assert!(consumer.next().now_or_never().is_none(), "a sixth one is on its way");
            held.pop_front().unwrap().ack().await.unwrap();
        }
        held.push_back(soon("the next one", consumer.next()).await.unwrap());
    }
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    stage.drained().await;
}

#[tokio::test]
async fn more_than_the_window_holds_is_read_when_there_is_room_and_arrives_in_order() {
    let stage = Stage::new();
    let outbox = stage.outbox(OutboxOptions { window: 8, ..quick() }).await;
    for number in 0..100 {
        outbox.put("orders/a", &number.to_string()).await;
    }
    let books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    assert_eq!(books.came.texts(), (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_another_process_puts_is_found_by_a_look() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    outbox.until("it runs", |report| report.state == OutboxState::Running).await;
    let entry = storage::NewEntry {
        id: uuid::Uuid::from_u128(1),
        topic: topic("orders/a"),
        key: "k".to_owned(),
        origin: name("shop"),
        header: bytes::Bytes::new(),
        payload: bytes::Bytes::from_static(b"from elsewhere"),
        consumers: vec![name("books")],
    };
    stage.storage.another_process().put(entry).await.unwrap();
    let shop = stage.connect("shop").await;
    shop.request(&topic("outbox/look/v1"), Payload::default(), DEADLINE).await.unwrap();
    stage.drained().await;
    assert_eq!(books.came.texts(), ["from elsewhere"]);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_or_was_dropped_does_not_stand_in_the_way() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    for text in ["one", "damaged", "dropped", "four"] {
        outbox.put("orders/a", text).await;
    }
    outbox.until("absence", |report| report.consumers[&name("books")].absent_since_ms.is_some()).await;
    stage.storage.damage(2);
    stage.storage.drop_message(3);
    let books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    outbox.put("orders/a", "five").await;
    stage.drained().await;
    assert_eq!(books.came.texts(), ["one", "four", "five"]);
    assert!(matches!(stage.delivery(2, "books").state, DeliveryState::Dead { .. }));
}

#[tokio::test]
async fn a_delivery_of_somebody_else_than_the_outbox_is_refused() {
    let stage = Stage::new();
    let permissions = crate::Permissions::from_lists(&[], &[], &[], &["inbox/#"]).unwrap();
    stage.store.set_permissions(&name("audit"), &permissions).unwrap();
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let mark = crate::envelope::DeliveryMark { number: 1, attempt: 1, accepted_ms: 0, origin: name("shop") };
    let header = crate::codec::delivery_header(&[], uuid::Uuid::from_u128(1), &mark);
    let audit = stage.connect("audit").await;
    let inbox = topic("inbox/books/orders/a");
    let answer = audit.request_as_it_is(&inbox, &header, "forged".into(), DEADLINE).await.unwrap();
    let refused = answer.last().await.unwrap_err();
    assert!(refused.to_string().contains("not_the_outbox"), "{refused}");
    assert!(books.effects().is_empty());
}

#[tokio::test]
async fn what_waits_too_long_for_an_absent_consumer_becomes_dead_letters_that_say_so() {
    let stage = Stage::new();
    let options = OutboxOptions {
        sweep_interval: Duration::from_millis(10),
        absent_max: Duration::from_millis(150),
        ..quick()
    };
    let outbox = stage.outbox(options).await;
    let audit = stage.consumer("audit", |_| Answer::Ack).await;
    for number in 0..40 {
        outbox.put("both/a", &number.to_string()).await;
    }
    audit.came_times(40).await;
    stage.drained().await;
    for number in 1..=40 {
        let kept = stage.delivery(number, "books");
        let DeliveryState::Dead { reason } = kept.state else { panic!("{kept:?}") };
        assert!(reason.starts_with("`books` did not serve for 0 s"), "{reason}");
        assert_eq!(stage.delivery(number, "audit").state, DeliveryState::Acknowledged);
    }
}
