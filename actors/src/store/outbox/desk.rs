//! What people ask of the outbox: what is in it, why, since when. Beside a running sender, or after it has ended.

use std::{collections::BTreeMap, path::Path};

use interlock_bus::{PeerName, TopicFilter, TopicName};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use uuid::Uuid;

use super::{
    MIGRATIONS,
    book::{Book, DeliveryState, Failed, Totals},
    now_ms,
};
use crate::store::{
    DataKey, StoreError, connection,
    limited::Limited,
    logs::signed,
    migrate::{self, SchemaVersion},
    reader,
    writer::{Site, Work},
};

/// Looks into an outbox. It neither makes nor changes anything.
#[derive(Debug)]
pub struct Desk {
    connection: Limited,
    path: std::path::PathBuf,
}

/// Which deliveries. What is given must all hold.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// In one of these states; in any if there is none.
    pub states: Vec<DeliveryState>,
    /// Of messages published on topics of this filter.
    pub topic: Option<TopicFilter>,
    /// To this consumer.
    pub consumer: Option<PeerName>,
    /// Of messages with this ordering key.
    pub key: Option<String>,
    /// Whose last failed attempt gave a reason with this text in it.
    pub reason: Option<String>,
    /// Accepted then or later, in milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// Of this message.
    pub message: Option<Uuid>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// One delivery, without what is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// The message's place in the order of acceptance.
    pub number: u64,
    /// The message's id.
    pub id: Uuid,
    /// To whom; as written down, be it no name.
    pub consumer: String,
    /// Where it is.
    pub state: DeliveryState,
    /// What it was published on; as written down.
    pub topic: String,
    /// Its ordering key.
    pub key: String,
    /// Who published it; as written down.
    pub origin: String,
    /// Bytes of header and payload.
    pub bytes: u64,
    /// When it was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// When its state changed last.
    pub changed_ms: u64,
    /// When the next attempt is due; zero for at once, or for never.
    pub due_ms: u64,
    /// Attempts begun since it was accepted or retried by hand.
    pub attempts: u32,
    /// Why the last failed attempt failed, if one did.
    pub reason: Option<String>,
}

/// An attempt that failed, or what a person did to a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// To whom.
    pub consumer: String,
    /// Which attempt since it was accepted or retried by hand.
    pub attempt: u32,
    /// When it began, in milliseconds since the Unix epoch.
    pub begun_ms: u64,
    /// When it was over.
    pub ended_ms: u64,
    /// Why it failed.
    pub reason: String,
}

/// One message with everything that is kept of it.
#[derive(Clone, Debug)]
pub struct Message {
    /// To whom it goes, by name.
    pub deliveries: Vec<Delivery>,
    /// Attempts that failed, in their order.
    pub attempts: Vec<Attempt>,
    /// Header and payload; gone when it is finished, absent if they cannot be read.
    pub body: Option<(Vec<u8>, Vec<u8>)>,
    /// What is wrong with the body, if something is.
    pub damage: Option<String>,
    /// When it was finished, in milliseconds since the Unix epoch.
    pub finished_ms: Option<u64>,
}

/// What is in the outbox, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Messages that are not finished, dead letters not counted.
    pub open: u64,
    /// Bytes of what is not finished, dead letters counted.
    pub bytes: u64,
    /// Finished messages that are still remembered.
    pub finished: u64,
    /// Deliveries by state.
    pub deliveries: BTreeMap<&'static str, u64>,
    /// Deliveries that are not acknowledged or dropped, by consumer and state.
    pub consumers: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// The same by topic and state.
    pub topics: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// Why the last attempt of those failed, the most frequent first.
    pub reasons: Vec<ReasonCount>,
    /// When the oldest of those was accepted, by state, in milliseconds since the Unix epoch.
    pub oldest_ms: BTreeMap<&'static str, u64>,
}

/// How many deliveries in one state give the same reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ReasonCount {
    /// How many.
    pub deliveries: u64,
    /// Where they are.
    pub state: DeliveryState,
    /// Why the last attempt failed.
    pub reason: String,
}

/// What is kept, in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Messages that are not finished, dead letters not counted.
    pub open: u64,
    /// Bytes of what is not finished.
    pub bytes: u64,
    /// Dead letters.
    pub dead: u64,
    /// For whom something has waited longest, and since when, in milliseconds since the Unix epoch.
    pub oldest: Option<(String, u64)>,
}

