-- Times are nanoseconds since 1970 UTC; NULL means it has not happened.
-- Nothing but registrations is ever deleted, so that no address, device key
-- or code comes back for another owner.

CREATE TABLE addresses (
  number     BIGINT PRIMARY KEY,        -- host number in both pools
  owner_kind TEXT   NOT NULL CHECK (owner_kind IN ('app', 'device')),
  owner      TEXT   NOT NULL,           -- app name or device id
  UNIQUE (owner_kind, owner)
);

CREATE TABLE devices (
  id             TEXT   PRIMARY KEY,
  name           TEXT   NOT NULL,
  serial         TEXT   NOT NULL,
  os             TEXT   NOT NULL,
  arch           TEXT   NOT NULL,
  key_tier       TEXT   NOT NULL,
  key_hash       BLOB   NOT NULL UNIQUE, -- SHA-256 of the SubjectPublicKeyInfo
  public_key     BLOB,                   -- that SubjectPublicKeyInfo itself, DER
  number         BIGINT NOT NULL UNIQUE REFERENCES addresses (number),
  enrolled_at    BIGINT NOT NULL,
  last_seen      BIGINT NOT NULL,
  revoked_at     BIGINT,
  revoked_reason TEXT   NOT NULL DEFAULT '',
  revoked_by     TEXT   NOT NULL DEFAULT ''
);

CREATE TABLE invites (
  secret_hash BLOB   PRIMARY KEY,       -- SHA-256; the secret itself is nowhere
  name        TEXT   NOT NULL,
  serial      TEXT   NOT NULL,
  created_by  TEXT   NOT NULL,
  created_at  BIGINT NOT NULL,
  expires_at  BIGINT NOT NULL,
  used_at     BIGINT,
  device_id   TEXT   UNIQUE REFERENCES devices (id),
  CHECK ((used_at IS NULL) = (device_id IS NULL))
);

CREATE TABLE registrations (
  device_id     TEXT    PRIMARY KEY REFERENCES devices (id),
  tunnel_key    BLOB    NOT NULL UNIQUE,
  psk_sealed    BLOB    NOT NULL,
  token_hash    BLOB    NOT NULL,
  boot_id       TEXT    NOT NULL,
  agent_version TEXT    NOT NULL,
  post_quantum  BOOLEAN NOT NULL,
  endpoint      TEXT    NOT NULL DEFAULT '', -- outer address and port, last seen
  created_at    BIGINT  NOT NULL,
  expires_at    BIGINT  NOT NULL
);

CREATE TABLE sessions (
  id         TEXT   PRIMARY KEY,
  device_id  TEXT   NOT NULL REFERENCES devices (id),
  os_user    TEXT   NOT NULL,
  subject    TEXT   NOT NULL,           -- JSON of policy.Subject
  boot_id    TEXT   NOT NULL,
  started_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  last_seen  BIGINT NOT NULL,
  ended_at   BIGINT,
  end_reason TEXT   NOT NULL DEFAULT '',
  ended_by   TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX sessions_device ON sessions (device_id);
CREATE UNIQUE INDEX sessions_one_open ON sessions (device_id) WHERE ended_at IS NULL;
