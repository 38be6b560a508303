-- Do the waters recover? Mean ANC and sulfate (ueq/l) per decade, lakes and streams apart.
SELECT waterbody_type, year / 10 * 10 AS decade,
    round(sum(total) FILTER (WHERE parameter = 'ANC') / sum(count) FILTER (WHERE parameter = 'ANC'), 2) AS anc,
    round(sum(total) FILTER (WHERE parameter = 'SO4') / sum(count) FILTER (WHERE parameter = 'SO4'), 2) AS sulfate
FROM water.measures
GROUP BY waterbody_type, decade
ORDER BY waterbody_type, decade;
