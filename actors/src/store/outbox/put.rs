//! Accepting a message: judged by the limits and stored in one transaction.

use std::path::Path;

use interlock_bus::durable::storage::{NewEntry, Put, PutError};
use nix::sys::statvfs::statvfs;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{
    OutboxLimits, WhenFull,
    book::{Book, DeliveryState},
    now_ms,
};
use crate::store::{
    error::StoreError,
    logs::signed,
    writer::{Site, Work},
};

/// One message that wants to be accepted.
pub(super) struct Accept {
    pub(super) entry: NewEntry,
    pub(super) limits: OutboxLimits,
}

impl Work for Accept {
    /// A refusal is an answer: it undoes nothing of what others have put into the same transaction.
    type Output = Result<Put, PutError>;

    fn apply(&self, site: &Site<'_>) -> Result<Self::Output, StoreError> {
        self.accept(site).map_err(site.fail("accepting a message"))
    }

    fn rows(&self) -> usize {
        1
    }
}

impl Accept {
    fn accept(&self, site: &Site<'_>) -> rusqlite::Result<Result<Put, PutError>> {
        let connection = site.connection;
        let NewEntry { id, topic, key, origin, header, payload, consumers } = &self.entry;
        let content = content(payload);
        let now = now_ms();
        let mut book = Book::open(site, now)?;
        let bytes = (header.len() + payload.len()) as u64;
        if !self.has_room(site, &book, bytes)? {
            // What is there already needs no room, and nothing has to go for it.
            if let Some(answer) = self.before(connection, &content)? {
                return Ok(answer);
            }
            if let Err(refusal) = self.judge(site, &mut book, bytes)? {
                return Ok(Err(refusal));
            }
        }
        let number = book.totals.next_number;
        let added = connection
            .prepare_cached(
                "INSERT INTO entries (number, id, topic, key, origin, accepted_ms, bytes, content, seal) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING",
            )?
            .execute(params![
                signed(number),
                id.as_bytes().as_slice(),
                topic.as_str(),
                key,
                origin.as_str(),
                signed(now),
                signed(bytes),
                content.as_slice(),
                seal(&content, header).as_slice(),
            ])?;
        if added == 0 {
            let before = self.before(connection, &content)?;
            return before.ok_or(rusqlite::Error::QueryReturnedNoRows);
        }
        connection
            .prepare_cached("INSERT INTO bodies (number, header, payload) VALUES (?1, ?2, ?3)")?
            .execute(params![signed(number), header.as_ref(), payload.as_ref()])?;
        for consumer in consumers {
            connection
                .prepare_cached(
                    "INSERT INTO deliveries (number, consumer, state, attempts, tries, due_ms, opened_ms, changed_ms) \
                     VALUES (?1, ?2, 0, 0, 0, 0, ?3, ?3)",
                )?
                .execute(params![signed(number), consumer.as_str(), signed(now)])?;
        }
        book.totals.next_number += 1;
        book.totals.open += 1;
        book.totals.bytes += bytes;
        book.close()?;
        Ok(Ok(Put { number, again: false }))
    }

