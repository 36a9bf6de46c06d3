//! What can be configured about the conversation engine, and its limits.

use std::time::Duration;

use super::{history::HistoryLimits, schedule::ScheduleLimits, turn::Timing};

/// Messages of a conversation that the model is shown, unless configured; older ones stay in the store.
pub const HISTORY_MESSAGES: usize = 40;

/// Bytes of text that the model is shown; the oldest messages that do not fit are left out. About
/// 60,000 tokens, more than small models take.
pub const HISTORY_BYTES_MAX: usize = 256 << 10;

/// Bytes of one text of a user. A longer one is refused with `bad_request`.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// Bytes of one answer. A longer one ends its turn with `too_long`; what came before is kept.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Characters of the user's first text that become the title of a conversation.
pub const TITLE_CHARACTERS_MAX: usize = 60;

/// Turns that run at once. Further ones wait. A little less than the work that an actor may spawn.
pub const RUNNING_MAX: usize = 1000;

/// Turns of one conversation that wait. A further one is answered `busy`.
pub const WAITING_PER_CONVERSATION_MAX: usize = 8;

/// Turns that wait in all. A further one is answered `busy`.
pub const WAITING_MAX: usize = 1024;

/// How long saving may take; the store itself gives up a busy database after 30 s.
pub const SAVE_TIMEOUT: Duration = Duration::from_secs(40);

/// How long the model may take to say its first word. The model service has timeouts of its own
/// towards its server; this one is for a model service that is stuck.
pub const FIRST_PART_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the model may take from one word to the next.
pub const NEXT_PART_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a turn may take.
pub const TURN_TIMEOUT: Duration = Duration::from_secs(600);

/// How long publishing the end of a turn may wait for the broker; after that it is logged as lost.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the conversation engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationConfig {
    /// Given to the model before each conversation; empty is none.
    pub instructions: String,
    /// What the model is shown of a conversation.
    pub history: HistoryLimits,
    /// How long the steps of a turn may take.
    pub timing: Timing,
    /// How many turns run and wait.
    pub schedule: ScheduleLimits,
}

impl Default for ConversationConfig {
    fn default() -> Self {
        Self {
            instructions: String::new(),
            history: HistoryLimits { messages_max: HISTORY_MESSAGES, bytes_max: HISTORY_BYTES_MAX },
            timing: Timing {
                save: SAVE_TIMEOUT,
                first_part: FIRST_PART_TIMEOUT,
                next_part: NEXT_PART_TIMEOUT,
                whole: TURN_TIMEOUT,
            },
            schedule: ScheduleLimits {
                running_max: RUNNING_MAX,
                waiting_per_conversation_max: WAITING_PER_CONVERSATION_MAX,
                waiting_max: WAITING_MAX,
            },
        }
    }
}
