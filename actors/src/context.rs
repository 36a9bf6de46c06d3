//! Everything an actor may do.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use interlock_bus::{
    Client, PeerName, ServeOptions, SubscribeError, SubscribeOptions, TopicFilter, trace::Trace,
};
use tokio::sync::watch;

use crate::{
    actor::Failure,
    clock::Clock,
    host::{Control, HostReport, Phase, Reports, guarded, post::Post},
};

/// Work spawned by one actor and not yet finished. Beyond it no further input is handed to the actor until
/// some work ends: the mailbox fills, and then the overflow policy of the subscription applies.
pub const SPAWNED_MAX: usize = 1024;

/// Bytes of a status or progress text; longer ones are cut at a character boundary.
const TEXT_BYTES_MAX: usize = 240;

/// What an actor is given in every call. Cloning is cheap; a clone may be moved into spawned work.
#[derive(Clone)]
pub struct Context {
    inner: Rc<Inner>,
}

struct Inner {
    name: PeerName,
    incarnation: u64,
    client: Option<Client>,
    post: Arc<Post>,
    control: Arc<Control>,
    reports: Reports,
    clock: Clock,
    spawned: Cell<usize>,
    /// Rises whenever spawned work ends; carries the first failure among it.
    work: watch::Sender<Option<Failure>>,
}

impl Context {
    pub(crate) fn new(
        name: PeerName,
        incarnation: u64,
        client: Option<Client>,
        post: Arc<Post>,
        control: Arc<Control>,
        reports: Reports,
        clock: Clock,
    ) -> Self {
        let (work, _) = watch::channel(None);
        let spawned = Cell::new(0);
        let inner = Inner { name, incarnation, client, post, control, reports, clock, spawned, work };
        Self { inner: Rc::new(inner) }
    }

    /// The name this actor has on the bus and in the tree.
    pub fn name(&self) -> &PeerName {
        &self.inner.name
    }

