SELECT found.rule AS rule, COUNT(*) AS breaches, SUM(found.amount) AS amount
FROM (SELECT UNNEST(breaches) AS found FROM review)
GROUP BY found.rule ORDER BY amount DESC
