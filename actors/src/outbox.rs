//! The outbox as a component: durable delivery ([`interlock_bus::durable`]) on its encrypted database ([`crate::store::outbox`]).
//!
//! The database is opened when a topic has consumers, or when there is one already: who publishes nothing durably pays
//! nothing. What can be changed while it runs comes through the [`OutboxSeat`].

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use interlock_bus::{
    Request, ServeOptions, Service,
    durable::{DurableError, Left, Outbox, OutboxOptions, OutboxReport, OutboxState, Routes, words},
    envelope::now_ns,
};
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    intake::Intake,
    store::{
        Vault,
        outbox::{KeepFinished, OutboxLimits, OutboxStore, desk::Standing},
    },
};

/// How often the status is brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long something may wait before somebody is told.
const STUCK_AFTER: Duration = Duration::from_secs(30 * 60);

/// What an outbox is run with.
#[derive(Clone, Debug, Default)]
pub struct OutboxSettings {
    /// Who is to acknowledge what; in force at once.
    pub routes: Routes,
    /// What may be accepted; in force at once.
    pub limits: OutboxLimits,
    /// What is remembered; in force at once.
    pub keep: KeepFinished,
    /// Everything else; in force from the next start of the component on.
    pub options: OutboxOptions,
}

/// Where the settings are found, and what the last stop has left. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct OutboxSeat {
    settings: Arc<watch::Sender<OutboxSettings>>,
    left: Arc<Mutex<Option<Left>>>,
    stands: Arc<Mutex<Option<(Standing, OutboxReport)>>>,
}

impl OutboxSeat {
    /// These settings are in force from now on.
    pub fn configure(&self, settings: OutboxSettings) {
        self.settings.send_replace(settings);
    }

    /// What the last stop has left, if it ran and was not lost.
    pub fn left(&self) -> Option<Left> {
        self.place_of_left().clone()
    }

    /// How it stood when it looked last; `None` while it is not running.
    pub fn stands(&self) -> Option<(Standing, OutboxReport)> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_stands(&self, stands: Option<(Standing, OutboxReport)>) {
        *self.stands.lock().unwrap_or_else(PoisonError::into_inner) = stands;
    }

    fn place_of_left(&self) -> MutexGuard<'_, Option<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The component. Ready when it takes messages, or when nothing is to be published durably.
#[derive(Debug)]
pub struct OutboxActor {
    database: PathBuf,
    vault: Arc<Vault>,
    seat: OutboxSeat,
    intake: Intake,
}

impl OutboxActor {
    /// An outbox on this database, with its key in `vault`, which takes messages while `intake` is open.
    pub fn new(database: PathBuf, vault: Arc<Vault>, seat: OutboxSeat, intake: Intake) -> Self {
        Self { database, vault, seat, intake }
    }
}

impl Actor for OutboxActor {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        let (ready, is_ready) = oneshot::channel();
        let life = Life {
            database: self.database.clone(),
            vault: Arc::clone(&self.vault),
            settings: self.seat.settings.subscribe(),
            seat: self.seat.clone(),
            intake: self.intake.clone(),
            context: context.clone(),
            ready: Some(ready),
        };
        context.spawn(life.run());
        is_ready.await.map_err(|_| Failure::new("the outbox ended before it was ready"))
    }

    async fn handle(&mut self, _input: Input, _context: &Context) -> Result<(), Failure> {
        // Everything comes to the outbox itself; this actor serves nothing.
        Ok(())
    }
}

/// One incarnation, from its start to its end.
struct Life {
    database: PathBuf,
    vault: Arc<Vault>,
    settings: watch::Receiver<OutboxSettings>,
    seat: OutboxSeat,
    intake: Intake,
    context: Context,
    ready: Option<oneshot::Sender<()>>,
}

impl Life {
    async fn run(mut self) -> Result<(), Failure> {
        *self.seat.place_of_left() = None;
        if !self.wait_until_needed().await? {
            return Ok(());
        }
        let store = self.open().await?;
        let outcome = self.deliver(&store).await;
        self.seat.note_stands(None);
        // After a failure, too: what is queued is written, and the next incarnation opens the file anew.
        tokio::task::spawn_blocking(move || store.close()).await?;
        let left = outcome?;
        tell_left(&left);
        *self.seat.place_of_left() = Some(left);
        if !self.context.is_stopping() {
            self.refuse().await?;
        }
        Ok(())
    }

