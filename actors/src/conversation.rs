//! The conversation engine: takes what a user says, asks the model, streams the answer, and ends
//! every turn in exactly one way.
//!
//! | a user's text that is | is answered |
//! |---|---|
//! | requested on [`topics::USER_INPUT`] | to the requester, part by part, and on the turn topics |
//! | the last of a list requested on [`topics::USER_CHAT`] | the same; it is kept if that is asked for |
//! | published on it | on the turn topics |
//!
//! [`topics::CANCEL`] ends what goes on in a conversation, [`topics::DELETE`] the conversation.
//!
//! Reading order: [`turn`] (one turn, pure), [`schedule`] (which turn runs, pure), [`history`]
//! (what the model is shown, pure), `run` (a turn with its I/O), then the actor below.

mod config;
pub mod history;
mod orders;
mod run;
pub mod schedule;
#[cfg(test)]
mod tests;
pub mod turn;

use std::{cell::RefCell, rc::Rc, time::Duration};

use interlock_bus::{Message, client::SubscribeOptions};
use tokio::sync::watch;
use uuid::Uuid;

pub use self::config::*;
use self::{
    orders::Orders,
    run::{Job, Requester, Said, Turns},
    schedule::{Admission, Schedule},
};
use crate::{
    actor::{Actor, Failure, Input},
    context::Context,
    intake::Intake,
    store::Store,
    topics::{self, ChatInput, ConversationId, Role, UserInput, code},
};

/// Serves and listens to [`topics::USER_INPUT`], serves [`topics::USER_CHAT`], publishes the turn topics, keeps what is said in the store.
///
/// - Every turn ends in one final or one error, towards its requester and on the turn topics.
/// - The user's text is saved before the model is asked, and stays when the model fails.
/// - Turns of one conversation run one after another, others side by side, all within bounds.
/// - What comes when the intake is closed is refused; what came before is finished.
#[derive(Debug)]
pub struct ConversationEngine {
    config: ConversationConfig,
    store: Store,
    intake: Intake,
    engine: Option<Rc<Engine>>,
}

#[derive(Debug)]
struct Engine {
    turns: Turns,
    schedule: RefCell<Schedule<Job>>,
    orders: Orders,
    store: Store,
    intake: Intake,
}

impl ConversationEngine {
    /// An engine on an open store, which takes turns while `intake` is open.
    pub fn new(config: ConversationConfig, store: Store, intake: Intake) -> Self {
        Self { config, store, intake, engine: None }
    }
}

impl Actor for ConversationEngine {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        self.engine = Some(Rc::new(Engine {
            turns: Turns::new(self.config.clone(), self.store.clone(), context.client().clone()),
            schedule: RefCell::new(Schedule::new(self.config.schedule)),
            orders: Orders::default(),
            store: self.store.clone(),
            intake: self.intake.clone(),
        }));
        topics::register(context.client());
        for topic in [topics::USER_INPUT, topics::USER_CHAT, topics::CANCEL, topics::DELETE] {
            context.serve(&topics::filter(topic)).await?;
        }
        context.subscribe(&topics::filter(topics::USER_INPUT), SubscribeOptions::default()).await?;
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Some(engine) = &self.engine else { return Ok(()) };
        match input {
            Input::Request(request) => {
                let said = match request.message.topic.as_str() {
                    topics::USER_INPUT => read(&request.message),
                    topics::USER_CHAT => read_list(&request.message),
                    _ => {
                        engine.order(request, context);
                        return Ok(());
                    }
                };
                engine.offer(said, Requester::of(request), context);
            }
            Input::Message(message) => engine.offer(read(&message), Requester::none(), context),
            Input::Gap { count, reason, .. } => {
                tracing::warn!(count, reason, "published texts of users were lost on the way to the engine");
            }
        }
        Ok(())
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(STORE_LOOK_EVERY)
    }

    async fn tick(&mut self, _context: &Context) -> Result<(), Failure> {
        // A store that was started again is another one: the next incarnation of this engine finds it.
        if self.store.is_open() { Ok(()) } else { Err(Failure::new("the store it saves to was closed")) }
    }

    async fn stopping(&mut self, _context: &Context) -> Result<(), Failure> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let waiting = engine.schedule.borrow_mut().drain();
        for job in waiting {
            engine.turns.refuse(job, code::STOPPING, STOPPING).await;
        }
        Ok(())
    }
}

/// How often the engine looks whether its store is still open. Turns that come in between are told that it is not.
const STORE_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why a turn is not begun any more.
const STOPPING: &str = "the runtime is stopping and takes no new turns; try again when it runs again";

