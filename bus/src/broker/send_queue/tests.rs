use super::*;
use crate::{
    broker::ledger::{Ledger, RowKey},
    native::{Block, SubscriptionIds},
};

thread_local! {
    pub(super) static REQUESTS_LOOKED_AT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn requests_looked_at() -> u64 {
    REQUESTS_LOOKED_AT.get()
}

fn topics_looked_at() -> u64 {
    crate::native::block::TOPICS_LOOKED_AT.get()
}

const FORMS: [Form; 3] = [Form::Values, Form::Wire, Form::Local];

fn row() -> RowId {
    Ledger::default().row(RowKey { publisher: None, topic: None, subscriber: None })
}

fn entry_of(topic: &str, payload: &[u8]) -> Entry {
    let block = Block::new(&topic.parse().unwrap(), b"", payload);
    Entry { subscriptions: SubscriptionIds::from_slice(&[1]), request: None, block, row: row() }
}

fn push(queue: &mut SendQueue, entry: Entry) -> Pushed {
    queue.push(entry, &mut SpareChunks::default(), &mut Vec::new())
}

fn pop(queue: &mut SendQueue) -> Option<Entry> {
    queue.pop(&mut SpareChunks::default())
}

fn numbers(queue: &mut SendQueue) -> Vec<u8> {
    std::iter::from_fn(|| pop(queue)).map(|entry| entry.block.payload()[0]).collect()
}

fn pushed(overflow: Overflow, form: Form, topics: &[&str]) -> (SendQueue, Vec<Pushed>, usize) {
    let mut queue = SendQueue::new(overflow, form, 2, 0);
    let (mut spare, mut dropped) = (SpareChunks::default(), Vec::new());
    let outcomes = topics
        .iter()
        .enumerate()
        .map(|(number, topic)| queue.push(entry_of(topic, &[number as u8]), &mut spare, &mut dropped))
        .collect();
    (queue, outcomes, dropped.len())
}

#[test]
fn each_overflow_policy_loses_what_its_name_says() {
    let topics = ["a", "b", "a", "b"];
    // What is kept, how many made room, how many are missing in front of it and behind it.
    let table = [
        (Overflow::DropNewest, vec![0, 1], 0, (0, 2)),
        (Overflow::DropOldest, vec![2, 3], 2, (2, 0)),
        (Overflow::LatestOnly, vec![2, 3], 2, (0, 0)),
        (Overflow::Wait, vec![0, 1, 2, 3], 0, (0, 0)),
    ];
    let missing = |queue: &mut SendQueue| {
        std::iter::from_fn(|| queue.take_loss(1)).map(|(_, count)| count).sum::<u64>()
    };
    for (overflow, kept, made_room, lost) in table {
        for form in FORMS {
            let (mut queue, _, dropped) = pushed(overflow, form, &topics);
            let (in_front, kept_here) = (missing(&mut queue), numbers(&mut queue));
            let seen = (kept_here, dropped, (in_front, missing(&mut queue)));
            assert_eq!(seen, (kept.clone(), made_room, lost), "{overflow:?} {form:?}");
        }
    }
    for form in FORMS {
        let (_, outcomes, _) = pushed(Overflow::Disconnect, form, &topics);
        assert_eq!(outcomes[2], Pushed::Disconnect);
    }
}

#[test]
fn wait_says_when_the_publisher_must_be_held_and_loses_nothing_of_what_is_on_its_way() {
    for form in FORMS {
        let (_, outcomes, _) = pushed(Overflow::Wait, form, &["a", "a", "a", "a", "a"]);
        use Pushed::{Queued, QueuedAndFull};
        assert_eq!(outcomes, [Queued, QueuedAndFull, QueuedAndFull, QueuedAndFull, QueuedAndFull]);
    }
}

#[test]
fn wait_takes_as_much_as_the_publishers_it_holds_can_have_on_their_way_and_no_more() {
    let payload = vec![0; 256 << 10];
    for publishers in [1, 3] {
        let mut queue = SendQueue::new(Overflow::Wait, Form::Wire, 2, 1 << 20);
        (0..publishers).for_each(|_| queue.expect_overrun());
        let mut taken = 0;
        while push(&mut queue, entry_of("a", &payload)) != Pushed::Refused {
            taken += payload.len();
        }
        let bound = (1 << 20) + publishers * limits::OVERRUN_BYTES;
        assert!((bound - payload.len()..=bound + payload.len()).contains(&taken), "{taken} of {bound}");
    }
}

#[test]
fn publishers_are_held_long_before_the_bytes_of_a_waiting_queue_are_used_up() {
    let mut queue = SendQueue::new(Overflow::Wait, Form::Wire, 0, 0);
    let payload = vec![0; 16 << 10];
    let mut taken = 0;
    while push(&mut queue, entry_of("a", &payload)) == Pushed::Queued {
        taken += payload.len();
    }
    assert!((limits::HOLD_BYTES / 2..=limits::HOLD_BYTES).contains(&taken), "{taken} bytes");
    while push(&mut queue, entry_of("a", &payload)) == Pushed::QueuedAndFull {
        taken += payload.len();
    }
    assert!(taken >= limits::SEND_QUEUE_BYTES + limits::OVERRUN_BYTES - (1 << 20), "{taken} bytes");
}

#[test]
fn an_empty_queue_takes_one_message_of_any_size() {
    for form in FORMS {
        let mut queue = SendQueue::new(Overflow::DropNewest, form, 10, 10);
        assert_eq!(push(&mut queue, entry_of("a", &[0])), Pushed::Queued);
        assert_eq!(push(&mut queue, entry_of("a", &[1])), Pushed::Refused);
    }
}

#[test]
fn the_numbers_of_overlapping_subscriptions_count_in_the_bytes_of_a_queue() {
    let shared = |beside: u32| {
        let subscriptions = (1..=1 + beside).collect();
        Entry { subscriptions, ..entry_of("a", &[0]) }
    };
    let plain_bytes = shared(0).block.bytes();
    for form in FORMS {
        // Room for four that nobody shares, or for one that 20 do.
        let bytes_max = 4 * plain_bytes;
        let mut queue = SendQueue::new(Overflow::DropNewest, form, 0, bytes_max as u32);
        assert_eq!(push(&mut queue, shared(20)), Pushed::Queued);
        assert_eq!(queue.depth_bytes(), plain_bytes as u64 + 80);
        assert_eq!(push(&mut queue, shared(0)), Pushed::Refused, "{form:?}");
        assert!(pop(&mut queue).is_some());
        assert_eq!((queue.bytes, queue.depth_bytes()), (0, plain_bytes as u64 + 80), "in flight");
        queue.credit(1, |_, _| {});
        assert_eq!(queue.depth_bytes(), 0);
        assert!((0..4).all(|_| push(&mut queue, shared(0)) == Pushed::Queued));
    }
    let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, 0, 4 * plain_bytes as u32);
    let (entry, mut dropped) = (shared(20), Vec::new());
    let run = std::iter::repeat_n(entry.block.view(), 3);
    queue.push_run(&entry.subscriptions, entry.row, run, &mut SpareChunks::default(), &mut dropped);
    assert_eq!((queue.depth(), queue.depth_bytes(), dropped.len()), (1, plain_bytes as u64 + 80, 2));
}

