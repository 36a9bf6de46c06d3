//! One actor under its host, without supervisor and bus: inputs are put straight into the mailbox.

use std::sync::Mutex;

use crossbeam_channel::{Receiver, bounded};
use interlock_bus::{Header, Message};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// Does what the text of a message says, and writes down what it did.
struct Script {
    done: Done,
    ticking: bool,
    fail_start: Option<&'static str>,
}

type Done = Arc<Mutex<Vec<String>>>;

impl Actor for Script {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        match self.fail_start {
            Some("panic") => panic!("cannot start"),
            Some(reason) => return Err(Failure::new(reason)),
            None => {}
        }
        self.note(format!("started {}", context.incarnation()));
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Input::Message(message) = input else { return Ok(()) };
        let text = message.text().unwrap_or_default();
        self.note(text.to_owned());
        match text {
            "panic" => panic!("told to"),
            "fail" => Err(Failure::new("told to fail")),
            "panic beside" => {
                context.spawn(async { panic!("told to, beside") });
                Ok(())
            }
            "for ever" => std::future::pending().await,
            "block" => {
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            }
            "work" => {
                let (done, context) = (self.done.clone(), context.clone());
                context.clone().spawn(async move {
                    context.stopping().await;
                    done.lock().unwrap().push("work done".to_owned());
                    Ok(())
                });
                Ok(())
            }
            "stop" => {
                context.stop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tick_every(&self) -> Option<Duration> {
        self.ticking.then_some(Duration::from_millis(1))
    }

    async fn tick(&mut self, _: &Context) -> Result<(), Failure> {
        panic!("tock")
    }

    async fn stopping(&mut self, _: &Context) -> Result<(), Failure> {
        self.note("stopping".to_owned());
        Ok(())
    }
}

impl Script {
    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // A destructor that panics must do no harm, even after a panic.
        if self.done.lock().unwrap().iter().any(|what| what == "panic") {
            panic!("in the destructor too");
        }
    }
}

struct Stand {
    host: ActorHost,
    reports: Receiver<(u64, HostReport)>,
    sink: crossbeam_channel::Sender<(u64, HostReport)>,
    done: Done,
}

impl Stand {
    fn new() -> Self {
        Self::with(false, None)
    }

    fn with(ticking: bool, fail_start: Option<&'static str>) -> Self {
        let done = Done::default();
        let noted = done.clone();
        let factory = move || Ok(Script { done: noted.clone(), ticking, fail_start });
        let mailroom = Mailroom::open().unwrap();
        let host = ActorHost::new("scripted".parse().unwrap(), Bus::none(), &mailroom, factory);
        let (sink, reports) = bounded(64);
        Self { host, reports, sink, done }
    }

    fn start(&mut self, incarnation: u64) {
        let sink = self.sink.clone();
        self.host.start(incarnation, Reports::new(move |report| sink.send((incarnation, report)).unwrap()));
    }

    fn start_ready(&mut self, incarnation: u64) {
        self.start(incarnation);
        assert!(matches!(self.report(), HostReport::Ready { .. }));
    }

    fn deliver(&self, text: &str) {
        let message = Message {
            topic: "scripts/one".parse().unwrap(),
            origin: "tester".parse().unwrap(),
            sequence: 1,
            header: Header::new(),
            payload: text.to_owned().into(),
            retained: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.host.mailbox.offer(Input::Message(message)));
    }

    fn report(&self) -> HostReport {
        self.reports.recv_timeout(DEADLINE).expect("a report within the deadline").1
    }

    fn failure(&self) -> String {
        match self.report() {
            HostReport::Exited(Exit::Failed(failure)) => failure.to_string(),
            other => panic!("expected a failure, heard {other:?}"),
        }
    }

    /// Asks, and says how long the answer took.
    fn ask(&mut self) -> Duration {
        let asked = Instant::now();
        self.host.ask(7);
        assert_eq!(self.report(), HostReport::Alive { nonce: 7 });
        asked.elapsed()
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }

