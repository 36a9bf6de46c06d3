//! What one session may have of everything, and what happens beyond.

use super::*;

fn hub() -> Hub {
    Hub::new("broker".parse().unwrap(), 1)
}

fn subscription(id: u32, serve: bool, filter: &str) -> Record {
    Record::Subscribe(fixture::subscription(id, serve, filter))
}

fn request(id: u64) -> Record {
    let block = Block::new(&"q".parse().unwrap(), b"", b"?");
    Record::Request { id, subscription: 0, window: 1, block }
}

#[test]
fn a_server_hears_how_many_parts_its_requester_takes_and_never_more_than_the_limit() {
    let mut hub = hub();
    let (server, id) = (hub.greeted("server"), hub.greeted("requester"));
    hub.record(server, subscription(1, true, "q"));
    let limit = limits::REPLY_WINDOW;
    for (number, (asked, told)) in (1..).zip([(1, 1), (7, 7), (0, limit), (u32::MAX, limit)]) {
        let Record::Request { subscription, block, .. } = request(number) else { unreachable!("it is one") };
        hub.record(id, Record::Request { id: number, subscription, window: asked, block });
        let window = sent(&mut hub, server).into_iter().find_map(|record| match record {
            Record::Request { window, .. } => Some(window),
            _ => None,
        });
        assert_eq!(window, Some(told), "a window of {asked}");
    }
}

fn sent(hub: &mut Hub, id: SessionId) -> Vec<Record> {
    std::iter::from_fn(|| hub.next_record(id)).collect()
}

fn ended(hub: &mut Hub, id: SessionId) -> Option<&'static str> {
    hub.take_ending().into_iter().find(|(ending, _)| *ending == id).map(|(_, ending)| ending.code)
}

fn status_of(records: &[Record], request: u64) -> Option<(Status, &str)> {
    records.iter().find_map(|record| match record {
        Record::ReplyEnd { id, status, code, .. } if *id == request => Some((*status, &code[..])),
        _ => None,
    })
}

#[test]
fn a_subscription_beyond_the_limit_is_denied_and_an_id_is_taken_once() {
    let mut hub = hub();
    let id = hub.greeted("peer");
    let limit = limits::SUBSCRIPTIONS_PER_SESSION_MAX as u32;
    (1..=limit).for_each(|number| hub.record(id, subscription(number, false, "a")));
    assert!(!sent(&mut hub, id).iter().any(|record| matches!(record, Record::Denied { .. })));
    for (number, serve, wanted) in
        [(0, false, "invalid_id"), (limit, true, "invalid_id"), (limit + 1, false, "too_many")]
    {
        hub.record(id, subscription(number, serve, "a"));
        let records = sent(&mut hub, id);
        let [Record::Denied { operation, reference, code, .. }] = &records[..] else { panic!("{records:?}") };
        assert_eq!((*reference, &code[..]), (number.into(), wanted));
        assert_eq!(*operation == Operation::Serve, serve);
    }
    hub.record(id, Record::Unsubscribe { id: 1 });
    hub.record(id, subscription(limit + 1, false, "a"));
    assert!(matches!(sent(&mut hub, id)[..], [Record::Subscribed { .. }]), "there is room again");
}

#[test]
fn a_request_beyond_the_limit_is_busy_at_once() {
    let mut hub = hub();
    let (server, id) = (hub.greeted("server"), hub.greeted("requester"));
    hub.record(server, subscription(1, true, "q"));
    let limit = limits::REQUESTS_PER_SESSION_MAX as u64;
    (1..=limit).for_each(|number| hub.record(id, request(number)));
    hub.record(id, request(limit + 1));
    let records = sent(&mut hub, id);
    assert_eq!(status_of(&records, limit + 1), Some((Status::Busy, "")));
    assert_eq!(hub.requests_in_flight(), limit as usize);
    hub.record(id, Record::Cancel { id: 1 });
    hub.record(id, request(limit + 1));
    assert_eq!(status_of(&sent(&mut hub, id), limit + 1), None, "there is room again");
}

