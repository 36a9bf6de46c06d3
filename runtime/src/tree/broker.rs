//! The broker as a child, and the place where others find it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    host::Bus,
};
use interlock_bus::{
    Broker, BrokerConfig, BrokerError, BrokerHandle, Incarnations, PeerName, crypto::PublicKey,
};
use tokio::sync::watch;

use crate::process::IssuedCredentials;

/// How long a stopping broker sends what is queued; less than the grace of an actor.
const BROKER_GRACE: Duration = Duration::from_secs(4);

/// Where the running broker is to be found. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct BrokerSeat(Arc<Mutex<Seated>>);

#[derive(Debug, Default)]
struct Seated {
    broker: Option<BrokerHandle>,
    /// Those of the last broker that sat here. The processes that hold them outlive it.
    incarnations: Option<Incarnations>,
    /// Told whenever a broker sits down.
    seatings: watch::Sender<()>,
}

/// The peer that the runtime itself is.
fn runtime_peer() -> PeerName {
    crate::peers::RUNTIME.parse().expect("the constant is a peer name")
}

/// Told why a broker could not start, before its supervisor is.
pub type NoteRefusal = dyn Fn(&BrokerError) + Send + Sync;

impl BrokerSeat {
    /// The broker that runs.
    pub fn broker(&self) -> Result<BrokerHandle, Failure> {
        self.lock().broker.clone().ok_or_else(|| Failure::new("the broker does not run"))
    }

    /// How a child in this process gets its client: by attaching to whatever broker runs.
    pub fn attach(&self, name: PeerName) -> Bus {
        let seat = self.clone();
        Bus::attach(move || {
            let attached = seat.broker().and_then(|broker| Ok(broker.attach(&name)?));
            std::future::ready(attached)
        })
    }

    /// How a child in a process of its own gets its credentials: a key made for each incarnation, in memory only, and
    /// void when that has ended.
    pub fn incarnation_credentials(
        &self,
        name: PeerName,
    ) -> impl Fn(u64) -> Result<IssuedCredentials, Failure> + Send + Sync + 'static {
        let seat = self.clone();
        move |_| {
            let issued = seat.broker()?.issue_incarnation(&name);
            let (text, key, seat) = (issued.to_toml().to_string(), issued.keys.public, seat.clone());
            Ok(IssuedCredentials::new(text, move || seat.end_incarnation(&key)))
        }
    }

    /// Ends the validity of a key, whether or not a broker runs.
    fn end_incarnation(&self, key: &PublicKey) {
        let (broker, incarnations) = {
            let seated = self.lock();
            (seated.broker.clone(), seated.incarnations.clone())
        };
        match (broker, incarnations) {
            (Some(broker), _) => broker.end_incarnation(key),
            (None, Some(incarnations)) => incarnations.revoke(key),
            (None, None) => {}
        }
    }

    #[cfg(test)]
    pub(super) fn with(broker: BrokerHandle) -> Self {
        let seat = Self::default();
        seat.take(broker);
        seat
    }

    pub(super) fn take(&self, broker: BrokerHandle) {
        let mut seated = self.lock();
        seated.incarnations = Some(broker.incarnations());
        seated.broker = Some(broker);
        seated.seatings.send_replace(());
    }

    /// Changes whenever a broker begins to run.
    pub(super) fn seatings(&self) -> watch::Receiver<()> {
        self.lock().seatings.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Seated> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the broker. Declared ready when its endpoints are open.
pub struct BrokerActor {
    config: Option<BrokerConfig>,
    seat: BrokerSeat,
    note_refusal: Arc<NoteRefusal>,
    running: Option<BrokerHandle>,
}

impl BrokerActor {
    /// A broker that will be found in `seat`.
    pub fn new(config: BrokerConfig, seat: BrokerSeat) -> Self {
        Self { config: Some(config), seat, note_refusal: Arc::new(|_| {}), running: None }
    }

    /// Tells `note` first if the broker cannot start.
    pub fn on_refusal(mut self, note: Arc<NoteRefusal>) -> Self {
        self.note_refusal = note;
        self
    }
}

impl fmt::Debug for BrokerActor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BrokerActor").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Actor for BrokerActor {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let config = self.config.take().ok_or_else(|| Failure::new("a broker is started once"))?;
        let incarnations = self.seat.lock().incarnations.clone();
        let config = match &incarnations {
            Some(incarnations) => config.with_incarnations(incarnations),
            None => config,
        };
        let broker = Broker::start(config).inspect_err(|error| (self.note_refusal)(error))?;
        let endpoints: Vec<_> = broker.endpoints().iter().map(ToString::to_string).collect();
        context.status(format!("listens on {}", endpoints.join(", ")));

        let (mut ended, seat) = (broker.ended(), self.seat.clone());
        context.spawn_background(async move {
            let reason = match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "its thread is gone".to_owned(),
            };
            if seat.lock().broker.is_none() {
                // It was asked to: see `stopping`.
                return Ok(());
            }
            Err(Failure::new(reason).context("the broker has ended"))
        });
        match broker.attach(&runtime_peer()) {
            Ok(client) => context.spawn_background(async move {
                // The broker goes on without a log of its events.
                if let Err(error) = super::broker_events::log(client).await {
                    tracing::warn!(%error, "events of the broker do not reach the log");
                }
                Ok(())
            }),
            Err(error) => tracing::debug!(%error, "events of the broker do not reach the log"),
        }
        self.seat.take(broker.clone());
        self.running = Some(broker);
        Ok(())
    }

    async fn handle(&mut self, _: Input, _: &Context) -> Result<(), Failure> {
        Ok(())
    }

    async fn stopping(&mut self, _: &Context) -> Result<(), Failure> {
        self.seat.lock().broker = None;
        if let Some(broker) = self.running.take() {
            tokio::task::spawn_blocking(move || broker.stop(BROKER_GRACE)).await?;
        }
        Ok(())
    }
}

impl Drop for BrokerActor {
    /// After a failure the next incarnation needs the ports.
    fn drop(&mut self) {
        if let Some(broker) = self.running.take() {
            self.seat.lock().broker = None;
            broker.stop(Duration::ZERO);
        }
    }
}
