//! A socket whose client is known: orders in, words out, until one side ends it.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, Aborted, LocalBoxFuture},
    stream::FuturesUnordered,
};
use interlock_bus::{
    Client, Message, ReplyStream, RequestError, Subscription,
    client::{Event, LinkState},
    inspect::Schemas,
};
use tokio::time::timeout;

use super::{
    Close, Socket,
    protocol::{self, Filter, Order, Word},
};
use crate::gateway::{
    access::Access,
    bus::{
        message::Published,
        parse,
        publish::{self, Accepted},
        request::{self, NewRequest, Part},
        subscribe,
    },
    error::ApiError,
    server::Data,
};

/// Subscriptions of one socket.
const SUBSCRIPTIONS_MAX: usize = 64;
/// Requests and messages of one socket whose answer is awaited.
const IN_FLIGHT_MAX: usize = 64;
/// How often the client is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long it may give none until it is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long after the end of a session it may be said that its token has ended.
const WORD_OF_END_WITHIN: Duration = Duration::from_secs(2);

/// The next of what was begun.
enum Done {
    Published(Result<Accepted, ApiError>),
    /// A question was sent, or not.
    Asked(Result<ReplyStream, ApiError>),
    /// A part of an answer, or its end.
    Part(Box<Answered>),
}

/// An answer that goes on, and what came of it: a part, an error, or its end.
type Answered = (ReplyStream, Option<Result<Message, RequestError>>);

type Work = Abortable<LocalBoxFuture<'static, (u64, Done)>>;

/// Everything that can wake a socket.
enum Wake {
    Stopping,
    /// The token is good no longer.
    TokenOver(ApiError),
    /// The session on the bus is over.
    SessionOver,
    Said(Result<String, Close>),
    Done(Result<(u64, Done), Aborted>),
    Event(usize, Option<Event>),
    Ping,
}

/// A socket whose client is known.
pub(super) struct Connection {
    shared: Data,
    client: Client,
    subscriptions: Vec<(u64, Subscription)>,
    /// Which subscription is looked at first, so that a loud one does not hide the others.
    first: usize,
    work: FuturesUnordered<Pin<Box<Work>>>,
    /// How to end what is in flight, by id.
    in_flight: HashMap<u64, AbortHandle>,
    schemas: Schemas,
    heard: Instant,
}

impl Connection {
    /// Serves the socket until one side ends it.
    pub(super) async fn run(shared: Data, access: Access, socket: &mut Socket) -> Close {
        let permit = match shared.stream_permit() {
            Ok(permit) => permit,
            Err(error) => return Close::of(&error),
        };
        let client = match access.own_client() {
            Ok(client) => client,
            Err(error) => return Close::of(&error),
        };
        let mut connection = Self {
            shared,
            client,
            subscriptions: Vec::new(),
            first: 0,
            work: FuturesUnordered::new(),
            in_flight: HashMap::new(),
            schemas: Schemas::default(),
            heard: Instant::now(),
        };
        let close = connection.serve(socket, access.over()).await;
        drop(permit);
        close
    }

    async fn serve(&mut self, socket: &mut Socket, over: impl Future<Output = ApiError>) -> Close {
        let mut over = pin!(over);
        let peer = self.client.name().to_string();
        let mut outcome = self.say(socket, Word::Welcome { peer }).await;
        let mut pings = tokio::time::interval(PING_EVERY);
        let mut link = self.client.watch();
        let shared = self.shared.clone();
        while outcome.is_ok() {
            let Self { subscriptions, first, work, .. } = &mut *self;
            let wake = tokio::select! {
                () = shared.stopped() => Wake::Stopping,
                why = &mut over => Wake::TokenOver(why),
                _ = link.wait_for(|state| *state == LinkState::Closed) => {
                    // A revoked token takes its peer from the bus first.
                    match timeout(WORD_OF_END_WITHIN, &mut over).await {
                        Ok(why) => Wake::TokenOver(why),
                        Err(_) => Wake::SessionOver,
                    }
                }
                said = socket.next_text() => Wake::Said(said),
                Some(done) = work.next() => Wake::Done(done),
                (at, event) = next_event(subscriptions, first) => Wake::Event(at, event),
                _ = pings.tick() => Wake::Ping,
            };
            outcome = self.on(wake, socket).await;
        }
        match outcome {
            Ok(()) => Close::Gone,
            Err(close) => close,
        }
    }

