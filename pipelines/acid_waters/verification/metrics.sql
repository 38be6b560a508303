-- The metrics once more, by DuckDB, from tables of texts: samples, methods, sites (the columns of the
-- files). Sums are exact; where PostgreSQL has a mean, there is a sum here, for verify.py to divide.

CREATE TABLE measured AS
WITH long AS (
    UNPIVOT (SELECT row_number() OVER () AS id, * FROM samples)
    ON COLUMNS('_(UEQ_L|UG_L|UM_CM|MG_L|DEG_C|M)$|^PH_') INTO NAME measure VALUE text
)
SELECT l.SITE_ID AS site_id, l.PROGRAM_ID AS program_id, s.STATE AS state,
    s.ECONAME_I AS ecoregion_i, s.ECONAME_III AS ecoregion_iii,
    l.WATERBODY_TYPE AS waterbody_type, year(l.DATE_SMP::timestamp) AS year,
    regexp_replace(measure, '_(UEQ_L|UG_L|UM_CM|MG_L|DEG_C|M)$', '') AS parameter,
    CASE WHEN measure LIKE 'PH_%' THEN ''
        ELSE regexp_extract(measure, '_(UEQ_L|UG_L|UM_CM|MG_L|DEG_C|M)$', 1) END AS unit,
    coalesce(m.METHOD, '(none)') AS method, text::decimal(24, 12) AS value
FROM long l
JOIN sites s ON s.SITE_ID = l.SITE_ID AND s.PROGRAM_ID = l.PROGRAM_ID
LEFT JOIN methods m ON m.PROGRAM_ID = l.PROGRAM_ID
    AND m.PARAMETER = regexp_replace(measure, '_(UEQ_L|UG_L|UM_CM|MG_L|DEG_C|M)$', '')
    AND year(l.DATE_SMP::timestamp) BETWEEN m.START_YEAR::int AND coalesce(m.END_YEAR::int, 9999)
QUALIFY row_number() OVER (PARTITION BY l.id, measure ORDER BY m.START_YEAR::int DESC,
    coalesce(m.END_YEAR::int, 9999) DESC, m.METHOD, m.METHOD_DESCRIPTION) = 1;

CREATE VIEW site_metrics AS
SELECT site_id, program_id, parameter, unit, count(*), sum(value), min(value), max(value)
FROM measured GROUP BY ALL;

CREATE VIEW method_metrics AS
SELECT method, parameter, unit, count(*), sum(value), min(value), max(value)
FROM measured GROUP BY ALL;

CREATE VIEW year_metrics AS
SELECT year, parameter, unit, count(*), sum(value), min(value), max(value)
FROM measured GROUP BY ALL;

CREATE VIEW category_metrics AS
SELECT category, label, parameter, unit, count(*), sum(value), min(value), max(value)
FROM (UNPIVOT measured ON waterbody_type, ecoregion_i, ecoregion_iii, state
    INTO NAME category VALUE label)
GROUP BY ALL;

CREATE VIEW sample_distribution AS
WITH one AS (
    SELECT WATERBODY_TYPE AS waterbody_type, ECONAME_I AS ecoregion_i,
        ECONAME_III AS ecoregion_iii, STATE AS state
    FROM samples JOIN sites USING (SITE_ID, PROGRAM_ID)
)
SELECT category, label, count(*) AS samples, (SELECT count(*) FROM one) AS of_all
FROM (UNPIVOT one ON waterbody_type, ecoregion_i, ecoregion_iii, state
    INTO NAME category VALUE label)
GROUP BY ALL;
