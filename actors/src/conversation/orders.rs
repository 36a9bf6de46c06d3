//! Orders about conversations: to end the turn that runs, to delete all.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use interlock_bus::{Payload, Request};
use tokio::sync::watch;

use super::Engine;
use crate::{
    context::Context,
    topics::{self, ConversationId, ConversationOrder, TurnsDeleted, code},
};

/// Which turns can be ordered off, and which conversations take none.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Turns that run. Whoever has a turn in hand has a receiver; when the last one is gone it has ended.
    running: RefCell<HashMap<ConversationId, watch::Sender<bool>>>,
    deleted: RefCell<HashSet<ConversationId>>,
}

impl Orders {
    /// A turn runs that ends when `off` says so.
    pub(super) fn begun(&self, conversation: &ConversationId, off: watch::Sender<bool>) {
        self.running.borrow_mut().insert(conversation.clone(), off);
    }

    /// The turn has ended.
    pub(super) fn ended(&self, conversation: &ConversationId) {
        self.running.borrow_mut().remove(conversation);
    }

    pub(super) fn is_being_deleted(&self, conversation: &ConversationId) -> bool {
        self.deleted.borrow().contains(conversation)
    }

    /// Ends the running turn, and returns when it has ended; `false` if none runs.
    async fn end(&self, conversation: &ConversationId) -> bool {
        let Some(off) = self.running.borrow().get(conversation).cloned() else { return false };
        off.send_replace(true);
        off.closed().await;
        true
    }
}

impl Engine {
    /// Carries out an order, and answers it when that is done.
    pub(super) fn order(self: &Rc<Self>, request: Request, context: &Context) {
        let engine = Rc::clone(self);
        context.spawn(async move {
            let outcome = match topics::read::<ConversationOrder>(&request.message) {
                Ok(order) if request.message.topic.as_str() == topics::CANCEL => engine.cancel(order).await,
                Ok(order) => engine.delete(order).await,
                Err(error) => Err((code::UNREADABLE, error.to_string())),
            };
            let answered = match outcome {
                Ok(done) => request.end(Payload::json(&done)?).await,
                Err((code, text)) => request.fail(code, &text).await,
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "nobody waited for the answer to an order");
            }
            Ok(())
        });
    }

    async fn cancel(&self, order: ConversationOrder) -> Result<ConversationOrder, (&'static str, String)> {
        if self.orders.end(&order.conversation).await {
            return Ok(order);
        }
        let text = format!("no turn of conversation `{}` is running", order.conversation);
        Err((code::NOT_RUNNING, text))
    }

    async fn delete(&self, order: ConversationOrder) -> Result<ConversationOrder, (&'static str, String)> {
        let conversation = &order.conversation;
        if !self.orders.deleted.borrow_mut().insert(conversation.clone()) {
            let text = format!("conversation `{conversation}` is being deleted already");
            return Err((code::BUSY, text));
        }
        let waiting = self.schedule.borrow_mut().withdraw(conversation);
        for job in waiting {
            self.turns.refuse(job, code::CANCELLED, "its conversation is being deleted").await;
        }
        self.orders.end(conversation).await;
        let deleted = self.store.delete_conversation(conversation.as_str()).await;
        self.orders.deleted.borrow_mut().remove(conversation);
        match deleted {
            Ok(true) => {
                tracing::info!(%conversation, "conversation deleted");
                let event = TurnsDeleted { conversation: conversation.clone() };
                self.turns.publish_end(topics::TURNS_DELETED, &event).await;
                Ok(order)
            }
            Ok(false) => {
                Err((code::UNKNOWN_CONVERSATION, format!("there is no conversation `{conversation}`")))
            }
            Err(error) => Err((code::STORE, error.to_string())),
        }
    }
}
