-- Several logs in one store: the projection names the log of each change. (Who may append to a log in an SQLite file is
-- settled by its lock file, so there are no leases here.)
ALTER TABLE changes ADD COLUMN origin TEXT NOT NULL DEFAULT '';

PRAGMA user_version = 4;
