//! Runs actors: our trait on actix, one thread per incarnation. The only file that drives actix actors.
//!
//! Who owns what:
//!
//! | outlives an incarnation | made afresh for each |
//! |---|---|
//! | [`ActorHost`]: mailbox, client, subscriptions, the input in hand | thread, actix system, the actor's value, spawned work |
//!
//! actix's mailbox has no back-pressure and loses its queue in a panic, so at most one step is ever inside actix;
//! everything else waits in our own bounded mailbox. A panic is caught around the user's future itself, before it can
//! unwind through actix, which would poll the broken actor again in a destructor.

mod control;
pub mod dead_letter;
mod handler_times;
mod mailbox;
mod panic;
pub(crate) mod post;

use std::{
    fmt,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use actix::{ActorFutureExt, WrapFuture};
use interlock_bus::{PeerName, trace::Trace};

pub use self::{
    control::Busy,
    handler_times::Handled,
    mailbox::{MAILBOX_BYTES_MAX, MAILBOX_INPUTS_MAX},
    panic::{backtrace, words as panic_words},
    post::{Bus, Mailroom},
};
pub(crate) use self::{
    control::{Control, Phase},
    panic::guarded,
};
use self::{
    dead_letter::put_back_or_set_aside,
    handler_times::HandlerTimes,
    mailbox::{Mailbox, Next},
    panic::{guarded_call, hosted},
    post::Post,
};
use crate::{
    actor::{Actor, Failure, Input},
    clock::Clock,
    context::{Context, SPAWNED_MAX},
};

/// The body of one child, as a supervisor drives it. It outlives incarnations; at most one of them runs.
///
/// No method waits: what happens is told through the [`Reports`] given to [`Host::start`]. Each incarnation ends with
/// exactly one [`HostReport::Exited`], unless it is abandoned.
pub trait Host: Send {
    /// Starts an incarnation.
    fn start(&mut self, incarnation: u64, reports: Reports);

    /// Asks the incarnation to stop.
    fn stop(&mut self, stop: Stop);

    /// Ends it without asking. `at_fault`: it failed by itself (stuck, silent, late), so the input in hand counts as failed.
    fn kill(&mut self, at_fault: bool);

    /// Gives up an incarnation that did not end when killed. It can do nothing to the child any more.
    fn abandon(&mut self, at_fault: bool);

    /// Asks whether it lives; answered by [`HostReport::Alive`].
    fn ask(&mut self, nonce: u64);

    /// What it is busy with; `None` if it waits for something to do.
    fn busy(&self) -> Option<Busy>;

    /// What weighs on it.
    fn load(&self) -> Load;
}

/// What weighs on a body at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Inputs waiting in front of it.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Since when the oldest of them waits.
    pub oldest: Option<Instant>,
    /// What it has handled.
    pub handled: Handled,
    /// The process group of a program that runs.
    pub process: Option<u32>,
}

/// What a stop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The child is started again at once: what is queued stays queued.
    Restart,
    /// It is not: take what is queued, then leave the bus.
    Final,
}

/// What a supervisor hears from an incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostReport {
    /// It is ready, and how that was proven.
    Ready {
        /// For people.
        proof: String,
    },
    /// A slow start or handler is getting on.
    Progress(String),
    /// What it does now, until replaced.
    Status(String),
    /// It asks for so much more time from now on, to get ready or to stop. Less than it has anyway changes nothing.
    Extend(Duration),
    /// It runs, and does less than it should: why; `None` takes that back.
    Impaired(Option<String>),
    /// The answer to [`Host::ask`].
    Alive {
        /// The number of the question.
        nonce: u64,
    },
    /// It wrote a line that somebody waits for; this is the pattern that matched.
    Seen(String),
    /// It has ended; nothing of it runs any more.
    Exited(Exit),
}

/// How an incarnation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, or because it was asked to stop.
    Normal,
    /// Because it was killed.
    Killed,
    /// It was asked to stop, did not in its time, and whoever runs it killed it, or a part of it, for that.
    Forced(Failure),
    /// Because it failed.
    Failed(Failure),
}

/// Where an incarnation reports to.
#[derive(Clone)]
pub struct Reports(Arc<dyn Fn(HostReport) + Send + Sync>);

