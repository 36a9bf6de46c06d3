//! The Interlock runtime: supervised actors on an encrypted message bus.
//!
//! An author of actors needs [`Runtime::builder`] and the names re-exported below it, and [`test_kit`] to test them. Reading order of the rest:
//! [`config`], [`lifecycle`], `run` (the program as a story), `tree` (what is started), [`supervisor`], [`process`],
//! [`cli`] and [`exit`].

pub mod admin;
mod audit;
pub mod builder;
pub mod cli;
mod component;
pub mod config;
pub mod exit;
mod keys;
pub mod lifecycle;
mod peers;
pub mod process;
pub mod reload;
mod run;
mod site;
mod steward;
pub mod supervisor;
mod telemetry;
pub mod test_kit;
pub mod tree;

pub use builder::{Builder, FiniteGroup, Group, Runtime};
pub use interlock_actors as actors;
pub use interlock_actors::{
    actor::{Actor, Failure, Input},
    context::Context,
    topics,
};
pub use interlock_bus as bus;
pub use interlock_bus::{
    Client, ContentType, Credentials, Message, Payload, PeerName, Permissions, PublishOptions, Request,
    Rules, ServeOptions, SubscribeOptions, TopicFilter, TopicName,
};
