-- Messages, in the order of their acceptance. A row never changes but for the time when it was finished.
CREATE TABLE entries (
    number      INTEGER PRIMARY KEY CHECK (number > 0),
    id          BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    topic       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    origin      TEXT    NOT NULL,
    accepted_ms INTEGER NOT NULL,
    -- Of header and payload.
    bytes       INTEGER NOT NULL CHECK (bytes >= 0),
    -- SHA-256 of the payload; and of that and the header.
    content     BLOB    NOT NULL CHECK (length(content) = 32),
    seal        BLOB    NOT NULL CHECK (length(seal) = 32),
    finished_ms INTEGER
) STRICT;

CREATE INDEX entries_finished ON entries (finished_ms) WHERE finished_ms IS NOT NULL;

-- What is sent; goes when the message is finished. Apart, so that nothing else is slower for its size.
CREATE TABLE bodies (
    number  INTEGER PRIMARY KEY REFERENCES entries (number) ON DELETE CASCADE,
    header  BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;

-- One message on its way to one consumer. State: 0 pending, 1 leased, 2 acknowledged, 3 dead, 4 dropped by a person.
CREATE TABLE deliveries (
    number     INTEGER NOT NULL REFERENCES entries (number) ON DELETE CASCADE,
    consumer   TEXT    NOT NULL,
    state      INTEGER NOT NULL CHECK (state BETWEEN 0 AND 4),
    -- Attempts begun since it was accepted or retried by hand; and all of them.
    attempts   INTEGER NOT NULL CHECK (attempts >= 0),
    tries      INTEGER NOT NULL CHECK (tries >= attempts),
    due_ms     INTEGER NOT NULL,
    -- When it was accepted or retried by hand; and when its state changed last.
    opened_ms  INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (number, consumer)
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_open ON deliveries (consumer, number) WHERE state <= 1;
CREATE INDEX deliveries_dead ON deliveries (consumer, number) WHERE state = 3;

-- Attempts that failed.
CREATE TABLE attempts (
    number   INTEGER NOT NULL,
    consumer TEXT    NOT NULL,
    -- Counts all of this delivery; `attempt` begins anew when it is retried by hand.
    try      INTEGER NOT NULL CHECK (try >= 0),
    attempt  INTEGER NOT NULL,
    begun_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    PRIMARY KEY (number, consumer, try),
    FOREIGN KEY (number, consumer) REFERENCES deliveries (number, consumer) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- One row: what the limits are judged by, changed together with what it counts.
CREATE TABLE totals (
    only_one    INTEGER PRIMARY KEY CHECK (only_one = 1),
    next_number INTEGER NOT NULL CHECK (next_number > 0),
    -- Messages with a delivery that is pending or leased.
    open        INTEGER NOT NULL CHECK (open >= 0),
    -- Bytes of all that are not finished.
    bytes       INTEGER NOT NULL CHECK (bytes >= 0),
    -- Messages that are finished and still remembered.
    finished    INTEGER NOT NULL CHECK (finished >= 0)
) STRICT;
INSERT INTO totals VALUES (1, 1, 0, 0, 0);
