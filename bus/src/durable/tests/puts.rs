//! What is accepted and what is refused, on the bus and in the process alike.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use uuid::Uuid;

use super::stage::*;
use crate::{
    client::Client,
    durable::{
        memory::{DeliveryState, MemoryLimits, WhenFull},
        *,
    },
    envelope::{Header, Payload},
};

async fn publish(
    client: &Client,
    topic_name: &str,
    text: &str,
    id: Option<Uuid>,
) -> Result<Accepted, DurableError> {
    let options = DurableOptions { id, ..DurableOptions::default() };
    client.publish_durable(&topic(topic_name), Payload::text(text), &options, DEADLINE).await
}

fn bounded(pending_max: u64, when_full: WhenFull) -> MemoryStorage {
    MemoryStorage::new(MemoryLimits { pending_max, when_full, ..MemoryLimits::default() })
}

#[tokio::test]
async fn a_message_that_is_published_again_with_its_id_is_kept_once_and_another_one_with_it_refused() {
    let stage = Stage::new();
    let _outbox = stage.outbox(quick()).await;
    let shop = stage.connect("shop").await;
    let id = Header::new().id;
    let first = publish(&shop, "orders/a", "one", Some(id)).await.unwrap();
    assert_eq!(first, Accepted { id, number: 1, again: false });
    assert_eq!(publish(&shop, "orders/a", "one", Some(id)).await, Ok(Accepted { again: true, ..first }));
    assert_eq!(publish(&shop, "orders/a", "two", Some(id)).await, Err(DurableError::OtherContent { id }));
    assert_eq!(publish(&shop, "orders/b", "one", Some(id)).await, Err(DurableError::OtherContent { id }));
    let other = publish(&shop, "orders/a", "one", Some(Uuid::nil())).await.unwrap();
    assert!(!other.id.is_nil() && other.id != id);
    assert_eq!(stage.storage.messages().len(), 2);
}

#[tokio::test]
async fn a_hundred_publishers_at_once_are_all_accepted_and_each_message_arrives() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    let shop = stage.connect("shop").await;
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let puts = texts.iter().map(|text| publish(&shop, "orders/a", text, None));
    let accepted = soon("every answer", join_all(puts)).await;
    assert!(accepted.iter().all(Result::is_ok), "{accepted:?}");
    stage.drained().await;
    let mut came = books.came.texts();
    came.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(came, texts);
    outbox.until("the counts", |report| report.counts.accepted == 100 && report.open() == 0).await;
}

#[tokio::test]
async fn a_full_outbox_says_how_full_it_is_and_takes_one_as_soon_as_one_is_finished() {
    let stage = Stage::with_storage(bounded(3, WhenFull::Reject));
    let outbox = stage.outbox(quick()).await;
    let shop = stage.connect("shop").await;
    let books = stage.consumer("books", |_| Answer::Retry).await;
    for text in ["one", "two", "three"] {
        publish(&shop, "orders/a", text, None).await.unwrap();
    }
    // Waiting for another attempt counts like waiting for the first one.
    books.came_times(3).await;
    let full = DurableError::Full { current: 3, max: 3 };
    assert_eq!(publish(&shop, "orders/a", "four", None).await, Err(full.clone()));
    assert!(full.to_string().contains("3 of 3"), "{full}");
    outbox.until("the count", |report| report.counts.refused.get("outbox_full") == Some(&1)).await;
    books.dies().await;
    let _books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    publish(&shop, "orders/a", "four", None).await.unwrap();
}