impl Desk {
    /// Opens the outbox for looking, beside whoever else has it open; `None` if there has never been one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, key: &DataKey) -> Result<Option<Self>, StoreError> {
        if connection::file_bytes(path)?.is_none() {
            return Ok(None);
        }
        let known = migrate::known_version(MIGRATIONS);
        let connection = match reader::look(path, key, MIGRATIONS)? {
            (Some(connection), SchemaVersion::At(found)) if found == known => connection,
            (Some(_), SchemaVersion::At(found)) => {
                return Err(StoreError::OlderSchema { path: path.to_owned(), found, known });
            }
            // Somebody is making it.
            _ => return Ok(None),
        };
        let connection = Limited::new(connection)
            .map_err(|error| StoreError::from_sqlite(path, "limiting the time of reads", error))?;
        Ok(Some(Self { connection, path: path.to_owned() }))
    }

    /// Deliveries in the order of acceptance.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self, filter: &DeliveryFilter) -> Result<Vec<Delivery>, StoreError> {
        list(&self.connection, filter).map_err(self.fail("reading deliveries"))
    }

    /// A message by its id, or by its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn message(&self, id: &MessageId) -> Result<Option<Message>, StoreError> {
        let number = match id {
            MessageId::Number(number) => Some(*number),
            MessageId::Id(id) => self
                .connection
                .query_row("SELECT number FROM entries WHERE id = ?1", [id.as_bytes().as_slice()], |row| {
                    row.get::<_, i64>(0)
                })
                .optional()
                .map_err(self.fail("looking for a message"))?
                .map(i64::unsigned_abs),
        };
        number.map_or(Ok(None), |number| self.message_at(number))
    }

    fn message_at(&self, number: u64) -> Result<Option<Message>, StoreError> {
        let fail = || self.fail("reading a message");
        let finished: Option<Option<i64>> = self
            .connection
            .query_row("SELECT finished_ms FROM entries WHERE number = ?1", [signed(number)], |row| {
                row.get(0)
            })
            .optional()
            .map_err(fail())?;
        let Some(finished) = finished else { return Ok(None) };
        let mut deliveries = Vec::new();
        each_delivery(&self.connection, "d.number = ?1", [signed(number)], |delivery| {
            deliveries.push(delivery);
            true
        })
        .map_err(fail())?;
        let attempts = attempts(&self.connection, number).map_err(fail())?;
        let body = self
            .connection
            .query_row("SELECT header, payload FROM bodies WHERE number = ?1", [signed(number)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional();
        let (body, damage) = match body {
            Ok(body) => (body, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let finished_ms = finished.map(i64::unsigned_abs);
        Ok(Some(Message { deliveries, attempts, body, damage, finished_ms }))
    }

    /// Everything, counted. Reads every delivery that is not finished.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn statistics(&self) -> Result<Statistics, StoreError> {
        statistics(&self.connection).map_err(self.fail("counting deliveries"))
    }

    fn fail(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        move |error| StoreError::from_sqlite(&self.path, doing, error)
    }
}

/// How people name a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageId {
    /// By its place in the order of acceptance.
    Number(u64),
    /// By the publisher's id of it.
    Id(Uuid),
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Id(id) => write!(formatter, "{id}"),
        }
    }
}

impl std::str::FromStr for MessageId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let wrong = |_| format!("`{}` is neither a message's number nor its id", text.escape_debug());
        text.parse().map(Self::Id).map_err(wrong)
    }
}

/// Shows deliveries that meet a condition, in the order of acceptance, for as long as `show` says to go on.
fn each_delivery<P: rusqlite::Params>(
    connection: &Connection,
    condition: &str,
    parameters: P,
    mut show: impl FnMut(Delivery) -> bool,
) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT d.number, d.consumer, d.state, d.attempts, d.due_ms, d.changed_ms, e.id, e.topic, e.key, e.origin, \
         e.accepted_ms, e.bytes, (SELECT a.reason FROM attempts AS a WHERE a.number = d.number \
         AND a.consumer = d.consumer ORDER BY a.try DESC LIMIT 1) \
         FROM deliveries AS d CROSS JOIN entries AS e ON e.number = d.number WHERE {condition} \
         ORDER BY d.number, d.consumer"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(parameters)?;
    while let Some(row) = rows.next()? {
        if !show(delivery(row)?) {
            break;
        }
    }
    Ok(())
}

