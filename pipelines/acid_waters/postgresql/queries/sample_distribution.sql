-- How are the samples spread over ecoregions and water-body types?
SELECT category, value, samples, share
FROM water.samples_by_category
ORDER BY category, samples DESC, value;
