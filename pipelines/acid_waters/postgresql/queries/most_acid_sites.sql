-- The five most acid sites: lowest mean laboratory pH, with the number of values.
SELECT site_id, program_id, count, round(mean, 2) AS ph
FROM water.metrics_by_site
WHERE parameter = 'PH_LAB'
ORDER BY mean, site_id, program_id
LIMIT 5;
