//! The broker.

mod control;
pub mod denials;
pub mod hub;
pub mod ledger;
pub mod refusals;
pub mod requests;
pub mod send_queue;
pub mod statistics;
