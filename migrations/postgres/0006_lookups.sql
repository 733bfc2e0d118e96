-- What a start and a settlement look for, in a store of any size. Few rows are in either index.
CREATE INDEX entries_lifecycle ON entries (origin, idx) WHERE kind = 'lifecycle';
CREATE INDEX targets_held ON targets (open_since) WHERE open_unknown;
