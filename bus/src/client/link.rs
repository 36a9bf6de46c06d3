//! What a client needs of its way to the broker. Two exist: a socket, and the queue into a broker in
//! the same process.

use std::{fmt, time::Instant};

use tokio::sync::Notify;

use super::core::Core;
use crate::{
    blocking::Waiter,
    native::{PublishParts, Record},
};

/// Where a client stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkState {
    /// The first session is being made.
    Connecting,
    /// There is a session: the broker knows who we are.
    Ready,
    /// The session was lost; the client tries to make a new one.
    Lost {
        /// Why.
        reason: String,
    },
    /// No further session will be made. [`crate::Client::closed_reason`] says why.
    Closed,
}

/// Why a link did not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// Its queue is full; [`Link::space`] is told when it is not any more.
    Full,
    /// There is no session.
    Closed,
    /// The header is above its limit.
    HeaderTooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// Where in the outgoing queue a record stands, so that a cancel never overtakes its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) u64);

/// A way to the broker. Nothing here blocks, except [`Link::wait`].
///
/// | lane | bound | order |
/// |---|---|---|
/// | messages (`publish`, `send`) | [`crate::limits::OUTGOING_BYTES`] | among themselves |
/// | last words (`send_last`) | one for each request in hand | behind the messages |
/// | control (`send_control`) | [`crate::limits::CONTROL_QUEUE_BYTES`], then the session ends | before the messages |
pub(crate) trait Link: Send + Sync + fmt::Debug {
    /// Takes a publish. `numbered` learns its sequence before the record can leave.
    fn publish(&self, parts: &PublishParts<'_>, numbered: &mut dyn FnMut(u64)) -> Result<(), LinkError>;

    /// Takes a message record; gives it back if it cannot.
    fn send(&self, record: Record) -> Result<Place, (LinkError, Record)>;

    /// Takes the end of an answer, which must not be refused.
    fn send_last(&self, record: Record);

    /// Takes a control record.
    fn send_control(&self, record: Record);

    /// Takes a credit record. It is in no hurry: this thread does not write it, and if it is `left`, it
    /// lies until the next record or until [`Link::wait`], which follows at once.
    fn send_credit(&self, record: Record, left: bool) {
        let _ = left;
        self.send_control(record);
    }

    /// Takes a cancel; it follows the request at `place`.
    fn send_cancel(&self, id: u64, place: Place);

    /// Told when a full queue has room again, and when the session ends.
    fn space(&self) -> &Notify;

    /// The broker has answered `hello`: records may be taken.
    fn begin_session(&self);

    /// Takes nothing more, sends what is queued, says goodbye.
    fn begin_close(&self);

    /// Has what lies in the queue written.
    fn flush(&self) {}

    /// Has the clocks looked at again: something is due earlier than was planned.
    fn plan_again(&self) {}

    /// Lets a thread that has nothing else to do move records both ways until `waiter` is notified or the
    /// deadline has come; `false`, at once, if the link does not need it.
    fn wait(&self, core: &Core, waiter: &Waiter, deadline: Option<Instant>) -> bool {
        let _ = (core, waiter, deadline);
        false
    }

    /// This thread may not come back to [`Link::wait`] soon: what it left is written, and the credit it owes.
    fn end_wait(&self, core: &Core) {
        core.send_owed_credit();
    }
}
