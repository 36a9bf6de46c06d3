//! A turn with its I/O: feeds the state machine of [`turn`](super::turn) and does what it says.

use std::{future::Future, pin::Pin, time::Instant};

use interlock_bus::{
    Client,
    client::{CancelToken, PublishOptions, ReplyStream, Request},
    error::RequestError,
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    config::{ANSWER_BYTES_MAX, ConversationConfig, PUBLISH_TIMEOUT, TITLE_CHARACTERS_MAX},
    history,
    turn::{Ending, Input, Outcome, Output, Step, Turn},
};
use crate::{
    store::{MessageState, NewMessage, Role, Store, StoreError},
    topics::{
        self, ChatMessage, CompletionOptions, CompletionPart, CompletionRequest, ConversationId, Described,
        Format, TurnDelta, TurnError, TurnFinal, TurnPart, TurnStarted, code,
    },
};

/// What all turns need.
#[derive(Debug)]
pub(super) struct Turns {
    config: ConversationConfig,
    store: Store,
    client: Client,
}

/// A turn to be run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) conversation: ConversationId,
    pub(super) turn: Uuid,
    pub(super) said: Said,
    pub(super) requester: Requester,
    /// Becomes `true` when somebody else than the requester wants it to end.
    pub(super) ordered_off: watch::Receiver<bool>,
    /// How that is said.
    pub(super) off: watch::Sender<bool>,
}

/// What a turn is to answer.
#[derive(Debug)]
pub(super) enum Said {
    /// A text in a conversation, whose history is in the store.
    Text(String),
    /// A list of messages that is its own history.
    List {
        messages: Vec<ChatMessage>,
        options: CompletionOptions,
        /// The text that is kept, with its answer; `None` keeps nothing.
        kept: Option<String>,
    },
}

impl Job {
    /// The user's text as it is kept, if it is.
    fn kept(&self) -> Option<&str> {
        match &self.said {
            Said::Text(text) => Some(text),
            Said::List { kept, .. } => kept.as_deref(),
        }
    }
}

/// Who waits for the answer; nobody, if the user's text was published.
#[derive(Debug)]
pub(super) struct Requester(Option<(Request, Format)>);

impl Requester {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn of(request: Request) -> Self {
        let format = Format::of_reply_to(&request.message);
        Self(Some((request, format)))
    }

    fn cancelled(&self) -> Option<CancelToken> {
        self.0.as_ref().map(|(request, _)| request.cancelled())
    }

    /// Sends a part as soon as the requester is ready for it; `false` if it wants no more.
    async fn part(&self, part: &TurnPart) -> bool {
        let Some((request, format)) = &self.0 else { return true };
        match format.encode(part) {
            Ok(payload) => request.reply(payload).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "a part of a turn cannot be encoded");
                false
            }
        }
    }

    async fn end(self, part: &TurnPart) {
        let Some((request, format)) = self.0 else { return };
        let ended = match format.encode(part) {
            Ok(payload) => request.end(payload).await,
            Err(error) => request.fail(code::BUS, &error.to_string()).await,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "the end of a turn was not taken");
        }
    }

    pub(super) async fn fail(self, code: &str, text: &str) {
        let Some((request, _)) = self.0 else {
            return tracing::warn!(code, text, "a published text of a user was refused");
        };
        if let Err(error) = request.fail(code, text).await {
            tracing::debug!(code, %error, "the end of a turn was not taken");
        }
    }
}

type Doing<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

/// What a step that was begun has come to.
enum Done {
    Input(Input),
    /// The model is asked; its parts will come here.
    Asked(ReplyStream),
}

impl Turns {
    pub(super) fn new(config: ConversationConfig, store: Store, client: Client) -> Self {
        Self { config, store, client }
    }

