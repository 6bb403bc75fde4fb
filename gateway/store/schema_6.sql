-- What the app of a lockdown is known by besides its name (a JSON list), so that
-- the lockdown follows it to another name; empty for other scopes.
ALTER TABLE lockdowns ADD COLUMN marks TEXT NOT NULL DEFAULT '';