#[tokio::test]
async fn what_the_outbox_does_not_take_is_refused_with_a_word_and_figures_and_counted() {
    let limits = MemoryLimits { bytes_max: 200, ..MemoryLimits::default() };
    let stage = Stage::with_storage(MemoryStorage::new(limits));
    let outbox = stage.outbox(OutboxOptions { message_bytes_max: 700, ..quick() }).await;
    let shop = stage.connect("shop").await;
    let error = publish(&shop, "nobody/a", "one", None).await.unwrap_err();
    assert_eq!(error, DurableError::NoConsumers { topic: "nobody/a".to_owned() });
    let error = publish(&shop, "orders/a", &"x".repeat(700), None).await.unwrap_err();
    assert!(matches!(error, DurableError::TooLarge { bytes: 701.., limit: 700 }), "{error:?}");
    let error = publish(&shop, "orders/a", &"x".repeat(200), None).await.unwrap_err();
    assert!(matches!(error, DurableError::BytesFull { current: 0, wanted: 201.., max: 200 }), "{error:?}");
    let options = DurableOptions { key: Some("k".repeat(256)), ..DurableOptions::default() };
    let error = shop.publish_durable(&topic("orders/a"), Payload::text("x"), &options, DEADLINE).await;
    assert!(matches!(&error, Err(DurableError::Invalid { text }) if text.contains("256 bytes")), "{error:?}");
    let long = format!("orders/{}", "x".repeat(237));
    let error = publish(&shop, &long, "one", None).await.unwrap_err();
    assert!(matches!(&error, DurableError::Invalid { text } if text.contains("`books`")), "{error:?}");
    let refused = [("bytes_full", 1), ("invalid", 2), ("no_consumers", 1), ("too_large", 1)];
    outbox
        .until("the counts", |report| {
            report.counts.refused.iter().map(|(code, count)| (code.as_str(), *count)).eq(refused)
        })
        .await;
    assert!(stage.storage.messages().is_empty());
}

#[tokio::test]
async fn who_may_not_put_is_denied_and_without_an_outbox_nobody_is_told_that_it_was_accepted() {
    let stage = Stage::new();
    let shop = stage.connect("shop").await;
    let (to, options, soon) = (topic("orders/a"), DurableOptions::default(), Duration::from_secs(2));
    let nobody = shop.publish_durable(&to, Payload::text("one"), &options, soon).await;
    assert!(matches!(nobody, Err(DurableError::NoOutbox { .. })), "{nobody:?}");
    let _outbox = stage.outbox(quick()).await;
    let books = stage.connect("books").await;
    let denied = publish(&books, "orders/a", "one", None).await.unwrap_err();
    assert!(matches!(&denied, DurableError::Denied { code, .. } if code == "not_permitted"), "{denied:?}");
    let none = shop.publish_durable(&to, Payload::text("one"), &options, Duration::ZERO).await;
    assert!(
        matches!(&none, Err(DurableError::Invalid { text }) if text.contains("nothing was sent")),
        "{none:?}"
    );
    assert!(stage.storage.messages().is_empty());
}

#[tokio::test]
async fn a_put_that_pauses_is_accepted_when_there_is_room_and_refused_at_its_deadline() {
    let stage = Stage::with_storage(bounded(1, WhenFull::Reject));
    let outbox = Arc::new(stage.outbox(OutboxOptions { pauses: true, ..quick() }).await);
    let shop = stage.connect("shop").await;
    publish(&shop, "orders/a", "one", None).await.unwrap();
    let options = DurableOptions::default();
    let late = Duration::from_millis(30);
    let refused = outbox.handle.put(&topic("orders/a"), Payload::text("late"), &options, late).await;
    assert_eq!(refused, Err(DurableError::Full { current: 1, max: 1 }));
    // Over the bus the word has to arrive before the broker ends the request, or nobody would know.
    let late = Duration::from_secs(2);
    let refused = shop.publish_durable(&topic("orders/a"), Payload::text("late"), &options, late).await;
    assert_eq!(refused, Err(DurableError::Full { current: 1, max: 1 }));
    let waiting = tokio::spawn({
        let shop = shop.clone();
        async move { publish(&shop, "orders/a", "two", None).await }
    });
    outbox.until("a put that waits", |report| report.counts.puts_waiting == 1).await;
    let books = stage.consumer("books", |_| Answer::Ack).await;
    soon("the room", waiting).await.unwrap().unwrap();
    stage.drained().await;
    assert_eq!(books.came.texts(), ["one", "two"]);
    outbox.until("nobody waits", |report| report.counts.puts_waiting == 0).await;
}

