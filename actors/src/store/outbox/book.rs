//! What each message has come to, and the totals that the limits are judged by.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::{
    logs::signed,
    writer::{Sheet, Site},
};

/// Where a delivery is. Exactly one of these, at every instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// Waits for its next attempt.
    Pending,
    /// An attempt is under way, or was when the sender ended.
    Leased,
    /// The consumer has acknowledged it.
    Acknowledged,
    /// There will be no further attempt unless somebody asks for one.
    Dead,
    /// Somebody has given it up.
    Dropped,
}

impl DeliveryState {
    /// All of them, in the order of their numbers in the database.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Leased, Self::Acknowledged, Self::Dead, Self::Dropped];

    /// As the tool writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Leased => "leased",
            Self::Acknowledged => "acknowledged",
            Self::Dead => "dead",
            Self::Dropped => "dropped",
        }
    }

    pub(super) fn from_sql(number: i64) -> Self {
        // The schema allows no other number.
        usize::try_from(number).ok().and_then(|number| Self::ALL.get(number)).copied().unwrap_or(Self::Dead)
    }
}

/// What a message has come to, by its deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Some of them are pending or leased.
    Open,
    /// None of them is, and some are dead.
    Dead,
    /// All were acknowledged or dropped.
    Finished,
}

/// The totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The number of the next message.
    pub(super) next_number: u64,
    /// Messages that are open.
    pub(super) open: u64,
    /// Bytes of messages that are not finished.
    pub(super) bytes: u64,
    /// Messages that are finished and still remembered.
    pub(super) finished: u64,
}

impl Totals {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection
            .prepare_cached("SELECT next_number, open, bytes, finished FROM totals")?
            .query_row([], Self::from_row)
    }

    /// As they should be. Looks at every message, without what it says.
    pub(super) fn count(connection: &Connection) -> rusqlite::Result<Self> {
        connection.query_row(
            "SELECT max((SELECT next_number FROM totals), (SELECT coalesce(max(number), 0) + 1 FROM entries)), \
             (SELECT count(DISTINCT number) FROM deliveries WHERE state <= 1), \
             (SELECT coalesce(sum(bytes), 0) FROM entries WHERE finished_ms IS NULL), \
             (SELECT count(*) FROM entries WHERE finished_ms IS NOT NULL)",
            [],
            Self::from_row,
        )
    }

    fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let number = |at: usize| row.get::<_, i64>(at).map(|number| u64::try_from(number).unwrap_or(0));
        Ok(Self { next_number: number(0)?, open: number(1)?, bytes: number(2)?, finished: number(3)? })
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { next_number, open, bytes, finished } = *self;
        connection
            .prepare_cached("UPDATE totals SET next_number = ?1, open = ?2, bytes = ?3, finished = ?4")?
            .execute(params![signed(next_number), signed(open), signed(bytes), signed(finished)])
            .map(drop)
    }
}

/// The totals during a transaction that changes them.
pub(super) struct Book<'a> {
    site: &'a Site<'a>,
    connection: &'a Connection,
    pub(super) totals: Totals,
    now_ms: u64,
}

/// What the steps of one transaction share.
struct Page {
    totals: Totals,
    is_changed: bool,
    /// Bytes of the disk that are free, once somebody has asked.
    free: Option<u64>,
}

impl Page {
    fn begin(connection: &Connection) -> rusqlite::Result<Self> {
        Ok(Self { totals: Totals::read(connection)?, is_changed: false, free: None })
    }
}

impl Sheet for Page {
    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        if self.is_changed { self.totals.write(connection) } else { Ok(()) }
    }
}

impl<'a> Book<'a> {
    pub(super) fn open(site: &'a Site<'a>, now_ms: u64) -> rusqlite::Result<Self> {
        let totals = site.with_sheet(Page::begin, |page| page.totals)?;
        Ok(Self { site, connection: site.connection, totals, now_ms })
    }

    /// Bytes of the disk that are free: as of the beginning of this transaction.
    pub(super) fn free_bytes(&self, look: impl FnOnce() -> u64) -> rusqlite::Result<u64> {
        self.site.with_sheet(Page::begin, |page| *page.free.get_or_insert_with(look))
    }

