-- The Merkle tree over each log, so that proofs need not read it whole, and what was signed of it.

-- Full tiles only: 256 hashes of one level each (C2SP tlog-tiles). Derived from the entries, and written with them.
CREATE TABLE tiles (
    origin TEXT    NOT NULL,
    level  INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    hashes BLOB    NOT NULL,
    UNIQUE (origin, level, n),
    CHECK (length(hashes) = 8192)
) STRICT;

CREATE TRIGGER tiles_once BEFORE INSERT ON tiles
WHEN EXISTS (SELECT 1 FROM tiles WHERE origin = NEW.origin AND level = NEW.level AND n = NEW.n)
BEGIN SELECT RAISE(ABORT, 'a tile is written once'); END;

CREATE TRIGGER tiles_kept BEFORE UPDATE ON tiles
BEGIN SELECT RAISE(ABORT, 'tiles are never changed'); END;

CREATE TRIGGER tiles_stay BEFORE DELETE ON tiles
BEGIN SELECT RAISE(ABORT, 'tiles are never removed'); END;

-- Signed heads, thinned out with age. `body` is what is signed, `signatures` are the lines under it: the log's own, and
-- those of witnesses, which come later.
CREATE TABLE checkpoints (
    origin     TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    signatures TEXT    NOT NULL,
    PRIMARY KEY (origin, size)
) STRICT, WITHOUT ROWID;

-- Every key a log was signed with, and from which of its entries on.
CREATE TABLE log_keys (
    origin TEXT    NOT NULL,
    public TEXT    NOT NULL,
    since  INTEGER NOT NULL,
    PRIMARY KEY (origin, public)
) STRICT, WITHOUT ROWID;

INSERT INTO log_keys (origin, public, since) SELECT origin, value, 0 FROM log_meta WHERE key = 'public_key';

CREATE TRIGGER log_keys_kept BEFORE UPDATE ON log_keys
BEGIN SELECT RAISE(ABORT, 'the keys of a log are never changed'); END;

CREATE TRIGGER log_keys_stay BEFORE DELETE ON log_keys
BEGIN SELECT RAISE(ABORT, 'the keys of a log are never removed'); END;

PRAGMA user_version = 5;