impl Reports {
    /// Hands every report to `sink`, which must not wait for the incarnation.
    pub fn new(sink: impl Fn(HostReport) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Reports.
    pub fn send(&self, report: HostReport) {
        (self.0)(report);
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reports")
    }
}

type Launch = dyn Fn(Incarnation) + Send + Sync;

/// Hosts an [`Actor`]: see the module.
pub struct ActorHost {
    name: PeerName,
    mailbox: Arc<Mailbox>,
    post: Arc<Post>,
    times: Arc<HandlerTimes>,
    launch: Arc<Launch>,
    clock: Clock,
    present: Option<Present>,
}

/// The incarnation that runs.
struct Present {
    number: u64,
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl ActorHost {
    /// A host that builds the actor afresh, with `factory`, on the thread of each incarnation.
    pub fn new<A: Actor>(
        name: PeerName,
        bus: Bus,
        mailroom: &Arc<Mailroom>,
        factory: impl Fn() -> Result<A, Failure> + Send + Sync + 'static,
    ) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let post = Arc::new(Post::new(bus, mailroom.clone(), mailbox.clone()));
        let launch = Arc::new(move |incarnation: Incarnation| incarnation.run(&factory));
        let times = Arc::new(HandlerTimes::new(Instant::now()));
        Self { name, mailbox, post, times, launch, clock: Clock::System, present: None }
    }

    /// Another clock for the actor, for tests.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }
}

impl ActorHost {
    /// Ends the session that an abandoned thread still has in its hands, so that it cannot speak in this child's name when
    /// it wakes. The next incarnation gets another. What ends with the session is told: requesters get an error, the
    /// actor a gap for each of its subscriptions.
    fn revoke(&self) {
        let requests = self.mailbox.take_requests();
        for filter in self.post.revoke(requests, &format!("`{}` hung and was given up", self.name)) {
            self.mailbox.note(Input::Gap { filter, count: None, reason: ABANDONED.to_owned() });
        }
    }
}

/// The reason of a gap between the session of an abandoned incarnation and the next.
const ABANDONED: &str = "the incarnation before hung and was given up, and its session with it";

impl Host for ActorHost {
    fn start(&mut self, number: u64, reports: Reports) {
        let control = Arc::new(Control::new());
        self.mailbox.open(number);
        let incarnation = Incarnation {
            name: self.name.clone(),
            number,
            mailbox: self.mailbox.clone(),
            post: self.post.clone(),
            control: control.clone(),
            times: self.times.clone(),
            clock: self.clock.clone(),
            reports: reports.clone(),
        };
        let launch = self.launch.clone();
        let thread =
            std::thread::Builder::new().name(self.name.to_string()).spawn(move || launch(incarnation));
        match thread {
            Ok(thread) => self.present = Some(Present { number, control, thread }),
            Err(error) => {
                let failure = Failure::from(error).context("no thread could be started");
                reports.send(HostReport::Exited(Exit::Failed(failure)));
            }
        }
    }

    fn stop(&mut self, stop: Stop) {
        if let Some(present) = &self.present {
            present.control.advance(match stop {
                Stop::Restart => Phase::Stop,
                Stop::Final => Phase::Drain,
            });
        }
    }

    fn kill(&mut self, at_fault: bool) {
        if let Some(present) = &self.present {
            present.control.kill(at_fault);
        }
    }

    fn abandon(&mut self, at_fault: bool) {
        if let Some(Present { number, control, thread }) = self.present.take() {
            control.kill(at_fault);
            if at_fault {
                put_back_or_set_aside(
                    &self.name,
                    &self.mailbox,
                    &self.post,
                    number,
                    "it did not end when killed",
                );
            } else {
                self.mailbox.interrupted(number);
            }
            // No incarnation has this number: whatever the old thread still does to the mailbox is ignored.
            self.mailbox.open(0);
            self.revoke();
            // Not joined: the thread is blocked in code that is not ours, and nothing can end it but the process.
            drop(thread);
        }
    }

    fn ask(&mut self, nonce: u64) {
        if let Some(present) = &self.present {
            present.control.ask(nonce);
        }
    }

    fn busy(&self) -> Option<Busy> {
        self.present.as_ref()?.control.busy_with()
    }