#[test]
fn credit_settles_in_order_and_never_more_than_was_sent() {
    for form in FORMS {
        let (mut queue, _, _) = pushed(Overflow::DropNewest, form, &["a", "b"]);
        pop(&mut queue);
        let mut settled = 0;
        queue.credit(100, |_, messages| settled += messages);
        assert_eq!((settled, queue.depth()), (1, 1));
        queue.credit(50, |_, messages| settled += messages);
        assert_eq!(settled, 1, "a total that falls settles nothing");
        pop(&mut queue);
        queue.abandon(|_, messages| settled += messages);
        assert_eq!((settled, queue.depth_bytes()), (2, 0));
    }
}

#[test]
fn nothing_is_sent_beyond_the_credit_window() {
    let payload = vec![0; limits::CREDIT_WINDOW_BYTES as usize / 4];
    let mut queue = SendQueue::new(Overflow::DropNewest, Form::Values, 0, u32::MAX);
    assert!((0..8).all(|_| push(&mut queue, entry_of("a", &payload)) == Pushed::Queued));
    let sent = std::iter::from_fn(|| pop(&mut queue)).count();
    assert_eq!(sent, 4);
    queue.credit(1, |_, _| {});
    assert!(pop(&mut queue).is_some() && pop(&mut queue).is_none());

    let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, u32::MAX);
    assert!((0..10_000).all(|_| push(&mut queue, entry_of("a", &payload[..1000])) == Pushed::Queued));
    let (mut out, mut spare, mut sent) = (Vec::new(), SpareChunks::default(), 0);
    while queue.has_records_next() {
        sent += queue.take_records(&mut out, &mut spare);
    }
    let window = limits::CREDIT_WINDOW_BYTES / 1025 + 1;
    assert_eq!((sent, queue.depth()), (window, 10_000));
}