    /// The answer, if there is a message with this id already.
    fn before(
        &self,
        connection: &Connection,
        content: &[u8; 32],
    ) -> rusqlite::Result<Option<Result<Put, PutError>>> {
        let NewEntry { id, topic, .. } = &self.entry;
        let before: Option<(i64, String, Vec<u8>)> = connection
            .prepare_cached("SELECT number, topic, content FROM entries WHERE id = ?1")?
            .query_row([id.as_bytes().as_slice()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        Ok(before.map(|(number, before_topic, before_content)| {
            let is_same = before_topic == topic.as_str() && before_content == content;
            match is_same {
                true => Ok(Put { number: number.unsigned_abs(), again: true }),
                false => Err(PutError::OtherContent { id: *id }),
            }
        }))
    }

    /// Whether there is room for one more as it is.
    fn has_room(&self, site: &Site<'_>, book: &Book<'_>, wanted: u64) -> rusqlite::Result<bool> {
        let OutboxLimits { pending_max, bytes_max, disk_floor, .. } = self.limits;
        let is_low = book.free_bytes(|| free_bytes(site.path))? < disk_floor;
        let is_over = |used: u64, max: u64| max > 0 && used > max;
        let bytes = book.totals.bytes.saturating_add(wanted);
        Ok(!is_low && !is_over(bytes, bytes_max) && !is_over(book.totals.open.saturating_add(1), pending_max))
    }

    /// Whether there is room for one more; makes some if that is the policy.
    fn judge(
        &self,
        site: &Site<'_>,
        book: &mut Book<'_>,
        wanted: u64,
    ) -> rusqlite::Result<Result<(), PutError>> {
        let OutboxLimits { pending_max, bytes_max, disk_floor, when_full } = self.limits;
        let free = book.free_bytes(|| free_bytes(site.path))?;
        if free < disk_floor {
            return Ok(Err(PutError::DiskLow { free, floor: disk_floor }));
        }
        let current = book.totals.bytes;
        if bytes_max > 0 && current.saturating_add(wanted) > bytes_max {
            return Ok(Err(PutError::BytesFull { current, wanted, max: bytes_max }));
        }
        // More than one if the limit was lowered.
        while pending_max > 0 && book.totals.open >= pending_max {
            let current = book.totals.open;
            let room = match when_full {
                WhenFull::Reject => false,
                WhenFull::OldestToDeadLetter => bury_oldest(site.connection, book, pending_max)?,
            };
            if !room {
                return Ok(Err(PutError::Full { current, max: pending_max }));
            }
        }
        Ok(Ok(()))
    }
}

/// Makes the oldest message of which nothing is leased a dead letter; whether there was one.
fn bury_oldest(connection: &Connection, book: &mut Book<'_>, max: u64) -> rusqlite::Result<bool> {
    // From one consumer to the next, and of each the lowest that will do: the index in its order, never all that is open.
    let sql = "WITH RECURSIVE waiting (consumer) AS ( \
                   SELECT min(consumer) FROM deliveries WHERE state <= 1 \
                   UNION ALL \
                   SELECT (SELECT min(consumer) FROM deliveries WHERE state <= 1 AND consumer > waiting.consumer) \
                   FROM waiting WHERE waiting.consumer IS NOT NULL) \
               SELECT min((SELECT number FROM deliveries AS d WHERE d.consumer = waiting.consumer AND d.state <= 1 \
                           AND NOT EXISTS (SELECT 1 FROM deliveries AS l WHERE l.number = d.number AND l.state = 1) \
                           ORDER BY number LIMIT 1)) \
               FROM waiting WHERE waiting.consumer IS NOT NULL";
    let oldest: Option<i64> = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    let Some(oldest) = oldest else { return Ok(false) };
    let consumers: Vec<String> = connection
        .prepare_cached("SELECT consumer FROM deliveries WHERE number = ?1 AND state = 0")?
        .query_map([oldest], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let reason =
        format!("it was the oldest when {max} messages were unfinished; `outbox.policy` asks for that");
    for consumer in &consumers {
        book.bury(oldest.unsigned_abs(), consumer, &reason)?;
    }
    Ok(!consumers.is_empty())
}

/// What tells a payload from others.
pub(super) fn content(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

/// What tells that header and payload are as they were.
pub(super) fn seal(content: &[u8; 32], header: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(content).chain_update(header).finalize().into()
}

/// Bytes that are free where the database is. What cannot be asked is for the write to find out.
fn free_bytes(path: &Path) -> u64 {
    let place = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    statvfs(place).map_or(u64::MAX, |about| about.blocks_available().saturating_mul(about.fragment_size()))
}

const _: () = assert!(DeliveryState::Leased as i64 == 1 && DeliveryState::Dropped as i64 == 4);