    fn load(&self) -> Load {
        let (queued, queued_bytes, oldest) = self.mailbox.depth();
        let handled = self.times.handled(Instant::now());
        Load { queued, queued_bytes, oldest, handled, process: None }
    }
}

impl fmt::Debug for ActorHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ActorHost").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What one incarnation is made of, on its way to its thread.
struct Incarnation {
    name: PeerName,
    number: u64,
    mailbox: Arc<Mailbox>,
    post: Arc<Post>,
    control: Arc<Control>,
    times: Arc<HandlerTimes>,
    clock: Clock,
    reports: Reports,
}

/// What wakes an idle incarnation. There is no other way in.
enum Event {
    Kill,
    WorkEnded(Option<Failure>),
    Stop,
    Tick,
    Input { input: Box<Input>, what: String },
    Lost(Failure),
}

/// Why an incarnation ends before it was asked to, or at once.
enum End {
    Killed,
    Failed(Failure),
}

impl Incarnation {
    /// The whole life, on the thread made for it.
    fn run<A: Actor>(self, factory: &dyn Fn() -> Result<A, Failure>) {
        hosted();
        // Of the level that every filter lets through: without it records would not tell their component.
        let _entered =
            tracing::error_span!("child", component = %self.name, incarnation = self.number).entered();
        let lived = guarded_call("the host", || {
            // The runtime, and with it all spawned work, is gone when this returns.
            Ok(actix_rt::System::new().block_on(self.live(factory)))
        });
        let exit = match lived {
            Ok(Ok(())) => Exit::Normal,
            Ok(Err(End::Killed)) => Exit::Killed,
            Ok(Err(End::Failed(failure))) | Err(failure) => Exit::Failed(failure),
        };
        let reason = match &exit {
            Exit::Failed(failure) | Exit::Forced(failure) => Some(failure.to_string()),
            Exit::Killed if self.control.at_fault() => Some("killed".to_owned()),
            Exit::Killed | Exit::Normal => None,
        };
        match reason {
            Some(reason) => {
                put_back_or_set_aside(&self.name, &self.mailbox, &self.post, self.number, &reason)
            }
            None => self.mailbox.interrupted(self.number),
        }
        self.reports.send(HostReport::Exited(exit));
    }

    async fn live<A: Actor>(&self, factory: &dyn Fn() -> Result<A, Failure>) -> Result<(), End> {
        let answering = tokio::task::spawn_local(answer(self.control.clone(), self.reports.clone()));
        let begun = Instant::now();
        let client = tokio::select! {
            biased;
            () = self.control.reached(Phase::Kill) => return Err(End::Killed),
            client = self.post.client() => client.map_err(End::Failed)?,
        };
        let context = Context::new(
            self.name.clone(),
            self.number,
            client,
            self.post.clone(),
            self.control.clone(),
            self.reports.clone(),
            self.clock.clone(),
        );
        let actor = guarded_call("the factory", factory).map_err(End::Failed)?;
        let stage = actix::Actor::start(Stage { actor: Some(Box::new(actor)), context: context.clone() });

        let lived = self.drive(&stage, &context, begun).await;

        // Whatever happened, the actor's value ends here, where a panic in its destructor does no harm.
        let retired = self.step(&stage, Step::Retire).await;
        answering.abort();
        lived?;
        retired.map(|_| ())
    }

    async fn drive<A: Actor>(
        &self,
        stage: &actix::Addr<Stage<A>>,
        context: &Context,
        begun: Instant,
    ) -> Result<(), End> {
        let tick_every = self.step(stage, Step::Start).await?;
        let mut proof = self.post.settle(self.number);
        proof.insert(0, format!("started in {} ms", begun.elapsed().as_millis()));
        self.reports.send(HostReport::Ready { proof: proof.join("; ") });

        let mut next_tick = tick_every.map(|every| self.clock.now() + every);
        let mut work = context.work();
        loop {
            match self.next_event(context, next_tick, &mut work).await {
                Event::Kill => return Err(End::Killed),
                Event::WorkEnded(None) => {}
                Event::WorkEnded(Some(failure)) | Event::Lost(failure) => return Err(End::Failed(failure)),
                Event::Tick => {
                    // Ticks that were missed are not made up for.
                    next_tick = tick_every.map(|every| self.clock.now() + every);
                    self.control.begin("a tick".to_owned());
                    self.step(stage, Step::Tick).await?;
                    self.control.end();
                }
                Event::Input { input, what } => {
                    let begun = Instant::now();
                    self.control.begin(what);
                    self.step(stage, Step::Input(input)).await?;
                    self.control.end();
                    self.mailbox.finish(self.number);
                    let now = Instant::now();
                    self.times.record(now - begun, now);
                }
                Event::Stop => return self.wind_down(stage, context, &mut work).await,
            }
        }
    }

