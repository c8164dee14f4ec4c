"""The price book: its rows, the rule that finds the price of a call, and spend by hour and by day.

``analytics.prices`` is append-only: a trigger makes every UPDATE, DELETE and TRUNCATE fail, also those of
the owner. The function ``analytics.price_sheets_at`` is the one rule. The table ``analytics.price_sheets``
holds what the rule says of the newest version. A trigger rewrites the sheets of the models that a change is
about, in the transaction of the change. The tables are new and empty, so the migration takes no time.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

_TABLES = """
CREATE TABLE analytics.prices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider text NOT NULL,
    model_name text NOT NULL,
    service_tier text NOT NULL,
    context_from bigint NOT NULL,
    kind text NOT NULL,
    rate numeric,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz,
    org_id uuid,
    source text NOT NULL,
    basis text NOT NULL,
    recorded_by text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    retracts bigint REFERENCES analytics.prices (id),
    CONSTRAINT prices_retracts UNIQUE (retracts),
    CONSTRAINT prices_rate_or_retracts CHECK ((rate IS NULL) <> (retracts IS NULL)),
    CONSTRAINT prices_retracts_earlier CHECK (retracts < id),
    CONSTRAINT prices_kind CHECK (kind IN (
        'input', 'output', 'cache_read', 'cache_write', 'cache_write_1h', 'reasoning', 'request', 'discount'
    )),
    CONSTRAINT prices_names CHECK (
        length(provider) <= 64 AND length(model_name) <= 128
        AND (kind = 'discount' OR (provider <> '' AND model_name <> ''))),
    CONSTRAINT prices_service_tier CHECK (
        CASE WHEN kind = 'discount' THEN service_tier = ''
        ELSE service_tier IN ('standard', 'batch', 'flex', 'priority', 'fast') END),
    CONSTRAINT prices_context_from CHECK (
        CASE WHEN kind = 'discount' THEN context_from = 0 ELSE context_from BETWEEN 0 AND 1000000000000 END),
    -- The upper bounds also turn NaN and Infinity away.
    CONSTRAINT prices_rate CHECK (
        rate IS NULL
        OR rate >= 0 AND rate <= CASE WHEN kind = 'discount' THEN 100 ELSE 1000000000 END
        AND rate = round(rate, CASE WHEN kind = 'request' THEN 12 ELSE 6 END)),
    CONSTRAINT prices_hours CHECK (
        extract(epoch FROM valid_from) % 3600 = 0
        AND (valid_to IS NULL OR extract(epoch FROM valid_to) % 3600 = 0 AND valid_to > valid_from)),
    CONSTRAINT prices_discount_org CHECK (kind <> 'discount' OR org_id IS NOT NULL),
    CONSTRAINT prices_source CHECK (source <> '' AND recorded_by <> '')
);
CREATE INDEX prices_of_model ON analytics.prices (provider, model_name);

