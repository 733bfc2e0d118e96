-- Several logs in one store. The projection names the log of each change; the head says which process appends to it and
-- until when, by this database's clock, that one may be taken to be alive (microseconds since 1970).
ALTER TABLE changes ADD COLUMN origin TEXT NOT NULL DEFAULT '';
ALTER TABLE log_head ADD COLUMN leased_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE log_head ADD COLUMN holder TEXT NOT NULL DEFAULT '';

CREATE FUNCTION patchwarden_now() RETURNS BIGINT LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;
