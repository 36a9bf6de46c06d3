//! How messages get from the bus into a mailbox: the client of one child, its subscriptions and services, and the
//! thread that carries.

use std::{
    fmt, io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use futures_util::{FutureExt, future::BoxFuture};
use interlock_bus::{
    Client, Event, LinkState, Request, ServeOptions, SubscribeError, SubscribeOptions, TopicFilter,
};
use tokio::{sync::Notify, task::AbortHandle};

use super::mailbox::Mailbox;
use crate::actor::{Failure, Input};

/// The thread that carries messages from the bus into the mailboxes of all actors of a process.
///
/// It runs none of the actors' code, so that a handler which blocks its thread delays nobody else's messages.
/// Dropping the last handle ends it.
#[derive(Debug)]
pub struct Mailroom {
    runtime: tokio::runtime::Handle,
    closing: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Mailroom {
    /// Starts the thread.
    pub fn open() -> io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let closing = Arc::new(Notify::new());
        let closed = closing.clone();
        let thread = std::thread::Builder::new()
            .name("mailroom".to_owned())
            .spawn(move || runtime.block_on(closed.notified()))?;
        Ok(Arc::new(Self { runtime: handle, closing, thread: Some(thread) }))
    }
}

impl Drop for Mailroom {
    fn drop(&mut self) {
        self.closing.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread ends at its next wake-up. A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

type Attach = dyn Fn() -> BoxFuture<'static, Result<Client, Failure>> + Send + Sync;

/// How a child gets its client on the bus.
#[derive(Clone)]
pub struct Bus(Option<Arc<Attach>>);

impl Bus {
    /// The child does without a bus (the broker, the store).
    pub fn none() -> Self {
        Self(None)
    }

    /// Asked at the child's first start, and again when the client it gave has been closed.
    pub fn attach<F>(attach: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Client, Failure>> + Send + 'static,
    {
        Self(Some(Arc::new(move || attach().boxed())))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Bus::attach" } else { "Bus::none" })
    }
}

/// The client of one child and what it carries into the mailbox. Outlives incarnations.
#[derive(Debug)]
pub(crate) struct Post {
    bus: Bus,
    mailroom: Arc<Mailroom>,
    mailbox: Arc<Mailbox>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Client>,
    sources: Vec<Source>,
}

/// One subscription or service. Dropping it unsubscribes.
#[derive(Debug)]
struct Source {
    kind: Kind,
    filter: TopicFilter,
    /// The incarnation that declared it last.
    declared_by: u64,
    carrier: AbortHandle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Subscription,
    Service,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl Post {
    pub(crate) fn new(bus: Bus, mailroom: Arc<Mailroom>, mailbox: Arc<Mailbox>) -> Self {
        Self { bus, mailroom, mailbox, state: Mutex::default() }
    }

    /// The client, made if there is none that works.
    pub(crate) async fn client(&self) -> Result<Option<Client>, Failure> {
        let Some(attach) = self.bus.0.clone() else { return Ok(None) };
        if let Some(client) = self.lock().client.clone()
            && !matches!(*client.watch().borrow(), LinkState::Closed)
        {
            return Ok(Some(client));
        }
        let client = attach().await.map_err(|failure| failure.context("not attached to the bus"))?;
        let mut state = self.lock();
        state.sources.clear();
        state.client = Some(client.clone());
        Ok(Some(client))
    }

    pub(crate) async fn subscribe(
        &self,
        client: &Client,
        incarnation: u64,
        filter: &TopicFilter,
        options: SubscribeOptions,
    ) -> Result<(), SubscribeError> {
        if self.redeclared(Kind::Subscription, incarnation, filter) {
            return Ok(());
        }
        let mut subscription = client.subscribe(filter, options).await?;
        let (mailbox, filter) = (self.mailbox.clone(), filter.clone());
        self.carry(Kind::Subscription, incarnation, &filter.clone(), async move {
            let mut carrying = Carrying::new(mailbox.clone());
            while let Some(event) = carrying.wait(subscription.next()).await {
                let input = match event {
                    Event::Message(message) => Input::Message(message),
                    Event::Gap { count, reason } => {
                        Input::Gap { filter: filter.clone(), count, reason: reason.to_string() }
                    }
                };
                mailbox.offer(input).await;
            }
            mailbox.lose(Failure::new(format!("subscription to `{filter}` was ended by the bus")));
        });
        Ok(())
    }

    pub(crate) async fn serve(
        &self,
        client: &Client,
        incarnation: u64,
        filter: &TopicFilter,
        options: ServeOptions,
    ) -> Result<(), SubscribeError> {
        if self.redeclared(Kind::Service, incarnation, filter) {
            return Ok(());
        }
        let mut service = client.serve(filter, options).await?;
        let (mailbox, filter) = (self.mailbox.clone(), filter.clone());
        self.carry(Kind::Service, incarnation, &filter.clone(), async move {
            let mut carrying = Carrying::new(mailbox.clone());
            while let Some(request) = carrying.wait(service.next()).await {
                mailbox.offer(Input::Request(request)).await;
            }
            mailbox.lose(Failure::new(format!("serving `{filter}` was ended by the bus")));
        });
        Ok(())
    }

    /// Whether the same source is there already; it then belongs to this incarnation too.
    fn redeclared(&self, kind: Kind, incarnation: u64, filter: &TopicFilter) -> bool {
        let mut state = self.lock();
        let there = state
            .sources
            .iter_mut()
            .find(|source| source.kind == kind && source.filter == *filter && !source.carrier.is_finished());
        let found = there.is_some();
        if let Some(source) = there {
            source.declared_by = incarnation;
        }
        found
    }

    fn carry(
        &self,
        kind: Kind,
        incarnation: u64,
        filter: &TopicFilter,
        carrier: impl Future<Output = ()> + Send + 'static,
    ) {
        let carrier = self.mailroom.runtime.spawn(carrier).abort_handle();
        let source = Source { kind, filter: filter.clone(), declared_by: incarnation, carrier };
        let mut state = self.lock();
        state.sources.retain(|source| !source.carrier.is_finished());
        state.sources.push(source);
    }

    /// Ends what an earlier incarnation declared and this one did not. What remains, for people.
    pub(crate) fn settle(&self, incarnation: u64) -> Vec<String> {
        let mut state = self.lock();
        state.sources.retain(|source| source.declared_by == incarnation);
        let describe = |source: &Source| match source.kind {
            Kind::Subscription => format!("subscribed to `{}`", source.filter),
            Kind::Service => format!("serves `{}`", source.filter),
        };
        state.sources.iter().map(describe).collect()
    }

    /// Unsubscribes and says goodbye to the bus.
    pub(crate) async fn close(&self) {
        let State { client, sources } = std::mem::take(&mut *self.lock());
        drop(sources);
        if let Some(client) = client {
            client.close().await;
        }
    }

    /// Gives up the client: whoever has a hold of it can send nothing any more, and the next incarnation gets another.
    /// `requests` fail with `text`, because their session ends. The filters that were subscribed to.
    pub(crate) fn revoke(&self, requests: Vec<Request>, text: &str) -> Vec<TopicFilter> {
        let State { client, sources } = std::mem::take(&mut *self.lock());
        let is_subscription = |source: &&Source| source.kind == Kind::Subscription;
        let filters = sources.iter().filter(is_subscription).map(|source| source.filter.clone()).collect();
        let text = text.to_owned();
        // On the thread that carries: the caller is the supervisor, which waits for nobody.
        self.mailroom.runtime.spawn(async move {
            for request in requests {
                request.fail_now("server_failed", &text);
            }
            if let Some(client) = client {
                client.close().await;
            }
        });
        filters
    }

    /// The client as it is; `None` before the first start and without a bus.
    pub(crate) fn present_client(&self) -> Option<Client> {
        self.lock().client.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a mailbox whether one source has something to carry, so that a drain knows when all is in.
struct Carrying {
    mailbox: Arc<Mailbox>,
    something: bool,
}

impl Carrying {
    fn new(mailbox: Arc<Mailbox>) -> Self {
        mailbox.carrying();
        Self { mailbox, something: true }
    }

    async fn wait<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = pin!(next);
        std::future::poll_fn(|task| {
            let poll = next.as_mut().poll(task);
            self.set(poll.is_ready());
            poll
        })
        .await
    }

    fn set(&mut self, something: bool) {
        match (self.something, something) {
            (false, true) => self.mailbox.carrying(),
            (true, false) => self.mailbox.carried(),
            _ => {}
        }
        self.something = something;
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.set(false);
    }
}