CREATE TABLE analytics.price_sheets (
    org_id uuid,
    provider text NOT NULL,
    model_name text NOT NULL,
    service_tier text NOT NULL,
    context_from bigint NOT NULL,
    context_to bigint,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz,
    input numeric NOT NULL,
    output numeric NOT NULL,
    cache_read numeric NOT NULL,
    cache_write numeric NOT NULL,
    cache_write_1h numeric NOT NULL,
    reasoning numeric NOT NULL,
    request numeric NOT NULL,
    CONSTRAINT price_sheets_key UNIQUE NULLS NOT DISTINCT (
        provider, model_name, service_tier, org_id, context_from, valid_from)
);
"""

_RULE = """
CREATE FUNCTION analytics.price_sheets_at(
    version bigint,
    providers text[] DEFAULT NULL,
    model_names text[] DEFAULT NULL,
    orgs uuid[] DEFAULT NULL
) RETURNS SETOF analytics.price_sheets
LANGUAGE sql STABLE
SET search_path = pg_catalog
SET enable_nestloop = off  -- the planner cannot know how many rows a step makes
SET jit = off  -- before PostgreSQL 18, a loop that is left all the same looks so dear that JIT takes seconds
AS $$
WITH live AS MATERIALIZED (
    SELECT p.*
    FROM analytics.prices AS p
    WHERE p.id <= version AND p.retracts IS NULL
        AND NOT EXISTS (SELECT FROM analytics.prices AS r WHERE r.retracts = p.id AND r.id <= version)
        AND (p.org_id IS NULL OR orgs IS NULL OR p.org_id = ANY(orgs))
        AND (
            p.kind = 'discount' OR providers IS NULL
            OR (p.provider, p.model_name) IN (SELECT * FROM unnest(providers, model_names))
        )
),
rates AS MATERIALIZED (SELECT * FROM live WHERE kind <> 'discount'),
discounts AS MATERIALIZED (SELECT * FROM live WHERE kind = 'discount'),
-- Who has sheets of a model: everyone (org_id is null), and each org with prices of its own or a discount.
parties AS MATERIALIZED (
    SELECT row_number() OVER () AS party, p.*
    FROM (
        SELECT org_id, provider, model_name FROM rates
        UNION
        SELECT d.org_id, r.provider, r.model_name
        FROM (SELECT DISTINCT provider, model_name FROM rates WHERE org_id IS NULL) AS r
        JOIN discounts AS d ON d.provider IN ('', r.provider) AND d.model_name IN ('', r.model_name)
    ) AS p
),
offers AS MATERIALIZED (
    SELECT a.party, r.service_tier, r.context_from, r.kind, r.rate, r.valid_from,
        COALESCE(r.valid_to, 'infinity') AS valid_to, r.id, r.org_id IS NOT NULL AS own
    FROM parties AS a
    JOIN rates AS r ON r.provider = a.provider AND r.model_name = a.model_name
        AND (r.org_id IS NULL OR r.org_id = a.org_id)
),
reductions AS MATERIALIZED (
    SELECT a.party, d.rate AS percent, d.valid_from, COALESCE(d.valid_to, 'infinity') AS valid_to, d.id,
        d.model_name <> '' AS of_model, d.provider <> '' AS of_provider
    FROM parties AS a
    JOIN discounts AS d ON d.org_id = a.org_id
        AND d.provider IN ('', a.provider) AND d.model_name IN ('', a.model_name)
),
contexts AS (
    SELECT party, service_tier, context_from, COALESCE(
        lead(context_from) OVER (PARTITION BY party, service_tier ORDER BY context_from), 9223372036854775807
    ) AS context_to
    FROM (SELECT DISTINCT party, service_tier, context_from FROM offers) AS o
),
moments AS (
    SELECT party, service_tier, valid_from AS at FROM offers
    UNION
    SELECT party, service_tier, valid_to FROM offers
    UNION
    SELECT t.party, t.service_tier, m.at
    FROM (SELECT DISTINCT party, service_tier FROM offers) AS t
    JOIN (
        SELECT party, valid_from AS at FROM reductions UNION SELECT party, valid_to FROM reductions
    ) AS m ON m.party = t.party
),
hours AS (
    SELECT party, service_tier, at AS valid_from, COALESCE(
        lead(at) OVER (PARTITION BY party, service_tier ORDER BY at), 'infinity'
    ) AS valid_to
    FROM moments WHERE at < 'infinity'
),
-- Within a cell nothing changes: one answer holds for all its sizes and hours.
cells AS MATERIALIZED (
    SELECT row_number() OVER () AS cell, c.party, c.service_tier, c.context_from, c.context_to,
        h.valid_from, h.valid_to
    FROM contexts AS c
    JOIN hours AS h ON h.party = c.party AND h.service_tier = c.service_tier
),
winners AS (
    SELECT DISTINCT ON (c.cell, o.kind) c.cell, o.kind, o.rate, o.own
    FROM cells AS c
    JOIN offers AS o ON o.party = c.party AND o.service_tier = c.service_tier
        AND o.context_from <= c.context_from AND o.valid_from <= c.valid_from AND c.valid_from < o.valid_to
    ORDER BY c.cell, o.kind, o.own DESC, o.context_from DESC, o.id DESC
),
cuts AS (
    SELECT DISTINCT ON (c.cell) c.cell, d.percent
    FROM cells AS c
    JOIN reductions AS d ON d.party = c.party
        AND d.valid_from <= c.valid_from AND c.valid_from < d.valid_to
    ORDER BY c.cell, d.of_model DESC, d.of_provider DESC, d.id DESC
),
found AS (
    SELECT cell,
        max(rate) FILTER (WHERE kind = 'input') AS input,
        max(rate) FILTER (WHERE kind = 'output') AS output,
        max(rate) FILTER (WHERE kind = 'cache_read') AS cache_read,
        max(rate) FILTER (WHERE kind = 'cache_write') AS cache_write,
        max(rate) FILTER (WHERE kind = 'cache_write_1h') AS cache_write_1h,
        max(rate) FILTER (WHERE kind = 'reasoning') AS reasoning,
        max(rate) FILTER (WHERE kind = 'request') AS request
    FROM (
        SELECT w.cell, w.kind, trim_scale(
            CASE WHEN w.own OR d.percent IS NULL THEN w.rate ELSE w.rate * (100 - d.percent) * 0.01 END
        ) AS rate
        FROM winners AS w
        LEFT JOIN cuts AS d ON d.cell = w.cell
    ) AS charged
    GROUP BY cell
),
priced AS (
    SELECT c.party, c.service_tier, c.context_from, c.context_to, c.valid_from, c.valid_to, ARRAY[
        f.input, f.output, COALESCE(f.cache_read, f.input), COALESCE(f.cache_write, f.input),
        COALESCE(f.cache_write_1h, f.cache_write, f.input), COALESCE(f.reasoning, f.output),
        COALESCE(f.request, 0)
    ] AS rates
    FROM found AS f
    JOIN cells AS c ON c.cell = f.cell
    WHERE f.input IS NOT NULL AND f.output IS NOT NULL
),
-- Neighbours with the same rates become one sheet: first in time, then in size.
in_time AS (
    SELECT party, service_tier, context_from, context_to, min(valid_from) AS valid_from,
        max(valid_to) AS valid_to, rates
    FROM (
        SELECT p.*, count(*) FILTER (WHERE NOT same) OVER w AS island
        FROM (
            SELECT q.*,
                COALESCE(lag(valid_to) OVER w = valid_from AND lag(rates) OVER w = rates, false) AS same
            FROM priced AS q
            WINDOW w AS (PARTITION BY party, service_tier, context_from ORDER BY valid_from)
        ) AS p
        WINDOW w AS (PARTITION BY party, service_tier, context_from ORDER BY valid_from)
    ) AS i
    GROUP BY party, service_tier, context_from, context_to, island, rates
),
in_size AS (
    SELECT party, service_tier, min(context_from) AS context_from, max(context_to) AS context_to,
        valid_from, valid_to, rates
    FROM (
        SELECT p.*, count(*) FILTER (WHERE NOT same) OVER w AS island
        FROM (
            SELECT q.*, COALESCE(lag(context_to) OVER w = context_from, false) AS same
            FROM in_time AS q
            WINDOW w AS (PARTITION BY party, service_tier, valid_from, valid_to, rates ORDER BY context_from)
        ) AS p
        WINDOW w AS (PARTITION BY party, service_tier, valid_from, valid_to, rates ORDER BY context_from)
    ) AS i
    GROUP BY party, service_tier, valid_from, valid_to, rates, island
)
SELECT a.org_id, a.provider, a.model_name, s.service_tier, s.context_from,
    NULLIF(s.context_to, 9223372036854775807), s.valid_from, NULLIF(s.valid_to, 'infinity'),
    s.rates[1], s.rates[2], s.rates[3], s.rates[4], s.rates[5], s.rates[6], s.rates[7]
