"""Storages in versions, FTS servers, restrictions, credentials, and the record of who changed what."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STORAGES = """
CREATE TABLE storage (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site      text NOT NULL REFERENCES site ON DELETE CASCADE,
    kind      text NOT NULL CHECK (kind IN ('prefix', 'tfc', 'storage.json', 'rucio')),
    body      jsonb NOT NULL,
    digest    text NOT NULL,
    origin    text NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    loaded_by text NOT NULL
);
CREATE INDEX storage_of_site ON storage (site, id);
COMMENT ON TABLE storage IS
    'Every version of a site''s own description of its names (core.storages). Rows never change.';

INSERT INTO storage (site, kind, body, digest, origin, loaded_at, loaded_by)
SELECT name, 'prefix', jsonb_build_object('site', name, 'kind', 'prefix', 'protocols', jsonb_build_array(
        jsonb_build_object('name', split_part(pfn_prefix, ':', 1), 'prefix', rtrim(pfn_prefix, '/'),
            'read', 1, 'write', 1))),
    md5(pfn_prefix), 'pfn_prefix', updated_at, updated_by
FROM site;

ALTER TABLE site ADD COLUMN storage_id bigint REFERENCES storage;
UPDATE site s SET storage_id = v.id FROM storage v WHERE v.site = s.name;

ALTER TABLE fts_job
    ADD COLUMN source_storage bigint REFERENCES storage,
    ADD COLUMN destination_storage bigint REFERENCES storage,
    ADD COLUMN source_protocol text,
    ADD COLUMN destination_protocol text,
    ADD COLUMN poster bigint;
COMMENT ON COLUMN fts_job.poster IS
    'Step run that POSTs, or may have POSTed, the job first; NULL: nobody told FTS about it.';
UPDATE fts_job j SET
    source_storage = s.storage_id, source_protocol = split_part(s.pfn_prefix, ':', 1),
    destination_storage = d.storage_id, destination_protocol = split_part(d.pfn_prefix, ':', 1),
    poster = 0
FROM site s, site d WHERE s.name = j.source AND d.name = j.destination;
ALTER TABLE fts_job
    ALTER COLUMN source_storage SET NOT NULL, ALTER COLUMN destination_storage SET NOT NULL,
    ALTER COLUMN source_protocol SET NOT NULL, ALTER COLUMN destination_protocol SET NOT NULL;

ALTER TABLE site DROP COLUMN pfn_prefix;
COMMENT ON TABLE site IS 'Sites as requests name them, each with the version of its storage that counts.';

CREATE TABLE site_source (
    location   text PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('siteconf', 'storage.json', 'tfc', 'rucio')),
    site       text,
    is_active  boolean NOT NULL DEFAULT true,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);
COMMENT ON TABLE site_source IS
    'Where descriptions come from: file, folder in SITECONF form, URL, Rucio. A TFC does not say its site.';

CREATE TABLE site_load (
    location  text NOT NULL REFERENCES site_source ON DELETE CASCADE,
    site      text NOT NULL,
    loaded_at timestamptz NOT NULL,
    problem   text,
    failing_since timestamptz,
    PRIMARY KEY (location, site)
);
COMMENT ON TABLE site_load IS
    'What came of the last look at a source, per site; after a problem the version before counts.';
"""

SERVERS = """
CREATE TABLE fts_server (
    name       text PRIMARY KEY,
    endpoint   text,
    vo         text NOT NULL DEFAULT '',
    regions    text[] NOT NULL DEFAULT '{}',
    weight     integer NOT NULL DEFAULT 100 CHECK (weight >= 0),
    state      text NOT NULL DEFAULT 'up' CHECK (state IN ('up', 'draining', 'down')),
    reason     text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);
COMMENT ON TABLE fts_server IS
    'FTS servers by their Airflow connection, and what operators want of them. endpoint: as sites write it.';

CREATE TABLE fts_server_health (
    name          text PRIMARY KEY REFERENCES fts_server ON DELETE CASCADE,
    checked_at    timestamptz NOT NULL,
    failing_since timestamptz,
    problem       text,
    version       text
);
COMMENT ON TABLE fts_server_health IS
    'What the last contact with an FTS server brought; failing_since NULL: it answers.';

INSERT INTO fts_server (name, updated_by) VALUES ('fts3_default', 'migration');
"""

POLICIES = """
ALTER TABLE link_policy ADD COLUMN username text, ADD COLUMN activity text;
ALTER TABLE link_policy DROP CONSTRAINT link_policy_source_destination_key;
ALTER TABLE link_policy ADD CONSTRAINT link_policy_scope
    UNIQUE NULLS NOT DISTINCT (source, destination, username, activity);
COMMENT ON TABLE link_policy IS
    'Settings of core.policies.LinkPolicy for what the row names; NULL names everything.';

CREATE TYPE restriction_mode AS ENUM ('pause', 'drain', 'ban');
CREATE TABLE restriction (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mode        restriction_mode NOT NULL,
    site        text REFERENCES site ON DELETE CASCADE,
    source      text REFERENCES site ON DELETE CASCADE,
    destination text REFERENCES site ON DELETE CASCADE,
    username    text,
    activity    text,
    reason      text NOT NULL CHECK (reason <> ''),
    is_downtime boolean NOT NULL DEFAULT false,
    starts_at   timestamptz NOT NULL DEFAULT now(),
    ends_at     timestamptz,
    lifted_at   timestamptz,
    set_at      timestamptz NOT NULL DEFAULT now(),
    set_by      text NOT NULL,
    updated_by  text NOT NULL,
    CHECK (site IS NULL OR (source IS NULL AND destination IS NULL)),
    CHECK (ends_at IS NULL OR ends_at > starts_at)
);
CREATE INDEX restriction_open ON restriction (starts_at) WHERE lifted_at IS NULL;
COMMENT ON TABLE restriction IS
    'What must not start: pause (files wait), drain (no new requests), ban (both). site: at either end.';