    /// Returns `false` if it was not needed until it was asked to stop.
    async fn wait_until_needed(&mut self) -> Result<bool, Failure> {
        let mut service = None;
        loop {
            let is_named = self.settings.borrow_and_update().routes.names().next().is_some();
            if is_named || self.database.exists() {
                return Ok(true);
            }
            let service = match &mut service {
                Some(service) => service,
                None => service.insert(self.serve_puts().await?),
            };
            self.context.status("no topic has consumers");
            self.declare_ready();
            tokio::select! {
                biased;
                () = self.context.stopping() => return Ok(false),
                // The seat outlives the component.
                changed = self.settings.changed() => if changed.is_err() { return Ok(false) },
                request = service.next() => {
                    let Some(request) = request else { return Err(lost(service)) };
                    let topic = request.message.topic.as_str();
                    let topic = topic.strip_prefix(words::PUT).unwrap_or(topic).to_owned();
                    refuse(request, &DurableError::NoConsumers { topic }).await;
                }
            }
        }
    }

    async fn serve_puts(&self) -> Result<Service, Failure> {
        let put = format!("{}#", words::PUT).parse()?;
        Ok(self.context.client().serve(&put, ServeOptions::default()).await?)
    }

    async fn open(&self) -> Result<OutboxStore, Failure> {
        let (database, vault) = (self.database.clone(), Arc::clone(&self.vault));
        let (limits, keep) = {
            let settings = self.settings.borrow();
            (settings.limits, settings.keep)
        };
        let opened = tokio::task::spawn_blocking(move || {
            OutboxStore::open(&database, &vault.open_or_create()?, limits, keep)
        });
        Ok(opened.await??)
    }

    /// Takes and delivers until it is asked to stop.
    async fn deliver(&mut self, store: &OutboxStore) -> Result<Left, Failure> {
        let (routes, options) = {
            let settings = self.settings.borrow_and_update();
            (settings.routes.clone(), settings.options.clone())
        };
        let client = self.context.client().clone();
        let outbox = Outbox::new(client, Arc::new(store.clone()), routes, options);
        let handle = outbox.handle(self.context.name().clone());
        let (stopping, intake) = (self.context.stopping(), self.intake.clone());
        let ending = outbox.handle(self.context.name().clone());
        let stopping = async move {
            tokio::select! {
                biased;
                () = intake.closed() => {}
                // The runtime goes on: this component is restarted, or somebody has stopped it alone.
                () = stopping => ending.comes_back(),
            }
        };
        let (serves, mut is_serving) = watch::channel(false);
        let running = outbox.run(stopping, |report| {
            serves.send_if_modified(|serves| {
                let is_serving = report.state != OutboxState::Starting;
                std::mem::replace(serves, is_serving) != is_serving
            });
        });
        tokio::pin!(running);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Told::default();
        loop {
            tokio::select! {
                biased;
                ended = &mut running => return Ok(ended?),
                Ok(()) = is_serving.changed() => self.declare_ready(),
                Ok(()) = self.settings.changed() => {
                    let settings = self.settings.borrow_and_update();
                    store.configure(settings.limits, settings.keep);
                    handle.set_routes(settings.routes.clone());
                }
                _ = looks.tick() => {
                    if !store.is_open() {
                        return Err(Failure::new("the writing thread of the outbox has ended"));
                    }
                    let standing = tokio::select! {
                        biased;
                        ended = &mut running => return Ok(ended?),
                        standing = store.standing() => standing,
                    };
                    let stands = standing.as_ref().ok().map(|standing| (standing.clone(), handle.report()));
                    self.seat.note_stands(stands);
                    told.tell(&self.context, &handle.report(), standing.map_err(|error| error.text), store);
                }
            }
        }
    }

    /// Refuses what comes between the moment at which everything begins to stop and the turn of this component.
    async fn refuse(&self) -> Result<(), Failure> {
        let mut service = self.serve_puts().await?;
        let stopping = self.context.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                biased;
                () = &mut stopping => return Ok(()),
                request = service.next() => {
                    let Some(request) = request else { return Ok(()) };
                    refuse(request, &DurableError::ShuttingDown).await;
                }
            }
        }
    }

    fn declare_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // Nobody waits when the start was given up.
            let _ = ready.send(());
        }
    }
}

async fn refuse(request: Request, error: &DurableError) {
    // Whoever asked may be gone.
    let _ = request.fail(error.code(), &error.to_string()).await;
}

fn lost(service: &Service) -> Failure {
    Failure::new(format!("the outbox has lost the bus: {}", service.end_reason().unwrap_or_default()))
}

/// Says in the log what a stop has left undone. What is merely pending is no news.
fn tell_left(left: &Left) {
    for (consumer, deliveries) in &left.cut_off {
        tracing::warn!(
            %consumer,
            deliveries,
            "deliveries to `{consumer}` were under way at the stop; they are sent again, with the same ids"
        );
    }
    if !left.is_saved {
        tracing::error!(
            "what became of the last attempts could not be saved; they are made again, with the same ids"
        );
    }
    if left.open.is_none() {
        tracing::error!("the outbox's storage would not say at the stop what is left in it");
    }
}

