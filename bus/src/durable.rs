//! Durable delivery: what was accepted is on disk, and is finished only when each consumer named for its topic has
//! acknowledged it.
//!
//! ```text
//! publisher --request outbox/put/TOPIC--> outbox --request inbox/CONSUMER/TOPIC--> consumer
//!           <------ accepted: on disk ----   |   <--- end: acknowledged; `rejected`: never again; else: later ---
//!                                            v
//!                                    storage (one transaction for each step)
//! ```
//!
//! - The **outbox** is one server on the bus, beside the broker, which relays and stores nothing. It answers a put when its
//!   [`OutboxStorage`] says that the message is on disk, and sends from there.
//! - A **delivery** is one message on its way to one consumer. Each attempt is one request, so it has exactly one outcome,
//!   with a name. It is written down before it is sent.
//! - Which consumers a topic has is said beforehand (routes); a topic without any is refused, so that nothing is accepted
//!   that nobody is to get.
//! - Messages with the same **ordering key** reach a consumer one after the other, in the order of their acceptance; one
//!   without a key is ordered among those of its topic. A dead letter lets those behind it go on.
//! - A consumer that is not there costs no attempt: nothing is sent. Its deliveries wait, visibly, and go on when it says that
//!   it serves again (`outbox/consume/v1`), or at the next sweep.
//! - The message's id is the same at every attempt: a consumer that remembers ids (its inbox) has each effect once.
//! - Over all processes that share a storage one sends: it holds the storage's lock, which ends with its process. What an
//!   earlier holder had leased and not settled is therefore free the moment somebody else holds it; no clock decides.
//!
//! | file | noun |
//! |---|---|
//! | `storage` | what the outbox needs of whoever keeps its messages |
//! | `memory` | a storage in memory, for tests |
//! | `routes` | which consumers a topic has |
//! | `outbox`, `report` | the outbox, what can be chosen, how it stands |
//! | `door` | the only way in |
//! | `lanes` | what may be sent now (pure) |
//! | `attempt`, `schedule` | what the end of an attempt means, and when the next one is due (pure) |
//! | `sender` | the loop in which these meet the storage and the bus |
//! | `calm` | wakes that loop once for all that comes between two of its turns |
//! | `publisher` | publishing durably, at the client |
//! | `consumer`, `inbox` | consuming with explicit acknowledgement, at the client; ids that were seen |
//! | `words`, `error`, `limits` | what stands on the wire; why a message was not accepted; every bound |

mod attempt;
mod calm;
mod consumer;
mod door;
mod error;
pub mod inbox;
mod lanes;
pub mod limits;
pub mod memory;
mod outbox;
mod pause;
mod publisher;
mod report;
mod routes;
mod schedule;
mod sender;
pub mod storage;
pub mod words;

pub use consumer::{ConsumeOptions, Delivery, DeliveryError, DurableConsumer};
pub use error::DurableError;
pub use inbox::{Inbox, MemoryInbox};
pub use memory::MemoryStorage;
pub use outbox::{DurableOptions, Left, Outbox, OutboxError, OutboxHandle, OutboxOptions};
pub use report::{ConsumerReport, OutboxCounts, OutboxReport, OutboxState};
pub use routes::Routes;
pub use schedule::Schedule;
pub use storage::OutboxStorage;
pub use words::Accepted;

#[cfg(test)]
mod tests;
