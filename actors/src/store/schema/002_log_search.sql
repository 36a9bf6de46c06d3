-- Which run of its process raised a record, and its place in what that run has raised.
ALTER TABLE logs ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE logs ADD COLUMN number INTEGER NOT NULL DEFAULT 0;

-- One full text index answers for time, level, component, target, field, trace, conversation and text, also
-- together; what these indexes did it does, and they cost each insert.
DROP INDEX logs_by_time;
DROP INDEX logs_that_matter;
DROP INDEX logs_by_conversation;

-- What stands in each block of 1024 numbers, as far as it is indexed: how far a search by time must look, what is
-- stored of whom, and how large it is.
CREATE TABLE log_blocks (
    block     INTEGER PRIMARY KEY,
    rows      INTEGER NOT NULL CHECK (rows > 0),
    bytes     INTEGER NOT NULL CHECK (bytes > 0),
    oldest_ns INTEGER NOT NULL,
    newest_ns INTEGER NOT NULL CHECK (newest_ns >= oldest_ns),
    -- JSON: component to the number of records of each level, trace first.
    counts    TEXT    NOT NULL
) STRICT;

-- The blocks that each part of the index in use is about.
CREATE TABLE log_parts (
    part        INTEGER PRIMARY KEY CHECK (part BETWEEN 0 AND 7),
    first_block INTEGER NOT NULL,
    last_block  INTEGER NOT NULL CHECK (last_block >= first_block),
    -- Whether it was made anew after most of its records had been deleted by hand.
    rebuilt     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row: up to which `seq` records are indexed, and what has been deleted in all, by reason.
CREATE TABLE log_totals (
    only_one     INTEGER PRIMARY KEY CHECK (only_one = 1),
    indexed_to   INTEGER NOT NULL,
    deleted_to   INTEGER NOT NULL,
    by_age       INTEGER NOT NULL,
    by_rows      INTEGER NOT NULL,
    by_bytes     INTEGER NOT NULL,
    by_hand      INTEGER NOT NULL
) STRICT;
INSERT INTO log_totals VALUES (1, 0, 0, 0, 0, 0, 0);

-- The parts of the index, used in turn: the rows of a part are deleted from it all at once, when the last of its
-- records is gone. Terms are made by the program (logs/terms.rs), separated by spaces.
CREATE VIRTUAL TABLE log_terms_0 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_1 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_2 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_3 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_4 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_5 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_6 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE log_terms_7 USING fts5(terms, content='', columnsize=0, tokenize="ascii tokenchars '_'");
