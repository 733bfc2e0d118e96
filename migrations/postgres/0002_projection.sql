-- The projection: one row per attempt (and per fold), derived from the log and rebuildable from it. No foreign key and
-- no query joins it with the log. `row` is the attempt's row in `entries`. Ids are compared byte by byte.

CREATE TABLE changes (
    row            BIGINT  PRIMARY KEY,
    kind           TEXT    NOT NULL,
    idx            BIGINT  NOT NULL,
    id             TEXT    COLLATE "C" NOT NULL,
    at             BIGINT  NOT NULL,
    target         TEXT    COLLATE "C",
    seq            BIGINT,
    operation      TEXT,
    caller         TEXT,
    decision       TEXT    NOT NULL,
    would          TEXT,
    outcome        TEXT    NOT NULL,
    settled        TEXT,
    warned         BOOLEAN NOT NULL,
    rules          TEXT    NOT NULL,
    pointers       TEXT    NOT NULL,
    search         TEXT    NOT NULL,
    outcome_row    BIGINT,
    settlement_row BIGINT
);

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
    version BIGINT  NOT NULL
);
INSERT INTO projection VALUES (1, 1);
