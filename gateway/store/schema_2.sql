-- What a restarted gateway has to know of a device's tunnel: when its last
-- handshake was complete, and the newest handshake initiation it accepted (148
-- bytes; no older one may follow it).
ALTER TABLE registrations ADD COLUMN handshake_at BIGINT;
ALTER TABLE registrations ADD COLUMN initiation BLOB;
