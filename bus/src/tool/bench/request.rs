//! Requests through the broker to a server and back.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{Histogram, LOOK_EVERY, Measurement, Row, Run, csv::Party};
use crate::{
    blocking,
    client::{ServeOptions, Service},
    envelope::Payload,
    exit::Exit,
    tool::failure::Failure,
};

/// One request at a time, then as many as were chosen; half of the time each.
pub(super) fn run(run: &Run<'_>) -> Result<Vec<Row>, Failure> {
    let topic = run.arguments.below(Measurement::Request)?;
    let (requester, server) = (run.connect()?, run.connect()?);
    let service = blocking::wait(server.serve(&topic.as_str().parse()?, ServeOptions::default()))?;
    let (is_over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let payload = Bytes::from(vec![0; run.arguments.size as usize]);
    let ask = || async {
        let began = Instant::now();
        let answer = requester.request(&topic, Payload::bytes(payload.clone()), run.timeout).await;
        answer.map(|_| began.elapsed())
    };
    let rows = thread::scope(|scope| {
        let (is_over, served) = (&is_over, &served);
        let serving = scope.spawn(move || serve(service, is_over, served));
        let rows = [1, run.arguments.in_flight].map(|in_flight| {
            let began = Instant::now();
            let until = began + run.arguments.duration / 2;
            let mut times = Histogram::default();
            let asking = async {
                let mut asked: FuturesUnordered<_> = (0..in_flight).map(|_| ask()).collect();
                while let Some(time) = asked.next().await {
                    times.add(time?);
                    if Instant::now() < until {
                        asked.push(ask());
                    }
                }
                Ok(())
            };
            run.wait("asking", asking)?;
            let took = began.elapsed();
            // All have been answered, so that none of the next phase is among them.
            let server = Party::new("server", served.swap(0, Ordering::AcqRel), took);
            let count = times.count();
            Ok(Row {
                measurement: Measurement::Request,
                subscribers: 1,
                in_flight: Some(in_flight),
                // One that was not answered has ended the run.
                published: count,
                received: count,
                messages_per_second: count as f64 / took.as_secs_f64(),
                parties: vec![Party { times: Some(times), ..Party::new("requester", count, took) }, server],
            })
        });
        is_over.store(true, Ordering::Release);
        super::joined(serving)?;
        rows.into_iter().collect()
    });
    requester.close_blocking();
    rows
}

fn serve(mut service: Service, is_over: &AtomicBool, served: &AtomicU64) -> Result<(), Failure> {
    while !is_over.load(Ordering::Acquire) {
        let serving = async {
            while let Some(request) = service.next().await {
                // Counted before its answer can be there.
                served.fetch_add(1, Ordering::AcqRel);
                let payload = Payload::bytes(request.message.payload.clone());
                // The requester may have given up meanwhile, and says so itself.
                let _ = request.end(payload).await;
            }
        };
        if blocking::wait_until(serving, Instant::now() + LOOK_EVERY).is_some() {
            let reason = service.end_reason().unwrap_or_default();
            return Err(Failure::new(Exit::Denied, format!("the service has ended: {reason}")));
        }
    }
    Ok(())
}
