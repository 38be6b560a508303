-- The lots, the versions of the data set, and the metrics in a star. Made once, by the consumer.
--
-- Nothing here is ever overwritten: a lot's row, files and facts stay as they were written. A
-- version of the data set is the set of lots that are in it (table membership), so any version can
-- be asked for at any time, and to restore one is to make a new version of the same lots.

CREATE SCHEMA IF NOT EXISTS water;
SET search_path TO water;

-- One row per lot as it was processed: from Kafka (attempt 0), or again from the archive (1, 2…).
CREATE TABLE IF NOT EXISTS lots (
    lot_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic         text NOT NULL,
    partition     integer NOT NULL,
    "offset"      bigint NOT NULL,
    attempt       integer NOT NULL,
    batch_id      text,                  -- null: the message did not have a usable one
    sequence      integer,
    first_row     integer,               -- of source_file, counted from 1
    source_file   text,
    declared_size integer,
    size          integer NOT NULL,      -- rows that are in it
    checksum      text NOT NULL,         -- SHA-256 of the message's value, as received
    sent_at       timestamptz NOT NULL,  -- Kafka's time of the message, within 1970 to 9999
    raw_path      text NOT NULL,         -- folder in HDFS with the message, byte for byte
    data_path     text,                  -- folder in HDFS with its rows and others'; null: never integrated
    UNIQUE (topic, partition, "offset", attempt)
);

ALTER TABLE lots ADD COLUMN IF NOT EXISTS first_row integer;  -- older tables do not have it

-- The topics that were read, with the ids that Kafka gave them when they were made.
CREATE TABLE IF NOT EXISTS topics (
    topic    text PRIMARY KEY,
    topic_id text NOT NULL
);

-- The versions table: what has happened, in order. An event that makes a version has its number.
CREATE TABLE IF NOT EXISTS versions (
    event_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version    integer UNIQUE,           -- 1, 2, 3… without a gap; null: the data set is unchanged
    lot_id     bigint REFERENCES lots,   -- null: restored
    batch_id   text,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    size       integer NOT NULL,         -- rows of the lot; of the data set when restored
    checksum   text,
    state      text NOT NULL,            -- rejected: by the checks; isolated: by hand
    reason     text CHECK (reason IS NOT NULL OR state IN ('received', 'integrated'))
);

-- Older tables called both a reject and an isolated lot "quarantined".
ALTER TABLE versions DROP CONSTRAINT IF EXISTS versions_state_check;
UPDATE versions SET state = CASE WHEN version IS NULL THEN 'rejected' ELSE 'isolated' END
    WHERE state = 'quarantined';
ALTER TABLE versions ADD CONSTRAINT versions_state_check
    CHECK (state IN ('received', 'integrated', 'rejected', 'isolated', 'restored'));

-- What the checks have refused, and where it lies, byte for byte.
CREATE OR REPLACE VIEW rejects AS
    SELECT event_id, at, versions.batch_id, reason, topic, partition, "offset", raw_path
    FROM versions JOIN lots USING (lot_id) WHERE state = 'rejected';

-- A lot is received once. That it leaves this state once is seen to by history.py, under a lock.
CREATE UNIQUE INDEX IF NOT EXISTS versions_received ON versions (lot_id) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS versions_lot ON versions (lot_id);

-- A lot is in the versions since <= version < until.
CREATE TABLE IF NOT EXISTS membership (
    lot_id bigint NOT NULL REFERENCES lots,
    since  integer NOT NULL REFERENCES versions (version),
    until  integer REFERENCES versions (version) CHECK (until > since),
    PRIMARY KEY (lot_id, since)
);