    /// Waits for one event. Listed by priority: a flood of inputs must not delay a stop or a tick.
    async fn next_event(
        &self,
        context: &Context,
        next_tick: Option<Instant>,
        work: &mut tokio::sync::watch::Receiver<Option<Failure>>,
    ) -> Event {
        let tick = async {
            match next_tick {
                Some(at) => self.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let drained = async {
            self.control.reached(Phase::Drain).await;
            self.mailbox.drained().await;
        };
        let room = context.spawned() < SPAWNED_MAX;
        tokio::select! {
            biased;
            () = self.control.reached(Phase::Kill) => Event::Kill,
            changed = work.changed() => Event::WorkEnded(changed.ok().and_then(|()| work.borrow_and_update().clone())),
            () = self.control.reached(Phase::Stop) => Event::Stop,
            () = tick => Event::Tick,
            next = self.mailbox.next(self.number), if room => match next {
                Next::Input { input, what } => Event::Input { input, what },
                Next::Lost(failure) => Event::Lost(failure),
            },
            () = drained => Event::Stop,
        }
    }

    /// The orderly end: `stopping`, then the spawned work, then, if the child is to stay stopped, the bus.
    async fn wind_down<A: Actor>(
        &self,
        stage: &actix::Addr<Stage<A>>,
        context: &Context,
        work: &mut tokio::sync::watch::Receiver<Option<Failure>>,
    ) -> Result<(), End> {
        let last = self.control.phase() == Phase::Drain;
        self.step(stage, Step::Stop).await?;
        while context.spawned() > 0 {
            tokio::select! {
                biased;
                () = self.control.reached(Phase::Kill) => return Err(End::Killed),
                _ = work.changed() => {}
            }
        }
        self.control.advance(Phase::Ending);
        if last {
            tokio::select! {
                biased;
                () = self.control.reached(Phase::Kill) => return Err(End::Killed),
                () = self.post.close() => {}
            }
        }
        match work.borrow_and_update().clone() {
            Some(failure) => Err(End::Failed(failure)),
            None => Ok(()),
        }
    }

    /// Gives actix one step and waits for it. Only one is ever inside.
    async fn step<A: Actor>(
        &self,
        stage: &actix::Addr<Stage<A>>,
        step: Step,
    ) -> Result<Option<Duration>, End> {
        match stage.send(step).await {
            Ok(Ok(tick_every)) => Ok(tick_every),
            Ok(Err(None)) => Err(End::Killed),
            Ok(Err(Some(failure))) => Err(End::Failed(failure)),
            Err(error) => Err(End::Failed(Failure::from(error).context("actix lost the actor"))),
        }
    }
}

/// Answers the supervisor's questions, beside whatever the actor is doing.
async fn answer(control: Arc<Control>, reports: Reports) {
    let mut questions = control.questions();
    while questions.changed().await.is_ok() {
        let nonce = *questions.borrow_and_update();
        reports.send(HostReport::Alive { nonce });
    }
}

/// The actix actor: our actor on its stage.
struct Stage<A> {
    /// `None` while a step has it, and after [`Step::Retire`].
    actor: Option<Box<A>>,
    context: Context,
}

/// One thing for an actor to do. `Retire` drops its value.
enum Step {
    Start,
    Input(Box<Input>),
    Tick,
    Stop,
    Retire,
}

impl<A: Actor> actix::Actor for Stage<A> {
    type Context = actix::Context<Self>;
}

impl actix::Message for Step {
    /// How often to tick, or why it failed; `Err(None)` if it was killed.
    type Result = Result<Option<Duration>, Option<Failure>>;
}

impl<A: Actor> actix::Handler<Step> for Stage<A> {
    type Result = actix::AtomicResponse<Self, Result<Option<Duration>, Option<Failure>>>;

    fn handle(&mut self, step: Step, _: &mut actix::Context<Self>) -> Self::Result {
        let actor = self.actor.take();
        let context = self.context.clone();
        let taken = async move {
            let Some(mut actor) = actor else { return (None, Ok(None)) };
            if matches!(step, Step::Retire) {
                let dropped = guarded_call("the actor's destructor", || {
                    drop(actor);
                    Ok(None)
                });
                return (None, dropped.map_err(Some));
            }
            let outcome = tokio::select! {
                biased;
                failure = context.cut() => Err(failure),
                () = context.stopping(), if matches!(step, Step::Start) => Err(None),
                outcome = take(&mut *actor, step, &context) => outcome.map_err(Some),
            };
            (Some(actor), outcome)
        };
        actix::AtomicResponse::new(Box::pin(taken.into_actor(self).map(|(actor, outcome), stage, _| {
            stage.actor = actor;
            outcome
        })))
    }
}

async fn take<A: Actor>(actor: &mut A, step: Step, context: &Context) -> Result<Option<Duration>, Failure> {
    match step {
        Step::Start => {
            guarded("`started`", async { actor.started(context).await }).await?;
            return guarded_call("`tick_every`", || Ok(actor.tick_every()));
        }
        Step::Input(input) => {
            let trace = input.trace();
            let work = guarded("`handle`", async { actor.handle(*input, context).await });
            match trace {
                None => work.await?,
                trace => Trace::scope(trace, work).await?,
            }
        }
        Step::Tick => guarded("`tick`", async { actor.tick(context).await }).await?,
        Step::Stop => guarded("`stopping`", async { actor.stopping(context).await }).await?,
        Step::Retire => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
