-- The log: format for ever. What is here may be added to by later migrations, never changed.

PRAGMA application_id = 1347898439; -- "PWLG"
PRAGMA user_version = 1;

-- One row per log this file holds: its keys and constants.
CREATE TABLE log_meta (
    origin TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  ANY  NOT NULL,
    PRIMARY KEY (origin, key),
    CHECK (key <> 'pruned_below' OR typeof(value) = 'integer')
) STRICT, WITHOUT ROWID;

-- Entries are appended and never changed. `envelope` is the Merkle leaf, byte for byte.
CREATE TABLE entries (
    row       INTEGER PRIMARY KEY,
    origin    TEXT    NOT NULL,
    idx       INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    of_origin TEXT,
    of_idx    INTEGER,
    envelope  BLOB    NOT NULL,
    UNIQUE (origin, idx),
    CHECK ((of_origin IS NULL) = (of_idx IS NULL)),
    CHECK (kind NOT IN ('outcome', 'settlement') OR of_idx IS NOT NULL)
) STRICT;

-- An intent has at most one outcome and at most one settlement.
CREATE UNIQUE INDEX entries_of ON entries (of_origin, of_idx, kind) WHERE kind IN ('outcome', 'settlement');

-- What an entry says, with its salt; retention may take it away, the envelope keeps its digest.
CREATE TABLE payloads (
    row  INTEGER PRIMARY KEY,
    salt BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE log_head (
    origin   TEXT PRIMARY KEY,
    size     INTEGER NOT NULL,
    frontier BLOB    NOT NULL,
    epoch    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The lock of each target, its newest revision, and the order of its changes.
CREATE TABLE targets (
    key          TEXT PRIMARY KEY,
    seq          INTEGER NOT NULL,
    turn         INTEGER NOT NULL,
    open_origin  TEXT,
    open_idx     INTEGER,
    open_since   INTEGER,
    open_unknown INTEGER NOT NULL DEFAULT 0,
    revision     TEXT
) STRICT, WITHOUT ROWID;

-- REPLACE passes plain UPDATE and DELETE triggers, so the INSERT triggers look for what would be replaced.
CREATE TRIGGER entries_next BEFORE INSERT ON entries
WHEN NEW.idx <> COALESCE((SELECT MAX(idx) + 1 FROM entries WHERE origin = NEW.origin), 0)
  OR NEW.row <= COALESCE((SELECT MAX(row) FROM entries), 0)
  OR (NEW.of_origin = NEW.origin AND NEW.of_idx >= NEW.idx)
  OR (NEW.kind IN ('outcome', 'settlement') AND EXISTS (
        SELECT 1 FROM entries
        WHERE of_origin = NEW.of_origin AND of_idx = NEW.of_idx AND kind = NEW.kind
          AND kind IN ('outcome', 'settlement')))
BEGIN SELECT RAISE(ABORT, 'entries are appended, one after the other'); END;

CREATE TRIGGER entries_kept BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;

CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;

CREATE TRIGGER payloads_once BEFORE INSERT ON payloads
WHEN EXISTS (SELECT 1 FROM payloads WHERE row = NEW.row)
  OR NOT EXISTS (
    SELECT 1 FROM entries e WHERE e.row = NEW.row AND e.idx >= COALESCE(
        (SELECT value FROM log_meta m WHERE m.origin = e.origin AND m.key = 'pruned_below'), 0))
BEGIN SELECT RAISE(ABORT, 'a payload belongs to one entry and is written once'); END;

CREATE TRIGGER payloads_kept BEFORE UPDATE ON payloads
BEGIN SELECT RAISE(ABORT, 'payloads are never changed'); END;

CREATE TRIGGER payloads_stay BEFORE DELETE ON payloads
WHEN NOT EXISTS (
    SELECT 1 FROM entries e JOIN log_meta m ON m.origin = e.origin AND m.key = 'pruned_below'
    WHERE e.row = OLD.row AND e.idx < m.value)
BEGIN SELECT RAISE(ABORT, 'payloads are removed only by retention'); END;

CREATE TRIGGER log_head_once BEFORE INSERT ON log_head
WHEN EXISTS (SELECT 1 FROM log_head WHERE origin = NEW.origin)
BEGIN SELECT RAISE(ABORT, 'a log begins once'); END;

CREATE TRIGGER log_head_grows BEFORE UPDATE ON log_head
WHEN NEW.origin <> OLD.origin OR NEW.size < OLD.size OR NEW.epoch < OLD.epoch
BEGIN SELECT RAISE(ABORT, 'a log only grows'); END;

CREATE TRIGGER log_head_stays BEFORE DELETE ON log_head
BEGIN SELECT RAISE(ABORT, 'a log only grows'); END;

-- Outside the log: who may use the admin listener.
CREATE TABLE admin_tokens (
    name       TEXT PRIMARY KEY,
    role       TEXT    NOT NULL CHECK (role IN ('reader', 'operator')),
    hash       TEXT    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
