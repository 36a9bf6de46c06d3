//! The core against a scripted link: records in, records out, no thread, no socket, no clock.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    Client, Event, LinkState, PublishOptions, ServeOptions, SubscribeOptions,
    core::Core,
    lane::lock,
    link::{Link, LinkError, Place},
};
use crate::{
    codec,
    envelope::{Header, Payload},
    error::{PublishError, ReplyError, RequestError, SubscribeError},
    limits,
    native::{Block, CreditScope, Operation, PublishParts, Record, Status, SubscriptionIds},
    topic::{TopicFilter, TopicName},
};

/// Takes down what is sent, and answers as it is told to.
#[derive(Debug, Default)]
struct ScriptedLink {
    sent: Mutex<Vec<Record>>,
    refuses: Mutex<Option<LinkError>>,
    sequence: Mutex<u64>,
    space: Notify,
}

impl ScriptedLink {
    fn refuse(&self, error: Option<LinkError>) {
        *lock(&self.refuses) = error;
        self.space.notify_waiters();
    }
}

impl Link for ScriptedLink {
    fn publish(&self, parts: &PublishParts<'_>, numbered: &mut dyn FnMut(u64)) -> Result<(), LinkError> {
        if let Some(error) = *lock(&self.refuses) {
            return Err(error);
        }
        let mut sequence = lock(&self.sequence);
        *sequence += 1;
        numbered(*sequence);
        lock(&self.sent).push(Record::Publish(parts.block(*sequence).unwrap()));
        Ok(())
    }

    fn send(&self, record: Record) -> Result<Place, (LinkError, Record)> {
        if let Some(error) = *lock(&self.refuses) {
            return Err((error, record));
        }
        lock(&self.sent).push(record);
        Ok(Place(1))
    }

    fn send_last(&self, record: Record) {
        lock(&self.sent).push(record);
    }

    fn send_control(&self, record: Record) {
        lock(&self.sent).push(record);
    }

    fn send_cancel(&self, id: u64, _place: Place) {
        lock(&self.sent).push(Record::Cancel { id });
    }

    fn space(&self) -> &Notify {
        &self.space
    }

    fn begin_session(&self) {}

    fn begin_close(&self) {}
}

struct Fixture {
    link: Arc<ScriptedLink>,
    core: Arc<Core>,
    client: Client,
}

fn ready() -> Fixture {
    let link = Arc::new(ScriptedLink::default());
    let core = Core::new(Arc::clone(&link) as Arc<dyn Link>);
    core.begin_session();
    let fixture = Fixture { link, client: Client::from_core(Arc::clone(&core), None), core };
    fixture.receive([hello()]);
    fixture
}

fn hello() -> Record {
    Record::Hello { major: 1, minor: 0, program: "broker".into(), peer: "me".into(), epoch: [1; 16] }
}

impl Fixture {
    fn receive(&self, records: impl IntoIterator<Item = Record>) {
        self.core.on_records(&mut records.into_iter().collect()).unwrap();
    }

    fn sent(&self) -> Vec<Record> {
        std::mem::take(&mut *lock(&self.link.sent))
    }

    /// Subscribes with id `id`, which must be the next one.
    fn subscribe(&self, id: u32, filter: &str) -> super::Subscription {
        let filter = filter.parse().unwrap();
        let mut subscribing = pin!(self.client.subscribe(&filter, SubscribeOptions::default()));
        assert!(is_pending(subscribing.as_mut()));
        self.receive([Record::Subscribed { id, from_sequence: 1 }]);
        let subscription = now(subscribing).unwrap();
        assert_eq!(subscription.id(), id);
        self.sent();
        subscription
    }

