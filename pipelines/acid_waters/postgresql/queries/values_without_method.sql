-- Which programs have values that no method explains? Roll-up: program, then everything.
SELECT coalesce(program_id, 'all') AS program, sum(count) FILTER (WHERE method = '(none)') AS without,
    sum(count) AS measured
FROM water.measures
GROUP BY ROLLUP (program_id)
ORDER BY program_id NULLS LAST;
