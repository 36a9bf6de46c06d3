//! Actors.

pub mod actor;
pub mod backup;
pub mod clock;
pub mod context;
pub mod conversation;
pub mod gateway;
pub mod host;
pub mod intake;
pub mod log_consumer;
pub mod log_record;
pub mod log_transport;
pub mod model;
pub mod outbox;
pub mod store;
#[cfg(test)]
mod test_stage;
pub mod topics;
pub mod wipe;