    fn serve(&self, id: u32, filter: &str) -> super::Service {
        let filter = filter.parse().unwrap();
        let mut serving = pin!(self.client.serve(&filter, ServeOptions::default()));
        assert!(is_pending(serving.as_mut()));
        self.receive([Record::Subscribed { id, from_sequence: 1 }]);
        self.sent();
        now(serving).unwrap()
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
    poll(future).is_pending()
}

/// The output of a future that must not have to wait.
fn now<F: Future>(future: F) -> F::Output {
    match poll(pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future waits"),
    }
}

fn topic(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn block(topic_text: &str, payload: &str) -> Block {
    let mut header = Vec::new();
    codec::put_header(&Header::for_payload(&Payload::text("")), &mut header);
    let mut block = Block::new(&topic(topic_text), &header, payload.as_bytes());
    (block.origin, block.sequence) = (7, 5);
    block
}

fn deliver(subscriptions: &[u32], payload: &str) -> Record {
    Record::Deliver {
        subscriptions: SubscriptionIds::from_slice(subscriptions),
        block: block("a/b", payload),
    }
}

fn origin() -> Record {
    Record::Origin { origin: 7, peer: "publisher".into() }
}

fn credit(id: u32, messages: u64) -> Record {
    Record::Credit { scope: CreditScope::Subscription { id, messages } }
}

fn texts(subscription: &mut super::Subscription) -> Vec<String> {
    std::iter::from_fn(|| subscription.try_next())
        .map(|event| match event {
            Event::Message(message) => message.text().unwrap().to_owned(),
            Event::Gap { count, reason } => format!("gap {count:?} {reason}"),
        })
        .collect()
}

#[test]
fn subscribe_returns_only_after_the_brokers_word() {
    let fixture = ready();
    let filter: TopicFilter = "a/#".parse().unwrap();
    let mut subscribing = pin!(fixture.client.subscribe(&filter, SubscribeOptions::default()));
    assert!(is_pending(subscribing.as_mut()));
    assert!(matches!(&fixture.sent()[..], [Record::Subscribe(spec)] if spec.filter == "a/#" && spec.id == 1));
    fixture.receive([Record::Subscribed { id: 1, from_sequence: 42 }]);
    assert_eq!(now(subscribing).unwrap().from_sequence(), 42);
    assert_eq!(fixture.sent(), [Record::Unsubscribe { id: 1 }], "dropping it unsubscribes");
}

#[test]
fn a_denied_subscription_says_what_the_broker_says() {
    let fixture = ready();
    let filter: TopicFilter = "secret/#".parse().unwrap();
    let mut subscribing = pin!(fixture.client.subscribe(&filter, SubscribeOptions::default()));
    assert!(is_pending(subscribing.as_mut()));
    fixture.receive([Record::Denied {
        operation: Operation::Subscribe,
        reference: 1,
        code: "not_permitted".into(),
        topic: "secret/#".into(),
        text: "no".into(),
    }]);
    let error = now(subscribing).unwrap_err();
    assert!(matches!(&error, SubscribeError::Denied { code, .. } if code == "not_permitted"), "{error}");
    assert_eq!(fixture.client.denials().len(), 1);
}

#[test]
fn everything_delivered_is_credited_once_the_consumer_has_caught_up() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    fixture.receive([origin(), deliver(&[1], "x"), deliver(&[1], "y"), deliver(&[1], "z")]);
    assert_eq!(fixture.sent(), [], "nothing is consumed yet");
    assert!(subscription.try_next().is_some());
    assert_eq!(fixture.sent(), [], "more waits, so credit may wait");
    assert_eq!(texts(&mut subscription), ["y", "z"]);
    assert_eq!(fixture.sent(), [credit(1, 3)]);
}

#[test]
fn a_busy_consumer_gives_credit_each_quarter_of_the_window() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    let large = "x".repeat(limits::CREDIT_WINDOW_BYTES as usize / 8);
    fixture.receive([origin()]);
    fixture.receive((0..5).map(|_| deliver(&[1], &large)));
    for _ in 0..4 {
        assert!(subscription.try_next().is_some());
    }
    assert_eq!(fixture.sent(), [credit(1, 2), credit(1, 4)]);
}

#[test]
fn overlapping_subscriptions_each_get_the_message_and_the_first_is_credited_by_the_last() {
    let fixture = ready();
    let mut one = fixture.subscribe(1, "a/#");
    let mut two = fixture.subscribe(2, "a/+");
    fixture.receive([origin(), deliver(&[1, 2], "both")]);
    assert_eq!(texts(&mut one), ["both"]);
    assert_eq!(fixture.sent(), [], "the other has not consumed it");
    assert_eq!(texts(&mut two), ["both"]);
    assert_eq!(fixture.sent(), [credit(1, 1)]);
}

#[test]
fn dropping_one_of_two_overlapping_subscriptions_leaves_no_debt() {
    let fixture = ready();
    let mut one = fixture.subscribe(1, "a/#");
    let two = fixture.subscribe(2, "a/+");
    fixture.receive([origin(), deliver(&[1, 2], "both")]);
    assert_eq!(texts(&mut one), ["both"]);
    drop(two);
    assert_eq!(fixture.sent(), [credit(1, 1), Record::Unsubscribe { id: 2 }]);
}