    fn await_done(&self, what: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.done().iter().any(|done| done == what) {
            assert!(
                Instant::now() < deadline,
                "`{what}` was not done within the deadline: {:?}",
                self.done()
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_panic_in_handle_is_a_failure_with_its_place_and_the_queue_survives_it() {
    let mut stand = Stand::new();
    for text in ["panic", "two", "three"] {
        stand.deliver(text);
    }
    stand.start_ready(1);
    let failure = stand.failure();
    assert!(failure.contains("panicked in `handle` at") && failure.ends_with("told to"), "{failure}");

    // In hand at the first failure: handed out again. At the second: set aside, and the rest goes on.
    stand.start_ready(2);
    stand.failure();
    stand.start_ready(3);
    stand.await_done("three");
    assert_eq!(stand.done(), ["started 1", "panic", "started 2", "panic", "started 3", "two", "three"]);
}

#[test]
fn an_error_from_handle_is_a_failure_in_its_own_words() {
    let mut stand = Stand::new();
    stand.deliver("fail");
    stand.start_ready(1);
    assert_eq!(stand.failure(), "told to fail");
}

#[test]
fn a_panic_in_started_tick_or_spawned_work_is_a_failure() {
    let mut stand = Stand::with(false, Some("panic"));
    stand.start(1);
    assert!(stand.failure().contains("panicked in `started`"));

    let mut stand = Stand::with(false, Some("the port is taken"));
    stand.start(1);
    assert_eq!(stand.failure(), "the port is taken");

    let mut stand = Stand::with(true, None);
    stand.start_ready(1);
    assert!(stand.failure().contains("panicked in `tick`"));

    let mut stand = Stand::new();
    stand.deliver("panic beside");
    stand.start_ready(1);
    assert!(stand.failure().contains("panicked in spawned work"));
}

#[test]
fn spawned_work_that_fails_ends_a_handler_that_would_never_return() {
    let mut stand = Stand::new();
    stand.deliver("panic beside");
    stand.deliver("for ever");
    stand.start_ready(1);
    assert!(stand.failure().contains("panicked in spawned work"));
}

#[test]
fn a_question_is_answered_beside_a_handler_that_never_returns() {
    let mut stand = Stand::new();
    stand.deliver("for ever");
    stand.start_ready(1);
    stand.await_done("for ever");
    let fastest = (0..10).map(|_| stand.ask()).min().unwrap();
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    assert_eq!(stand.host.busy().unwrap().with, "message on `scripts/one`");
}

#[test]
fn a_kill_ends_a_waiting_handler_and_leaves_its_input_unmarked() {
    let mut stand = Stand::new();
    stand.deliver("for ever");
    for incarnation in 1..=3 {
        stand.start_ready(incarnation);
        stand.await_done(&format!("started {incarnation}"));
        while stand.host.busy().is_none() {
            std::thread::yield_now();
        }
        stand.host.kill(false);
        assert_eq!(stand.report(), HostReport::Exited(Exit::Killed));
    }
    assert_eq!(stand.host.load().queued, 1);
}

#[test]
fn an_abandoned_incarnation_does_not_touch_the_next_one() {
    let mut stand = Stand::new();
    stand.deliver("block");
    stand.start_ready(1);
    stand.await_done("block");
    stand.host.kill(true);
    stand.host.abandon(true);
    assert_eq!(stand.host.load().queued, 1, "the input in hand is back");

    // The second incarnation takes it again while the first is still blocked, and is not disturbed by its end.
    stand.start_ready(2);
    let ended = stand.reports.recv_timeout(DEADLINE).unwrap();
    assert_eq!(ended, (1, HostReport::Exited(Exit::Killed)));
    stand.deliver("after");
    stand.await_done("after");
    assert_eq!(stand.done(), ["started 1", "block", "started 2", "block", "after"]);
}

#[test]
fn a_final_stop_takes_what_is_queued_and_waits_for_spawned_work() {
    let mut stand = Stand::new();
    for text in ["work", "two", "three"] {
        stand.deliver(text);
    }
    stand.start_ready(1);
    stand.host.stop(Stop::Final);
    assert_eq!(stand.report(), HostReport::Exited(Exit::Normal));
    let mut done = stand.done();
    done.retain(|what| what != "work done");
    assert_eq!(done, ["started 1", "work", "two", "three", "stopping"]);
    assert_eq!(stand.done().len(), done.len() + 1, "the work was waited for");
}

#[test]
fn a_stop_for_a_restart_leaves_the_queue_to_the_next_incarnation() {
    let mut stand = Stand::new();
    stand.deliver("stop");
    stand.deliver("two");
    stand.start_ready(1);
    assert_eq!(stand.report(), HostReport::Exited(Exit::Normal));
    assert_eq!(stand.host.load().queued, 1);
    stand.start_ready(2);
    stand.await_done("two");
}

#[test]
fn a_full_mailbox_makes_its_source_wait_and_takes_one_input_of_any_size() {
    let mailbox = Mailbox::default();
    mailbox.open(1);
    let gap =
        |bytes: usize| Input::Gap { filter: "a/#".parse().unwrap(), count: None, reason: "x".repeat(bytes) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for _ in 0..MAILBOX_INPUTS_MAX {
            mailbox.offer(gap(1)).await;
        }
        let waits = tokio::time::timeout(Duration::ZERO, mailbox.offer(gap(1))).await;
        assert!(waits.is_err(), "a full mailbox took another input");
        let (taken, ()) = tokio::join!(mailbox.next(1), mailbox.offer(gap(1)));
        assert!(matches!(taken, Next::Input { .. }));
    });
    assert_eq!(mailbox.depth().0, MAILBOX_INPUTS_MAX);
}
