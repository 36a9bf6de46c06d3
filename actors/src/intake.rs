//! Whether the process takes new work.

use std::sync::Arc;

use tokio::sync::watch;

/// Open until the process begins to stop, then closed for good: whoever takes work from outside refuses it from that moment,
/// however long others take to end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Intake(Arc<watch::Sender<bool>>);

impl Intake {
    /// Nothing new is taken from now on.
    pub fn close(&self) {
        self.0.send_replace(true);
    }

    /// Whether something new is taken.
    pub fn is_open(&self) -> bool {
        !*self.0.borrow()
    }

    /// Returns when it is closed.
    pub async fn closed(&self) {
        // Cannot fail: the sender is `self`.
        let _ = self.0.subscribe().wait_for(|is_closed| *is_closed).await;
    }
}
