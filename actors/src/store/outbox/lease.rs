//! The way of a delivery from pending to its end: leased, settled, taken back.

use bytes::Bytes;
use interlock_bus::{
    PeerName,
    durable::storage::{DeliveryId, Leased, OpenDelivery, Outcome, Settled},
};
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{
    book::{Book, Failed, Phase},
    now_ms,
    put::{content, seal},
};
use crate::store::{
    error::StoreError,
    logs::signed,
    writer::{Site, Work},
};

/// What an attempt has come to whose sender ended.
pub(super) const SENDER_ENDED: &str = "the sender ended before there was an outcome; it may have arrived";

/// Who has open deliveries, as written down, with how many.
pub(super) struct OpenConsumers;

impl Work for OpenConsumers {
    type Output = Vec<(String, u64)>;

    fn apply(&self, site: &Site<'_>) -> Result<Self::Output, StoreError> {
        let list = || {
            site.connection
                .prepare_cached(
                    "SELECT consumer, count(*) FROM deliveries WHERE state <= 1 GROUP BY consumer",
                )?
                .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?
                .collect::<rusqlite::Result<_>>()
        };
        list().map_err(site.fail("looking who has open deliveries"))
    }
}

/// Open deliveries to one consumer.
pub(super) struct OpenDeliveries {
    pub(super) consumer: PeerName,
    pub(super) after: u64,
    pub(super) limit: usize,
}

impl Work for OpenDeliveries {
    type Output = Vec<OpenDelivery>;

    fn apply(&self, site: &Site<'_>) -> Result<Self::Output, StoreError> {
        let list = || {
            site.connection
                .prepare_cached(
                    "SELECT d.number, e.key, e.bytes, d.attempts, d.due_ms FROM deliveries AS d \
                     CROSS JOIN entries AS e ON e.number = d.number \
                     WHERE d.consumer = ?1 AND d.number > ?2 AND d.state <= 1 ORDER BY d.number LIMIT ?3",
                )?
                .query_map(
                    params![self.consumer.as_str(), signed(self.after), signed(self.limit as u64)],
                    |row| {
                        let number = |at: usize| row.get::<_, i64>(at).map(i64::unsigned_abs);
                        let id = DeliveryId { number: number(0)?, consumer: self.consumer.clone() };
                        let attempts = number(3)?.try_into().unwrap_or(u32::MAX);
                        Ok(OpenDelivery {
                            id,
                            key: row.get(1)?,
                            bytes: number(2)?,
                            attempts,
                            due_ms: number(4)?,
                        })
                    },
                )?
                .collect::<rusqlite::Result<_>>()
        };
        list().map_err(site.fail("reading open deliveries"))
    }
}

/// Begins an attempt of each that is pending.
pub(super) struct Lease(pub(super) Vec<DeliveryId>);

impl Work for Lease {
    type Output = Vec<Leased>;

    fn apply(&self, site: &Site<'_>) -> Result<Self::Output, StoreError> {
        let lease = || -> rusqlite::Result<Vec<Leased>> {
            let mut book = Book::open(site, now_ms())?;
            let mut leased = Vec::with_capacity(self.0.len());
            for id in &self.0 {
                leased.extend(lease(site.connection, &mut book, id)?);
            }
            book.close()?;
            Ok(leased)
        };
        lease().map_err(site.fail("beginning attempts"))
    }
}

fn lease(connection: &Connection, book: &mut Book<'_>, id: &DeliveryId) -> rusqlite::Result<Option<Leased>> {
    let attempt: Option<i64> = connection
        .prepare_cached(
            "UPDATE deliveries SET state = 1, attempts = attempts + 1, tries = tries + 1, changed_ms = ?3 \
             WHERE number = ?1 AND consumer = ?2 AND state = 0 RETURNING attempts",
        )?
        .query_row(params![signed(id.number), id.consumer.as_str(), signed(now_ms())], |row| row.get(0))
        .optional()?;
    let Some(attempt) = attempt else { return Ok(None) };
    match read(connection, id, attempt.try_into().unwrap_or(u32::MAX))? {
        Ok(leased) => Ok(Some(leased)),
        Err(reason) => {
            tracing::error!(number = id.number, consumer = %id.consumer, reason, "a message cannot be read and is a dead letter");
            book.bury(id.number, id.consumer.as_str(), reason)?;
            Ok(None)
        }
    }
}

/// A message as it is to be sent, or what is wrong with it.
fn read(
    connection: &Connection,
    id: &DeliveryId,
    attempt: u32,
) -> rusqlite::Result<Result<Leased, &'static str>> {
    type Row = (Vec<u8>, String, String, i64, Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);
    let row: Option<Row> = connection
        .prepare_cached(
            "SELECT id, topic, origin, accepted_ms, seal, header, payload FROM entries LEFT JOIN bodies USING (number) \
             WHERE number = ?1",
        )?
        .query_row([signed(id.number)], |row| {
            let header: Option<Vec<u8>> = row.get(5)?;
            let body = header.zip(row.get::<_, Option<Vec<u8>>>(6)?);
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, body))
        })
        .optional()?;
    let Some((message, topic, origin, accepted_ms, sealed, body)) = row else {
        return Ok(Err("cannot be read: the message is gone"));
    };
    let Some((header, payload)) = body else {
        return Ok(Err("cannot be read: header and payload are gone"));
    };
    if seal(&content(&payload), &header).as_slice() != sealed {
        return Ok(Err("cannot be read: header and payload are not what was accepted"));
    }
    let (Ok(message), Ok(topic), Ok(origin)) = (Uuid::from_slice(&message), topic.parse(), origin.parse())
    else {
        return Ok(Err("cannot be read: id, topic or origin are damaged"));
    };
    let accepted_ms = accepted_ms.unsigned_abs();
    let (header, payload) = (Bytes::from(header), Bytes::from(payload));
    Ok(Ok(Leased { id: id.clone(), attempt, message, topic, origin, accepted_ms, header, payload }))
}