    /// Runs one turn to its one ending.
    pub(super) async fn run(&self, job: Job) {
        let ending = self.drive(&job).await;
        tracing::debug!(
            conversation = %job.conversation,
            turn = %job.turn,
            deltas = ending.deltas,
            bytes = ending.text.len(),
            "turn ended"
        );
        let (code, text, state) = match ending.outcome {
            Outcome::Finished(completion) => {
                let (conversation, turn) = (job.conversation, job.turn);
                let (text, deltas) = (ending.text, ending.deltas);
                let last = TurnFinal { conversation, turn, text, deltas, completion };
                job.requester.end(&TurnPart::Final(last.clone())).await;
                return self.publish_end(topics::TURN_FINAL, &last).await;
            }
            Outcome::Failed { code, text } => {
                tracing::warn!(conversation = %job.conversation, turn = %job.turn, code, text, "turn failed");
                (code, text, MessageState::Failed)
            }
            Outcome::Cancelled => {
                (code::CANCELLED.to_owned(), "the turn was cancelled".to_owned(), MessageState::Cancelled)
            }
        };
        if !ending.text.is_empty() && job.kept().is_some() {
            self.keep_what_there_was(&job, ending.text, state).await;
        }
        self.refuse(job, &code, &text).await;
    }

    /// Ends a turn with an error, towards its requester and on the turn topics.
    pub(super) async fn refuse(&self, job: Job, code: &str, text: &str) {
        let Job { conversation, turn, requester, .. } = job;
        requester.fail(code, text).await;
        let error = TurnError { conversation, turn, code: code.to_owned(), text: text.to_owned() };
        self.publish_end(topics::TURN_ERROR, &error).await;
    }

    /// Feeds the state machine until it ends.
    async fn drive(&self, job: &Job) -> Ending {
        let mut turn = Turn::received(self.config.timing, ANSWER_BYTES_MAX, Instant::now());
        let mut cancelled = Some((job.requester.cancelled(), job.ordered_off.clone()));
        let mut doing: Option<Doing<'_>> = Some(Box::pin(self.save_question(job)));
        let mut model: Option<ReplyStream> = None;
        loop {
            let done = tokio::select! {
                biased;
                () = wait(&mut cancelled) => {
                    // It has been heard: a turn that goes on all the same must not hear it for ever.
                    cancelled = None;
                    Done::Input(Input::Cancel)
                }
                done = run(&mut doing) => {
                    doing = None;
                    done
                }
                part = next(&mut model) => {
                    if !matches!(part, Input::Delta(_)) {
                        model = None;
                    }
                    Done::Input(part)
                }
                () = tokio::time::sleep_until(turn.deadline().into()) => Done::Input(Input::Tick),
            };
            let input = match done {
                Done::Input(input) => input,
                Done::Asked(stream) => {
                    model = Some(stream);
                    continue;
                }
            };
            match turn.on(input, Instant::now()) {
                Step::End(ending) => return ending,
                Step::On(next, output) => {
                    turn = next;
                    match output {
                        Output::Nothing => {}
                        Output::Ask => doing = Some(Box::pin(self.start_and_ask(job))),
                        Output::Pass(delta) => {
                            let (conversation, id) = (job.conversation.clone(), job.turn);
                            let delta =
                                TurnDelta { conversation, turn: id, index: delta.index, text: delta.text };
                            self.publish(topics::TURN_DELTA, &delta);
                            let by = turn.whole_deadline().into();
                            let part = TurnPart::Delta(delta);
                            // A requester that takes nothing holds up its own turn only, and not for ever.
                            let _ = tokio::time::timeout_at(by, job.requester.part(&part)).await;
                        }
                        Output::Save { text } => doing = Some(Box::pin(self.save_answer(job, text))),
                    }
                }
            }
        }
    }

    /// Saves the user's text, and its conversation if it is new.
    async fn save_question(&self, job: &Job) -> Done {
        let Some(text) = job.kept() else { return Done::Input(Input::Saved) };
        // The turn's id is the message's: a text that is sent twice is saved, and answered, once.
        let mut message = NewMessage::new(
            job.conversation.as_str(),
            job.turn,
            Role::User,
            MessageState::Complete,
            text.to_owned(),
        );
        message.id = job.turn;
        let saved = match self.begin_conversation(job, text).await {
            Ok(()) => self.store.append_message(message).await.map_err(|refused| refused.error),
            Err(error) => Err(error),
        };
        Done::Input(match saved {
            Ok(true) => Input::Saved,
            Ok(false) => self.sent_again(job).await,
            Err(error) => Input::NotSaved { text: error.to_string() },
        })
    }

