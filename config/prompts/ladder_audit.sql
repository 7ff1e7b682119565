SELECT COALESCE(model, 'nobody') AS answered_by, outcome AS ended,
       COUNT(*) AS questions,
       COALESCE(SUM(CASE WHEN agreement < 1 THEN 1 ELSE 0 END), 0) AS disputed
FROM letter
GROUP BY COALESCE(model, 'nobody'), outcome
ORDER BY answered_by, ended
