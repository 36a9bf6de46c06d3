//! What the benches share. Each bench answers one question and is one command; README.md has the table.
//!
//! A bench runs its publishers, brokers and subscribers as processes of their own: it starts itself
//! again in a [`role`](arguments::Arguments), and libzmq's side as a small C program that it compiles.
//!
//! Reading order: [`arguments`], [`process`], [`bus`] and [`libzmq`] (the two sides), [`flow`] (a stream
//! of messages through either), [`clock`], [`log_path`], [`callgrind`], [`report`].

pub mod arguments;
pub mod bus;
pub mod callgrind;
pub mod clock;
pub mod flow;
pub mod libzmq;
pub mod log_path;
pub mod process;
pub mod report;