    /// Creates the conversation, with the user's first words as its title, unless something was said in it.
    async fn begin_conversation(&self, job: &Job, text: &str) -> Result<(), StoreError> {
        let conversation = job.conversation.as_str();
        if self.store.history(conversation, 1).await?.is_empty() {
            let title: String = text.chars().take(TITLE_CHARACTERS_MAX).collect();
            let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
            self.store.create_conversation(conversation, &title).await?;
        }
        Ok(())
    }

    /// A text that is saved already is answered if it has no answer yet: it may have been handed out
    /// again because the engine failed, or sent again because there was no model.
    async fn sent_again(&self, job: &Job) -> Input {
        match self.store.history(job.conversation.as_str(), 1).await {
            Ok(said) if said.last().is_some_and(|last| last.message.id == job.turn) => Input::Saved,
            Ok(_) => Input::ModelFailed {
                code: code::DUPLICATE.to_owned(),
                text: format!(
                    "turn `{}` was sent before; give each text of a user its own turn id",
                    job.turn
                ),
            },
            Err(error) => Input::NotSaved { text: error.to_string() },
        }
    }

    /// Tells that the turn has started, and asks the model.
    async fn start_and_ask(&self, job: &Job) -> Done {
        let started = TurnStarted { conversation: job.conversation.clone(), turn: job.turn };
        self.publish(topics::TURN_STARTED, &started);
        job.requester.part(&TurnPart::Started(started)).await;
        let (messages, options) = match &job.said {
            Said::List { messages, options, .. } => {
                (history::with_instructions(&self.config.instructions, messages), options.clone())
            }
            Said::Text(_) => match self.history(job).await {
                Ok(messages) => (messages, CompletionOptions::default()),
                Err(error) => {
                    let text = format!("the conversation cannot be read: {error}");
                    return Done::Input(Input::ModelFailed { code: code::STORE.to_owned(), text });
                }
            },
        };
        let request = CompletionRequest { turn: job.turn, messages, options };
        let asked = match topics::encode(&request) {
            Ok(payload) => {
                let topic = topics::topic(topics::COMPLETIONS);
                self.client.request_stream(&topic, payload, self.config.timing.whole).await
            }
            Err(error) => {
                let text = error.to_string();
                return Done::Input(Input::ModelFailed { code: code::MODEL_PROTOCOL.to_owned(), text });
            }
        };
        match asked {
            Ok(stream) => Done::Asked(stream),
            Err(error) => Done::Input(failed(error)),
        }
    }

    /// What the model is shown of a conversation in the store.
    async fn history(&self, job: &Job) -> Result<Vec<ChatMessage>, StoreError> {
        let limits = self.config.history;
        let said = self.store.history(job.conversation.as_str(), limits.messages_max).await?;
        let said = said.into_iter().map(|stored| chat_message(stored.message));
        Ok(history::for_model(&self.config.instructions, said, limits))
    }

    async fn save_answer(&self, job: &Job, text: String) -> Done {
        if job.kept().is_none() {
            return Done::Input(Input::Saved);
        }
        let conversation = job.conversation.as_str();
        let message = NewMessage::new(conversation, job.turn, Role::Assistant, MessageState::Complete, text);
        Done::Input(match self.store.append_message(message).await {
            Ok(_) => Input::Saved,
            Err(refused) => Input::NotSaved { text: refused.error.to_string() },
        })
    }

    /// Keeps what there was of an answer that has no end.
    async fn keep_what_there_was(&self, job: &Job, text: String, state: MessageState) {
        let message = NewMessage::new(job.conversation.as_str(), job.turn, Role::Assistant, state, text);
        let kept = tokio::time::timeout(self.config.timing.save, self.store.append_message(message)).await;
        let problem = match kept {
            Ok(Ok(_)) => return,
            Ok(Err(refused)) => refused.error.to_string(),
            Err(_) => "the store did not answer in time".to_owned(),
        };
        tracing::warn!(
            conversation = %job.conversation, turn = %job.turn, problem,
            "the beginning of a broken answer was not saved"
        );
    }

