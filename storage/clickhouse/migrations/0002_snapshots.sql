-- What a source says of a whole hour or day. Rows of own events measure both groups of figures; a platform or an
-- analytics system may measure only one.
ALTER TABLE campaign_metrics_hourly
    ADD COLUMN IF NOT EXISTS has_delivery      Bool DEFAULT true
        COMMENT 'Whether the source measures impressions, clicks and cost',
    ADD COLUMN IF NOT EXISTS has_outcome       Bool DEFAULT true
        COMMENT 'Whether the source measures conversions and revenue',
    ADD COLUMN IF NOT EXISTS vat_included      Bool DEFAULT false,
    ADD COLUMN IF NOT EXISTS attribution_model LowCardinality(String) DEFAULT '',
    ADD COLUMN IF NOT EXISTS goal_ids          Array(String) DEFAULT [],
    ADD COLUMN IF NOT EXISTS state_version     UInt64 DEFAULT version
        COMMENT 'Grows with each change of the row; `version` orders the readings of one source and may be any number',
    COMMENT COLUMN hour 'First instant of the hour; for grain day midnight UTC of the date, a label that no zone moves';

-- Campaigns that have, or had, figures from elsewhere than own events: only their rows have to be weighed.
CREATE TABLE IF NOT EXISTS snapshot_campaigns
(
    client_id   UUID,
    campaign_id UUID
)
ENGINE = ReplacingMergeTree
ORDER BY (client_id, campaign_id);

INSERT INTO snapshot_campaigns
SELECT DISTINCT client_id, campaign_id FROM campaign_metrics_hourly WHERE source != 'events' OR grain = 'day';

-- Days in the client's zone. For each day and group of figures one source counts, and of its rows the one of the day
-- before those of the hours; the ranks are those of storage/clickhouse/precedence.py.
-- formatDateTime takes the zone from a column; toDate would silently use the first row's.
CREATE OR REPLACE VIEW campaign_daily_stats AS
SELECT
    client_id,
    project_id,
    campaign_id,
    platform,
    currency,
    date,
    argMinIf(source, delivery_rank, delivery_rows > 0) AS delivery_source,
    argMinIf(source, outcome_rank, outcome_rows > 0) AS outcome_source,
    argMinIf(shown, delivery_rank, delivery_rows > 0) AS impressions,
    argMinIf(clicked, delivery_rank, delivery_rows > 0) AS clicks,
    argMinIf(converted, outcome_rank, outcome_rows > 0) AS conversions,
    argMinIf(spent, delivery_rank, delivery_rows > 0) AS cost,
    argMinIf(earned, outcome_rank, outcome_rows > 0) AS revenue
FROM
(
    SELECT
        client_id,
        project_id,
        campaign_id,
        platform,
        currency,
        source,
        if(grain = 'day', toDate(hour), toDate(formatDateTime(hour, '%F',
            if(dictGetOrDefault('{database}.campaigns_dict', 'time_zone', campaign_id, 'UTC')
                    IN (SELECT time_zone FROM system.time_zones),
                dictGetOrDefault('{database}.campaigns_dict', 'time_zone', campaign_id, 'UTC'), 'UTC')))) AS date,
        transform(source, ['platform', 'events', 'import', 'backfill'], [1, 2, 3, 4], 60) * 4
            + if(grain = 'day', 0, 1) AS delivery_rank,
        transform(source, ['analytics', 'events', 'platform', 'import', 'backfill'], [1, 2, 3, 4, 5], 60) * 4
            + if(grain = 'day', 0, 1) AS outcome_rank,
        countIf(has_delivery) AS delivery_rows,
        countIf(has_outcome) AS outcome_rows,
        sumIf(m.impressions, has_delivery) AS shown,
        sumIf(m.clicks, has_delivery) AS clicked,
        sumIf(m.conversions, has_outcome) AS converted,
        sumIf(m.cost, has_delivery) AS spent,
        sumIf(m.revenue, has_outcome) AS earned
    FROM campaign_metrics_hourly AS m FINAL
    GROUP BY client_id, project_id, campaign_id, platform, currency, source, date, delivery_rank, outcome_rank
)
GROUP BY client_id, project_id, campaign_id, platform, currency, date;
