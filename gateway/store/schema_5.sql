-- The ID of the identity provider's own session in which a login was made, for
-- its back-channel logout; empty when the provider gave none.
ALTER TABLE sessions ADD COLUMN sid TEXT NOT NULL DEFAULT '';