/// The condition for these states, in the words of the indexes.
fn in_states(states: &[DeliveryState]) -> String {
    use DeliveryState::{Dead, Leased, Pending};
    let numbers: Vec<String> = states.iter().map(|state| (*state as i64).to_string()).collect();
    match states {
        [] => "1".to_owned(),
        [Dead] => "d.state = 3".to_owned(),
        open if open.iter().all(|state| matches!(state, Pending | Leased)) => {
            format!("d.state <= 1 AND d.state IN ({})", numbers.join(", "))
        }
        _ => format!("d.state IN ({})", numbers.join(", ")),
    }
}

fn list(connection: &Connection, filter: &DeliveryFilter) -> rusqlite::Result<Vec<Delivery>> {
    let DeliveryFilter { states, topic, consumer, key, reason, since_ms, message, limit } = filter;
    let condition = format!(
        "{} AND (?1 IS NULL OR d.consumer = ?1) AND (?2 IS NULL OR e.key = ?2) AND (?3 IS NULL OR e.accepted_ms >= ?3) \
         AND (?4 IS NULL OR e.id = ?4)",
        in_states(states)
    );
    let parameters = params![
        consumer.as_ref().map(PeerName::as_str),
        key,
        since_ms.map(signed),
        message.as_ref().map(|id| id.as_bytes().as_slice()),
    ];
    let limit = limit.unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let on_topic = |delivery: &Delivery| {
        topic.as_ref().is_none_or(|filter| {
            delivery.topic.parse::<TopicName>().is_ok_and(|topic| filter.matches(&topic))
        })
    };
    let for_reason = |delivery: &Delivery| {
        reason.as_ref().is_none_or(|text| delivery.reason.as_ref().is_some_and(|why| why.contains(text)))
    };
    if limit > 0 {
        each_delivery(connection, &condition, parameters, |delivery| {
            if on_topic(&delivery) && for_reason(&delivery) {
                found.push(delivery);
            }
            found.len() < limit
        })?;
    }
    Ok(found)
}

fn attempts(connection: &Connection, number: u64) -> rusqlite::Result<Vec<Attempt>> {
    let sql = "SELECT consumer, attempt, begun_ms, ended_ms, reason FROM attempts WHERE number = ?1 \
               ORDER BY consumer, try";
    let number_at = |row: &rusqlite::Row<'_>, at: usize| row.get::<_, i64>(at).map(i64::unsigned_abs);
    connection
        .prepare_cached(sql)?
        .query_map([signed(number)], |row| {
            Ok(Attempt {
                consumer: row.get(0)?,
                attempt: number_at(row, 1)?.try_into().unwrap_or(u32::MAX),
                begun_ms: number_at(row, 2)?,
                ended_ms: number_at(row, 3)?,
                reason: row.get(4)?,
            })
        })?
        .collect()
}

fn statistics(connection: &Connection) -> rusqlite::Result<Statistics> {
    let totals = Totals::read(connection)?;
    let mut statistics = Statistics {
        open: totals.open,
        bytes: totals.bytes,
        finished: totals.finished,
        ..Statistics::default()
    };
    let mut states = connection.prepare_cached("SELECT state, count(*) FROM deliveries GROUP BY state")?;
    let mut rows = states.query([])?;
    while let Some(row) = rows.next()? {
        let state = DeliveryState::from_sql(row.get(0)?).as_str();
        statistics.deliveries.insert(state, row.get::<_, i64>(1)?.unsigned_abs());
    }
    let mut reasons = BTreeMap::new();
    for condition in ["d.state <= 1", "d.state = 3"] {
        each_delivery(connection, condition, [], |delivery| {
            let state = delivery.state.as_str();
            *statistics.consumers.entry(delivery.consumer).or_default().entry(state).or_default() += 1;
            *statistics.topics.entry(delivery.topic).or_default().entry(state).or_default() += 1;
            let oldest = statistics.oldest_ms.entry(state).or_insert(u64::MAX);
            *oldest = delivery.accepted_ms.min(*oldest);
            if let Some(reason) = delivery.reason {
                *reasons.entry((delivery.state, reason)).or_default() += 1;
            }
            true
        })?;
    }
    let counted = |((state, reason), deliveries)| ReasonCount { deliveries, state, reason };
    statistics.reasons = reasons.into_iter().map(counted).collect();
    statistics.reasons.sort_by(|some, more| more.cmp(some));
    Ok(statistics)
}