#[test]
fn records_taken_together_are_those_taken_one_by_one() {
    let fill = || {
        let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, 500, 0);
        for number in 0..700usize {
            let payload = vec![number as u8; number * 7 % 999];
            push(&mut queue, entry_of(["a", "b/c"][number / 3 % 2], &payload));
        }
        queue
    };
    let (mut together, mut single, mut spare) = (fill(), fill(), SpareChunks::default());
    let mut batch = Vec::new();
    let mut taken = 0;
    while together.has_records_next() {
        taken += together.take_records(&mut batch, &mut spare);
    }
    let mut reader = crate::native::BatchReader::default();
    reader.begin(batch.into());
    let mut seen = 0;
    while let Some(Record::Deliver { block, .. }) = reader.next_record().unwrap() {
        assert_eq!(Some(block), pop(&mut single).map(|entry| entry.block));
        seen += 1;
    }
    assert_eq!((seen, taken, pop(&mut single).is_none()), (500, 500, true));
    assert_eq!(together.depth_bytes(), single.depth_bytes());
    together.credit(500, |_, _| {});
    assert_eq!((together.depth(), together.depth_bytes()), (0, 0));
}

#[test]
fn a_batch_taken_whole_is_its_records_and_one_begun_or_left_or_beyond_the_window_is_not_taken() {
    let fill = |messages: usize, messages_max| {
        let mut queue = SendQueue::new(Overflow::DropOldest, Form::Wire, messages_max, u32::MAX);
        for number in 0..messages {
            let payload = vec![number as u8; 500 + number * 7 % 999];
            push(&mut queue, entry_of(["a", "b/c"][number / 3 % 2], &payload));
        }
        queue
    };
    let mut spare = SpareChunks::default();
    // The front batch has lost its first messages.
    let (mut queue, mut records) = (fill(700, 500), fill(700, 500));
    assert_eq!(queue.take_loss(1), Some((1, 200)));
    assert_eq!(queue.take_batch(&mut spare, |_| unreachable!("it was begun")), 0);
    let (mut taken, mut expected, mut wholes) = (Vec::new(), Vec::new(), 0);
    while queue.has_records_next() {
        assert_eq!(queue.take_batch(&mut spare, |_| false), 0, "it was left");
        let whole = queue.take_batch(&mut spare, |draft| {
            taken.extend_from_slice(draft.body());
            draft.clear();
            true
        });
        wholes += usize::from(whole > 0);
        if whole == 0 {
            queue.take_records(&mut taken, &mut spare);
        }
    }
    while records.take_records(&mut expected, &mut spare) > 0 {}
    assert!(wholes > 3 && taken == expected, "{wholes} batches, {} bytes", taken.len());
    assert_eq!((queue.depth(), queue.depth_bytes()), (records.depth(), records.depth_bytes()));
    let (mut settled, mut rows) = (0, 0);
    queue.credit(400, |_, messages| settled += messages);
    records.credit(400, |_, messages| rows += messages);
    assert_eq!((settled, queue.depth(), queue.depth_bytes()), (rows, 100, records.depth_bytes()));

    let mut queue = fill(20_000, 0);
    while queue.take_batch(&mut spare, |_| true) > 0 {}
    assert!(queue.in_flight.bytes() <= limits::CREDIT_WINDOW_BYTES);
    assert!(queue.take_records(&mut taken, &mut spare) > 0, "the last batch goes in part");
    assert!(queue.in_flight.bytes() >= limits::CREDIT_WINDOW_BYTES);
}