FROM in_size AS s
JOIN parties AS a ON a.party = s.party
$$;
COMMENT ON FUNCTION analytics.price_sheets_at IS
    'The prices as a version of the book has them: of all models, or of the named ones (two arrays side by
side); of everyone and all orgs, or of everyone and the named orgs. An org has sheets of a model only where it
has prices of its own or a discount, and these then take the place of all sheets of everyone for that model.';
"""

_TRIGGERS = """
CREATE FUNCTION analytics.prices_refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION 'analytics.prices is append-only: append a row that corrects or retracts instead'
        USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER prices_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON analytics.prices
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.prices_refuse_change();

-- Rows get their ids under the lock, so a later id is always committed later: a version never gains rows.
CREATE FUNCTION analytics.prices_lock() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(91635270734163);
    RETURN NULL;
END $$;
CREATE TRIGGER prices_a_lock BEFORE INSERT ON analytics.prices
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.prices_lock();

-- A retraction carries the key of the row that it retracts, so that a list of a model shows it, too.
CREATE FUNCTION analytics.prices_retract() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    target analytics.prices;
BEGIN
    SELECT * INTO target FROM analytics.prices WHERE id = NEW.retracts;
    IF NOT FOUND OR target.retracts IS NOT NULL THEN
        RAISE EXCEPTION 'row % of analytics.prices is no price', NEW.retracts
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    NEW.provider := target.provider;
    NEW.model_name := target.model_name;
    NEW.service_tier := target.service_tier;
    NEW.context_from := target.context_from;
    NEW.kind := target.kind;
    NEW.valid_from := target.valid_from;
    NEW.valid_to := target.valid_to;
    NEW.org_id := target.org_id;
    RETURN NEW;