    async fn on(&mut self, wake: Wake, socket: &mut Socket) -> Result<(), Close> {
        match wake {
            Wake::Stopping => Err(Close::Stopping),
            Wake::TokenOver(why) => Err(Close::of(&why)),
            Wake::SessionOver => {
                let reason = self.client.closed_reason().unwrap_or_default();
                Err(Close::Busy(format!("the session on the bus has ended: {reason}")))
            }
            Wake::Said(said) => {
                let text = said?;
                self.heard = Instant::now();
                // A sign of life is no order.
                if text.is_empty() { Ok(()) } else { self.order(&text, socket).await }
            }
            Wake::Done(Ok((id, done))) => self.done(id, done, socket).await,
            Wake::Done(Err(Aborted)) => Ok(()),
            Wake::Event(at, event) => self.event(at, event, socket).await,
            Wake::Ping if self.heard.elapsed() >= SILENCE_MAX => Err(Close::Gone),
            Wake::Ping => {
                let limit = self.shared.options.write_timeout;
                let pinged = timeout(limit, socket.session.ping(b"")).await;
                pinged.map_err(|_| Close::Gone)?.map_err(|_closed| Close::Gone)
            }
        }
    }

    /// Says a word, waiting for a slow client as long as it may take.
    async fn say(&self, socket: &mut Socket, word: Word) -> Result<(), Close> {
        let Ok(text) = serde_json::to_string(&word) else { return Ok(()) };
        let said = timeout(self.shared.options.write_timeout, socket.session.text(text)).await;
        said.map_err(|_| Close::Gone)?.map_err(|_closed| Close::Gone)
    }

    async fn order(&mut self, text: &str, socket: &mut Socket) -> Result<(), Close> {
        let (id, outcome) = match protocol::read(text) {
            Ok((id, Order::Ping)) => (id, Ok(Some(Word::Pong { id }))),
            Ok((Some(id), order)) => (Some(id), self.carry_out(id, order).await),
            Ok((None, _)) => (None, Err(ApiError::BadRequest("`id` is missing".to_owned()))),
            Err((id, error)) => (id, Err(error)),
        };
        match outcome {
            Ok(Some(word)) => self.say(socket, word).await,
            Ok(None) => Ok(()),
            Err(error) => self.say(socket, Word::error(id, &error)).await,
        }
    }

    /// Carries out an order; what there is to say of it later comes later.
    async fn carry_out(&mut self, id: u64, order: Order) -> Result<Option<Word>, ApiError> {
        match order {
            Order::Subscribe(filter) => self.subscribe(id, &filter).await.map(Some),
            Order::Unsubscribe => match self.subscriptions.iter().position(|(found, _)| *found == id) {
                Some(at) => {
                    self.subscriptions.remove(at);
                    Ok(Some(Word::Unsubscribed { id }))
                }
                None => Err(ApiError::Unknown { what: "subscription", name: id.to_string() }),
            },
            Order::Publish(message) => {
                let client = self.client.clone();
                self.begin(id, async move { Done::Published(publish::send(&client, *message).await) })?;
                Ok(None)
            }
            Order::Request(wanted) => self.ask(id, wanted).map(|()| None),
            Order::Cancel => match self.in_flight.remove(&id) {
                Some(handle) => {
                    // Dropping it cancels the request.
                    handle.abort();
                    Ok(Some(Word::Cancelled { id }))
                }
                None => Err(ApiError::Unknown { what: "request", name: id.to_string() }),
            },
            Order::Ping => Ok(Some(Word::Pong { id: Some(id) })),
            Order::Hello { .. } => Err(ApiError::BadRequest("`hello` comes first, and once".to_owned())),
        }
    }

