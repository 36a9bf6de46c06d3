//! The supervisor is itself watched: by a thread that does nothing else, so that a loop that stands still is noticed
//! whatever it stands still in.
//!
//! | unanswered for | what follows |
//! |---|---|
//! | [`STALLED_AFTER`] | one line in the log; the tree counts as `error` until it answers again; the stall is counted |
//! | [`DEAD_AFTER`] | the process is ended: the loop has the tree, and nothing could take that from it |
//!
//! Supervisors below are asked by the ones above, as all children are.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};

use super::{Order, OrderKind, SupervisorHandle};

/// From an answer to the next question.
pub const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long the loop may let itself be waited for. It never waits, so this is a thousand times what it needs.
pub const STALLED_AFTER: Duration = Duration::from_secs(2);

/// From when on it is given up: as long as a child that answers no question.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);

/// What is known of the loop. Clones know the same.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    stalls: u64,
    stalled_since: Option<Instant>,
}

/// What is to be said of the supervisor itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSnapshot {
    /// How often it stood still for [`STALLED_AFTER`].
    pub stalls: u64,
    /// For how long it has not answered, if it stands still now: then what is known of the tree is as old.
    pub stalled_ms: Option<u64>,
}

impl Health {
    /// What is known now. Never waits for the supervisor.
    pub fn snapshot(&self) -> HealthSnapshot {
        let known = self.lock();
        let stalled = known.stalled_since.map(|since| since.elapsed().as_millis());
        HealthSnapshot {
            stalls: known.stalls,
            stalled_ms: stalled.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
        }
    }

    fn stalled(&self, since: Instant) {
        let mut known = self.lock();
        known.stalls += 1;
        known.stalled_since = Some(since);
    }

    fn answered(&self) -> Option<Duration> {
        self.lock().stalled_since.take().map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the loop may take for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// See [`ASK_EVERY`].
    pub ask_every: Duration,
    /// See [`STALLED_AFTER`].
    pub stalled_after: Duration,
    /// See [`DEAD_AFTER`].
    pub dead_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { ask_every: ASK_EVERY, stalled_after: STALLED_AFTER, dead_after: DEAD_AFTER }
    }
}

/// The watching thread. Dropping this ends it.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the loop of `tree` until it ends, and writes down what is seen in `health`. If the loop is dead `end` is
    /// called with the reason, once; it is expected to end the process.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(
        tree: &SupervisorHandle,
        health: Health,
        patience: Patience,
        end: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let watching = Watching { orders: tree.orders.clone(), health, patience, stopped, speaker: None };
        let thread = std::thread::Builder::new()
            .name("supervisor-watch".to_owned())
            .spawn(move || watching.run(end))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watching {
    orders: Sender<Order>,
    health: Health,
    patience: Patience,
    stopped: Receiver<()>,
    /// Says what has to be said: standard error may be what the loop stands still in.
    speaker: Option<JoinHandle<()>>,
}

/// How a wait for an answer ended.
enum Heard {
    Answer,
    Nothing,
    Over,
}

impl Watching {
    fn run(mut self, end: impl FnOnce(String)) {
        loop {
            match self.question() {
                Heard::Answer => {}
                Heard::Over => return,
                Heard::Nothing => {
                    let seconds = self.patience.dead_after.as_secs_f32();
                    return end(format!(
                        "the supervisor's loop has stood still for {seconds:.0} s and cannot be replaced; the process ends"
                    ));
                }
            }
            // Anything else than its end means that nobody wants to know any more.
            if !matches!(
                self.stopped.recv_timeout(self.patience.ask_every),
                Err(crossbeam_channel::RecvTimeoutError::Timeout)
            ) {
                return;
            }
        }
    }