#[test]
fn a_batch_with_a_loss_in_front_or_inside_is_not_taken_whole() {
    let (mut queue, mut spare) =
        (SendQueue::new(Overflow::DropNewest, Form::Wire, 100, 0), SpareChunks::default());
    let add = |queue: &mut SendQueue, count: usize| {
        for _ in 0..count {
            push(queue, entry_of("a", &[7; 1000]));
        }
    };
    add(&mut queue, 102);
    let first = queue.take_batch(&mut spare, |_| true);
    assert!((30..80).contains(&first), "{first} of 100 messages fill a batch");
    add(&mut queue, first as usize);
    assert_eq!(queue.take_batch(&mut spare, |_| unreachable!("two were lost inside")), 0);
    assert_eq!(
        (queue.take_records(&mut Vec::new(), &mut spare), queue.take_loss(1)),
        (100 - first, Some((1, 2)))
    );
    let mut rest = 0;
    while queue.has_records_next() {
        assert_eq!(queue.take_loss(1), None);
        rest += queue.take_records(&mut Vec::new(), &mut spare);
    }
    assert_eq!(rest, first);

    add(&mut queue, 101);
    let whole = queue.take_batch(&mut spare, |_| true);
    queue.take_records(&mut Vec::new(), &mut spare);
    assert_eq!(whole, first);
    assert_eq!((queue.is_empty(), queue.take_loss(1)), (true, Some((1, 1))), "what follows the last batch");
}

/// A full queue with one message of each of `topics` topics.
fn latest_of(topics: usize) -> SendQueue {
    let mut queue = SendQueue::new(Overflow::LatestOnly, Form::Wire, topics as u32, 0);
    for number in 0..topics {
        assert_eq!(push(&mut queue, entry_of(&format!("t/{number}"), b"old")), Pushed::Queued);
    }
    queue
}

#[test]
fn a_newer_message_finds_the_one_it_replaces_without_looking_at_the_others() {
    const TOPICS: usize = 2000;
    let mut queue = latest_of(TOPICS);
    assert_eq!(push(&mut queue, entry_of("one/more", b"")), Pushed::Refused);
    // From the back, the front and the middle.
    for number in (0..TOPICS).map(|number| number * 7 % TOPICS) {
        let entry = entry_of(&format!("t/{number}"), b"new");
        let looked_at = topics_looked_at();
        assert_eq!(push(&mut queue, entry), Pushed::Queued);
        assert!(topics_looked_at() - looked_at <= 4, "topic {number}");
    }
    let mut order = Vec::new();
    while let Some(entry) = pop(&mut queue) {
        assert_eq!(entry.block.payload(), "new");
        order.push(String::from_utf8(entry.block.topic().to_vec()).unwrap());
        queue.credit(u64::MAX, |_, _| {});
    }
    let expected = (0..TOPICS).map(|number| format!("t/{}", number * 7 % TOPICS));
    assert!(order.into_iter().eq(expected), "in the order in which they were replaced");
}