END $$;
CREATE TRIGGER prices_retract BEFORE INSERT ON analytics.prices
    FOR EACH ROW WHEN (NEW.retracts IS NOT NULL) EXECUTE FUNCTION analytics.prices_retract();

CREATE FUNCTION analytics.prices_refresh() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    batch record;
    sheets analytics.price_sheets[];
BEGIN
    -- Some hundred models at a time, because an array of all sheets of many orgs could outgrow its bound.
    FOR batch IN
        SELECT array_agg(m.provider) AS providers, array_agg(m.model_name) AS model_names
        FROM (
            SELECT p.provider, p.model_name,
                (row_number() OVER (ORDER BY p.provider, p.model_name) - 1) / 500 AS number
            FROM analytics.prices AS p
            JOIN (
                SELECT DISTINCT provider, model_name FROM added
            ) AS a ON a.provider IN ('', p.provider) AND a.model_name IN ('', p.model_name)
            WHERE p.kind <> 'discount'
            GROUP BY p.provider, p.model_name
        ) AS m
        GROUP BY m.number
    LOOP
        SELECT array_agg(s) INTO sheets
        FROM analytics.price_sheets_at(9223372036854775807, batch.providers, batch.model_names) AS s;

        DELETE FROM analytics.price_sheets AS s
        WHERE (s.provider, s.model_name) IN (SELECT * FROM unnest(batch.providers, batch.model_names))
            AND NOT EXISTS (
                SELECT FROM unnest(sheets) AS n
                WHERE (n.provider, n.model_name, n.service_tier, n.context_from, n.valid_from)
                    = (s.provider, s.model_name, s.service_tier, s.context_from, s.valid_from) AND
                    COALESCE(n.org_id::text, '') = COALESCE(s.org_id::text, '') AND (n.context_to,
                    n.valid_to) IS NOT DISTINCT FROM (s.context_to, s.valid_to) AND (n.input, n.output,
                    n.cache_read, n.cache_write, n.cache_write_1h, n.reasoning, n.request) = (s.input,
                    s.output, s.cache_read, s.cache_write, s.cache_write_1h, s.reasoning, s.request)
            );
        INSERT INTO analytics.price_sheets SELECT * FROM unnest(sheets) ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER prices_refresh AFTER INSERT ON analytics.prices REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.prices_refresh();
