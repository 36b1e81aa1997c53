-- Days in the client's zone, as before, but own events say something of a day's outcome only if they have any. For each
-- day and group of figures one source counts; the ranks are those of storage/clickhouse/precedence.py.
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
        countIf(has_outcome AND (source != 'events' OR m.conversions > 0 OR m.revenue > 0)) AS outcome_rows,
        sumIf(m.impressions, has_delivery) AS shown,
        sumIf(m.clicks, has_delivery) AS clicked,
        sumIf(m.conversions, has_outcome) AS converted,
        sumIf(m.cost, has_delivery) AS spent,
        sumIf(m.revenue, has_outcome) AS earned
    FROM campaign_metrics_hourly AS m FINAL
    GROUP BY client_id, project_id, campaign_id, platform, currency, source, date, delivery_rank, outcome_rank
)
GROUP BY client_id, project_id, campaign_id, platform, currency, date;
