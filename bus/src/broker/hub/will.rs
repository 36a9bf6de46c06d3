//! Wills: what a client leaves to be published when it dies.
//!
//! Dying is every end of a session but two: its own goodbye, which takes the will back, and the broker's stop. A revoked peer has no rights
//! any more, so its will is denied, and counted so.

use super::*;

impl Hub {
    /// Deposits a will in place of the one before, or takes it back. Whether it may be published is judged now, for
    /// the client to hear, and again when it is.
    pub(super) fn on_will(&mut self, id: SessionId, block: Option<Block>) {
        let Some(block) = block else {
            if let Some(session) = self.session_mut(id) {
                session.will = None;
            }
            return;
        };
        let (reference, flags) = (block.sequence, block.flags);
        let text = String::from_utf8_lossy(block.topic()).into_owned();
        let refusal = match self.route(id, block.topic()) {
            Err(error) => Some(("invalid_topic", error.to_string())),
            Ok(route) if !route.may_publish => {
                Some(("not_permitted", format!("its will may not be `{text}`")))
            }
            Ok(_) if block.bytes() > limits::WILL_BYTES_MAX => Some((
                "too_large",
                format!(
                    "the will has {} bytes; the limit is {} bytes",
                    block.bytes(),
                    limits::WILL_BYTES_MAX
                ),
            )),
            Ok(_) => None,
        };
        if let Some((code, reason)) = refusal {
            return self.deny(id, Operation::Publish, reference, code, &text, &reason);
        }
        if let Some(session) = self.session_mut(id) {
            session.will = Some(block);
        }
        if flags & Block::ACKNOWLEDGE != 0 {
            let (sequence, subscribers, dropped) = (reference, 0, 0);
            self.send_control(id, Record::Accepted { sequence, subscribers, dropped, not_retained: false });
        }
    }

    /// Publishes the will of a session that ends, in its name.
    pub(super) fn execute_will(&mut self, id: SessionId, code: &str) {
        let Some(session) = self.session_mut(id) else { return };
        let Some(will) = session.will.take().filter(|_| code != "broker_stopping") else { return };
        if matches!(code, "revoked" | "key_expired" | "key_replaced") {
            session.info.permissions = Arc::default();
        }
        if let Err((code, topic, text)) = self.publish(id, will) {
            self.note_denial(id, Operation::Publish, code, &topic, &text);
        }
    }
}
