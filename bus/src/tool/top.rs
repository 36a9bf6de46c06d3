//! `bus top`: the bus on a terminal, live. An observer: it asks for statistics at an interval, and what it follows is a
//! subscription that may lose messages.
//!
//! The only module that names ratatui and crossterm.

mod columns;
mod detail;
mod draw;
mod follow;
mod model;
mod once;
mod picture;
mod screen;
mod source;
mod tail;
mod trend;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::{
    draw::Theme,
    model::{Event, Model, Order},
    picture::Picture,
    screen::Screen,
    source::{Wake, Wanted},
};
use super::{Failure, Output, signals::Signals};
use crate::{blocking, client::Client, exit::Exit};

/// What `bus top` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How often the broker is asked, from 200ms to 60s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one table and end; with --json an object a line, of kind broker, topic, peer or actor
    #[arg(long)]
    once: bool,
    /// Also the bus's own topics, which begin with `$`
    #[arg(long)]
    all: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let (least, most) = (model::INTERVALS[0], model::INTERVALS[model::INTERVALS.len() - 1]);
    super::duration(text).and_then(|time| match (least..=most).contains(&time) {
        true => Ok(time),
        false => Err(format!("`{text}` is not between {least:?} and {most:?}")),
    })
}

impl Arguments {
    /// Whether there is a terminal, if one is needed.
    pub(super) fn check(&self, output: &Output) -> Result<(), Failure> {
        if self.once {
            return Ok(());
        }
        if output.is_json() {
            return Err(Failure::new(
                Exit::Misuse,
                "--json needs --once: a picture on a terminal is no JSON",
            ));
        }
        screen::check()
    }

    /// Signals end a picture in an orderly way; one table is left to them.
    pub(super) fn signals(&self) -> Result<Signals, Failure> {
        if self.once { Ok(Signals::none()) } else { Signals::take_for_terminal(screen::restore) }
    }
}

/// Events that wait to be drawn. A thread that has more waits, and what it follows is dropped by the broker.
const EVENTS_MAX: usize = 64;
/// Questions that wait for the source.
const WAKES_MAX: usize = 16;
/// How long the threads may take to end; then they are left, as the process ends.
const END_WAIT: Duration = Duration::from_secs(1);
/// How often it is drawn although nothing has happened, so that what says "lost" is never stale.
const REDRAW: Duration = Duration::from_secs(1);

/// What the threads share: where their events go, and whether they are to end.
#[derive(Clone, Debug)]
struct Workers {
    events: Sender<Event>,
    is_ending: Arc<AtomicBool>,
}

/// Says so when its thread panics.
#[derive(Debug)]
struct Guard {
    thread: &'static str,
    events: Sender<Event>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.events.try_send(Event::Broken(self.thread));
        }
    }
}

impl Workers {
    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    fn guard(&self, thread: &'static str) -> Guard {
        Guard { thread, events: self.events.clone() }
    }
}

pub(super) fn run(
    arguments: &Arguments,
    client: &Client,
    signals: Signals,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let wanted = Wanted {
        interval: arguments.interval,
        is_paused: false,
        containing: String::new(),
        own: arguments.all,
    };
    // Before the terminal is taken: what is refused is said where it stays.
    let first = source::look(client, &wanted, &|| false)?;
    if arguments.once {
        return once::print(&first, output);
    }
    let (sender, events) = bounded(EVENTS_MAX);
    let workers = Workers { events: sender, is_ending: Arc::new(AtomicBool::new(false)) };
    let mut model = Model::new(arguments.interval);
    model.shows_own = arguments.all;
    let top = Top::start(&workers, client, signals, wanted, first)?;
    let theme = Theme { has_color: screen::has_color(), harmless: output.harmless_texts() };
    let ended = Screen::take(output.screen())
        .and_then(|mut screen| top.show(&mut model, &mut screen, theme, &events));
    // The terminal is given back here, whatever it was.
    workers.is_ending.store(true, Ordering::Release);
    drop(events);
    top.join();
    ended
}

/// The threads, and how they are told what to do.
struct Top {
    wanted: Arc<Mutex<Wanted>>,
    wakes: Sender<Wake>,
    followed: Arc<Mutex<Option<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Top {
    fn start(
        workers: &Workers,
        client: &Client,
        signals: Signals,
        wanted: Wanted,
        first: Picture,
    ) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start a thread: {error}"));
        let wanted = Arc::new(Mutex::new(wanted));
        let (wakes, woken) = bounded(WAKES_MAX);
        let followed = Arc::new(Mutex::new(None));
        let _ = workers.events.send(Event::Picture(Box::new(first.clone())));
        let threads = vec![
            hear(workers, signals).map_err(failed)?,
            screen::read_keys(workers).map_err(failed)?,
            source::start(workers, client, first, &wanted, woken).map_err(failed)?,
            follow::start(workers, client, &followed).map_err(failed)?,
        ];
        Ok(Self { wanted, wakes, followed, threads })
    }

    /// Draws until somebody wants the end.
    fn show(
        &self,
        model: &mut Model,
        screen: &mut Screen<'_>,
        theme: Theme,
        events: &Receiver<Event>,
    ) -> Result<Exit, Failure> {
        loop {
            let seen = screen.draw(model, theme)?;
            model.settle(seen.page, seen.scroll);
            let first = events.recv_timeout(REDRAW).ok();
            // Whatever has come meanwhile is drawn at once.
            for event in first.into_iter().chain(events.try_iter().take(EVENTS_MAX)) {
                for order in model.on(event) {
                    match order {
                        Order::Quit => return Ok(Exit::Done),
                        Order::Fail(exit, reason) => return Err(Failure::new(exit, reason)),
                        order => self.carry_out(order, model),
                    }
                }
            }
        }
    }

    fn carry_out(&self, order: Order, model: &Model) {
        // A full queue is that of a broker that does not answer; it is asked again when it does.
        match order {
            Order::Ask(question) => drop(self.wakes.try_send(Wake::Ask(question))),
            Order::Look => {
                *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Wanted {
                    interval: model.interval,
                    is_paused: model.is_paused,
                    containing: model.topic_filter().to_owned(),
                    own: model.shows_own,
                };
                drop(self.wakes.try_send(Wake::Look));
            }
            Order::Follow(filter) => {
                *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = filter;
            }
            Order::Quit | Order::Fail(..) => {}
        }
    }

    fn join(self) {
        drop(self.wakes);
        let end = Instant::now() + END_WAIT;
        while Instant::now() < end && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::park_timeout(Duration::from_millis(10));
        }
        for thread in self.threads.into_iter().filter(thread::JoinHandle::is_finished) {
            // A panic in it was reported by the panic hook, and has ended this verb.
            let _ = thread.join();
        }
    }
}

/// Starts the thread that waits for signals.
fn hear(workers: &Workers, mut signals: Signals) -> std::io::Result<thread::JoinHandle<()>> {
    const SLICE: Duration = Duration::from_millis(100);
    let workers = workers.clone();
    thread::Builder::new().name("bus-top-signals".to_owned()).spawn(move || {
        let _guard = workers.guard("bus-top-signals");
        while !workers.is_ending() {
            if blocking::wait_until(signals.next(), Instant::now() + SLICE).is_some() {
                let _ = workers.events.send(Event::End);
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests;
