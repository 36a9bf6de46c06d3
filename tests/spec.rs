//! The specification of Interlock: one test binary, one module per chapter.

mod harness;

/// Which keys may connect, and what every refusal looks like from both sides.
mod authentication;
/// Unmodified ZeroMQ sockets (pyzmq) against the broker.
mod stock_sockets;
