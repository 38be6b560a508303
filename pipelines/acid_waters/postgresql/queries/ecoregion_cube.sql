-- Mean DOC (mg/l) by ecoregion and water-body type, with all subtotals.
SELECT coalesce(ecoregion_i, 'all') AS ecoregion, coalesce(waterbody_type, 'all') AS waterbody,
    sum(count) AS measured, round(sum(total) / sum(count), 3) AS doc
FROM water.measures
WHERE parameter = 'DOC'
GROUP BY CUBE (ecoregion_i, waterbody_type)
ORDER BY ecoregion_i NULLS LAST, waterbody_type NULLS LAST;
