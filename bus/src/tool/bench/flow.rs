//! Messages as fast as they go.

use std::{thread, time::Instant};

use bytes::Bytes;

use super::{Measurement, Published, Received, Row, Run, csv::Party, receive};
use crate::{blocking, client::PublishOptions, envelope::Payload, tool::failure::Failure};

/// Messages between two looks at the clock, unless they are large.
const CLOCK_EVERY: u64 = 16;
/// Bytes of a payload beside which a look at the clock costs nothing.
const LARGE_BYTES: u64 = 4 << 10;

pub(super) fn run(run: &Run<'_>, measurement: Measurement, subscribers: u32) -> Result<Row, Failure> {
    let topic = run.arguments.below(measurement)?;
    let mut subscriptions = Vec::new();
    for _ in 0..subscribers {
        let client = run.connect()?;
        subscriptions.push(run.subscribe(&client, &topic)?);
    }
    let publisher = run.connect()?;
    let payload = Bytes::from(vec![0; run.arguments.size as usize]);
    let options = PublishOptions::default();
    // A denial comes as the answer to this one; it counts like the others.
    blocking::wait(publisher.publish_acknowledged(&topic, Payload::bytes(payload.clone()), options.clone()))?;
    let clock_every = if run.arguments.size < LARGE_BYTES { CLOCK_EVERY } else { 1 };
    let published = Published::unknown();
    let (sent, all) = thread::scope(|scope| {
        let published = &published;
        let receiving: Vec<_> = subscriptions
            .iter_mut()
            .map(|subscription| scope.spawn(move || receive(subscription, published, clock_every, |_| ())))
            .collect();
        let began = Instant::now();
        let until = began + run.arguments.duration;
        let publishing = async {
            let mut sent = 1;
            while sent % clock_every != 0 || Instant::now() < until {
                publisher.publish_waiting(&topic, Payload::bytes(payload.clone()), &options).await?;
                sent += 1;
            }
            Ok(sent)
        };
        let sent = run.wait("publishing", publishing);
        let took = began.elapsed();
        published.set(*sent.as_ref().unwrap_or(&0));
        let all: Result<Vec<Received>, Failure> = receiving.into_iter().map(super::joined).collect();
        (sent.map(|sent| (sent, took)), all)
    });
    let ((published, took), all) = (sent?, all?);
    publisher.close_blocking();
    let receivers = all.iter().zip(1..).map(|(received, number)| {
        Party::new(format!("subscriber-{number}"), received.messages, received.took())
    });
    let parties = [Party::new("publisher", published, took)].into_iter().chain(receivers).collect();
    let rates = all.iter().map(Received::per_second).sum::<f64>();
    Ok(Row {
        measurement,
        subscribers,
        in_flight: None,
        published,
        received: all.iter().map(|received| received.messages).sum(),
        messages_per_second: rates / f64::from(subscribers),
        parties,
    })
}
