-- What a start, a settlement and a list of what the gateways did look for, in a store of any size.
CREATE INDEX entries_of_gateways ON entries (kind, row) WHERE kind IN ('lifecycle', 'access');
CREATE INDEX targets_held ON targets (open_since) WHERE open_unknown = 1;

PRAGMA user_version = 6;
