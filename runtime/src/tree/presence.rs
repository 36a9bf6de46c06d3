//! Which programs have a session on the bus: one thread that follows `$peers/#` for all of them, across restarts of the
//! broker. A program whose session is gone still runs, so its guardian sees nothing wrong with it; this does.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
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

/// How long a loss lasts before it is told: who has it back by then comes and goes, or was on its way to another broker.
const SETTLED: Duration = Duration::from_secs(2);

/// What a session that its peer ended in good order ended with.
const GOODBYE: &str = "closing";

/// How the kinds of stock sockets begin.
const STOCK: &str = "stock_";

/// What it ends with if its connection just ended. That is all that a stock socket can say when it is closed.
const CONNECTION_ENDS: [&str; 2] = ["closed", "lost"];

/// Follows who is on the bus, for as long as one clone of it is there.
#[derive(Clone)]
pub struct Presence(Arc<Owner>);

/// Ends the thread when it is dropped.
struct Owner {
    watched: Arc<Watched>,
    closing: Arc<Notify>,
}

/// What its session on the bus is to a program.
///
/// | the last session ended | `Loose` | `Firm`, `Readiness` |
/// |---|---|---|
/// | with a goodbye, or as a stock socket ends that is closed | nothing | impaired if it is not back in time |
/// | in any other way | impaired if it is not back in time | impaired if it is not back in time |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// It may come and go.
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
    /// A session is gone, which is to be told if it lasts.
    gone: Notify,
}

