-- The Merkle tree over each log, so that proofs need not read it whole, and what was signed of it.

-- Full tiles only: 256 hashes of one level each (C2SP tlog-tiles). Derived from the entries, and written with them.
CREATE TABLE tiles (
    origin TEXT     NOT NULL,
    level  SMALLINT NOT NULL,
    n      BIGINT   NOT NULL,
    hashes BYTEA    NOT NULL,
    PRIMARY KEY (origin, level, n),
    CHECK (length(hashes) = 8192)
);

CREATE TRIGGER tiles_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON tiles
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('tiles are never changed');

-- Signed heads, thinned out with age. `body` is what is signed, `signatures` are the lines under it: the log's own, and
-- those of witnesses, which come later.
CREATE TABLE checkpoints (
    origin     TEXT   NOT NULL,
    size       BIGINT NOT NULL,
    at         BIGINT NOT NULL,
    body       TEXT   NOT NULL,
    signatures TEXT   NOT NULL,
    PRIMARY KEY (origin, size)
);

-- Every key a log was signed with, and from which of its entries on.
CREATE TABLE log_keys (
    origin TEXT   NOT NULL,
    public TEXT   NOT NULL,
    since  BIGINT NOT NULL,
    PRIMARY KEY (origin, public)
);

INSERT INTO log_keys (origin, public, since) SELECT origin, value, 0 FROM log_meta WHERE key = 'public_key';

CREATE TRIGGER log_keys_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON log_keys
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('the keys of a log are never changed');