    /// Asks once. `Nothing`: it is dead.
    fn question(&mut self) -> Heard {
        let since = Instant::now();
        let (answer, answered) = bounded(1);
        let mut unsent = Some(Order { kind: OrderKind::Answer, answer });
        // Counted in slices that this thread saw end, whatever the clock says: while the process is suspended, however
        // long, at most one of them ends.
        let mut silent = Duration::ZERO;
        let slice = self.patience.stalled_after / 4;
        let mut is_stalled = false;
        while silent < self.patience.dead_after {
            if let Some(order) = unsent.take() {
                match self.orders.try_send(order) {
                    Ok(()) => {}
                    Err(TrySendError::Full(order)) => unsent = Some(order),
                    Err(TrySendError::Disconnected(_)) => return Heard::Over,
                }
            }
            crossbeam_channel::select! {
                recv(self.stopped) -> _ => return Heard::Over,
                recv(answered) -> heard => match heard {
                    Ok(_) => {
                        self.note_answer();
                        return Heard::Answer;
                    }
                    Err(_) => return Heard::Over,
                },
                default(slice) => silent += slice,
            }
            if silent >= self.patience.stalled_after && !is_stalled {
                is_stalled = true;
                self.health.stalled(since);
                self.say(|| {
                    tracing::error!("the supervisor's loop stands still: nothing is restarted, and what is known of the tree grows old");
                });
            }
        }
        Heard::Nothing
    }

    fn note_answer(&mut self) {
        if let Some(stood) = self.health.answered() {
            let stood_ms = u64::try_from(stood.as_millis()).unwrap_or(u64::MAX);
            self.say(move || tracing::warn!(stood_ms, "the supervisor's loop goes on"));
        }
    }

