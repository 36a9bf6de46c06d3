//! The conversation engine: takes what a user says, asks the model, streams the answer, and ends
//! every turn in exactly one way.

pub mod history;
pub mod schedule;
pub mod turn;