    /// What a message has come to.
    pub(super) fn phase(&self, number: u64) -> rusqlite::Result<Phase> {
        let sql = "SELECT coalesce(max(state <= 1), 0), coalesce(max(state = 3), 0) FROM deliveries WHERE number = ?1";
        self.connection.prepare_cached(sql)?.query_row([signed(number)], |row| {
            Ok(match (row.get(0)?, row.get(1)?) {
                (true, _) => Phase::Open,
                (false, true) => Phase::Dead,
                (false, false) => Phase::Finished,
            })
        })
    }

    /// Does what has to be done after deliveries of a message have changed their state, `before` which it was this.
    /// When it is finished, what it said goes.
    pub(super) fn changed(&mut self, number: u64, before: Phase) -> rusqlite::Result<()> {
        let after = self.phase(number)?;
        if before == after {
            return Ok(());
        }
        if before == Phase::Open {
            self.totals.open = self.totals.open.saturating_sub(1);
        }
        if after == Phase::Open {
            self.totals.open += 1;
        }
        if after == Phase::Finished {
            let bytes: Option<i64> = self
                .connection
                .prepare_cached("UPDATE entries SET finished_ms = ?2 WHERE number = ?1 RETURNING bytes")?
                .query_row([signed(number), signed(self.now_ms)], |row| row.get(0))
                .optional()?;
            self.connection
                .prepare_cached("DELETE FROM bodies WHERE number = ?1")?
                .execute([signed(number)])?;
            self.totals.bytes =
                self.totals.bytes.saturating_sub(bytes.map_or(0, |bytes| bytes.unsigned_abs()));
            self.totals.finished += 1;
        }
        Ok(())
    }

    /// Makes a delivery that is open a dead letter, and writes down why. Nothing happens to one that is not open.
    pub(super) fn bury(&mut self, number: u64, consumer: &str, reason: &str) -> rusqlite::Result<bool> {
        let before = self.phase(number)?;
        // A line of its own among the attempts: what was written of them stays.
        let sql = "UPDATE deliveries SET state = 3, tries = tries + 1, changed_ms = ?3 \
                   WHERE number = ?1 AND consumer = ?2 AND state <= 1 RETURNING attempts, tries";
        let counts: Option<(i64, i64)> = self
            .connection
            .prepare_cached(sql)?
            .query_row(params![signed(number), consumer, signed(self.now_ms)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((attempt, tries)) = counts else { return Ok(false) };
        let failed = Failed { number, consumer, attempt, tries, begun_ms: signed(self.now_ms), reason };
        self.write_down(&failed)?;
        self.changed(number, before)?;
        Ok(true)
    }

    /// Writes down a failed attempt, or what else made an end of it, and forgets those of long ago.
    pub(super) fn write_down(&self, failed: &Failed<'_>) -> rusqlite::Result<()> {
        let Failed { number, consumer, attempt, tries, begun_ms, reason } = *failed;
        let reason: String = reason.chars().take(super::limits::REASON_CHARS_MAX).collect();
        let sql = "INSERT INTO attempts (number, consumer, try, attempt, begun_ms, ended_ms, reason) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let now = signed(self.now_ms);
        self.connection.prepare_cached(sql)?.execute(params![
            signed(number),
            consumer,
            tries,
            attempt,
            begun_ms,
            now,
            reason
        ])?;
        self.connection
            .prepare_cached("DELETE FROM attempts WHERE number = ?1 AND consumer = ?2 AND try <= ?3")?
            .execute(params![signed(number), consumer, tries - super::limits::ATTEMPTS_KEPT])
            .map(drop)
    }

    /// Hands the totals on, to the next step of this transaction or to the database.
    pub(super) fn close(self) -> rusqlite::Result<()> {
        self.site.with_sheet(Page::begin, |page| {
            page.is_changed |= page.totals != self.totals;
            page.totals = self.totals;
        })
    }
}

/// An attempt that failed.
pub(super) struct Failed<'a> {
    pub(super) number: u64,
    pub(super) consumer: &'a str,
    pub(super) attempt: i64,
    pub(super) tries: i64,
    pub(super) begun_ms: i64,
    pub(super) reason: &'a str,
}