fn delivery(row: &rusqlite::Row<'_>) -> rusqlite::Result<Delivery> {
    let number = |at: usize| row.get::<_, i64>(at).map(i64::unsigned_abs);
    Ok(Delivery {
        number: number(0)?,
        consumer: row.get(1)?,
        state: DeliveryState::from_sql(row.get(2)?),
        attempts: number(3)?.try_into().unwrap_or(u32::MAX),
        due_ms: number(4)?,
        changed_ms: number(5)?,
        id: Uuid::from_slice(&row.get::<_, Vec<u8>>(6)?).unwrap_or_default(),
        topic: row.get(7)?,
        key: row.get(8)?,
        origin: row.get(9)?,
        accepted_ms: number(10)?,
        bytes: number(11)?,
        reason: row.get(12)?,
    })
}

/// What is kept, in a few numbers.
pub(super) struct Stand;

impl Work for Stand {
    type Output = Standing;

    fn apply(&self, site: &Site<'_>) -> Result<Standing, StoreError> {
        let stand = || {
            let totals = Book::open(site, now_ms())?.totals;
            let dead: i64 = site
                .connection
                .prepare_cached("SELECT count(*) FROM deliveries WHERE state = 3")?
                .query_row([], |row| row.get(0))?;
            // Of each consumer the first in order, from one consumer to the next by the index.
            let sql = "WITH RECURSIVE waiting (consumer) AS ( \
                           SELECT min(consumer) FROM deliveries WHERE state <= 1 \
                           UNION ALL \
                           SELECT (SELECT min(consumer) FROM deliveries WHERE state <= 1 AND consumer > waiting.consumer) \
                           FROM waiting WHERE waiting.consumer IS NOT NULL) \
                       SELECT consumer, (SELECT opened_ms FROM deliveries AS d WHERE d.consumer = waiting.consumer \
                           AND d.state <= 1 ORDER BY number LIMIT 1) AS since \
                       FROM waiting WHERE waiting.consumer IS NOT NULL ORDER BY since LIMIT 1";
            let oldest = site
                .connection
                .prepare_cached(sql)?
                .query_row([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
                .optional()?;
            let Totals { open, bytes, .. } = totals;
            Ok(Standing { open, bytes, dead: dead.unsigned_abs(), oldest })
        };
        stand().map_err(site.fail("counting what is kept"))
    }
}

/// What a person does to deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A dead letter begins anew, with no attempts counted; one that waits is due now.
    Retry,
    /// There is no further attempt, and it is no dead letter either.
    Drop,
}

/// An edit of these deliveries, by number and consumer, each only if it is still in the state in which somebody has seen it.
pub(super) struct Change {
    pub(super) edit: Edit,
    pub(super) deliveries: Vec<(u64, String, DeliveryState)>,
    /// Who does it.
    pub(super) by: String,
}

impl Work for Change {
    /// How many were changed.
    type Output = u64;

    fn apply(&self, site: &Site<'_>) -> Result<u64, StoreError> {
        self.change(site).map_err(site.fail("changing deliveries"))
    }
}

impl Change {
    fn change(&self, site: &Site<'_>) -> rusqlite::Result<u64> {
        let (connection, now) = (site.connection, now_ms());
        let mut book = Book::open(site, now)?;
        let (sql, what) = match self.edit {
            Edit::Retry => (
                "UPDATE deliveries SET opened_ms = iif(state = 3, ?3, opened_ms), attempts = iif(state = 3, 0, attempts), \
                 tries = tries + 1, state = 0, due_ms = 0, changed_ms = ?3 \
                 WHERE number = ?1 AND consumer = ?2 AND state = ?4 AND state IN (0, 3) RETURNING attempts, tries",
                "retried",
            ),
            Edit::Drop => (
                "UPDATE deliveries SET state = 4, tries = tries + 1, due_ms = 0, changed_ms = ?3 \
                 WHERE number = ?1 AND consumer = ?2 AND state = ?4 AND state IN (0, 1, 3) RETURNING attempts, tries",
                "dropped",
            ),
        };
        let reason = format!("{what} by {}", self.by);
        let mut changed = 0;
        for (number, consumer, state) in &self.deliveries {
            let (number, before) = (*number, book.phase(*number)?);
            let counts: Option<(i64, i64)> = connection
                .prepare_cached(sql)?
                .query_row(params![signed(number), consumer, signed(now), *state as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            let Some((attempt, tries)) = counts else { continue };
            let begun_ms = signed(now);
            book.write_down(&Failed { number, consumer, attempt, tries, begun_ms, reason: &reason })?;
            book.changed(number, before)?;
            changed += 1;
        }
        book.close().map(|()| changed)
    }
}