#[test]
fn a_lost_link_is_a_gap_in_place_and_renews_the_subscription() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    fixture.receive([origin(), deliver(&[1], "before")]);
    fixture.core.session_lost("cable");
    assert_eq!(*fixture.client.watch().borrow(), LinkState::Lost { reason: "cable".into() });
    fixture.core.session_lost("cable again");
    fixture.core.begin_session();
    fixture.receive([hello()]);
    assert!(matches!(&fixture.sent()[..], [Record::Subscribe(spec)] if spec.id == 1));
    fixture.receive([Record::Subscribed { id: 1, from_sequence: 9 }, origin(), deliver(&[1], "after")]);
    assert_eq!(texts(&mut subscription), ["before", "gap None disconnected", "after"]);
    assert_eq!(fixture.sent(), [credit(1, 1)], "what came in the old session is not counted in the new one");
}

#[test]
fn a_renewed_session_announces_a_consumer_again_once_it_is_routed_and_the_first_one_leaves_it_to_its_caller()
{
    let fixture = ready();
    let (filter, announced) = ("inbox/me/#".parse().unwrap(), topic("outbox/consume/v1"));
    let mut serving = pin!(fixture.client.serve_announced(&filter, ServeOptions::default(), &announced));
    assert!(is_pending(serving.as_mut()));
    fixture.receive([Record::Subscribed { id: 1, from_sequence: 1 }]);
    let _service = now(serving).unwrap();
    let announcements = || {
        let is_announcement = |record: &Record| match record {
            Record::Request { block, .. } => block.topic() == b"outbox/consume/v1",
            _ => false,
        };
        fixture.sent().iter().filter(|record| is_announcement(record)).count()
    };
    assert_eq!(announcements(), 0);
    for _ in 0..2 {
        fixture.core.session_lost("cable");
        fixture.core.begin_session();
        fixture.receive([hello()]);
        assert_eq!(announcements(), 0, "nobody could deliver yet");
        fixture.receive([Record::Subscribed { id: 1, from_sequence: 1 }]);
        assert_eq!(announcements(), 1);
    }
}

#[test]
fn a_consumer_that_never_reads_does_not_gather_messages_of_ever_more_sessions() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    let window = "x".repeat(limits::CREDIT_WINDOW_BYTES as usize);
    for _ in 0..10 {
        fixture.receive([origin(), deliver(&[1], &window)]);
        fixture.core.session_lost("cable");
        fixture.core.begin_session();
        fixture.receive([hello()]);
    }
    let kept = texts(&mut subscription).iter().filter(|text| text.starts_with('x')).count();
    assert!((1..=4).contains(&kept), "{kept} windows");
}

#[test]
fn a_gap_record_says_how_many_are_missing() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    let gap = |count| Record::Gap { subscription: 1, count, reason: "slow_consumer".into() };
    fixture.receive([gap(3), gap(4), origin(), deliver(&[1], "x")]);
    assert_eq!(texts(&mut subscription), ["gap Some(7) slow_consumer", "x"]);
}

#[test]
fn a_message_whose_header_is_damaged_is_a_gap_and_is_credited() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    let mut damaged = Block::new(&topic("a/b"), b"no header", b"");
    damaged.origin = 7;
    fixture.receive([
        origin(),
        Record::Deliver { subscriptions: SubscriptionIds::from_slice(&[1]), block: damaged },
    ]);
    assert_eq!(texts(&mut subscription), ["gap Some(1) damaged_message"]);
    assert_eq!(fixture.sent(), [credit(1, 1)]);
}

#[test]
fn an_origin_that_was_never_named_ends_the_session() {
    let fixture = ready();
    let _subscription = fixture.subscribe(1, "a/#");
    assert!(fixture.core.on_records(&mut vec![deliver(&[1], "x")]).is_err());
}

#[test]
fn a_publish_that_is_not_taken_gives_its_payload_back() {
    let fixture = ready();
    let publish = || fixture.client.publish(&topic("a/b"), Payload::text("keep me"));
    fixture.link.refuse(Some(LinkError::Full));
    let full = publish().unwrap_err();
    assert!(matches!(full, PublishError::Full { .. }));
    assert_eq!(full.into_payload(), Payload::text("keep me"));
    fixture.link.refuse(Some(LinkError::Closed));
    assert!(matches!(publish(), Err(PublishError::NotConnected { .. })));
    let large = Payload::bytes(vec![0; limits::PAYLOAD_BYTES_MAX + 1]);
    let error = fixture.client.publish(&topic("a/b"), large).unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }));
    assert_eq!(fixture.sent(), []);
}

