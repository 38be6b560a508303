-- Does the pH rise again? Mean laboratory pH per region and decade, with the number of values.
SELECT ecoregion_iii AS region, year / 10 * 10 AS decade, sum(count) AS measured,
    round(sum(total) / sum(count), 3) AS ph
FROM water.measures
WHERE parameter = 'PH_LAB'
GROUP BY region, decade
ORDER BY region, decade;
