//! Actors.

pub mod conversation;
pub mod log_record;
pub mod log_transport;
pub mod model;
pub mod store;
pub mod topics;