    /// How often this child has been started, counting from 1.
    pub fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }

    /// The actor's client on the bus. It outlives the incarnation.
    ///
    /// # Panics
    /// If the child was declared without a bus ([`Bus::none`](crate::host::Bus::none)), which is a mistake in the
    /// tree; the panic is reported as that child's failure.
    pub fn client(&self) -> &Client {
        self.inner.client.as_ref().expect("a child declared with `Bus::none()` does not use the bus")
    }

    /// Subscribes for as long as the child lives; messages arrive in [`Actor::handle`](crate::actor::Actor::handle).
    ///
    /// Returns when the subscription is in the routing table. A subscription is declared again by each
    /// incarnation, in `started`; one that the incarnation before also declared goes on without a gap, with the
    /// options it was made with.
    pub async fn subscribe(
        &self,
        filter: &TopicFilter,
        options: SubscribeOptions,
    ) -> Result<(), SubscribeError> {
        self.inner.post.subscribe(self.client(), self.inner.incarnation, filter, options).await
    }

    /// Serves topics for as long as the child lives; requests arrive in [`Actor::handle`](crate::actor::Actor::handle).
    /// Declared again by each incarnation, as subscriptions are.
    pub async fn serve(&self, filter: &TopicFilter) -> Result<(), SubscribeError> {
        self.serve_with(filter, ServeOptions::default()).await
    }

    /// Serves topics with options.
    pub async fn serve_with(
        &self,
        filter: &TopicFilter,
        options: ServeOptions,
    ) -> Result<(), SubscribeError> {
        self.inner.post.serve(self.client(), self.inner.incarnation, filter, options).await
    }

    /// Runs work beside the handler, as part of the same trace. Its error or panic fails the actor; a failing actor drops it.
    ///
    /// A stop waits for it, within the grace: work that would go on for ever has to watch
    /// [`stopping`](Context::stopping), or be given to [`spawn_background`](Context::spawn_background).
    pub fn spawn(&self, work: impl Future<Output = Result<(), Failure>> + 'static) {
        self.run(work, false);
    }

    /// Runs work that a stop need not wait for: it is dropped once `stopping` has returned.
    pub fn spawn_background(&self, work: impl Future<Output = Result<(), Failure>> + 'static) {
        self.run(work, true);
    }

    fn run(&self, work: impl Future<Output = Result<(), Failure>> + 'static, background: bool) {
        let (inner, trace) = (self.inner.clone(), Trace::current());
        let work = Trace::scope(trace, work);
        if !background {
            inner.spawned.set(inner.spawned.get() + 1);
        }
        tokio::task::spawn_local(async move {
            let until = if background { Phase::Ending } else { Phase::Kill };
            let outcome = tokio::select! {
                biased;
                () = inner.control.reached(until) => Ok(()),
                outcome = guarded("spawned work", work) => outcome,
            };
            if !background {
                inner.spawned.set(inner.spawned.get() - 1);
            }
            inner.work.send_modify(|failure| {
                if failure.is_none() {
                    *failure = outcome.err();
                }
            });
        });
    }

    /// Says what the actor is doing now; shown by `interlock status` until replaced.
    pub fn status(&self, text: impl Into<String>) {
        self.inner.reports.send(HostReport::Status(bounded(text.into())));
    }

    /// Says that the actor runs and does less than it should, and why; `None` takes that back. Its state is `degraded`
    /// meanwhile, and so is that of the whole tree. For what a restart would not mend: that is a failure, an error.
    pub fn impaired(&self, why: Option<String>) {
        self.inner.reports.send(HostReport::Impaired(why.map(bounded)));
    }

    /// Says that something slow is getting on: moves the start deadline, and the moment from which a
    /// handler counts as stuck.
    pub fn progress(&self, text: impl Into<String>) {
        self.inner.control.progressed();
        self.inner.reports.send(HostReport::Progress(bounded(text.into())));
    }

    /// The time. In a test kit it stands still until the test moves it, and so do [`sleep`](Self::sleep) and
    /// [`timeout`](Self::timeout); the clocks of tokio and of the standard library do not.
    pub fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    /// Waits for so long.
    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + 'static {
        let (clock, at) = (self.inner.clock.clone(), self.now() + time);
        async move { clock.sleep_until(at).await }
    }

    /// What `work` comes to, or `None` if it takes longer than `limit`.
    pub async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.sleep(limit) => None,
        }
    }

    /// Stops this actor, as a supervisor would: after the input in hand, through `stopping`.
    pub fn stop(&self) {
        self.inner.control.advance(Phase::Stop);
    }

    /// Whether the actor has been asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.inner.control.phase() >= Phase::Drain
    }

    /// Returns when the actor has been asked to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + 'static {
        let control = self.inner.control.clone();
        async move { control.reached(Phase::Drain).await }
    }

    /// Returns when the step in hand has to be given up: killed (`None`), or because spawned work failed.
    pub(crate) async fn cut(&self) -> Option<Failure> {
        let mut work = self.work();
        tokio::select! {
            biased;
            () = self.inner.control.reached(Phase::Kill) => None,
            // Cannot fail: the sender is `self`.
            failed = work.wait_for(Option::is_some) => failed.ok().and_then(|failure| failure.clone()),
        }
    }

    /// Spawned work that a stop waits for.
    pub(crate) fn spawned(&self) -> usize {
        self.inner.spawned.get()
    }

    /// Changes whenever spawned work ends; holds the first failure among it.
    pub(crate) fn work(&self) -> watch::Receiver<Option<Failure>> {
        self.inner.work.subscribe()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { name, incarnation, .. } = &*self.inner;
        formatter
            .debug_struct("Context")
            .field("name", name)
            .field("incarnation", incarnation)
            .finish_non_exhaustive()
    }
}

/// Cuts `text` to [`TEXT_BYTES_MAX`].
fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}
