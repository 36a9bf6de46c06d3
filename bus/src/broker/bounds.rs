//! What the owner of a broker may bound differently from [`crate::limits`].

use crate::limits;

/// The bounds of one broker. The default is that of [`limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages queued towards one subscription: what it gets that asks for no bound, and the most that it gets.
    pub send_queue_messages: u32,
    /// The same in bytes.
    pub send_queue_bytes: u32,
    /// Sessions, half-open ones included; see [`limits::SESSIONS_MAX`].
    pub sessions_max: usize,
    /// Bytes of retained values, [`limits::RETAINED_VALUE_BYTES`] for each included; see [`limits::RETAINED_BYTES_MAX`].
    pub retained_bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            send_queue_messages: limits::SEND_QUEUE_MESSAGES as u32,
            send_queue_bytes: limits::SEND_QUEUE_BYTES as u32,
            sessions_max: limits::SESSIONS_MAX,
            retained_bytes_max: limits::RETAINED_BYTES_MAX,
        }
    }
}

impl Bounds {
    /// The bounds of a queue, in messages and bytes, for a subscription that asks for these; zero asks for none.
    pub(super) fn of_queue(&self, messages_max: u32, bytes_max: u32) -> (u32, u32) {
        let at_most = |asked: u32, most: u32| if asked == 0 { most } else { asked.min(most) };
        (at_most(messages_max, self.send_queue_messages), at_most(bytes_max, self.send_queue_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_gets_what_it_asks_for_and_never_more_than_the_broker_allows() {
        let bounds = Bounds { send_queue_messages: 100, send_queue_bytes: 1000, ..Bounds::default() };
        assert_eq!(bounds.of_queue(0, 0), (100, 1000));
        assert_eq!(bounds.of_queue(7, 0), (7, 1000));
        assert_eq!(bounds.of_queue(u32::MAX, u32::MAX), (100, 1000));
    }
}
