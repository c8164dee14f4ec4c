-- name: figures
-- The figures of one minute, hour, day and month for each org. The outer bounds let TimescaleDB skip chunks.
SELECT org_id, 'minute' AS name, sum(invocations), sum(errors + timeouts + throttles),
    sum(input_tokens), sum(output_tokens), sum(cost_microcents), sum(cache_read_tokens), sum(cache_write_tokens),
    sum(cache_write_1h_tokens), sum(reasoning_tokens), sum(unestimated)
FROM analytics.usage_minute
JOIN unnest(%(orgs)s::uuid[], %(minutes)s::timestamptz[]) AS wanted (org_id, bucket_start)
    USING (org_id, bucket_start)
WHERE bucket_start BETWEEN %(first_minute)s AND %(last_minute)s
GROUP BY org_id
UNION ALL
SELECT org_id, 'hour', sum(invocations), sum(errors + timeouts + throttles),
    sum(input_tokens), sum(output_tokens), sum(cost_microcents), sum(cache_read_tokens), sum(cache_write_tokens),
    sum(cache_write_1h_tokens), sum(reasoning_tokens), sum(unestimated)
FROM analytics.usage_hour
JOIN unnest(%(orgs)s::uuid[], %(hours)s::timestamptz[]) AS wanted (org_id, bucket_start)
    USING (org_id, bucket_start)
WHERE bucket_start BETWEEN %(first_hour)s AND %(last_hour)s
GROUP BY org_id
UNION ALL
SELECT org_id, 'day', sum(invocations), sum(errors + timeouts + throttles),
    sum(input_tokens), sum(output_tokens), sum(cost_microcents), sum(cache_read_tokens), sum(cache_write_tokens),
    sum(cache_write_1h_tokens), sum(reasoning_tokens), sum(unestimated)
FROM analytics.usage_day
JOIN unnest(%(orgs)s::uuid[], %(days)s::timestamptz[]) AS wanted (org_id, bucket_start)
    USING (org_id, bucket_start)
WHERE bucket_start BETWEEN %(first_day)s AND %(last_day)s
GROUP BY org_id
UNION ALL
SELECT d.org_id, 'month', sum(invocations), sum(errors + timeouts + throttles),
    sum(input_tokens), sum(output_tokens), sum(cost_microcents), sum(cache_read_tokens), sum(cache_write_tokens),
    sum(cache_write_1h_tokens), sum(reasoning_tokens), sum(unestimated)
FROM unnest(%(orgs)s::uuid[], %(months)s::timestamptz[], %(month_ends)s::timestamptz[])
    AS wanted (org_id, month_start, month_end)
JOIN analytics.usage_day AS d
    ON d.org_id = wanted.org_id AND d.bucket_start >= month_start AND d.bucket_start < month_end
WHERE d.bucket_start >= %(first_month)s AND d.bucket_start < %(last_month_end)s
GROUP BY d.org_id
