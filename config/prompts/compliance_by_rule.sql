SELECT found.rule AS rule, COUNT(*) AS breaches, SUM(found.amount) AS amount, ARRAY_AGG(row_key) AS row_keys
FROM (SELECT row_key, UNNEST(breaches) AS found FROM review)
GROUP BY found.rule ORDER BY amount DESC