    /// Publishes what is not the end of a turn: at once, or not at all.
    fn publish(&self, topic: &'static str, event: &impl Described) {
        let published = topics::encode(event).map_err(|error| error.to_string()).and_then(|payload| {
            self.client.publish(&topics::topic(topic), payload).map_err(|error| error.to_string())
        });
        if let Err(problem) = published {
            tracing::warn!(topic, problem, "an event of a turn was not published");
        }
    }

    /// Publishes the end of a turn, and waits until the broker has it.
    /// Tells whoever listens; a failure is in the log.
    pub(super) async fn publish_end(&self, topic: &'static str, event: &impl Described) {
        let publish = async {
            let payload = topics::encode(event).map_err(|error| error.to_string())?;
            let topic = topics::topic(topic);
            let published =
                self.client.publish_acknowledged(&topic, payload, PublishOptions::default()).await;
            published.map(|_| ()).map_err(|error| error.to_string())
        };
        let problem = match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(Ok(())) => return,
            Ok(Err(problem)) => problem,
            Err(_) => format!("the broker did not acknowledge it within {PUBLISH_TIMEOUT:?}"),
        };
        tracing::warn!(topic, problem, "the end of turns was not published");
    }
}

/// Waits for a cancel of the requester's, or an order of somebody else; for ever once it was heard.
async fn wait(cancelled: &mut Option<(Option<CancelToken>, watch::Receiver<bool>)>) {
    let Some((token, ordered_off)) = cancelled else { return std::future::pending().await };
    let by_requester = async {
        match token {
            Some(token) => token.wait().await,
            None => std::future::pending().await,
        }
    };
    let by_order = async {
        if ordered_off.wait_for(|is_off| *is_off).await.is_err() {
            // Nobody is left who could order it.
            std::future::pending().await
        }
    };
    tokio::select! {
        () = by_requester => {}
        () = by_order => {}
    }
}

/// Waits for what was begun; for ever if there is nothing.
async fn run(doing: &mut Option<Doing<'_>>) -> Done {
    match doing {
        Some(doing) => doing.await,
        None => std::future::pending().await,
    }
}

/// Waits for the next part of the model's answer; for ever if it was not asked.
async fn next(model: &mut Option<ReplyStream>) -> Input {
    let Some(stream) = model else { return std::future::pending().await };
    match stream.next().await {
        Some(Ok(message)) => match topics::read::<CompletionPart>(&message) {
            Ok(CompletionPart::Delta(delta)) => Input::Delta(delta),
            Ok(CompletionPart::Final(completion)) => Input::Final(completion),
            Err(error) => Input::ModelFailed {
                code: code::MODEL_PROTOCOL.to_owned(),
                text: format!("a part of the answer cannot be read: {error}"),
            },
        },
        Some(Err(error)) => failed(error),
        None => Input::ModelFailed {
            code: code::MODEL_PROTOCOL.to_owned(),
            text: "the model's answer ended without a final part".to_owned(),
        },
    }
}

/// What an error of the bus means for a turn.
fn failed(error: RequestError) -> Input {
    let (code, text) = match error {
        // It is this engine that it does not understand, and not whoever has begun the turn.
        RequestError::Failed { code, text } if code == code::UNREADABLE => (
            code::MODEL_PROTOCOL.to_owned(),
            format!("the model service does not understand the conversation engine: {text}"),
        ),
        RequestError::Failed { code, text } => (code, text),
        RequestError::NoResponders { .. } => (
            code::MODEL_ABSENT.to_owned(),
            "no model service is there to answer; it may be starting".to_owned(),
        ),
        RequestError::ServerGone => (
            code::MODEL_GONE.to_owned(),
            "the model service went away in the middle of the answer".to_owned(),
        ),
        RequestError::TimedOut { .. } => (code::TIMED_OUT.to_owned(), error.to_string()),
        RequestError::Busy { .. } => (code::BUSY.to_owned(), error.to_string()),
        other => (code::BUS.to_owned(), other.to_string()),
    };
    Input::ModelFailed { code, text }
}

fn chat_message(message: NewMessage) -> ChatMessage {
    let role = match message.role {
        Role::System => topics::Role::System,
        Role::User => topics::Role::User,
        Role::Assistant => topics::Role::Assistant,
    };
    ChatMessage { role, text: message.text }
}
