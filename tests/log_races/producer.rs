//! A process, or a thread that stands for one, which logs from its first instruction.

use std::{path::PathBuf, sync::mpsc, thread};

use interlock_actors::{
    log_record::Level,
    log_transport::{
        Drain, Identity, LogBuffer, LogLayer, Sink,
        journal::{self, JournalPlace},
    },
};
use interlock_bus::{Credentials, blocking::wait, crypto::derive_key};
use tokio::sync::watch;
use tracing_subscriber::layer::SubscriberExt;

use super::{SOAK, block_on, connect};
use crate::harness::dice::{Dice, round_deadline};

/// Records in memory before all that waits is spilled: a quarter of this. More than are ever logged.
const RECORDS_MAX: usize = 400;

/// What a producer is to do.
pub(super) struct Orders {
    pub(super) component: String,
    pub(super) count: u64,
    pub(super) journal: PathBuf,
    /// Whether it spills now and then although memory has room.
    pub(super) spills: bool,
}

/// What a producer has done.
#[derive(Debug)]
pub(super) struct Produced {
    pub(super) component: String,
    /// Records raised, with the texts 1 to this.
    pub(super) count: u64,
    /// The first so many were on disk.
    pub(super) spilled: u64,
    pub(super) is_killed: bool,
}

impl Produced {
    pub(super) fn whole(component: &str, count: u64) -> Self {
        Self { component: component.to_owned(), count, spilled: 0, is_killed: false }
    }
}

/// Logs through the layer, and drains meanwhile; returns when all is stored. `told` hears of each record after its log
/// call has returned, and of what is on disk.
pub(super) fn produce(
    orders: Orders,
    credentials: Credentials,
    mut dice: Dice,
    mut told: impl FnMut(String),
) -> Produced {
    let Orders { component, count, journal, spills } = orders;
    let buffer = LogBuffer::new(RECORDS_MAX, 16 << 20);
    let sink = Sink::new(Box::new(std::io::sink()), Level::Error).unwrap();
    let identity = Identity { component: component.clone(), incarnation: 1 };
    let subscriber = tracing_subscriber::registry().with(LogLayer::new(identity, buffer.clone(), sink));
    tracing::subscriber::with_default(subscriber, || {
        let begin = dice.below(count + 1);
        let mut log = |number: u64| {
            tracing::info!(target: "producer", "{number}");
            told(format!("logged: {number}"));
        };
        (1..=begin).for_each(&mut log);
        let key = derive_key(&[7; 32], "log races");
        let place = JournalPlace {
            directory: journal,
            bytes_max: journal::BYTES_MAX,
            key: Box::new(move || Ok(key.clone())),
        };
        buffer.attach_journal(place).unwrap();
        let draining = Draining::start(buffer.clone(), credentials, Dice(dice.roll()));
        for number in begin + 1..=count {
            if dice.one_in(6) {
                dice.delay();
            }
            tracing::info!(target: "producer", "{number}");
            told(format!("logged: {number}"));
            if spills && dice.one_in(30) {
                wait(buffer.journal().unwrap().spill_all());
                told(format!("spilled: {number}"));
            }
        }
        draining.finish(&buffer);
    });
    Produced::whole(&component, count)
}

/// A drain at work on a thread of its own, begun again after each failure, as its supervisor would.
struct Draining {
    thread: thread::JoinHandle<()>,
    reports: mpsc::Receiver<()>,
    stop: watch::Sender<bool>,
}

impl Draining {
    fn start(buffer: LogBuffer, credentials: Credentials, mut dice: Dice) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (reported, reports) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            dice.delay();
            block_on(async {
                while !*stopped.borrow() {
                    let client = connect(&credentials).await;
                    let mut stopped = stopped.clone();
                    let stop = async {
                        let _ = stopped.wait_for(|stop| *stop).await;
                    };
                    let report = |_report| {
                        // One that is there already says the same.
                        let _ = reported.try_send(());
                    };
                    // Its end is a lost session, or a consumer that went with what it had.
                    let _ = Drain::new(client.clone(), buffer.clone()).run(report, stop).await;
                    client.close().await;
                }
            });
        });
        Self { thread, reports, stop }
    }

    /// Waits until everything is stored.
    fn finish(self, buffer: &LogBuffer) {
        while !buffer.is_empty() {
            if self.reports.recv_timeout(round_deadline(SOAK)).is_err() {
                panic!("not flushed: {:?}, {:?}", buffer.report(), buffer.journal_report());
            }
        }
        self.stop.send_replace(true);
        self.thread.join().unwrap();
        assert_eq!(buffer.report().dropped_total(), 0);
    }
}
