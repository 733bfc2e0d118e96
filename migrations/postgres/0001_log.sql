-- The log: format for ever. What is here may be added to by later migrations, never changed.
-- Bytes are `bytea` and never `jsonb`, which reorders members and refuses \u0000. The tables belong to an owner role;
-- the role a gateway connects as may add entries and never change or remove one (`patchwarden store grants`).

-- One row per constant of a log: its keys and its times.
CREATE TABLE log_meta (
    origin TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (origin, key),
    CHECK (key <> 'pruned_below' OR value ~ '^[0-9]{1,18}$')
);

-- Entries are appended and never changed. `envelope` is the Merkle leaf, byte for byte.
CREATE TABLE entries (
    row       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin    TEXT   NOT NULL,
    idx       BIGINT NOT NULL,
    kind      TEXT   NOT NULL,
    of_origin TEXT,
    of_idx    BIGINT,
    envelope  BYTEA  NOT NULL,
    UNIQUE (origin, idx),
    CHECK ((of_origin IS NULL) = (of_idx IS NULL)),
    CHECK (kind NOT IN ('outcome', 'settlement') OR of_idx IS NOT NULL)
);

-- An intent has at most one outcome and at most one settlement.
CREATE UNIQUE INDEX entries_of ON entries (of_origin, of_idx, kind) WHERE kind IN ('outcome', 'settlement');

-- What an entry says, with its salt; retention may take it away, the envelope keeps its digest.
CREATE TABLE payloads (
    row  BIGINT PRIMARY KEY,
    salt BYTEA NOT NULL,
    body BYTEA NOT NULL
);

CREATE TABLE log_head (
    origin   TEXT   PRIMARY KEY,
    size     BIGINT NOT NULL,
    frontier BYTEA  NOT NULL,
    epoch    BIGINT NOT NULL
);

-- The lock of each target, its newest revision, and the order of its changes.
CREATE TABLE targets (
    key          TEXT    PRIMARY KEY,
    seq          BIGINT  NOT NULL,
    turn         BIGINT  NOT NULL,
    open_origin  TEXT,
    open_idx     BIGINT,
    open_since   BIGINT,
    open_unknown BOOLEAN NOT NULL DEFAULT FALSE,
    revision     TEXT
);

CREATE FUNCTION patchwarden_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE FUNCTION patchwarden_next_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.idx <> COALESCE((SELECT MAX(idx) + 1 FROM entries WHERE origin = NEW.origin), 0)
       OR (NEW.of_origin = NEW.origin AND NEW.of_idx >= NEW.idx) THEN
        RAISE EXCEPTION 'entries are appended, one after the other' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION patchwarden_new_payload() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM entries e WHERE e.row = NEW.row AND e.idx >= COALESCE(
            (SELECT value::bigint FROM log_meta m WHERE m.origin = e.origin AND m.key = 'pruned_below'), 0)) THEN
        RAISE EXCEPTION 'a payload belongs to one entry and is written once'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION patchwarden_old_payload() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM entries e JOIN log_meta m ON m.origin = e.origin AND m.key = 'pruned_below'
        WHERE e.row = OLD.row AND e.idx < m.value::bigint) THEN
        RAISE EXCEPTION 'payloads are removed only by retention' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END $$;

CREATE FUNCTION patchwarden_head_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.origin <> OLD.origin OR NEW.size < OLD.size OR NEW.epoch < OLD.epoch THEN
        RAISE EXCEPTION 'a log only grows' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER entries_next BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION patchwarden_next_entry();
CREATE TRIGGER entries_kept BEFORE UPDATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('entries are never changed');
CREATE TRIGGER entries_stay BEFORE DELETE OR TRUNCATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('entries are never removed');

CREATE TRIGGER payloads_once BEFORE INSERT ON payloads FOR EACH ROW EXECUTE FUNCTION patchwarden_new_payload();
CREATE TRIGGER payloads_kept BEFORE UPDATE OR TRUNCATE ON payloads
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('payloads are never changed');
CREATE TRIGGER payloads_stay BEFORE DELETE ON payloads FOR EACH ROW EXECUTE FUNCTION patchwarden_old_payload();

CREATE TRIGGER log_head_grows BEFORE UPDATE ON log_head FOR EACH ROW EXECUTE FUNCTION patchwarden_head_grows();
CREATE TRIGGER log_head_stays BEFORE DELETE OR TRUNCATE ON log_head
FOR EACH STATEMENT EXECUTE FUNCTION patchwarden_refuse('a log only grows');

-- Outside the log: who may use the admin listener.
CREATE TABLE admin_tokens (
    name       TEXT   PRIMARY KEY,
    role       TEXT   NOT NULL CHECK (role IN ('reader', 'operator')),
    hash       TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);