-- Before there were restrictions, a pause was a setting.
INSERT INTO restriction (mode, source, destination, reason, starts_at, set_by, updated_by)
SELECT 'pause', source, destination, settings->>'paused', updated_at, updated_by, updated_by FROM link_policy
WHERE coalesce(settings->>'paused', '') <> '';
UPDATE link_policy SET settings = settings - 'paused';
"""

CREDENTIALS = """
CREATE TABLE credential (
    identity   text PRIMARY KEY,
    kind       text CHECK (kind IN ('x509', 'token')),
    subject    text,
    fqans      text[] NOT NULL DEFAULT '{}',
    expires_at timestamptz,
    checked_at timestamptz NOT NULL DEFAULT now(),
    problem    text
);
COMMENT ON TABLE credential IS 'What is known of each identity''s credential. Never the credential itself.';

CREATE TABLE delegation (
    fts_server    text NOT NULL,
    identity      text NOT NULL,
    delegation_id text,
    expires_at    timestamptz,
    checked_at    timestamptz NOT NULL DEFAULT now(),
    problem       text,
    PRIMARY KEY (fts_server, identity)
);
COMMENT ON TABLE delegation IS 'Until when each FTS server may act for an identity.';
COMMENT ON COLUMN identity_hold.fts_server IS
    'Empty: at no FTS, since we have no credential for the identity.';
COMMENT ON COLUMN transfer.identity IS
    'Whose file it is, as core.identities writes it; the policy says whether it travels in his name.';
"""

RECORD = """
CREATE TABLE installation (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    id      uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO installation DEFAULT VALUES;
COMMENT ON TABLE installation IS
    'Who we are in the metadata of FTS jobs, where several installations share a VO.';

CREATE TABLE config_change (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text NOT NULL,
    object text NOT NULL,
    before jsonb,
    after  jsonb
);
CREATE INDEX config_change_at ON config_change (at);
COMMENT ON TABLE config_change IS 'Who changed which configuration, from what to what. Written by triggers.';

CREATE FUNCTION record_config_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO config_change (actor, object, before, after)
    VALUES (CASE WHEN TG_OP = 'DELETE'
                THEN coalesce(nullif(current_setting('stageout.actor', true), ''), current_user)
                ELSE NEW.updated_by END,
        TG_TABLE_NAME, CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$;

CREATE TRIGGER config_change_append_only BEFORE UPDATE OR DELETE ON config_change
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER storage_append_only BEFORE UPDATE ON storage
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""

RECORDED = ("site", "site_source", "fts_server", "link_policy", "restriction")


def upgrade() -> None:
    for part in (STORAGES, SERVERS, POLICIES, CREDENTIALS, RECORD):
        op.execute(part)
    for table in RECORDED:
        op.execute(
            f"CREATE TRIGGER {table}_recorded AFTER INSERT OR UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION record_config_change()"
        )


def downgrade() -> None:
    for table in RECORDED:
        op.execute(f"DROP TRIGGER {table}_recorded ON {table}")
    op.execute("""
        DO $$ BEGIN
            IF EXISTS (SELECT FROM storage WHERE kind <> 'prefix') THEN
                RAISE EXCEPTION 'sites with rules have no place in the older catalogue: remove them first';
            END IF;
        END $$;
        ALTER TABLE site ADD COLUMN pfn_prefix text;
        UPDATE site s SET pfn_prefix = v.body->'protocols'->0->>'prefix'
        FROM storage v WHERE v.id = s.storage_id;
        ALTER TABLE site ALTER COLUMN pfn_prefix SET NOT NULL,
            ADD CHECK (pfn_prefix ~ '^[a-z0-9+]+://[^/]+'), DROP COLUMN storage_id;
        UPDATE link_policy p SET settings = settings || jsonb_build_object('paused', r.reason)
        FROM restriction r WHERE r.mode = 'pause' AND r.lifted_at IS NULL AND r.site IS NULL
            AND r.source IS NOT DISTINCT FROM p.source AND r.destination IS NOT DISTINCT FROM p.destination;
        DELETE FROM link_policy WHERE username IS NOT NULL OR activity IS NOT NULL;
        ALTER TABLE link_policy DROP CONSTRAINT link_policy_scope, DROP COLUMN username, DROP COLUMN activity,
            ADD CONSTRAINT link_policy_source_destination_key UNIQUE NULLS NOT DISTINCT (source, destination);
        ALTER TABLE fts_job DROP COLUMN source_storage, DROP COLUMN destination_storage,
            DROP COLUMN source_protocol, DROP COLUMN destination_protocol, DROP COLUMN poster;
        DROP TABLE site_load, site_source, storage, fts_server_health, fts_server, restriction, credential,
            delegation, installation, config_change;
        DROP TYPE restriction_mode;
        DROP FUNCTION record_config_change;
    """)