#[tokio::test]
async fn who_waits_for_room_is_judged_anew_when_routes_or_limits_change() {
    let stage = Stage::with_storage(bounded(1, WhenFull::Reject));
    let outbox = Arc::new(stage.outbox(OutboxOptions { pauses: true, ..quick() }).await);
    outbox.put("orders/a", "one").await;
    let waiting = |topic_name: &'static str| {
        let outbox = Arc::clone(&outbox);
        tokio::spawn(async move {
            let (topic, options) = (topic(topic_name), DurableOptions::default());
            outbox.handle.put(&topic, Payload::text("two"), &options, 2 * DEADLINE).await
        })
    };
    let (moved, removed) = (waiting("orders/a"), waiting("both/a"));
    outbox.until("two that wait", |report| report.counts.puts_waiting == 2).await;
    let routes = Routes::new([("orders/#".parse().unwrap(), vec![name("audit")])]);
    outbox.handle.set_routes(routes.clone());
    let refused = soon("the refusal", removed).await.unwrap();
    assert_eq!(refused, Err(DurableError::NoConsumers { topic: "both/a".to_owned() }));
    assert!(!moved.is_finished());
    // As a reload does it: the limits, then the routes, which may be the same.
    stage.storage.set_limits(MemoryLimits { pending_max: 2, ..MemoryLimits::default() });
    outbox.handle.set_routes(routes);
    assert_eq!(soon("the room", moved).await.unwrap().map(|accepted| accepted.number), Ok(2));
    let consumers: Vec<String> = stage.deliveries().into_keys().map(|(_, consumer)| consumer).collect();
    assert_eq!(consumers, ["books", "audit"]);
}

#[tokio::test]
async fn a_bounded_number_of_puts_waits_for_room_and_a_stop_refuses_them_all() {
    let stage = Stage::with_storage(bounded(1, WhenFull::Reject));
    let mut outbox = stage.outbox(OutboxOptions { pauses: true, ..quick() }).await;
    outbox.put("orders/a", "one").await;
    let (handle, topic, options) = (outbox.handle.clone(), topic("orders/a"), DurableOptions::default());
    let puts = join_all((0..300).map(|_| handle.put(&topic, Payload::text("x"), &options, DEADLINE)));
    let stopping = async {
        let bound = |report: &OutboxReport| {
            report.counts.puts_waiting == 256 && report.counts.refused.get("outbox_full") == Some(&44)
        };
        outbox.until("the bound", bound).await;
        outbox.ask_stop();
    };
    let (refused, ()) = soon("every refusal", futures_util::future::join(puts, stopping)).await;
    let count = |wanted: &DurableError| refused.iter().filter(|put| put.as_ref() == Err(wanted)).count();
    let full = DurableError::Full { current: 1, max: 1 };
    assert_eq!((count(&full), count(&DurableError::ShuttingDown)), (44, 256));
    assert_eq!(outbox.ended().await.unwrap().open, Some(1));
}

#[tokio::test]
async fn the_oldest_message_becomes_a_dead_letter_for_the_new_one_and_nothing_is_deleted() {
    let stage = Stage::with_storage(bounded(2, WhenFull::OldestToDeadLetter));
    let outbox = stage.outbox(quick()).await;
    for text in ["one", "two", "three"] {
        outbox.put("orders/a", text).await;
    }
    assert!(matches!(stage.delivery(1, "books").state, DeliveryState::Dead { .. }));
    let books = stage.consumer("books", |_| Answer::Ack).await;
    stage.drained().await;
    assert_eq!(books.came.texts(), ["two", "three"]);
    assert_eq!(stage.storage.messages().len(), 3);
    // People may send it again.
    stage.storage.retry_dead_letter(&storage::DeliveryId { number: 1, consumer: name("books") });
    outbox.handle.look();
    stage.drained().await;
    books.came_times(3).await;
    assert_eq!(books.came.all().last(), Some(&("one".to_owned(), 1)));
}

#[tokio::test]
async fn new_routes_are_for_what_comes_and_what_was_accepted_keeps_its_consumers() {
    let stage = Stage::new();
    let outbox = stage.outbox(quick()).await;
    outbox.put("orders/a", "one").await;
    outbox.handle.set_routes(Routes::new([("orders/#".parse().unwrap(), vec![name("audit")])]));
    outbox.put("orders/a", "two").await;
    let (books, audit) =
        (stage.consumer("books", |_| Answer::Ack).await, stage.consumer("audit", |_| Answer::Ack).await);
    stage.drained().await;
    assert_eq!((books.came.texts(), audit.came.texts()), (vec!["one".to_owned()], vec!["two".to_owned()]));
}
