//! Threads of the bus: brokers, clients, gated publishers. Whoever logs over the bus must know them, or what libraries raise
//! on them (a poll, a wake-up) would be sent over the bus, and raise more.

use std::sync::OnceLock;

static ON_START: OnceLock<fn()> = OnceLock::new();

/// Calls `work` at the start of every thread that the bus starts from now on. The first one to ask is the only one.
pub fn on_start(work: fn()) {
    let _ = ON_START.set(work);
}

/// The present thread is one of the bus.
pub(crate) fn started() {
    if let Some(work) = ON_START.get() {
        work();
    }
}
