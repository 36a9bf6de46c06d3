//! Messages by a timetable.
//!
//! An open loop: a message's time runs from when it was due, whenever it was sent. So a stall shows in every
//! message that it delayed, not in one.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{Histogram, Measurement, Published, Row, Run, csv::Party, receive};
use crate::{
    blocking,
    client::PublishOptions,
    envelope::{Message, Payload},
    tool::failure::Failure,
};

/// The first message is due when the subscriber has long been waiting.
const LEAD: Duration = Duration::from_millis(50);

pub(super) fn run(run: &Run<'_>) -> Result<Row, Failure> {
    let topic = run.arguments.below(Measurement::Latency)?;
    let (subscriber, publisher) = (run.connect()?, run.connect()?);
    let mut subscription = run.subscribe(&subscriber, &topic)?;
    let options = PublishOptions::default();
    let payload_due = |due: Duration| {
        let mut payload = vec![0; run.arguments.size as usize];
        payload[..8].copy_from_slice(&(due.as_nanos() as u64).to_le_bytes());
        Payload::bytes(payload)
    };
    let start = Instant::now() + LEAD;
    // A denial comes as the answer to this one, which has no time of its own.
    let first = payload_due(Duration::from_nanos(u64::MAX));
    blocking::wait(publisher.publish_acknowledged(&topic, first, options.clone()))?;
    let messages = (run.arguments.duration.as_secs_f64() * f64::from(run.arguments.rate)).ceil() as u32;
    let interval = Duration::from_secs(1) / run.arguments.rate;
    let published = Published::unknown();
    let mut times = Histogram::default();
    let on_message = |message: &Message| {
        let due_ns = message.payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        if due_ns != u64::MAX {
            times.add((start + Duration::from_nanos(due_ns)).elapsed());
        }
    };
    let (sent, received) = thread::scope(|scope| {
        let published = &published;
        let subscription = &mut subscription;
        let receiving = scope.spawn(move || receive(subscription, published, 1, on_message));
        wake_exactly();
        let publishing = async {
            for number in 0..messages {
                let due = interval * number;
                thread::sleep((start + due).saturating_duration_since(Instant::now()));
                publisher.publish_waiting(&topic, payload_due(due), &options).await?;
            }
            Ok(u64::from(messages) + 1)
        };
        let sent = run.wait("publishing", publishing);
        published.set(*sent.as_ref().unwrap_or(&0));
        (sent.map(|sent| (sent, start.elapsed())), super::joined(receiving))
    });
    let ((published, took), received) = (sent?, received?);
    publisher.close_blocking();
    let subscriber =
        Party { times: Some(times), ..Party::new("subscriber", received.messages, received.took()) };
    Ok(Row {
        measurement: Measurement::Latency,
        subscribers: 1,
        in_flight: None,
        published,
        received: received.messages,
        messages_per_second: received.per_second(),
        parties: vec![Party::new("publisher", published, took), subscriber],
    })
}

/// Lets this thread wake up when it asked to, where the system would group wake-ups otherwise.
fn wake_exactly() {
    // Without it the times are some 50 us longer, and still true.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_timerslack(1);
}
