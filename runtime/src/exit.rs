//! The exit codes: those of `bus`, which the runtime shares.

pub use interlock_bus::exit::Exit;
