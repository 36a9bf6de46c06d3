//! The way of a message: who publishes it by which rule, every subscription and service that it meets, and what the
//! ledger says of this publisher's messages on the topic. Asked before and after a publish, the difference is what
//! became of it.

use serde_json::{Value, json};

use super::{Question, receiver, rule, sums};
use crate::{
    broker::{
        control::by_reason,
        hub::{Hub, Lane, route::may_publish},
        ledger::RowKey,
    },
    keys::{Permissions, Right},
    peer::PeerName,
    topic::TopicName,
};

/// The answer to a question with `topic` and `peer`, the publisher.
pub(in crate::broker) fn path(hub: &Hub, question: &Question) -> Result<Value, String> {
    let (topic, publisher) = (question.topic()?, question.peer()?);
    let session = hub.each_session().find(|(_, session)| session.info.peer == publisher);
    let registered = hub.security.roster.peers.get(&publisher).map(|peer| &*peer.permissions);
    let none = Permissions::default();
    let permissions = session.map(|(_, session)| &*session.info.permissions).or(registered).unwrap_or(&none);
    let by_subscriber = sums(hub, &topic, |key| key.subscriber.as_ref());
    let receivers = |serve: bool| -> Value {
        let lanes = hub.each_session().flat_map(|(id, session)| {
            let matching = |lane: &&Lane| lane.serve == serve && lane.matches(&topic);
            session.lanes.iter().filter(matching).map(move |lane| (id, session, lane)).collect::<Vec<_>>()
        });
        let rows = lanes.map(|(id, session, lane)| {
            let mut row = receiver(hub, id, session, lane, &topic, &by_subscriber);
            row["subscription"] = lane.id.into();
            // Of several subscriptions of a session only one has the queue: the others share its copy.
            row["has_queue"] = (serve
                || lane.group.is_some()
                || hub.receiver(id, &topic).is_some_and(|receiver| receiver.subscription == lane.id))
            .into();
            row["program"] = session.program.as_str().into();
            row["queue_messages_max"] = lane.queue.bounds().0.into();
            row["has_room"] = lane.queue.has_room().into();
            row
        });
        rows.collect()
    };
    Ok(json!({
        "topic": topic, "publisher": publisher, "connected": session.is_some(),
        "permitted": may_publish(permissions, &topic),
        "rule": rule(hub, &publisher, Right::Publish, &permissions.publish, &topic),
        "may_request": permissions.permit(Right::Request, &topic),
        "request_rule": rule(hub, &publisher, Right::Request, &permissions.request, &topic),
        "held": hub.is_topic_held(&topic), "sequence": hub.sequence, "epoch": hub.epoch,
        "subscribers": receivers(false), "servers": receivers(true),
        "ledger": ledger(hub, &topic, &publisher),
    }))
}

/// What became of this publisher's messages on the topic, by subscriber; `null` is the row for nobody.
fn ledger(hub: &Hub, topic: &TopicName, publisher: &PeerName) -> Value {
    let is_its =
        |key: &RowKey| key.topic.as_ref() == Some(topic) && key.publisher.as_ref() == Some(publisher);
    let rows = hub.ledger.rows().filter(|(key, _)| is_its(key)).map(|(key, counts)| {
        json!({
            "subscriber": key.subscriber, "published": counts.published, "delivered": counts.delivered,
            "written": counts.written, "queued": counts.queued, "denied": counts.denied,
            "dropped": by_reason(&counts.dropped),
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::hub::fixture,
        native::{Block, Record, SubscribeSpec},
    };

    #[test]
    fn the_difference_of_two_answers_is_what_became_of_a_message() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1_000_000);
        let [publisher, reader, full] = ["publisher", "reader", "full"].map(|peer| hub.greeted(peer));
        hub.record(reader, Record::Subscribe(fixture::subscription(1, false, "a/#")));
        hub.record(reader, Record::Subscribe(fixture::subscription(2, false, "a/b")));
        let spec = fixture::subscription(1, false, "a/b");
        hub.record(full, Record::Subscribe(SubscribeSpec { queue_messages_max: 1, ..spec }));
        let ask =
            |hub: &Hub| path(hub, &Question::of(json!({ "topic": "a/b", "peer": "publisher" }))).unwrap();
        let publish =
            |hub: &mut Hub| hub.publish(publisher, Block::new(&"a/b".parse().unwrap(), b"", b"1")).unwrap();
        publish(&mut hub);
        let before = ask(&hub);
        publish(&mut hub);
        let after = ask(&hub);
        let number = |answer: &Value, peer: &str, field: &str| {
            let row = answer["ledger"].as_array().unwrap().iter().find(|row| row["subscriber"] == peer);
            row.unwrap().pointer(field).and_then(Value::as_u64).unwrap_or_default()
        };
        let change = |peer: &str, field: &str| number(&after, peer, field) - number(&before, peer, field);
        assert_eq!((change("reader", "/published"), change("reader", "/queued")), (1, 1));
        assert_eq!((change("full", "/queued"), change("full", "/dropped/slow_consumer")), (0, 1));
        let lanes = after["subscribers"].as_array().unwrap();
        let with_queue = lanes.iter().filter(|lane| lane["peer"] == "reader" && lane["has_queue"] == true);
        assert_eq!((lanes.len(), with_queue.count()), (3, 1), "one copy for two subscriptions of a session");
        assert_eq!(after["sequence"].as_u64(), before["sequence"].as_u64().map(|before| before + 1));
    }
}
