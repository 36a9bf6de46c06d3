//! benches of Interlock.
