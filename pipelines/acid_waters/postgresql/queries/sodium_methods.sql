-- By which methods was sodium (NA) measured, how often, and what did they give?
SELECT method, count, round(mean, 2) AS mean, trim_scale(min) AS min, trim_scale(max) AS max
FROM water.metrics_by_method
WHERE parameter = 'NA'
ORDER BY count DESC, method;
