//! Asks the broker and the runtime, at the interval, in a thread of its own.

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::{Value, json};

use super::{
    Workers,
    detail::Question,
    model::Event,
    picture::{Actors, Picture},
};
use crate::{
    blocking,
    client::{Client, LinkState},
    envelope::Payload,
    error::RequestError,
    topic::TopicName,
};

/// How long an answer of the broker may take: it is never slow, and somebody is looking.
const BROKER_DEADLINE: Duration = Duration::from_secs(5);
/// How long one of the runtime may take, before its actors are shown as silent.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(2);
/// How often a wait looks whether it is to end.
const SLICE: Duration = Duration::from_millis(100);
/// How often a broker that has gone is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// Where the runtime says how its components are.
const STATUS: &str = "interlock/runtime/status/v1";

/// What is to be asked for, and how often.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) interval: Duration,
    pub(super) is_paused: bool,
    /// A part of the names of topics; empty for all.
    pub(super) containing: String,
    /// Also topics that begin with `$`.
    pub(super) own: bool,
}

/// What wakes the thread before the interval is over.
#[derive(Debug)]
pub(super) enum Wake {
    /// What is wanted has changed.
    Look,
    Ask(Question),
}

/// One look: everything that is shown.
pub(super) fn look(
    client: &Client,
    wanted: &Wanted,
    may_end: &dyn Fn() -> bool,
) -> Result<Picture, RequestError> {
    let mut question = json!({ "own": wanted.own });
    if !wanted.containing.is_empty() {
        question["containing"] = json!(wanted.containing);
    }
    let overview = ask(client, "$sys/broker/overview", &question, BROKER_DEADLINE, may_end)?;
    let actors = match ask(client, STATUS, &Value::Null, RUNTIME_DEADLINE, may_end) {
        Ok(status) => Actors::read(&status),
        Err(RequestError::NoResponders { .. }) => Actors::NoRuntime,
        Err(error) => Actors::Silent(error.to_string()),
    };
    Ok(Picture::read(&overview, actors))
}

/// Asks, and gives up when it is to end.
fn ask(
    client: &Client,
    topic: &'static str,
    question: &Value,
    deadline: Duration,
    may_end: &dyn Fn() -> bool,
) -> Result<Value, RequestError> {
    let topic: TopicName = topic.parse().expect("the topics of this file are valid; a test parses each");
    let payload = match question {
        Value::Null => Payload::default(),
        question => Payload::json(question).expect("a value is JSON"),
    };
    let mut asked = pin!(client.request(&topic, payload, deadline));
    let answer = loop {
        match blocking::wait_until(asked.as_mut(), Instant::now() + SLICE) {
            Some(answer) => break answer?,
            None if may_end() => return Err(RequestError::Cancelled),
            None => {}
        }
    };
    answer
        .decode()
        .map_err(|error| RequestError::Failed { code: "damaged".to_owned(), text: error.to_string() })
}

/// Starts the thread.
pub(super) fn start(
    workers: &Workers,
    client: &Client,
    first: Picture,
    wanted: &Arc<Mutex<Wanted>>,
    wakes: Receiver<Wake>,
) -> io::Result<JoinHandle<()>> {
    let (workers, client, wanted) = (workers.clone(), client.clone(), Arc::clone(wanted));
    thread::Builder::new().name("bus-top-source".to_owned()).spawn(move || {
        let _guard = workers.guard("bus-top-source");
        let mut source = Source { workers, client, wanted, before: (Instant::now(), first) };
        source.run(&wakes);
    })
}

struct Source {
    workers: Workers,
    client: Client,
    wanted: Arc<Mutex<Wanted>>,
    before: (Instant, Picture),
}

impl Source {
    fn run(&mut self, wakes: &Receiver<Wake>) {
        let mut next = Instant::now() + self.wanted().interval;
        while !self.workers.is_ending() {
            let wake = match wakes.recv_deadline(next.min(Instant::now() + SLICE)) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let event = match wake {
                Some(Wake::Ask(question)) => self.answer(question),
                Some(Wake::Look) => {
                    next = Instant::now();
                    continue;
                }
                None if Instant::now() < next => continue,
                None => {
                    let wanted = self.wanted();
                    if wanted.is_paused {
                        next = Instant::now() + wanted.interval;
                        continue;
                    }
                    let event = self.look(&wanted);
                    let pause = if matches!(event, Event::Lost(_)) { RETRY } else { wanted.interval };
                    next = Instant::now() + pause;
                    event
                }
            };
            if self.workers.events.send(event).is_err() {
                return;
            }
        }
    }

    fn wanted(&self) -> Wanted {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&mut self, wanted: &Wanted) -> Event {
        if let Some(reason) = self.client.closed_reason() {
            return Event::Closed(reason);
        }
        if let LinkState::Lost { reason } = &*self.client.watch().borrow() {
            return Event::Lost(reason.clone());
        }
        match look(&self.client, wanted, &|| self.workers.is_ending()) {
            Ok(mut picture) => {
                let (then, before) = &self.before;
                picture.compare(before, then.elapsed().as_secs_f64());
                self.before = (Instant::now(), picture.clone());
                Event::Picture(Box::new(picture))
            }
            Err(error) => match self.client.closed_reason() {
                Some(reason) => Event::Closed(reason),
                None => Event::Lost(error.to_string()),
            },
        }
    }

    fn answer(&self, question: Question) -> Event {
        let (what, asked) = question.asked();
        let answer = ask(&self.client, what, &asked, BROKER_DEADLINE, &|| self.workers.is_ending());
        Event::Answer(question, answer.map_err(|error| error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_that_are_asked_are_topics() {
        let why = || Question::Why { peer: String::new(), operation: String::new(), topic: String::new() };
        for topic in
            ["$sys/broker/overview", STATUS, Question::Topic(String::new()).asked().0, why().asked().0]
        {
            assert!(topic.parse::<TopicName>().is_ok(), "{topic}");
        }
    }
}
