//! Actors.

pub mod model;
pub mod topics;