/// What was said last, so that it is said once.
#[derive(Debug, Default)]
struct Told {
    status: String,
    impaired: Option<String>,
    /// Dead letters there were; `None` before the first look.
    dead: Option<u64>,
}

impl Told {
    fn tell(
        &mut self,
        context: &Context,
        report: &OutboxReport,
        standing: Result<Standing, String>,
        store: &OutboxStore,
    ) {
        let failed_in_a_row = store.statistics().failed_in_a_row;
        let impaired = match &standing {
            Err(error) => Some(format!("its storage does not answer: {error}")),
            Ok(_) if failed_in_a_row > 0 => {
                Some(format!("cannot write: the last {failed_in_a_row} writes failed"))
            }
            Ok(_) if report.state == OutboxState::Impaired => Some(report.reasons.join("; ")),
            Ok(standing) => stuck(standing, report, now_ns() / 1_000_000),
        };
        if impaired != self.impaired {
            match &impaired {
                Some(why) => tracing::warn!(why, "the outbox is impaired"),
                None => tracing::info!("the outbox is well again"),
            }
            context.impaired(impaired.clone());
            self.impaired = impaired;
        }
        let Ok(standing) = standing else { return };
        // What the library says of each stays on standard error: it is on the log's own path.
        match self.dead.replace(standing.dead) {
            Some(before) if before < standing.dead => {
                let (new, dead) = (standing.dead - before, standing.dead);
                tracing::warn!(new, dead, "deliveries became dead letters; `interlock dlq list` says why");
            }
            None if standing.dead > 0 => {
                tracing::info!(dead = standing.dead, "there are dead letters; `interlock dlq list` says why");
            }
            _ => {}
        }
        let status = status(&standing, report);
        if status != self.status {
            context.status(status.clone());
            self.status = status;
        }
    }
}

/// For the table of `interlock status`.
fn status(standing: &Standing, report: &OutboxReport) -> String {
    let Standing { open, dead, .. } = standing;
    let counts = &report.counts;
    let mut text = format!(
        "{open} messages unfinished, {dead} dead letters; {} accepted, {} acknowledged, {} attempts failed",
        counts.accepted,
        counts.acknowledged,
        counts.retried + counts.dead
    );
    let absent = report.consumers.iter().filter(|(_, consumer)| consumer.absent_since_ms.is_some());
    let absent: Vec<&str> = absent.map(|(name, _)| name.as_str()).collect();
    if !absent.is_empty() {
        text.push_str(&format!("; absent: {}", absent.join(", ")));
    }
    if report.state == OutboxState::Waiting {
        text.push_str("; another process sends");
    }
    text
}

/// What has waited too long, if something has.
fn stuck(standing: &Standing, report: &OutboxReport, now_ms: u64) -> Option<String> {
    let (consumer, since_ms) = standing.oldest.as_ref()?;
    let minutes = now_ms.saturating_sub(*since_ms) / 60_000;
    if Duration::from_secs(minutes * 60) < STUCK_AFTER {
        return None;
    }
    let found = report.consumers.iter().find(|(name, _)| name.as_str() == consumer);
    let why = match found.map(|(_, found)| found) {
        Some(found) if found.absent_since_ms.is_some() => "nobody serves there".to_owned(),
        Some(found) => found.last_reason.clone().unwrap_or_else(|| "it has not been tried".to_owned()),
        None => "nobody has asked for it".to_owned(),
    };
    // No figure that moves: it would be said again and again.
    Some(format!(
        "what is for `{consumer}` waits for more than {} minutes: {why}; `interlock outbox list` shows it",
        STUCK_AFTER.as_secs() / 60
    ))
}

#[cfg(test)]
mod tests {
    use interlock_bus::durable::ConsumerReport;

    use super::*;

    #[test]
    fn what_waits_for_more_than_half_an_hour_is_told_with_its_consumer_and_the_reason() {
        let since_ms = 1_000_000;
        let standing = Standing { oldest: Some(("billing".to_owned(), since_ms)), ..Standing::default() };
        let mut report = OutboxReport::default();
        let limit_ms = STUCK_AFTER.as_millis() as u64;
        assert_eq!(stuck(&standing, &report, since_ms + limit_ms - 60_000), None);
        let told = |report: &OutboxReport| stuck(&standing, report, since_ms + limit_ms).unwrap();
        let absent = ConsumerReport { absent_since_ms: Some(1), ..ConsumerReport::default() };
        report.consumers.insert("billing".parse().unwrap(), absent);
        assert!(
            told(&report).contains("`billing`") && told(&report).contains("nobody serves"),
            "{}",
            told(&report)
        );
        let failing =
            ConsumerReport { last_reason: Some("no answer".to_owned()), ..ConsumerReport::default() };
        report.consumers.insert("billing".parse().unwrap(), failing);
        assert!(told(&report).contains("no answer"));
        assert_eq!(stuck(&Standing::default(), &report, u64::MAX), None);
    }
}
