//! A frame's body that is sealed where it was written.

use super::message_box::ROOM_BYTES;

/// A body that grows, behind room for what stands before it on the wire. See [`Engine::send_draft`](super::Engine::send_draft).
#[derive(Debug, Default)]
pub struct Draft(
    /// Nothing at all, or the room and the body.
    Vec<u8>,
);

impl Draft {
    /// The room and what is written: append only.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if self.0.is_empty() {
            self.0.resize(ROOM_BYTES, 0);
        }
        &mut self.0
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.0.get(ROOM_BYTES..).unwrap_or_default()
    }

    /// Bytes of the body.
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(ROOM_BYTES)
    }

    /// Whether the body has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory it holds.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Forgets the body and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