/// What a user said, checked, and of which turn.
struct Heard {
    conversation: Option<ConversationId>,
    turn: Option<Uuid>,
    said: Said,
}

// A message that is handed out again after a failure is known to be the same turn by its id.
fn turn_of(given: Option<Uuid>, message: &Message) -> Option<Uuid> {
    given.or((!message.header.id.is_nil()).then_some(message.header.id))
}

fn read(message: &Message) -> Result<Heard, Refusal> {
    let input: UserInput = topics::read(message).map_err(|error| {
        let text =
            format!("{error}; a user's text looks like {{\"conversation\":\"kitchen\",\"text\":\"hello\"}}");
        Refusal(code::UNREADABLE, text)
    })?;
    let turn = turn_of(input.turn, message);
    let said = Said::Text(checked(input.text)?);
    Ok(Heard { conversation: input.conversation, turn, said })
}

/// A list of messages, checked as far as the model service does not.
fn read_list(message: &Message) -> Result<Heard, Refusal> {
    let input: ChatInput = topics::read(message).map_err(|error| {
        let text =
            format!("{error}; a list looks like {{\"messages\":[{{\"role\":\"user\",\"text\":\"hello\"}}]}}");
        Refusal(code::UNREADABLE, text)
    })?;
    let turn = turn_of(input.turn, message);
    let last = input.messages.iter().rev().find(|message| message.role == Role::User);
    let Some(last) = last else { return Err(bad("no message of the list is a user's")) };
    let kept = input.keep.then(|| checked(last.text.clone())).transpose()?;
    let said = Said::List { messages: input.messages, options: input.options, kept };
    Ok(Heard { conversation: input.conversation, turn, said })
}

/// Why something is not taken: a code and a text.
struct Refusal(&'static str, String);

fn bad(problem: &str) -> Refusal {
    Refusal(code::BAD_REQUEST, problem.to_owned())
}

/// A text that can be kept.
fn checked(text: String) -> Result<String, Refusal> {
    match text.len() {
        0 => Err(bad("the text is empty")),
        bytes if bytes > INPUT_BYTES_MAX => {
            Err(bad(&format!("the text is {bytes} bytes long; the limit is {INPUT_BYTES_MAX} bytes")))
        }
        _ => Ok(text),
    }
}

impl Engine {
    /// Starts a turn, or lets it wait, or refuses it.
    fn offer(self: &Rc<Self>, said: Result<Heard, Refusal>, requester: Requester, context: &Context) {
        let said = match said {
            Ok(said) => said,
            Err(Refusal(code, problem)) => {
                return context.spawn(async move {
                    requester.fail(code, &problem).await;
                    Ok(())
                });
            }
        };
        let (off, ordered_off) = watch::channel(false);
        let job = Job {
            conversation: said.conversation.unwrap_or_default(),
            turn: said.turn.unwrap_or_else(Uuid::now_v7),
            said: said.said,
            requester,
            ordered_off,
            off,
        };
        if !self.intake.is_open() {
            return self.refuse(job, code::STOPPING, STOPPING.to_owned(), context);
        }
        let conversation = job.conversation.clone();
        if self.orders.is_being_deleted(&conversation) {
            let text = format!("conversation `{conversation}` is being deleted; try again later");
            return self.refuse(job, code::BUSY, text, context);
        }
        let admission = self.schedule.borrow_mut().admit(&conversation, job);
        match admission {
            Admission::Start(job) => self.start(job, context),
            Admission::Waits => {}
            Admission::Busy { turn: job, reason } => {
                self.refuse(job, code::BUSY, format!("{reason}; try again later"), context);
            }
        }
    }

    fn refuse(self: &Rc<Self>, job: Job, code: &'static str, text: String, context: &Context) {
        let engine = Rc::clone(self);
        context.spawn(async move {
            engine.turns.refuse(job, code, &text).await;
            Ok(())
        });
    }

    fn start(self: &Rc<Self>, job: Job, context: &Context) {
        let (engine, spawner) = (Rc::clone(self), context.clone());
        context.spawn(async move {
            let conversation = job.conversation.clone();
            engine.orders.begun(&conversation, job.off.clone());
            engine.turns.run(job).await;
            engine.orders.ended(&conversation);
            let next = engine.schedule.borrow_mut().finished(&conversation);
            next.into_iter().for_each(|job| engine.start(job, &spawner));
            Ok(())
        });
    }
}
