//! Dead letters: what becomes of an input that was in hand at two failures.

use interlock_bus::{Message, Payload, PeerName, TopicFilter, TopicName};

use super::{
    mailbox::{Mailbox, Parcel},
    post::Post,
};
use crate::{actor::Failure, actor::Input};

/// Where `actor` sets messages of `sender` aside.
pub fn topic(actor: &PeerName, sender: &PeerName) -> TopicName {
    format!("$dlq/{actor}/{sender}").parse().expect("a peer name is a legal level")
}

/// All that `actor` sets aside.
pub fn set_aside_by(actor: &PeerName) -> TopicFilter {
    format!("$dlq/{actor}/+").parse().expect("a peer name is a legal level")
}

/// All of `sender` that anybody sets aside: how a sender is told.
pub fn sent_by(sender: &PeerName) -> TopicFilter {
    format!("$dlq/+/{sender}").parse().expect("a peer name is a legal level")
}

/// After a failure with an input in hand: back in front of the queue, or, the second time, set aside. A message then
/// goes to [`topic`]; a requester is told.
pub(super) fn put_back_or_set_aside(
    name: &PeerName,
    mailbox: &Mailbox,
    post: &Post,
    incarnation: u64,
    reason: &str,
) {
    let Some(Parcel { what, input, crashes, .. }) = mailbox.failed(incarnation) else { return };
    tracing::error!(
        what,
        crashes,
        reason,
        "set aside, and not handed out again: the actor failed with it in hand"
    );
    match *input {
        Input::Message(message) => publish(name, post, &what, &message, reason),
        Input::Request(request) => request.fail_now("server_failed", &format!("`{name}` failed: {reason}")),
        Input::Gap { .. } => {}
    }
}

fn publish(name: &PeerName, post: &Post, what: &str, message: &Message, reason: &str) {
    let Some(client) = post.present_client() else { return };
    let letter = serde_json::json!({
        "what": what,
        "reason": reason,
        "topic": message.topic.as_str(),
        "origin": message.origin.as_str(),
        "id": message.header.id,
        "content_type": message.header.content_type.as_str(),
        "payload": message.text(),
        "payload_bytes": message.payload.len(),
    });
    let sent = Payload::json(&letter).map_err(Failure::from).and_then(|letter| {
        let topic = topic(name, &message.origin);
        client.publish(&topic, letter).map_err(|error| Failure::new(error.to_string()))
    });
    if let Err(failure) = sent {
        tracing::error!(what, %failure, "the dead letter was not published");
    }
}
