//! Which programs have a session on the bus: one thread that follows `$peers/#` for all of them, across restarts of the
//! broker. A program whose session is gone still runs, so its guardian sees nothing wrong with it; this does.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use interlock_actors::actor::Failure;
use interlock_bus::{Client, Event, Payload, PeerName, SubscribeOptions};
use tokio::sync::Notify;

use super::BrokerSeat;
use crate::process::OutsideSignal;

/// How long the broker, which is in this process, may take to say who is connected.
const PEERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon it is looked again when the presence of peers cannot be followed although a broker runs.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What a session that its peer ended in good order ended with.
const GOODBYE: &str = "closing";

/// Follows who is on the bus, for as long as one clone of it is there.
#[derive(Clone)]
pub struct Presence(Arc<Owner>);

/// Ends the thread when it is dropped.
struct Owner {
    watched: Arc<Watched>,
    closing: Arc<Notify>,
}

/// What its session on the bus is to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// It may come and go, if it says goodbye.
    Loose,
    /// Without it, it does less than it should.
    Firm,
    /// That, and with it it is ready.
    Readiness,
}

/// The programs that are watched. One entry for each in the configuration.
#[derive(Default)]
struct Watched {
    programs: Mutex<HashMap<PeerName, Program>>,
    /// An incarnation has begun: it is to be asked who is there.
    begun: Notify,
}

struct Program {
    signal: OutsideSignal,
    tie: Tie,
    is_there: bool,
}

impl Presence {
    /// Starts to follow. `watcher` is a peer of this process that may subscribe to `$peers/#` and request
    /// `$sys/broker/peers`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn open(seat: &BrokerSeat, watcher: &PeerName) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (watched, closing) = (Arc::<Watched>::default(), Arc::new(Notify::new()));
        let (seat, watcher, shared, closed) =
            (seat.clone(), watcher.clone(), watched.clone(), closing.clone());
        // Ends with the last clone. Not joined: whoever drops that may be the one that takes its reports.
        std::thread::Builder::new().name("presence".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = closed.notified() => {}
                    () = shared.follow(&seat, &watcher) => {}
                }
            });
        })?;
        Ok(Self(Arc::new(Owner { watched, closing })))
    }

    /// What is told when an incarnation of `name` has been started. It is impaired while a session that it had is gone.
    pub fn of(&self, name: PeerName, tie: Tie) -> Arc<dyn Fn(OutsideSignal) + Send + Sync> {
        let presence = self.clone();
        Arc::new(move |signal| {
            let program = Program { signal, tie, is_there: false };
            presence.0.watched.lock().insert(name.clone(), program);
            presence.0.watched.begun.notify_one();
        })
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Presence")
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.closing.notify_one();
    }
}

impl Watched {
    /// Never ends, unless the seat does.
    async fn follow(&self, seat: &BrokerSeat, watcher: &PeerName) {
        let mut seatings = seat.seatings();
        loop {
            seatings.borrow_and_update();
            let client = seat.broker().and_then(|broker| Ok(broker.attach(watcher)?));
            let is_seated = client.is_ok();
            if let Ok(client) = client
                && let Err(failure) = self.follow_one(&client).await
            {
                tracing::error!(%failure, "it cannot be seen which programs are on the bus");
            }
            self.all_gone("the broker has ended");
            let again = async {
                match is_seated {
                    true => tokio::time::sleep(LOOK_AGAIN).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                seated = seatings.changed() => if seated.is_err() { return },
                () = again => {}
            }
        }
    }

    /// Follows one broker to its end.
    async fn follow_one(&self, client: &Client) -> Result<(), Failure> {
        // Subscribed before asking, so that no connection falls between.
        let mut events = client.subscribe(&"$peers/#".parse()?, SubscribeOptions::default()).await?;
        self.ask(client).await?;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    None => return Ok(()),
                    Some(Event::Gap { .. }) => self.ask(client).await?,
                    Some(Event::Message(message)) => self.hear(&serde_json::from_slice(&message.payload)?),
                },
                () = self.begun.notified() => self.ask(client).await?,
            }
        }
    }

    /// Asks who is there now.
    async fn ask(&self, client: &Client) -> Result<(), Failure> {
        let topic = "$sys/broker/peers".parse()?;
        let peers = client.request(&topic, Payload::default(), PEERS_TIMEOUT).await?;
        let peers: serde_json::Value = serde_json::from_slice(&peers.payload)?;
        let names: Vec<&str> =
            peers.as_array().into_iter().flatten().filter_map(|peer| peer["peer"].as_str()).collect();
        for (name, program) in &mut *self.lock() {
            if names.contains(&name.as_str()) {
                program.is_seen("its session was in the broker's list of peers");
            } else {
                program.is_gone(None, "its session was not in the broker's list of peers any more");
            }
        }
        Ok(())
    }

    fn hear(&self, event: &serde_json::Value) {
        let name = event["peer"].as_str().and_then(|name| name.parse::<PeerName>().ok());
        let mut programs = self.lock();
        let Some(name) = name else { return };
        let Some(program) = programs.get_mut(&name) else { return };
        if event["sessions"].as_u64() > Some(0) {
            program.is_seen(&format!("its session was announced on `$peers/{name}`"));
        } else {
            program.is_gone(event["code"].as_str(), event["text"].as_str().unwrap_or_default());
        }
    }

    fn all_gone(&self, why: &str) {
        self.lock().values_mut().for_each(|program| program.is_gone(None, why));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerName, Program>> {
        // No code that can panic runs under this lock.
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    fn is_seen(&mut self, proof: &str) {
        if !std::mem::replace(&mut self.is_there, true) {
            if self.tie == Tie::Readiness {
                self.signal.ready(proof);
            }
            self.signal.impaired(None);
        }
    }

    fn is_gone(&mut self, code: Option<&str>, why: &str) {
        // One that goes in good order and need not stay has done nothing wrong.
        let is_lost = self.tie != Tie::Loose || code != Some(GOODBYE);
        if std::mem::replace(&mut self.is_there, false) && is_lost {
            self.signal.impaired(Some(format!("it runs, but its session on the bus is gone: {why}")));
        }
    }
}
