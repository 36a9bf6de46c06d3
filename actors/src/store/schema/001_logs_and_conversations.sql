-- Log records. `seq` is the order of arrival and is never used twice, so that a reader can follow it.
CREATE TABLE logs (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    time_ns      INTEGER NOT NULL CHECK (time_ns >= 0),
    level        INTEGER NOT NULL CHECK (level BETWEEN 1 AND 5),
    target       TEXT    NOT NULL,
    component    TEXT    NOT NULL,
    process      INTEGER NOT NULL,
    incarnation  INTEGER NOT NULL,
    message      TEXT    NOT NULL,
    fields       TEXT    NOT NULL DEFAULT '[]',
    spans        TEXT    NOT NULL DEFAULT '[]',
    file         TEXT,
    line         INTEGER,
    trace_id     TEXT,
    conversation TEXT,
    origin       TEXT
) STRICT;

CREATE INDEX logs_by_time ON logs (time_ns);
CREATE INDEX logs_that_matter ON logs (time_ns, level) WHERE level >= 4;
CREATE INDEX logs_by_conversation ON logs (conversation, time_ns) WHERE conversation IS NOT NULL;

CREATE TABLE conversations (
    id         TEXT    PRIMARY KEY NOT NULL CHECK (length(id) BETWEEN 1 AND 128),
    title      TEXT    NOT NULL DEFAULT '',
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX conversations_by_use ON conversations (updated_ns);

-- Messages of a conversation in the order in which they were said.
CREATE TABLE messages (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    conversation TEXT    NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    turn         TEXT    NOT NULL,
    role         TEXT    NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
    state        TEXT    NOT NULL CHECK (state IN ('complete', 'failed', 'cancelled')),
    text         TEXT    NOT NULL,
    time_ns      INTEGER NOT NULL
) STRICT;

CREATE INDEX messages_by_conversation ON messages (conversation, seq);
