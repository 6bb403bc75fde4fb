-- Acts that need a second administrator.
CREATE TABLE acts (
  id           TEXT   PRIMARY KEY,
  kind         TEXT   NOT NULL,
  target       TEXT   NOT NULL,
  reason       TEXT   NOT NULL,
  requested_by TEXT   NOT NULL,
  requested_at BIGINT NOT NULL,
  expires_at   BIGINT NOT NULL,
  outcome      TEXT   NOT NULL DEFAULT '', -- empty: undecided
  decided_by   TEXT   NOT NULL DEFAULT '',
  decided_at   BIGINT,
  CHECK ((outcome = '') = (decided_at IS NULL))
);