#[test]
fn what_was_lost_behind_a_replaced_message_is_told_behind_the_one_before_it() {
    let mut queue = latest_of(3);
    let refuse = |queue: &mut SendQueue| {
        assert_eq!(push(queue, entry_of("one/more", b"")), Pushed::Refused);
    };
    // t/0 t/1 t/2 (lost)
    refuse(&mut queue);
    push(&mut queue, entry_of("t/2", b"new"));
    // t/0 t/1 (lost) t/2 (lost)
    refuse(&mut queue);
    push(&mut queue, entry_of("t/1", b"new"));
    // t/0 (lost) t/2 (lost) t/1
    let mut seen = Vec::new();
    while let Some(entry) = pop(&mut queue) {
        let topic = String::from_utf8(entry.block.topic().to_vec()).unwrap();
        seen.push((topic, queue.take_loss(1).map(|(_, count)| count)));
    }
    let expected = [("t/0", Some(1)), ("t/2", Some(1)), ("t/1", None)];
    assert_eq!(seen, expected.map(|(topic, lost)| (topic.to_owned(), lost)));

    // t/0 t/1 (lost) t/2
    let mut queue = latest_of(3);
    refuse(&mut queue);
    push(&mut queue, entry_of("t/2", b"new"));
    let losses = std::iter::from_fn(|| pop(&mut queue).map(|_| queue.take_loss(1).is_some()));
    assert_eq!(losses.collect::<Vec<_>>(), [false, true, false]);

    // Where all are taken out it is due at once.
    let mut queue = latest_of(3);
    refuse(&mut queue);
    let out = queue.take_out(&mut SpareChunks::default(), |_| true);
    assert_eq!((out.len(), queue.is_empty(), queue.take_loss(1)), (3, true, Some((1, 1))));
    assert_eq!((queue.depth(), queue.depth_bytes()), (0, 0));
}

#[test]
fn a_request_that_is_withdrawn_is_found_by_halves_and_the_others_stay_in_order() {
    const REQUESTS: u64 = 4096;
    for overflow in [Overflow::DropNewest, Overflow::LatestOnly] {
        let mut queue = SendQueue::new(overflow, Form::Wire, 0, 0);
        let request = |number| Entry { request: Some(RequestKey(number)), ..entry_of("a", b"") };
        (0..REQUESTS).for_each(|number| assert_eq!(push(&mut queue, request(number)), Pushed::Queued));
        let looked_at = requests_looked_at();
        for number in (0..REQUESTS).rev().filter(|number| number % 4 != 0) {
            assert!(queue.withdraw(RequestKey(number)).is_some());
            assert!(queue.withdraw(RequestKey(number)).is_none());
        }
        let each = (requests_looked_at() - looked_at) / REQUESTS;
        // Of the other one only the order is checked here: it keeps its requests in a table of their own.
        assert!(overflow == Overflow::LatestOnly || each <= 2 * 13, "{each} looked at for each");
        let left = std::iter::from_fn(|| pop(&mut queue)).map(|entry| entry.request);
        assert!(left.eq((0..REQUESTS).step_by(4).map(|number| Some(RequestKey(number)))), "{overflow:?}");
        assert_eq!((queue.is_empty(), queue.requests), (true, 0));
    }
    // A probe stands among other messages.
    let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, 0);
    let probe = Entry { request: Some(RequestKey(7)), ..entry_of("a", b"probe") };
    push(&mut queue, entry_of("a", b"1"));
    push(&mut queue, probe);
    push(&mut queue, entry_of("a", b"2"));
    assert!(queue.withdraw(RequestKey(8)).is_none() && queue.withdraw(RequestKey(7)).is_some());
    assert_eq!(numbers(&mut queue), b"12");
}

#[test]
fn memory_of_queues_that_ran_empty_is_reused_and_bounded() {
    let mut spare = SpareChunks::default();
    let mut queue = SendQueue::new(Overflow::DropNewest, Form::Wire, 0, 0);
    for _ in 0..100 {
        (0..2000).for_each(|_| {
            queue.push(entry_of("a", &[0; 1000]), &mut spare, &mut Vec::new());
        });
        while queue.take_records(&mut Vec::new(), &mut spare) > 0 {
            queue.credit(u64::MAX, |_, _| {});
        }
    }
    assert!(queue.items.is_empty());
    assert!(spare.bytes() <= 2 << 20, "{} bytes are kept", spare.bytes());
}