"""

_SPEND = """
CREATE FUNCTION analytics.spend(
    sheet analytics.price_sheets,
    input_tokens numeric,
    output_tokens numeric,
    cache_read_tokens numeric,
    cache_write_tokens numeric,
    cache_write_1h_tokens numeric,
    reasoning_tokens numeric,
    invocations numeric
) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT (
    (input_tokens - cache_read_tokens - cache_write_tokens - cache_write_1h_tokens) * (sheet).input
    + cache_read_tokens * (sheet).cache_read
    + cache_write_tokens * (sheet).cache_write
    + cache_write_1h_tokens * (sheet).cache_write_1h
    + (output_tokens - reasoning_tokens) * (sheet).output
    + reasoning_tokens * (sheet).reasoning
) * 0.000001 + invocations * (sheet).request
$$;
COMMENT ON FUNCTION analytics.spend IS 'What some calls cost by a sheet, in US dollars, exact.';

CREATE VIEW analytics.model_labels AS
SELECT DISTINCT ON (org_id, model_id) org_id, model_id, provider, model_name
FROM analytics.models_seen
ORDER BY org_id, model_id, labelled_at DESC, provider COLLATE "C" DESC, model_name COLLATE "C" DESC;
COMMENT ON VIEW analytics.model_labels IS 'The provider and name of each model: those of its newest event.';
"""

_FIGURES = (
    "invocations",
    "successes",
    "errors",
    "timeouts",
    "throttles",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "unestimated",
    "cost_microcents",
    "latency_sum_ms",
)


def _usage(table: str) -> str:
    """Rows of a grain, summed over partitions, with the names of the model and the meaning of the class."""
    sums = ", ".join(f"sum(r.{name}) AS {name}" for name in _FIGURES)
    return f"""
        SELECT u.*, COALESCE(l.provider, '') AS provider, COALESCE(l.model_name, '') AS model_name,
            c.service_tier, c.input_from
        FROM (
            SELECT r.org_id, r.bucket_start, r.model_id, r.rate_class, {sums},
                max(r.latency_max_ms) AS latency_max_ms
            FROM analytics.{table} AS r
            GROUP BY r.org_id, r.bucket_start, r.model_id, r.rate_class
        ) AS u
        JOIN analytics.rate_classes AS c ON c.id = u.rate_class
        LEFT JOIN analytics.model_labels AS l ON l.org_id = u.org_id AND l.model_id = u.model_id
    """


def _sheet(covers: str) -> str:
    """The sheets of a row ``u``: those of its org if the org has any of the model, else those of everyone.

    ``covers`` says which hours a sheet must cover.
    """
    return f"""
        SELECT s FROM analytics.price_sheets AS s
        WHERE s.provider = u.provider AND s.model_name = u.model_name AND s.service_tier = u.service_tier
            AND (
                s.org_id = u.org_id
                OR s.org_id IS NULL AND NOT EXISTS (
                    SELECT FROM analytics.price_sheets AS o
                    WHERE o.provider = u.provider AND o.model_name = u.model_name AND o.org_id = u.org_id
                )
            )
            AND s.context_from <= u.input_from AND (s.context_to IS NULL OR u.input_from < s.context_to)
            AND {covers}
        LIMIT 1
    """


_SPEND_OF_ROW = (
    "analytics.spend(p.s, u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens,"
    " u.cache_write_1h_tokens, u.reasoning_tokens, u.invocations)"
)
_COLUMNS = (
    "u.org_id, u.bucket_start, u.model_id, u.provider, u.model_name, u.service_tier, u.rate_class, "
    + ", ".join(f"u.{name}" for name in _FIGURES[:12])
    + ", u.latency_sum_ms, u.latency_max_ms"
)
# A sheet with rates of 0 is a sheet.
_HOUR = f"""
CREATE VIEW analytics.spend_hour AS
SELECT {_COLUMNS},
    CASE WHEN (p.s).input IS NOT NULL THEN {_SPEND_OF_ROW}
        WHEN u.unestimated < u.invocations THEN u.cost_microcents * 0.00000001 END AS cost,
    CASE WHEN (p.s).input IS NOT NULL THEN 'book'
        WHEN u.unestimated < u.invocations THEN 'estimate' ELSE 'none' END AS basis,
    CASE WHEN (p.s).input IS NOT NULL THEN 0 ELSE u.unestimated END AS unpriced,
    CASE WHEN u.unestimated < u.invocations THEN u.cost_microcents * 0.00000001 END AS estimate