    async fn subscribe(&mut self, id: u64, wanted: &Filter) -> Result<Word, ApiError> {
        self.check_free(id)?;
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let text = format!("this socket has {SUBSCRIPTIONS_MAX} subscriptions, which is the limit");
            return Err(ApiError::refused(503, "busy", text));
        }
        let subscription =
            self.client.subscribe(&parse(&wanted.filter)?, subscribe::options(wanted.retained)).await?;
        self.subscriptions.push((id, subscription));
        Ok(Word::Subscribed { id })
    }

    fn ask(&mut self, id: u64, wanted: NewRequest) -> Result<(), ApiError> {
        let client = self.client.clone();
        self.begin(id, async move { Done::Asked(request::ask(&client, wanted).await) })
    }

    fn check_free(&self, id: u64) -> Result<(), ApiError> {
        let is_used =
            self.in_flight.contains_key(&id) || self.subscriptions.iter().any(|(used, _)| *used == id);
        if !is_used {
            return Ok(());
        }
        let text = format!("`id` {id} stands for something that is not over; choose another one");
        Err(ApiError::refused(409, "id_in_use", text))
    }

    /// Begins something whose outcome is told later.
    fn begin(&mut self, id: u64, work: impl Future<Output = Done> + 'static) -> Result<(), ApiError> {
        self.check_free(id)?;
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            let text = format!("{IN_FLIGHT_MAX} orders of this socket are not over, which is the limit");
            return Err(ApiError::refused(503, "busy", text));
        }
        self.go_on(id, work);
        Ok(())
    }

    fn go_on(&mut self, id: u64, work: impl Future<Output = Done> + 'static) {
        let (handle, registration) = AbortHandle::new_pair();
        self.in_flight.insert(id, handle);
        let work = work.map(move |done| (id, done)).boxed_local();
        self.work.push(Box::pin(Abortable::new(work, registration)));
    }

    async fn done(&mut self, id: u64, done: Done, socket: &mut Socket) -> Result<(), Close> {
        self.in_flight.remove(&id);
        let word = match done {
            Done::Published(Ok(accepted)) => Word::Published { id, accepted },
            Done::Published(Err(error)) | Done::Asked(Err(error)) => Word::error(Some(id), &error),
            Done::Asked(Ok(replies)) => {
                self.go_on(id, next_part(replies));
                return Ok(());
            }
            Done::Part(answered) => match *answered {
                (replies, Some(Ok(part))) => {
                    let decoded = self.schemas.decode(&self.client, &part).await;
                    self.go_on(id, next_part(replies));
                    Word::Reply { id, part: Part::new(&part, decoded) }
                }
                (_, Some(Err(error))) => Word::error(Some(id), &ApiError::of_request(&error)),
                (_, None) => Word::End { id },
            },
        };
        self.say(socket, word).await
    }

    async fn event(&mut self, at: usize, event: Option<Event>, socket: &mut Socket) -> Result<(), Close> {
        let id = self.subscriptions[at].0;
        let word = match event {
            Some(Event::Message(message)) => {
                let decoded = self.schemas.decode(&self.client, &message).await;
                Word::Message { id, message: Box::new(Published::new(&message, decoded)) }
            }
            Some(Event::Gap { count, reason }) => Word::Lost { id, count, reason },
            None => {
                let (_, subscription) = self.subscriptions.remove(at);
                let reason = subscription.end_reason().unwrap_or_default();
                let ended = ApiError::refused(502, "ended", format!("the subscription has ended: {reason}"));
                Word::error(Some(id), &ended)
            }
        };
        self.say(socket, word).await
    }
}

async fn next_part(mut replies: ReplyStream) -> Done {
    let part = replies.next().await;
    Done::Part(Box::new((replies, part)))
}

/// The next event of any subscription with its place; waits for ever if there is none.
async fn next_event(subscriptions: &mut [(u64, Subscription)], first: &mut usize) -> (usize, Option<Event>) {
    poll_fn(|context| {
        let count = subscriptions.len();
        for at in (0..count).map(|step| (*first + step) % count) {
            if let Poll::Ready(event) = subscriptions[at].1.poll_next(context) {
                *first = at + 1;
                return Poll::Ready((at, event));
            }
        }
        Poll::Pending
    })
    .await
}