    /// Says something without waiting for it to be said. If what was said before still is not, this is not said: it
    /// is in [`Health`].
    fn say(&mut self, say: impl FnOnce() + Send + 'static) {
        if self.speaker.as_ref().is_none_or(JoinHandle::is_finished) {
            // Not joined: what it speaks to may never listen.
            self.speaker = std::thread::Builder::new().name("stall-words".to_owned()).spawn(say).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
        sync::mpsc,
    };

    use interlock_actors::host::{Busy, Host, HostReport, Load, Reports, Stop};
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;
    use crate::supervisor::{
        ChildSpecification, Children, ShutdownPhases, State, Strategy, Supervision, Supervisor,
    };

    const DEADLINE: Duration = Duration::from_secs(20);

    const BRISK: Patience = Patience {
        ask_every: Duration::from_millis(10),
        stalled_after: Duration::from_millis(200),
        dead_after: Duration::from_secs(2),
    };

    /// A body that breaks the rule: its `stop` waits, until the test says to go on.
    struct Rude(mpsc::Receiver<()>, Option<Reports>);

    impl Host for Rude {
        fn start(&mut self, _: u64, reports: Reports) {
            reports.send(HostReport::Ready { proof: String::new() });
            self.1 = Some(reports);
        }
        fn stop(&mut self, _: Stop) {
            let _ = self.0.recv_timeout(DEADLINE);
            if let Some(reports) = &self.1 {
                reports.send(HostReport::Exited(interlock_actors::host::Exit::Normal));
            }
        }
        fn kill(&mut self, _: bool) {}
        fn abandon(&mut self, _: bool) {}
        fn ask(&mut self, _: u64) {}
        fn busy(&self) -> Option<Busy> {
            None
        }
        fn load(&self) -> Load {
            Load::default()
        }
    }

    /// A tree whose loop stands still from the first stop on.
    fn tree() -> (Supervision, mpsc::SyncSender<()>) {
        let (go, gone) = mpsc::sync_channel(1);
        let child = ChildSpecification::actor("rude".parse().unwrap(), Rude(gone, None));
        let tree =
            Supervisor::new("root").start(Strategy::OneForOne, Children::Lasting(vec![child])).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(tree.handle().wait_until(|tree| tree.state == State::Running, DEADLINE)).unwrap();
        (tree, go)
    }

    fn await_stalled(health: &Health, stalled: bool) -> HealthSnapshot {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = health.snapshot();
            if seen.stalled_ms.is_some() == stalled {
                return seen;
            }
            assert!(Instant::now() < deadline, "{seen:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_loop_that_stands_still_is_seen_counted_and_seen_again_when_it_goes_on() {
        let (tree, go) = tree();
        let (health, (dead_in, dead)) = (Health::default(), mpsc::sync_channel(1));
        let patience = Patience { dead_after: DEADLINE * 2, ..BRISK };
        let watch =
            Watch::start(tree.handle(), health.clone(), patience, move |why| dead_in.send(why).unwrap());
        assert_eq!(health.snapshot(), HealthSnapshot::default());

        // The order itself is answered before the loop carries it out.
        tree.handle().stop("rude").unwrap();
        assert_eq!(await_stalled(&health, true).stalls, 1);
        assert_eq!(
            tree.handle().snapshot().child("rude").unwrap().name,
            "rude",
            "what was known still is told"
        );
        go.send(()).unwrap();
        assert_eq!(await_stalled(&health, false).stalls, 1);

        tree.handle().shutdown(ShutdownPhases::default()).unwrap();
        tree.join();
        drop(watch);
        dead.try_recv().unwrap_err();
    }

    /// Set for the process that [`a_loop_is_not_given_up_for_the_time_in_which_the_whole_process_was_suspended`] suspends.
    const SUSPENDED: &str = "INTERLOCK_TEST_SUSPENDED";

    /// Not a test: a process whose loop stands still from its first line on, until it can read that it is to go on.
    #[test]
    fn entry_of_a_process_that_is_suspended() {
        if std::env::var_os(SUSPENDED).is_none() {
            return;
        }
        let (tree, go) = tree();
        tree.handle().stop("rude").unwrap();
        let (health, (dead_in, dead)) = (Health::default(), mpsc::sync_channel(1));
        let _watch =
            Watch::start(tree.handle(), health.clone(), BRISK, move |why| dead_in.send(why).unwrap())
                .unwrap();
        std::io::stderr().write_all(b"stands still\n").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
        go.send(()).unwrap();
        // Answered by the loop itself.
        tree.handle().look().unwrap();
        std::process::exit(if dead.try_recv().is_ok() { 3 } else { 0 });
    }

    #[test]
    fn a_loop_is_not_given_up_for_the_time_in_which_the_whole_process_was_suspended() {
        let mut process = Command::new("/proc/self/exe")
            .args(["supervisor::stall_watch::tests::entry_of_a_process_that_is_suspended", "--exact"])
            .env(SUSPENDED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "stands still"));
        let pid = Pid::from_raw(process.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        // Waits there while it is suspended.
        process.stdin.take().unwrap().write_all(b"go on\n").unwrap();
        // How long it is suspended is a time: there is no event to wait for.
        std::thread::sleep(BRISK.dead_after + Duration::from_millis(500));
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(0), "3: its loop was given up");
    }

    #[test]
    fn a_loop_that_does_not_go_on_ends_the_process_with_the_reason() {
        let (tree, go) = tree();
        let (health, (dead_in, dead)) = (Health::default(), mpsc::sync_channel(1));
        let _watch =
            Watch::start(tree.handle(), health.clone(), BRISK, move |why| dead_in.send(why).unwrap())
                .unwrap();
        tree.handle().stop("rude").unwrap();
        let why = dead.recv_timeout(DEADLINE).unwrap();
        assert!(why.contains("stood still for 2 s"), "{why}");
        go.send(()).unwrap();
    }

    #[test]
    fn a_loop_that_cannot_even_be_asked_because_nobody_takes_orders_ends_the_process_too() {
        let (tree, go) = tree();
        tree.handle().stop("rude").unwrap();
        let mut unheard = Vec::new();
        loop {
            let (answer, answered) = bounded(1);
            unheard.push(answered);
            if tree.handle().orders.try_send(Order { kind: OrderKind::Answer, answer }).is_err() {
                break;
            }
        }
        let (health, (dead_in, dead)) = (Health::default(), mpsc::sync_channel(1));
        let _watch =
            Watch::start(tree.handle(), health.clone(), BRISK, move |why| dead_in.send(why).unwrap())
                .unwrap();
        dead.recv_timeout(DEADLINE).unwrap();
        assert_eq!(health.snapshot().stalls, 1);
        go.send(()).unwrap();
    }
}