-- How far a topic is read: after its last lot there may be markers of transactions.
CREATE TABLE IF NOT EXISTS positions (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- Where to read on: after the last settled lot, or further.
CREATE OR REPLACE VIEW next_offsets AS
    SELECT topic, partition, max(next_offset) AS next_offset FROM (
        SELECT topic, partition, "offset" + 1 AS next_offset FROM lots JOIN versions USING (lot_id)
        WHERE attempt = 0 AND state <> 'received'
        UNION ALL SELECT * FROM positions) AS places GROUP BY 1, 2;

-- What a topic had deleted unread, since <= offset < until, and --accept-loss went on without.
CREATE TABLE IF NOT EXISTS losses (
    topic     text NOT NULL,
    partition integer NOT NULL,
    since     bigint NOT NULL,
    until     bigint NOT NULL,
    PRIMARY KEY (topic, partition, since)
);

-- Dimensions. A site or method whose description has changed gets a new row: facts keep theirs.
CREATE TABLE IF NOT EXISTS dim_site (
    site_key      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site_id       text NOT NULL,
    program_id    text NOT NULL,
    site_name     text,
    county        text,
    state         text,
    latitude      numeric,               -- degrees
    longitude     numeric,
    elevation_m   numeric,
    ecoregion_i   text,
    ecoregion_ii  text,
    ecoregion_iii text,
    ecoregion_iv  text,
    UNIQUE NULLS NOT DISTINCT (site_id, program_id, site_name, county, state, latitude, longitude,
        elevation_m, ecoregion_i, ecoregion_ii, ecoregion_iii, ecoregion_iv)
);

CREATE TABLE IF NOT EXISTS dim_parameter (
    parameter_key integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parameter     text NOT NULL,         -- as in the methods: NA is sodium
    unit          text NOT NULL,         -- the suffix of the measure's column; '' for pH
    UNIQUE (parameter, unit)
);

CREATE TABLE IF NOT EXISTS dim_method (
    method_key  integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    program_id  text,
    parameter   text,
    start_year  integer,
    end_year    integer,                 -- null: still in use
    method      text NOT NULL,
    description text,
    UNIQUE NULLS NOT DISTINCT (program_id, parameter, start_year, end_year, method, description)
);
INSERT INTO dim_method (method_key, method) VALUES (0, '(none)') ON CONFLICT DO NOTHING;

-- Facts, as Spark computes them: per lot, so that those of a set of lots are a sum.
CREATE TABLE IF NOT EXISTS fact_measure (
    lot_id         bigint NOT NULL REFERENCES lots,
    site_key       integer NOT NULL REFERENCES dim_site,
    parameter_key  integer NOT NULL REFERENCES dim_parameter,
    method_key     integer NOT NULL REFERENCES dim_method,  -- 0: none
    year           integer NOT NULL,
    waterbody_type text NOT NULL,
    count          integer NOT NULL,
    total          numeric NOT NULL,
    min            numeric NOT NULL,
    max            numeric NOT NULL,
    PRIMARY KEY (lot_id, site_key, parameter_key, method_key, year, waterbody_type)
);

CREATE TABLE IF NOT EXISTS fact_sample (
    lot_id         bigint NOT NULL REFERENCES lots,
    site_key       integer NOT NULL REFERENCES dim_site,
    year           integer NOT NULL,
    waterbody_type text NOT NULL,
    count          integer NOT NULL,
    PRIMARY KEY (lot_id, site_key, year, waterbody_type)
);

-- The last version's number, 0 before the first.
CREATE OR REPLACE FUNCTION current_version() RETURNS integer LANGUAGE sql STABLE
    SET search_path = water AS $$ SELECT coalesce(max(version), 0) FROM versions $$;

-- A version's number, if there is such a version; 0 is the data set before the first.
CREATE OR REPLACE FUNCTION existing_version(v integer) RETURNS integer LANGUAGE plpgsql STABLE
    SET search_path = water AS $$
BEGIN
    IF v IS NULL OR NOT v BETWEEN 0 AND current_version() THEN
        RAISE 'there is no version %: 1 to %', v, current_version();
    END IF;
    RETURN v;
END $$;

-- The lots of a version.
CREATE OR REPLACE FUNCTION lots_at(v integer DEFAULT water.current_version())
RETURNS SETOF lots LANGUAGE sql STABLE AS $$
    SELECT lots.* FROM water.lots JOIN water.membership USING (lot_id)
    WHERE since <= (SELECT water.existing_version(v)) AND (until IS NULL OR v < until)
$$;

-- The star of a version, one wide row per fact.
CREATE OR REPLACE FUNCTION measures_at(v integer DEFAULT water.current_version())
RETURNS TABLE (
    site_id text, program_id text, site_name text, state text, ecoregion_i text,
    ecoregion_iii text, parameter text, unit text, method text, year integer, waterbody_type text,
    count integer, total numeric, min numeric, max numeric
) LANGUAGE sql STABLE AS $$
    SELECT s.site_id, s.program_id, s.site_name, s.state, s.ecoregion_i, s.ecoregion_iii,
        p.parameter, p.unit, m.method, f.year, f.waterbody_type, f.count, f.total, f.min, f.max
    FROM water.lots_at(v) JOIN water.fact_measure f USING (lot_id)
    JOIN water.dim_site s USING (site_key)
    JOIN water.dim_parameter p USING (parameter_key)
    JOIN water.dim_method m USING (method_key)
$$;

-- The metrics of a version; means are exact, rounded to 6 decimals.
CREATE OR REPLACE FUNCTION site_metrics(v integer DEFAULT water.current_version())
RETURNS TABLE (site_id text, program_id text, parameter text, unit text,
    count bigint, mean numeric, min numeric, max numeric) LANGUAGE sql STABLE AS $$
    SELECT site_id, program_id, parameter, unit,
        sum(count), round(sum(total) / sum(count), 6),
        trim_scale(min(min)), trim_scale(max(max))
    FROM water.measures_at(v) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
$$;

CREATE OR REPLACE FUNCTION method_metrics(v integer DEFAULT water.current_version())
RETURNS TABLE (method text, parameter text, unit text,
    count bigint, mean numeric, min numeric, max numeric) LANGUAGE sql STABLE AS $$
    SELECT method, parameter, unit,
        sum(count), round(sum(total) / sum(count), 6),
        trim_scale(min(min)), trim_scale(max(max))
    FROM water.measures_at(v) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
$$;

CREATE OR REPLACE FUNCTION year_metrics(v integer DEFAULT water.current_version())
RETURNS TABLE (year integer, parameter text, unit text,
    count bigint, mean numeric, min numeric, max numeric) LANGUAGE sql STABLE AS $$
    SELECT year, parameter, unit,
        sum(count), round(sum(total) / sum(count), 6),
        trim_scale(min(min)), trim_scale(max(max))
    FROM water.measures_at(v) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
$$;

-- How the samples are spread over the values of a category; shares of 1, to 6 decimals.
CREATE OR REPLACE FUNCTION sample_distribution(v integer DEFAULT water.current_version())
RETURNS TABLE (category text, value text, samples bigint, share numeric) LANGUAGE sql STABLE AS $$
    SELECT category, value, sum(count),
        round(sum(count) / sum(sum(count)) OVER (PARTITION BY category), 6)
    FROM water.lots_at(v) JOIN water.fact_sample f USING (lot_id)
    JOIN water.dim_site s USING (site_key)
    CROSS JOIN LATERAL (VALUES ('waterbody_type', f.waterbody_type),
        ('ecoregion_i', s.ecoregion_i), ('ecoregion_iii', s.ecoregion_iii),
        ('state', s.state)) AS categories (category, value)
    GROUP BY 1, 2 ORDER BY 1, 2
$$;

CREATE OR REPLACE FUNCTION category_metrics(v integer DEFAULT water.current_version())
RETURNS TABLE (category text, value text, parameter text, unit text,
    count bigint, mean numeric, min numeric, max numeric) LANGUAGE sql STABLE AS $$
    SELECT category, value, parameter, unit,
        sum(count), round(sum(total) / sum(count), 6),
        trim_scale(min(min)), trim_scale(max(max))
    FROM water.measures_at(v) f
    CROSS JOIN LATERAL (VALUES ('waterbody_type', f.waterbody_type),
        ('ecoregion_i', f.ecoregion_i), ('ecoregion_iii', f.ecoregion_iii),
        ('state', f.state)) AS categories (category, value)
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
$$;

-- The same for the current version, for tools that want views.
CREATE OR REPLACE VIEW measures AS SELECT * FROM measures_at();
CREATE OR REPLACE VIEW metrics_by_site AS SELECT * FROM site_metrics();
CREATE OR REPLACE VIEW metrics_by_method AS SELECT * FROM method_metrics();
CREATE OR REPLACE VIEW metrics_by_year AS SELECT * FROM year_metrics();
CREATE OR REPLACE VIEW metrics_by_category AS SELECT * FROM category_metrics();
CREATE OR REPLACE VIEW samples_by_category AS SELECT * FROM sample_distribution();
