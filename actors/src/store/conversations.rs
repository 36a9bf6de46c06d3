//! Conversations and what was said in them.

use std::{fmt, str::FromStr};

use interlock_bus::envelope::now_ns;
use rusqlite::{Connection, OptionalExtension, Row};
use uuid::Uuid;

use super::{
    error::StoreError,
    limits,
    logs::signed,
    writer::{Site, Work},
};

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// What the model is told about itself.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageState {
    /// It is whole.
    Complete,
    /// It broke off because of an error; the text is what there was.
    Failed,
    /// It was cancelled; the text is what there was.
    Cancelled,
}

/// A word in the database that no value of ours has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a {expected}", word.escape_debug())]
pub struct WordError {
    expected: &'static str,
    word: String,
}

/// Text forms of an enum whose values are words in the database.
macro_rules! words {
    ($type:ident, $what:literal, $($value:ident = $word:literal),+) => {
        impl $type {
            /// The value as one word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                match text {
                    $($word => Ok(Self::$value),)+
                    _ => Err(WordError { expected: $what, word: text.chars().take(32).collect() }),
                }
            }
        }
    };
}

words!(Role, "role", System = "system", User = "user", Assistant = "assistant");
words!(MessageState, "message state", Complete = "complete", Failed = "failed", Cancelled = "cancelled");

/// A message to be saved. Saving it twice is harmless: the store keeps one for each id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// A fresh UUIDv7 for each message.
    pub id: Uuid,
    /// The conversation, which must exist.
    pub conversation: String,
    /// The turn it belongs to.
    pub turn: Uuid,
    /// Who says it.
    pub role: Role,
    /// How it ended.
    pub state: MessageState,
    /// What is said; at most [`limits::MESSAGE_BYTES_MAX`] bytes.
    pub text: String,
}

impl NewMessage {
    /// A message with a fresh id.
    pub fn new(
        conversation: &str,
        turn: Uuid,
        role: Role,
        state: MessageState,
        text: impl Into<String>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            conversation: conversation.to_owned(),
            turn,
            role,
            state,
            text: text.into(),
        }
    }
}

/// A message as it was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Order in which messages were saved; rises.
    pub seq: i64,
    /// When it was saved, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The message.
    pub message: NewMessage,
}

/// A conversation, without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Its id.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// When it was created, in nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// When something was last said, in nanoseconds since the Unix epoch.
    pub updated_ns: u64,
    /// How many messages it has.
    pub messages: u64,
}

/// Creates a conversation; `false` if it is there already.
pub(super) struct Create {
    pub(super) id: String,
    pub(super) title: String,
}

impl Work for Create {
    type Output = bool;

    fn apply(&self, site: &Site<'_>) -> Result<bool, StoreError> {
        let created = site.connection.execute(
            "INSERT INTO conversations (id, title, created_ns, updated_ns) VALUES (?1, ?2, ?3, ?3) \
             ON CONFLICT (id) DO NOTHING",
            (&self.id, &self.title, signed(now_ns())),
        );
        Ok(created.map_err(site.fail("creating a conversation"))? == 1)
    }
}

/// Saves a message; `false` if it is there already.
pub(super) struct Say(pub(super) NewMessage);

impl Work for Say {
    type Output = bool;

    fn apply(&self, site: &Site<'_>) -> Result<bool, StoreError> {
        let (message, now) = (&self.0, signed(now_ns()));
        let fail = site.fail("saving a message");
        if message.text.len() > limits::MESSAGE_BYTES_MAX {
            return Err(fail(rusqlite::Error::ToSqlConversionFailure(
                format!(
                    "it is {} bytes long, the limit is {}",
                    message.text.len(),
                    limits::MESSAGE_BYTES_MAX
                )
                .into(),
            )));
        }
        let touched = site.connection.execute(
            "UPDATE conversations SET updated_ns = max(updated_ns, ?2) WHERE id = ?1",
            (&message.conversation, now),
        );
        if touched.map_err(&fail)? == 0 {
            return Err(StoreError::NoSuchConversation { id: message.conversation.clone() });
        }
        let said = site.connection.execute(
            "INSERT INTO messages (id, conversation, turn, role, state, text, time_ns) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO NOTHING",
            (
                message.id.as_bytes().as_slice(),
                &message.conversation,
                message.turn.to_string(),
                message.role.as_str(),
                message.state.as_str(),
                &message.text,
                now,
            ),
        );
        Ok(said.map_err(&fail)? == 1)
    }
}