#[test]
fn a_request_whose_id_is_in_use_is_denied_and_the_one_that_has_it_goes_on() {
    let mut hub = hub();
    let (server, id) = (hub.greeted("server"), hub.greeted("requester"));
    hub.record(server, subscription(1, true, "q"));
    hub.record(id, request(7));
    sent(&mut hub, id);
    // Whatever else would be wrong with it.
    for topic in ["q", "nobody/serves/this", "$sys/broker/info", "$sys/broker/receivers"] {
        let block = Block::new(&topic.parse().unwrap(), b"", b"?");
        hub.record(id, Record::Request { id: 7, subscription: 0, window: 1, block });
        let records = sent(&mut hub, id);
        let [Record::Denied { operation, reference, code, .. }] = &records[..] else { panic!("{records:?}") };
        assert_eq!((*operation, *reference, &code[..]), (Operation::Request, 7, "invalid_id"));
    }
    let asked: Vec<u64> = keys_asked(&mut hub, server);
    let [key] = asked[..] else { panic!("{asked:?}") };
    let (code, text, header) = (String::new(), String::new(), Bytes::new());
    let payload = Bytes::from_static(b"answer");
    hub.record(server, Record::ReplyEnd { id: key, status: Status::Done, code, text, header, payload });
    assert_eq!(status_of(&sent(&mut hub, id), 7), Some((Status::Done, "")));
    hub.record(id, request(7));
    assert_eq!(keys_asked(&mut hub, server).len(), 1, "the id is free again");
}

fn keys_asked(hub: &mut Hub, server: SessionId) -> Vec<u64> {
    let key = |record| match record {
        Record::Request { id, .. } => Some(id),
        _ => None,
    };
    sent(hub, server).into_iter().filter_map(key).collect()
}

#[test]
fn a_request_that_comes_after_its_deadline_is_answered_at_once_counted_and_never_served() {
    let mut hub = hub();
    hub.tick(1000);
    let (server, id) = (hub.greeted("server"), hub.greeted("requester"));
    hub.record(server, subscription(1, true, "q"));
    sent(&mut hub, server);
    for (number, deadline_ms) in (1..).zip([1, 999, 1000]) {
        let Record::Request { mut block, .. } = request(number) else { unreachable!("it is one") };
        block.deadline_ms = deadline_ms;
        hub.record(id, Record::Request { id: number, subscription: 0, window: 1, block });
        assert_eq!(status_of(&sent(&mut hub, id), number), Some((Status::TimedOut, "expired")));
        let row = hub.ledger_rows().find(|(key, _)| key.topic == "q".parse().ok()).unwrap().1;
        assert_eq!((row.published, row.dropped[DropReason::Expired as usize]), (number, number));
    }
    hub.tick(2000);
    assert_eq!(sent(&mut hub, server), [], "neither a request nor a cancel");
}

#[test]
fn whoever_makes_the_broker_answer_and_does_not_read_is_ended() {
    let mut hub = hub();
    let (asking, pinging) = (hub.greeted("asking"), hub.greeted("pinging"));
    let limit = limits::ENDS_WAITING_MAX as u64;
    (1..=limit).for_each(|number| hub.record(asking, request(number)));
    assert_eq!(ended(&mut hub, asking), None);
    hub.record(asking, request(limit + 1));
    assert_eq!(ended(&mut hub, asking), Some("control_queue_full"));

    let ping = Record::Ping { number: 1, answer: false };
    let answers = limits::CONTROL_QUEUE_BYTES / ping.bytes_hint();
    (2..answers).for_each(|_| hub.record(pinging, ping.clone()));
    assert_eq!(ended(&mut hub, pinging), None);
    (0..3).for_each(|_| hub.record(pinging, ping.clone()));
    assert_eq!(ended(&mut hub, pinging), Some("control_queue_full"));
}

#[test]
fn a_requester_that_does_not_read_its_replies_loses_the_request_and_the_server_is_told() {
    let mut hub = hub();
    let (server, id) = (hub.greeted("server"), hub.greeted("requester"));
    hub.record(server, subscription(1, true, "q"));
    hub.record(id, request(1));
    let asked = sent(&mut hub, server);
    let key = asked.iter().find_map(|record| match record {
        Record::Request { id, .. } => Some(*id),
        _ => None,
    });
    // One piece of memory, however often it is sent.
    let (header, payload) = (Bytes::new(), Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX]));
    let reply = Record::Reply { id: key.unwrap(), header, payload };
    let most = limits::REPLY_QUEUE_BYTES / limits::PAYLOAD_BYTES_MAX;
    (0..most - 1).for_each(|_| hub.record(server, reply.clone()));
    assert_eq!(sent(&mut hub, server), []);
    hub.record(server, reply.clone());
    let Record::Reply { id: key, .. } = reply else { unreachable!("it was made here") };
    assert_eq!(sent(&mut hub, server), [Record::Cancel { id: key }]);
    let records = sent(&mut hub, id);
    assert_eq!(status_of(&records, 1), Some((Status::Failed, "slow_consumer")));
    let parts = records.iter().filter(|record| matches!(record, Record::Reply { .. })).count();
    assert_eq!(parts, most - 1, "what it was sent before is still there");
    assert_eq!(hub.requests_in_flight(), 0);
}
