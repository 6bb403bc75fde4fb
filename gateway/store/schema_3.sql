-- Lockdowns: what nobody gets through until it is lifted. A lifted one stays
-- for the list of what was.
CREATE TABLE lockdowns (
  id        TEXT   PRIMARY KEY,
  scope     TEXT   NOT NULL CHECK (scope IN ('all', 'app', 'subject', 'device', 'site')),
  value     TEXT   NOT NULL,
  reason    TEXT   NOT NULL,
  set_by    TEXT   NOT NULL,
  set_at    BIGINT NOT NULL,
  lifted_by TEXT   NOT NULL DEFAULT '',
  lifted_at BIGINT
);