#[test]
fn an_acknowledged_publish_ends_with_the_brokers_count_or_its_refusal() {
    let fixture = ready();
    let name = topic("a/b");
    let publish = || {
        Box::pin(fixture.client.publish_acknowledged(&name, Payload::text("x"), PublishOptions::default()))
    };
    let (mut accepted, mut denied, mut lost) = (publish(), publish(), publish());
    for publishing in [&mut accepted, &mut denied, &mut lost] {
        assert!(is_pending(publishing.as_mut()));
    }
    fixture.receive([
        Record::Denied {
            operation: Operation::Publish,
            reference: 2,
            code: "not_permitted".into(),
            topic: "a/b".into(),
            text: "no".into(),
        },
        Record::Accepted { sequence: 1, subscribers: 3, dropped: 1, not_retained: true },
    ]);
    fixture.core.session_lost("cable");
    assert_eq!(now(accepted).unwrap(), super::Ack { subscribers: 3, dropped: 1, not_retained: true });
    assert!(matches!(now(denied), Err(PublishError::Denied { .. })));
    assert!(matches!(now(lost), Err(PublishError::Unconfirmed { .. })));
}

#[test]
fn a_denied_topic_is_refused_at_once_afterwards_and_others_are_not() {
    let fixture = ready();
    fixture.client.publish(&topic("a/b"), Payload::text("x")).unwrap();
    fixture.receive([Record::Denied {
        operation: Operation::Publish,
        reference: 1,
        code: "not_permitted".into(),
        topic: "a/b".into(),
        text: "no".into(),
    }]);
    let error = fixture.client.publish(&topic("a/b"), Payload::text("x")).unwrap_err();
    assert!(matches!(&error, PublishError::Denied { denial, .. } if denial.count == 2), "{error}");
    fixture.client.publish(&topic("a/c"), Payload::text("x")).unwrap();
}

#[test]
fn a_held_topic_is_refused_or_waited_for_until_it_is_released() {
    let fixture = ready();
    let hold = |granted| Record::Credit { scope: CreditScope::Topic { topic: "a/b".into(), granted } };
    fixture.receive([hold(false)]);
    let name = topic("a/b");
    assert!(matches!(fixture.client.publish(&name, Payload::text("x")), Err(PublishError::Held { .. })));
    let options = PublishOptions::default();
    let mut waiting = pin!(fixture.client.publish_waiting(&name, Payload::text("x"), &options));
    assert!(is_pending(waiting.as_mut()));
    fixture.receive([hold(true)]);
    now(waiting).unwrap();
    assert_eq!(fixture.sent().len(), 1);
}

