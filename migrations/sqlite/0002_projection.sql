-- The projection: one row per attempt (and per fold), derived from the log and rebuildable from it. No foreign key and
-- no query joins it with the log. `row` is the attempt's row in `entries`.

CREATE TABLE changes (
    row            INTEGER PRIMARY KEY,
    kind           TEXT    NOT NULL,
    idx            INTEGER NOT NULL,
    id             TEXT    NOT NULL,
    at             INTEGER NOT NULL,
    target         TEXT,
    seq            INTEGER,
    operation      TEXT,
    caller         TEXT,
    decision       TEXT    NOT NULL,
    would          TEXT,
    outcome        TEXT    NOT NULL,
    settled        TEXT,
    warned         INTEGER NOT NULL,
    rules          TEXT    NOT NULL,
    pointers       TEXT    NOT NULL,
    search         TEXT    NOT NULL,
    outcome_row    INTEGER,
    settlement_row INTEGER
) STRICT;

-- `show` and the answer's header name a change by its id.
CREATE UNIQUE INDEX changes_id ON changes (id);
-- History is ordered by time; every other filter walks this order.
CREATE INDEX changes_at ON changes (at, id);
-- The history of one identity.
CREATE INDEX changes_target ON changes (target, at, id) WHERE target IS NOT NULL;
-- Recovery looks for intents without outcome: almost always none.
CREATE INDEX changes_pending ON changes (row) WHERE outcome = 'pending';

CREATE TABLE projection (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO projection VALUES (1, 1);

PRAGMA user_version = 2;
