-- Every bundle of policies that was in force, so that a past decision can be explained. Outside the log: the digest that
-- stands in each envelope is of these very bytes.
CREATE TABLE bundles (
    digest TEXT  PRIMARY KEY,
    text   BYTEA NOT NULL
);

CREATE TRIGGER bundles_kept BEFORE UPDATE ON bundles
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('bundles are never changed');