fn reply(id: u64, text: &str) -> Record {
    let mut header = Vec::new();
    codec::put_header(&Header::for_payload(&Payload::text("")), &mut header);
    Record::Reply { id, header: header.into(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

fn end(id: u64, status: Status) -> Record {
    let (code, text) = (String::new(), String::new());
    Record::ReplyEnd { id, status, code, text, header: Bytes::new(), payload: Bytes::new() }
}

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_stream_gives_its_parts_then_its_end_and_credits_a_quarter_of_the_window() {
    let fixture = ready();
    let mut stream = now(fixture.client.request_stream(&topic("q"), Payload::text("?"), DEADLINE)).unwrap();
    let [Record::Request { id, window, .. }] = fixture.sent()[..] else { panic!("one request") };
    assert_eq!(window, limits::REPLY_WINDOW);
    let parts = u64::from(limits::REPLY_WINDOW / 4);
    fixture.receive((0..parts).map(|part| reply(id, &part.to_string())));
    fixture.receive([end(id, Status::Done)]);
    for part in 0..parts {
        let message = now(stream.next()).unwrap().unwrap();
        assert_eq!(message.text(), Some(&*part.to_string()));
    }
    assert!(now(stream.next()).is_none());
    drop(stream);
    assert_eq!(fixture.sent(), [Record::Credit { scope: CreditScope::Request { id, parts } }]);
}

#[test]
fn each_end_of_a_request_is_its_own_error() {
    type IsRight = fn(&RequestError) -> bool;
    let ends: [(Status, IsRight); 7] = [
        (Status::Failed, |error| matches!(error, RequestError::Failed { .. })),
        (Status::NoResponders, |error| matches!(error, RequestError::NoResponders { .. })),
        (Status::Denied, |error| matches!(error, RequestError::Denied { .. })),
        (Status::TimedOut, |error| matches!(error, RequestError::TimedOut { .. })),
        (Status::ServerGone, |error| matches!(error, RequestError::ServerGone)),
        (Status::Cancelled, |error| matches!(error, RequestError::Cancelled)),
        (Status::Busy, |error| matches!(error, RequestError::Busy { .. })),
    ];
    let fixture = ready();
    let name = topic("q");
    for (status, is_right) in ends {
        let mut asking = pin!(fixture.client.request(&name, Payload::text("?"), DEADLINE));
        assert!(is_pending(asking.as_mut()));
        let [Record::Request { id, .. }] = fixture.sent()[..] else { panic!("one request") };
        fixture.receive([end(id, status)]);
        let error = now(asking).unwrap_err();
        assert!(is_right(&error), "{status:?} became {error:?}");
    }
}

#[test]
fn a_request_that_is_denied_because_its_id_is_in_use_leaves_the_one_that_has_it_alone() {
    let fixture = ready();
    let name = topic("q");
    let mut asking = pin!(fixture.client.request(&name, Payload::text("?"), DEADLINE));
    assert!(is_pending(asking.as_mut()));
    let [Record::Request { id, .. }] = fixture.sent()[..] else { panic!("one request") };
    fixture.receive([Record::Denied {
        operation: Operation::Request,
        reference: id,
        code: "invalid_id".into(),
        topic: "q".into(),
        text: "in use".into(),
    }]);
    assert!(is_pending(asking.as_mut()));
    assert_eq!(fixture.client.denials().len(), 1);
    fixture.receive([end(id, Status::Done)]);
    now(asking).unwrap();
}

#[test]
fn a_dropped_stream_cancels_and_a_lost_link_ends_the_others() {
    let fixture = ready();
    let name = topic("q");
    let ask = || now(fixture.client.request_stream(&name, Payload::text("?"), DEADLINE)).unwrap();
    let (dropped, mut kept) = (ask(), ask());
    fixture.sent();
    drop(dropped);
    assert_eq!(fixture.sent(), [Record::Cancel { id: 1 }]);
    fixture.core.session_lost("cable");
    assert_eq!(now(kept.next()), Some(Err(RequestError::Disconnected)));
    assert_eq!(now(kept.next()), None);
}

#[test]
fn a_request_the_broker_forgets_ends_after_its_deadline() {
    let fixture = ready();
    let name = topic("q");
    let start = Instant::now();
    let mut stream = now(fixture.client.request_stream(&name, Payload::text("?"), DEADLINE)).unwrap();
    fixture.sent();
    let expires = fixture.core.expire(start).unwrap();
    assert!(expires >= start + DEADLINE);
    assert_eq!(fixture.core.expire(expires), None);
    assert!(matches!(now(stream.next()), Some(Err(RequestError::TimedOut { after: DEADLINE, .. }))));
    assert_eq!(fixture.sent(), [Record::Cancel { id: 1 }]);
}

#[test]
fn a_request_waits_for_room_in_the_outgoing_queue() {
    let fixture = ready();
    fixture.link.refuse(Some(LinkError::Full));
    let name = topic("q");
    let mut asking = pin!(fixture.client.request_stream(&name, Payload::text("?"), DEADLINE));
    assert!(is_pending(asking.as_mut()));
    fixture.link.refuse(None);
    // It lets others run once before it tries again.
    assert!(is_pending(asking.as_mut()));
    now(asking).unwrap();
    assert!(matches!(&fixture.sent()[..], [Record::Request { .. }, Record::Cancel { .. }]));
}

fn question(id: u64, window: u32) -> Record {
    Record::Request { id, subscription: 1, window, block: block("q", "?") }
}

#[test]
fn a_server_sends_as_many_parts_as_the_requester_is_ready_for() {
    let fixture = ready();
    let mut service = fixture.serve(1, "q");
    fixture.receive([origin(), question(70, 2)]);
    let request = now(service.next()).unwrap();
    assert_eq!(request.message.origin.as_str(), "publisher");
    now(request.reply(Payload::text("1"))).unwrap();
    now(request.reply(Payload::text("2"))).unwrap();
    {
        let mut third = pin!(request.reply(Payload::text("3")));
        assert!(is_pending(third.as_mut()));
        fixture.receive([Record::Credit { scope: CreditScope::Request { id: 70, parts: 1 } }]);
        now(third).unwrap();
    }
    now(request.end(Payload::text("last"))).unwrap();
    let kinds: Vec<_> = fixture
        .sent()
        .iter()
        .map(|record| match record {
            Record::Reply { id: 70, payload, .. } => String::from_utf8_lossy(payload).into_owned(),
            Record::ReplyEnd { id: 70, status, payload, .. } => {
                format!("{} {}", status.as_str(), String::from_utf8_lossy(payload))
            }
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["1", "2", "3", "done last"]);
}

#[test]
fn an_unanswered_request_ends_as_dropped_wherever_it_is_dropped() {
    let fixture = ready();
    let mut service = fixture.serve(1, "q");
    fixture.receive([origin(), question(70, 2), question(71, 2)]);
    drop(now(service.next()).unwrap());
    drop(service);
    fixture.receive([question(72, 2)]);
    let dropped: Vec<u64> = fixture
        .sent()
        .iter()
        .filter_map(|record| match record {
            Record::ReplyEnd { id, status: Status::Failed, code, .. } if code == "dropped" => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(dropped, [70, 71, 72]);
}

#[test]
fn a_cancel_reaches_the_server_and_nothing_more_is_sent() {
    let fixture = ready();
    let mut service = fixture.serve(1, "q");
    fixture.receive([origin(), question(70, 1), question(71, 1)]);
    let request = now(service.next()).unwrap();
    let token = request.cancelled();
    let mut waiting = pin!(token.wait());
    assert!(is_pending(waiting.as_mut()));
    now(request.reply(Payload::text("1"))).unwrap();
    fixture.sent();
    {
        let mut second = pin!(request.reply(Payload::text("2")));
        assert!(is_pending(second.as_mut()));
        fixture.receive([Record::Cancel { id: 70 }, Record::Cancel { id: 71 }]);
        assert_eq!(now(second), Err(ReplyError::Cancelled));
    }
    now(waiting);
    drop(request);
    let mut next = pin!(service.next());
    assert!(is_pending(next.as_mut()), "a request that was cancelled while it waited is not given out");
    assert_eq!(fixture.sent(), [credit(1, 2)]);
}

#[test]
fn a_ping_is_answered_and_ours_is_timed() {
    let fixture = ready();
    fixture.receive([Record::Ping { number: 9, answer: false }]);
    assert_eq!(fixture.sent(), [Record::Ping { number: 9, answer: true }]);
    let mut pinging = pin!(fixture.client.ping());
    assert!(is_pending(pinging.as_mut()));
    let [Record::Ping { number, answer: false }] = fixture.sent()[..] else { panic!("one ping") };
    fixture.receive([Record::Ping { number, answer: true }]);
    assert!(now(pinging).is_ok());
}

#[test]
fn a_closed_client_ends_everything_with_the_reason() {
    let fixture = ready();
    let mut subscription = fixture.subscribe(1, "a/#");
    let mut service = fixture.serve(2, "q");
    fixture.core.session_closed("revoked");
    assert_eq!(now(subscription.next()), None);
    assert_eq!(subscription.end_reason().as_deref(), Some("revoked"));
    assert!(now(service.next()).is_none());
    assert_eq!(fixture.client.closed_reason().as_deref(), Some("revoked"));
    assert_eq!(*fixture.client.watch().borrow(), LinkState::Closed);
    let filter = "a".parse().unwrap();
    let error = now(fixture.client.subscribe(&filter, SubscribeOptions::default())).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    assert_eq!(
        now(fixture.client.request(&topic("q"), Payload::text("?"), DEADLINE)),
        Err(RequestError::Disconnected)
    );
    assert!(now(fixture.client.ping()).is_err());
}

#[test]
fn a_broker_of_another_major_version_is_refused() {
    let fixture = ready();
    let other =
        Record::Hello { major: 2, minor: 0, program: String::new(), peer: "me".into(), epoch: [0; 16] };
    let end = fixture.core.on_records(&mut vec![other]).unwrap_err();
    assert!(end.to_string().contains("version 2"), "{end}");
}

#[test]
fn a_broker_that_is_too_old_for_wills_is_named_at_once() {
    let fixture = ready();
    let refused = now(fixture.client.set_will(&"a".parse().unwrap(), Payload::text("gone"), false));
    assert!(matches!(refused, Err(PublishError::NotOffered { minor: 0, .. })), "{refused:?}");
    assert!(fixture.sent().is_empty(), "a broker that skips the record would never answer");
}
