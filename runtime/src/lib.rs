//! The Interlock runtime: supervised actors on an encrypted message bus.

pub mod config;
pub mod exit;
pub mod lifecycle;
pub mod process;
pub mod supervisor;
pub mod tree;