FROM ({_usage("usage_hour")}) AS u
LEFT JOIN LATERAL (
    {_sheet("s.valid_from <= u.bucket_start AND (s.valid_to IS NULL OR u.bucket_start < s.valid_to)")}
) AS p ON true;
COMMENT ON VIEW analytics.spend_hour IS
    'What was used and what it cost, by org, hour, model and rate class, at the newest version of the book.
cost and estimate are exact US dollars. unpriced counts the calls whose cost neither of the two knows.';
"""
# A day that one sheet covers, or that no sheet touches, has one price. Any other day is the sum of its hours.
_DAY = f"""
CREATE VIEW analytics.spend_day AS
SELECT {_COLUMNS},
    CASE WHEN (p.s).input IS NOT NULL THEN {_SPEND_OF_ROW}
        WHEN t.changes THEN h.cost
        WHEN u.unestimated < u.invocations THEN u.cost_microcents * 0.00000001 END AS cost,
    CASE WHEN (p.s).input IS NOT NULL THEN 'book'
        WHEN t.changes THEN h.basis
        WHEN u.unestimated < u.invocations THEN 'estimate' ELSE 'none' END AS basis,
    CASE WHEN (p.s).input IS NOT NULL THEN 0
        WHEN t.changes THEN h.unpriced ELSE u.unestimated END AS unpriced,
    CASE WHEN u.unestimated < u.invocations THEN u.cost_microcents * 0.00000001 END AS estimate
FROM ({_usage("usage_day")}) AS u
LEFT JOIN LATERAL (
    {
    _sheet(
        "s.valid_from <= u.bucket_start"
        " AND (s.valid_to IS NULL OR s.valid_to >= u.bucket_start + interval '24 hours')"
    )
}
) AS p ON true
CROSS JOIN LATERAL (
    SELECT (p.s).input IS NULL AND EXISTS (
        {
    _sheet(
        "s.valid_from < u.bucket_start + interval '24 hours'"
        " AND (s.valid_to IS NULL OR s.valid_to > u.bucket_start)"
    )
}
    ) AS changes
) AS t
LEFT JOIN LATERAL (
    SELECT sum(h.cost) AS cost, sum(h.unpriced) AS unpriced,
        CASE WHEN count(DISTINCT h.basis) FILTER (WHERE h.basis <> 'none') > 1 THEN 'mixed'
            ELSE COALESCE(max(h.basis) FILTER (WHERE h.basis <> 'none'), 'none') END AS basis
    FROM analytics.spend_hour AS h
    WHERE t.changes AND h.org_id = u.org_id AND h.model_id = u.model_id AND h.rate_class = u.rate_class
        AND h.bucket_start >= u.bucket_start AND h.bucket_start < u.bucket_start + interval '24 hours'
) AS h ON true;
COMMENT ON VIEW analytics.spend_day IS
    'As spend_hour, by day of UTC. A day in which a price changes is the sum of its hours; basis is then mixed
if the book prices some of its hours and the estimate others.';
"""


def upgrade() -> None:
    for statement in (_TABLES, _RULE, _TRIGGERS, _SPEND, _HOUR, _DAY):
        # Without parameters the driver leaves percent signs alone.
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
