//! A party as the schedule holds it: its process, its journal, and what is known of its subscriptions.

use std::{
    fmt::Arguments,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
};

use interlock_bus::native::Overflow;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::party;
use crate::harness::{dice::Dice, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Native,
    StockSubscriber,
    StockPublisher,
    /// REQ, or DEALER.
    StockRequester,
}

/// Something happened after the message `after` and at the latest before that behind `before`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) after: u64,
    pub(super) before: u64,
}

/// One subscription.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) id: usize,
    /// A filter, or a stock subscriber's prefix.
    pub(super) filter: String,
    pub(super) overflow: Overflow,
    pub(super) group: Option<String>,
    pub(super) retained: bool,
    pub(super) from: Span,
    /// Everything up to this message was routed to it; `None` if it lives to the end.
    pub(super) until: Option<u64>,
    pub(super) stalled: bool,
}

impl Lane {
    pub(super) fn stock(prefix: String, from: Span) -> Self {
        Self { filter: prefix, ..Self::none(1, from) }
    }

    /// One that was refused.
    pub(super) fn none(id: usize, from: Span) -> Self {
        Self {
            id,
            filter: "none".to_owned(),
            overflow: Overflow::DropNewest,
            group: None,
            retained: false,
            from,
            until: None,
            stalled: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Party {
    pub(super) kind: Kind,
    pub(super) name: usize,
    pub(super) number: usize,
    pub(super) lanes: Vec<Lane>,
    pub(super) stopped: bool,
    /// What it says, and whether it will say no more.
    journal: Arc<Mutex<(Vec<String>, bool)>>,
    child: Child,
    input: ChildStdin,
    orders: usize,
    fences: usize,
    asks: usize,
    /// Filters it was told to serve.
    pub(super) serves: usize,
    gone: bool,
    /// The broker had ended its session before it was ended from here: a stopped process cannot say so.
    pub(super) cut: bool,
    /// Whether all it was told to publish has been taken by the broker.
    pub(super) finished: bool,
}

impl Party {
    pub(super) fn start(kind: Kind, name: usize, number: usize, credentials: &Path, endpoint: usize) -> Self {
        let mut command = match kind {
            Kind::Native => party::command(credentials, number, endpoint),
            Kind::StockSubscriber | Kind::StockPublisher | Kind::StockRequester => {
                let mut command = Command::new("python3");
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/oracle.py"));
                command.arg(match kind {
                    Kind::StockSubscriber => "sub",
                    Kind::StockPublisher => "pub",
                    _ if number.is_multiple_of(2) => "req",
                    _ => "dealer",
                });
                command.arg(credentials).arg(number.to_string()).arg(endpoint.to_string());
                command
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let journal = Arc::new(Mutex::new((Vec::new(), false)));
        let shared = Arc::clone(&journal);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The test harness of a party begins the line it will end with `ok`.
                if let Some((_, said)) = line.split_once('#') {
                    shared.lock().unwrap().0.push(said.to_owned());
                }
            }
            shared.lock().unwrap().1 = true;
        });
        let (lanes, stopped, orders, fences) = (Vec::new(), false, 0, 0);
        let party = Self {
            kind,
            name,
            number,
            lanes,
            stopped,
            journal,
            child,
            input,
            orders,
            fences,
            asks: 0,
            serves: 0,
            gone: false,
            cut: false,
            finished: false,
        };
        party.awaits("hello", 1);
        assert_eq!(party.count("hello"), 1, "{:?}", party.journal().0);
        party
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.journal.lock().unwrap()
    }

    pub(super) fn tell(&mut self, line: Arguments<'_>) {
        // One that has died meanwhile will be found dead.
        let _ = self.input.write_all(format!("{line}\n").as_bytes());
    }

    fn count(&self, line: &str) -> usize {
        let with_more = format!("{line} ");
        let said = self.journal();
        said.0.iter().filter(|said| *said == line || said.starts_with(&with_more)).count()
    }

    fn awaits(&self, line: &str, times: usize) {
        eventually(&format!("party {} to say `{line}` {times} times", self.number), || {
            (self.count(line) >= times || self.journal().1).then_some(())
        });
    }

    /// The sequence from which the subscription holds; `None` if it was refused.
    pub(super) fn awaits_subscription(&self, id: usize) -> Option<u64> {
        let (made, refused) = (format!("sub {id} "), format!("nosub {id} "));
        eventually("an answer to `sub`", || {
            let said = self.journal();
            if let Some(from) = said.0.iter().find_map(|line| line.strip_prefix(&made)) {
                return Some(Some(from.parse().unwrap()));
            }
            (said.1 || said.0.iter().any(|line| line.starts_with(&refused))).then_some(None)
        })
    }

    pub(super) fn some_lane(&self, dice: &mut Dice) -> Option<usize> {
        let live: Vec<usize> = (0..self.lanes.len())
            .filter(|at| self.lanes[*at].until.is_none() && self.lanes[*at].from.after != u64::MAX)
            .collect();
        (!live.is_empty()).then(|| *dice.of(&live))
    }

    pub(super) fn order(&mut self, topic: &str, count: usize, bytes: usize, mode: &str) {
        self.orders += 1;
        self.tell(format_args!("pub {topic} {count} {bytes} {mode}"));
    }

    pub(super) fn ask(&mut self, topic: &str, count: usize) {
        self.asks += 1;
        self.tell(format_args!("ask {topic} {count}"));
    }

    /// Waits until all it has asked has ended.
    pub(super) fn await_answers(&self) {
        self.awaits("asks", self.asks);
    }

    /// Serves from now on, if it may.
    pub(super) fn serve(&mut self, filter: &str) {
        self.serves += 1;
        let id = self.serves;
        self.tell(format_args!("serve {id} {filter}"));
        eventually("an answer to `serve`", || {
            let answered = self.count(&format!("serving {id}")) + self.count(&format!("noserve {id}"));
            (answered > 0 || self.journal().1).then_some(())
        });
    }

    pub(super) fn stall(&mut self, lane: usize) {
        let id = self.lanes[lane].id;
        let times = self.count(&format!("stall {id}")) + 1;
        self.tell(format_args!("stall {id}"));
        self.awaits(&format!("stall {id}"), times);
        self.lanes[lane].stalled = true;
    }

    pub(super) fn resume(&mut self, lane: usize) {
        let id = self.lanes[lane].id;
        self.tell(format_args!("resume {id}"));
        self.lanes[lane].stalled = false;
    }

    pub(super) fn resume_all(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].stalled {
                self.resume(lane);
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, lane: usize, after: u64) {
        self.lanes[lane].until = Some(after);
        let id = self.lanes[lane].id;
        self.tell(format_args!("unsub {id}"));
        self.awaits(&format!("unsub {id}"), 1);
    }

    /// Waits until it has sent all it was told to publish.
    pub(super) fn await_orders(&self) {
        self.awaits("pub", self.orders);
    }

    /// Waits until all it was told to publish has been taken by the broker.
    pub(super) fn finish_orders(&mut self) {
        self.await_orders();
        self.fences += 1;
        self.tell(format_args!("fence"));
        self.awaits("fence", self.fences);
        self.finished = true;
    }

    /// Waits until all it has received is in its journal.
    pub(super) fn drain(&mut self) {
        if self.gone {
            return;
        }
        let ids: Vec<usize> =
            self.lanes.iter().filter(|lane| lane.until.is_none()).map(|lane| lane.id).collect();
        for id in ids {
            let times = self.count(&format!("drain {id}")) + 1;
            self.tell(format_args!("drain {id}"));
            self.awaits(&format!("drain {id}"), times);
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(super) fn kill(&mut self, after: u64) {
        self.end_lanes(after);
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
        self.awaits("nothing more", usize::MAX);
    }

    pub(super) fn close(&mut self, after: u64) {
        self.end_lanes(after);
        self.tell(format_args!("close"));
        eventually("the party to end", || self.child.try_wait().unwrap());
        self.awaits("nothing more", usize::MAX);
    }

    /// Its session was ended for good by the broker.
    pub(super) fn was_revoked(&mut self, after: u64) {
        if self.kind == Kind::Native {
            // One that was cut off before it could read the goodbye goes on asking, slowly.
            eventually("the session to end", || {
                (self.count("ended") + self.count("lost") > 0 || self.journal().1).then_some(())
            });
        }
        self.kill(after);
    }

    fn end_lanes(&mut self, after: u64) {
        self.gone = true;
        for lane in &mut self.lanes {
            lane.until.get_or_insert(after);
        }
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
