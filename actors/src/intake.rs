//! Whether the process takes new work.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Open until the process begins to stop, then closed for good: whoever takes work from outside refuses it from that moment,
/// however long others take to end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Intake(Arc<AtomicBool>);

impl Intake {
    /// Nothing new is taken from now on.
    pub fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether something new is taken.
    pub fn is_open(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}