/// Makes dead letters of deliveries whose message cannot be read at all.
pub(super) struct Bury {
    pub(super) number: u64,
    pub(super) consumer: String,
    pub(super) reason: String,
}

impl Work for Bury {
    type Output = bool;

    fn apply(&self, site: &Site<'_>) -> Result<bool, StoreError> {
        let bury = || {
            let mut book = Book::open(site, now_ms())?;
            let buried = book.bury(self.number, &self.consumer, &self.reason)?;
            book.close().map(|()| buried)
        };
        bury().map_err(site.fail("setting a message aside"))
    }
}

/// Makes dead letters of all deliveries to somebody whose name is none.
pub(super) struct BuryAll {
    pub(super) consumer: String,
}

impl Work for BuryAll {
    type Output = ();

    fn apply(&self, site: &Site<'_>) -> Result<(), StoreError> {
        let bury = || {
            let numbers: Vec<i64> = site
                .connection
                .prepare_cached("SELECT number FROM deliveries WHERE consumer = ?1 AND state <= 1")?
                .query_map([&self.consumer], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut book = Book::open(site, now_ms())?;
            for number in numbers {
                book.bury(
                    number.unsigned_abs(),
                    &self.consumer,
                    "cannot be read: the consumer's name is none",
                )?;
            }
            book.close()
        };
        bury().map_err(site.fail("setting messages aside"))
    }
}

/// Ends leases.
pub(super) struct Settle(pub(super) Vec<Settled>);

impl Work for Settle {
    type Output = ();

    fn apply(&self, site: &Site<'_>) -> Result<(), StoreError> {
        let settle = || {
            let now = now_ms();
            let mut book = Book::open(site, now)?;
            for Settled { id, outcome } in &self.0 {
                settle(site.connection, &mut book, now, id, outcome)?;
            }
            book.close()
        };
        settle().map_err(site.fail("writing down what became of attempts"))
    }
}

fn settle(
    connection: &Connection,
    book: &mut Book<'_>,
    now: u64,
    id: &DeliveryId,
    outcome: &Outcome,
) -> rusqlite::Result<()> {
    let consumer = id.consumer.as_str();
    let (state, due_ms, taken_back, reason) = match outcome {
        Outcome::Acknowledged => return acknowledge(connection, book, now, id),
        Outcome::Retry { due_ms, reason } => (0, *due_ms, 0, Some(reason)),
        Outcome::Dead { reason } => (3, 0, 0, Some(reason)),
        Outcome::Unsent => (0, 0, 1, None),
    };
    let begun: Option<(i64, i64, i64)> = connection
        .prepare_cached(
            "SELECT attempts, tries, changed_ms FROM deliveries WHERE number = ?1 AND consumer = ?2 AND state = 1",
        )?
        .query_row(params![signed(id.number), consumer], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    // Ended before, or given up by a person.
    let Some((attempt, tries, begun_ms)) = begun else { return Ok(()) };
    connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?3, due_ms = ?4, attempts = attempts - ?5, tries = tries - ?5, changed_ms = ?6 \
             WHERE number = ?1 AND consumer = ?2",
        )?
        .execute(params![signed(id.number), consumer, state, signed(due_ms), taken_back, signed(now)])?;
    if let Some(reason) = reason {
        book.write_down(&Failed { number: id.number, consumer, attempt, tries, begun_ms, reason })?;
    }
    book.changed(id.number, Phase::Open)
}

/// The end that nearly all have: in one statement.
fn acknowledge(
    connection: &Connection,
    book: &mut Book<'_>,
    now: u64,
    id: &DeliveryId,
) -> rusqlite::Result<()> {
    let acknowledged = connection
        .prepare_cached(
            "UPDATE deliveries SET state = 2, due_ms = 0, changed_ms = ?3 \
             WHERE number = ?1 AND consumer = ?2 AND state = 1",
        )?
        .execute(params![signed(id.number), id.consumer.as_str(), signed(now)])?;
    // Ended before, or given up by a person.
    if acknowledged == 0 { Ok(()) } else { book.changed(id.number, Phase::Open) }
}

/// Takes back all leases: whoever held them has ended.
pub(super) struct TakeBack;

impl Work for TakeBack {
    type Output = u64;

    fn apply(&self, site: &Site<'_>) -> Result<u64, StoreError> {
        take_back(site).map_err(site.fail("taking leases back"))
    }
}

fn take_back(site: &Site<'_>) -> rusqlite::Result<u64> {
    let (connection, book) = (site.connection, Book::open(site, now_ms())?);
    let leased: Vec<(i64, String, i64, i64, i64)> = connection
        .prepare_cached(
            "SELECT number, consumer, attempts, tries, changed_ms FROM deliveries WHERE state <= 1 AND state = 1",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (number, consumer, attempt, tries, begun_ms) in &leased {
        let number = number.unsigned_abs();
        connection
            .prepare_cached(
                "UPDATE deliveries SET state = 0, due_ms = 0, changed_ms = ?3 WHERE number = ?1 AND consumer = ?2",
            )?
            .execute(params![signed(number), consumer, signed(now_ms())])?;
        let failed = Failed {
            number,
            consumer,
            attempt: *attempt,
            tries: *tries,
            begun_ms: *begun_ms,
            reason: SENDER_ENDED,
        };
        book.write_down(&failed)?;
    }
    Ok(leased.len() as u64)
}
