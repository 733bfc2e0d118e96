-- Every bundle of policies that was in force, so that a past decision can be explained. Outside the log: the digest that
-- stands in each envelope is of these very bytes.
CREATE TABLE bundles (
    digest TEXT PRIMARY KEY,
    text   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER bundles_kept BEFORE UPDATE ON bundles
BEGIN SELECT RAISE(ABORT, 'bundles are never changed'); END;

PRAGMA user_version = 3;