/// Gives a conversation another title; `false` if there is none.
pub(super) struct Rename {
    pub(super) id: String,
    pub(super) title: String,
}

impl Work for Rename {
    type Output = bool;

    fn apply(&self, site: &Site<'_>) -> Result<bool, StoreError> {
        let update = "UPDATE conversations SET title = ?2 WHERE id = ?1";
        let renamed = site.connection.execute(update, (&self.id, &self.title));
        Ok(renamed.map_err(site.fail("renaming a conversation"))? == 1)
    }
}

/// Deletes a conversation with all its messages; `false` if there is none.
pub(super) struct Delete {
    pub(super) id: String,
}

impl Work for Delete {
    type Output = bool;

    fn apply(&self, site: &Site<'_>) -> Result<bool, StoreError> {
        let deleted = site.connection.execute("DELETE FROM conversations WHERE id = ?1", [&self.id]);
        Ok(deleted.map_err(site.fail("deleting a conversation"))? == 1)
    }
}

const CONVERSATIONS: &str = "SELECT id, title, created_ns, updated_ns, \
     (SELECT count(*) FROM messages WHERE conversation = conversations.id) FROM conversations";

/// The conversations used last, the newest first.
pub(super) fn list(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Conversation>> {
    connection
        .prepare_cached(&format!("{CONVERSATIONS} ORDER BY updated_ns DESC, id LIMIT ?1"))?
        .query_map([limit.min(limits::QUERY_ROWS_MAX) as i64], conversation)?
        .collect()
}

/// One conversation.
pub(super) fn one(connection: &Connection, id: &str) -> rusqlite::Result<Option<Conversation>> {
    connection
        .prepare_cached(&format!("{CONVERSATIONS} WHERE id = ?1"))?
        .query_row([id], conversation)
        .optional()
}

/// The last `limit` messages of a conversation, in the order in which they were said.
pub(super) fn history(
    connection: &Connection,
    id: &str,
    limit: usize,
) -> rusqlite::Result<Vec<StoredMessage>> {
    connection
        .prepare_cached(
            "SELECT * FROM (SELECT seq, time_ns, id, conversation, turn, role, state, text FROM messages \
             WHERE conversation = ?1 ORDER BY seq DESC LIMIT ?2) ORDER BY seq",
        )?
        .query_map((id, limit.min(limits::QUERY_ROWS_MAX) as i64), message)?
        .collect()
}

fn conversation(row: &Row<'_>) -> rusqlite::Result<Conversation> {
    Ok(Conversation {
        id: row.get(0)?,
        title: row.get(1)?,
        created_ns: row.get::<_, i64>(2)?.unsigned_abs(),
        updated_ns: row.get::<_, i64>(3)?.unsigned_abs(),
        messages: row.get::<_, i64>(4)?.unsigned_abs(),
    })
}

fn message(row: &Row<'_>) -> rusqlite::Result<StoredMessage> {
    /// A column whose text is one of ours.
    fn word<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        row: &Row<'_>,
        at: usize,
    ) -> rusqlite::Result<T> {
        row.get::<_, String>(at)?.parse().map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(error))
        })
    }
    Ok(StoredMessage {
        seq: row.get(0)?,
        time_ns: row.get::<_, i64>(1)?.unsigned_abs(),
        message: NewMessage {
            id: Uuid::from_bytes(row.get(2)?),
            conversation: row.get(3)?,
            turn: word(row, 4)?,
            role: word(row, 5)?,
            state: word(row, 6)?,
            text: row.get(7)?,
        },
    })
}