struct Program {
    signal: OutsideSignal,
    tie: Tie,
    is_there: bool,
    /// What is to be told, and when.
    loss: Option<(Instant, String)>,
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
                    () = shared.settle() => {}
                }
            });
        })?;
        Ok(Self(Arc::new(Owner { watched, closing })))
    }

    /// What is told when an incarnation of `name` has been started. It is impaired while a session that it had is gone.
    pub fn of(&self, name: PeerName, tie: Tie) -> Arc<dyn Fn(OutsideSignal) + Send + Sync> {
        let presence = self.clone();
        Arc::new(move |signal| {
            let program = Program { signal, tie, is_there: false, loss: None };
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
            let broker = seat.broker();
            let is_seated = broker.is_ok();
            // Without one there is nothing to say: the next one is waited for.
            if let Ok(broker) = broker {
                let followed = match broker.attach(watcher) {
                    Ok(client) => self.follow_one(&client).await,
                    Err(error) => Err(error.into()),
                };
                if let Err(failure) = followed {
                    tracing::error!(%failure, "it cannot be seen which programs are on the bus");
                }
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
                program.is_gone(false, "its session was not in the broker's list of peers any more");
            }
        }
        self.gone.notify_one();
        Ok(())
    }

    /// Tells what lasts, when it has. Never ends.
    async fn settle(&self) {
        loop {
            let due =
                self.lock().values().filter_map(|program| program.loss.as_ref()).map(|(due, _)| *due).min();
            let settled = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = settled => self.tell_what_lasts(Instant::now()),
                () = self.gone.notified() => {}
            }
        }
    }

    fn tell_what_lasts(&self, now: Instant) {
        self.lock().values_mut().for_each(|program| program.tell_what_lasts(now));
    }

    fn hear(&self, event: &serde_json::Value) {
        let name = event["peer"].as_str().and_then(|name| name.parse::<PeerName>().ok());
        let mut programs = self.lock();
        let Some(name) = name else { return };
        let Some(program) = programs.get_mut(&name) else { return };
        if event["sessions"].as_u64() > Some(0) {
            program.is_seen(&format!("its session was announced on `$peers/{name}`"));
        } else {
            let word = |key: &str| event[key].as_str().unwrap_or_default();
            let is_stock = word("kind").starts_with(STOCK);
            let by_itself = word("code") == GOODBYE || is_stock && CONNECTION_ENDS.contains(&word("code"));
            program.is_gone(by_itself, word("text"));
            self.gone.notify_one();
        }
    }

    fn all_gone(&self, why: &str) {
        self.lock().values_mut().for_each(|program| program.is_gone(false, why));
        self.gone.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerName, Program>> {
        // No code that can panic runs under this lock.
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Program {
    fn is_seen(&mut self, proof: &str) {
        self.loss = None;
        if !std::mem::replace(&mut self.is_there, true) {
            if self.tie == Tie::Readiness {
                self.signal.ready(proof);
            }
            self.signal.impaired(None);
        }
    }

    /// `by_itself`: it has ended the session, as far as can be seen.
    fn is_gone(&mut self, by_itself: bool, why: &str) {
        let was_there = std::mem::replace(&mut self.is_there, false);
        if by_itself && self.tie == Tie::Loose {
            // Also if the list of peers has told before how the session ended.
            self.loss = None;
        } else if was_there {
            self.loss = Some((Instant::now() + SETTLED, why.to_owned()));
        }
    }

    fn tell_what_lasts(&mut self, now: Instant) {
        if let Some((_, why)) = self.loss.take_if(|(due, _)| *due <= now) {
            self.signal.impaired(Some(format!("it runs, but its session on the bus is gone: {why}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use interlock_actors::host::{HostReport, Reports};

    use super::*;

    const CONNECTED: &str =
        r#"{"peer": "echo", "kind": "stock_requester", "state": "connected", "sessions": 1}"#;

    fn disconnected(kind: &str, code: &str) -> String {
        format!(
            r#"{{"peer": "echo", "kind": "{kind}", "state": "disconnected", "sessions": 0, "code": "{code}", "text": "why"}}"#
        )
    }

    /// What is told of a program after these events, the loss told as soon as it lasts.
    fn told(tie: Tie, events: &[&str]) -> Vec<&'static str> {
        let (sink, reports) = mpsc::channel();
        let signal = OutsideSignal::new(Reports::new(move |report| drop(sink.send(report))));
        let watched = Watched::default();
        let program = Program { signal, tie, is_there: false, loss: None };
        watched.lock().insert("echo".parse().unwrap(), program);
        for event in events {
            match *event {
                "time passes" => watched.tell_what_lasts(Instant::now() + SETTLED),
                event => watched.hear(&serde_json::from_str(event).unwrap()),
            }
        }
        let words = |report| match report {
            HostReport::Ready { .. } => "ready",
            HostReport::Impaired(None) => "there",
            HostReport::Impaired(Some(_)) => "lost",
            other => panic!("{other:?}"),
        };
        reports.try_iter().map(words).collect()
    }

    #[test]
    fn a_loss_is_told_when_it_lasts_and_what_a_program_ended_by_itself_is_none_unless_it_is_to_be_there() {
        let stock = disconnected("stock_requester", "closed");
        let reset = disconnected("stock_requester", "lost");
        let silent = disconnected("stock_requester", "silent");
        let native = disconnected("native", "closed");
        let goodbye = disconnected("native", "closing");
        for ended in [&stock, &reset, &goodbye] {
            assert_eq!(told(Tie::Loose, &[CONNECTED, ended, "time passes"]), ["there"], "{ended}");
            assert_eq!(told(Tie::Firm, &[CONNECTED, ended, "time passes"]), ["there", "lost"], "{ended}");
            let told = told(Tie::Readiness, &[CONNECTED, ended, "time passes"]);
            assert_eq!(told, ["ready", "there", "lost"], "{ended}");
        }
        for ended in [&silent, &native] {
            let (back, late) =
                ([CONNECTED, ended, CONNECTED, "time passes"], [CONNECTED, ended, "time passes"]);
            assert_eq!(told(Tie::Loose, &back), ["there", "there"], "{ended}: it is back in time");
            assert_eq!(told(Tie::Loose, &late), ["there", "lost"], "{ended}");
            assert_eq!(told(Tie::Loose, &late[..2]), ["there"], "{ended}: not yet");
        }
        let again = [CONNECTED, &native, "time passes", "time passes", CONNECTED];
        assert_eq!(told(Tie::Loose, &again), ["there", "lost", "there"], "once");
    }
}
