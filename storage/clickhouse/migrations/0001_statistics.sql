-- Campaigns as ClickHouse knows them: written by the relay from PostgreSQL, read through the dictionary.
-- A campaign's client, project, platform and currency never change; its client's time zone may.
CREATE TABLE IF NOT EXISTS campaigns_dim
(
    campaign_id UUID,
    client_id   UUID,
    project_id  UUID,
    platform    LowCardinality(String),
    currency    LowCardinality(String),
    time_zone   LowCardinality(String),
    version     UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY campaign_id;

-- Resolves the tenant of every ingested event. Reloaded by the server, never by a timer.
CREATE DICTIONARY IF NOT EXISTS campaigns_dict
(
    campaign_id UUID,
    client_id   UUID,
    project_id  UUID,
    platform    String,
    currency    String,
    time_zone   String
)
PRIMARY KEY campaign_id
SOURCE(CLICKHOUSE(QUERY 'SELECT campaign_id, client_id, project_id, platform, currency, time_zone FROM {database}.campaigns_dim FINAL'))
LIFETIME(0)
LAYOUT(COMPLEX_KEY_HASHED());

-- Raw events. The sorting key is an event's identity, so a replay of any batch, re-batched or not, counts once.
CREATE TABLE IF NOT EXISTS campaign_events
(
    client_id    UUID,
    campaign_id  UUID,
    event_time   DateTime64(6, 'UTC'),
    event_id     UUID,
    project_id   UUID,
    platform     LowCardinality(String),
    event_type   Enum8('impression' = 1, 'click' = 2, 'conversion' = 3),
    user_id      Nullable(String),
    cost         Decimal(18, 6),
    revenue      Decimal(18, 6),
    conversions  Decimal(18, 6),
    currency     LowCardinality(String),
    attributes   Map(LowCardinality(String), String),
    ingest_time  DateTime64(3, 'UTC') DEFAULT now64(3),
    -- The search for lost marks goes by it.
    INDEX ingest_time_range ingest_time TYPE minmax
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (client_id, campaign_id, toStartOfHour(event_time), event_time, event_id)
SETTINGS index_granularity = 8192;

-- 15-minute slices whose events changed. Repeating a mark is harmless, so nothing goes wrong when an insert is retried.
CREATE TABLE IF NOT EXISTS dirty_slices
(
    client_id    UUID,
    campaign_id  UUID,
    slice_start  DateTime('UTC'),
    mark_time    DateTime64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY toDate(mark_time)
ORDER BY (mark_time, client_id, campaign_id, slice_start)
TTL toDateTime(mark_time) + INTERVAL 2 DAY;

CREATE MATERIALIZED VIEW IF NOT EXISTS mark_dirty_slices TO dirty_slices AS
SELECT client_id, campaign_id, toStartOfFifteenMinutes(event_time) AS slice_start, now64(3) AS mark_time
FROM campaign_events
GROUP BY client_id, campaign_id, slice_start;

-- Figures of a campaign in 15 minutes, rebuilt as a whole; the largest version counts.
CREATE TABLE IF NOT EXISTS campaign_metrics_slices
(
    client_id    UUID,
    campaign_id  UUID,
    slice_start  DateTime('UTC'),
    project_id   UUID,
    platform     LowCardinality(String),
    currency     LowCardinality(String),
    impressions  UInt64,
    clicks       UInt64,
    conversions  Decimal(38, 6),
    cost         Decimal(38, 6),
    revenue      Decimal(38, 6),
    event_count  UInt64,
    version      UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(slice_start)
ORDER BY (client_id, campaign_id, slice_start);

-- Figures of a campaign in an hour (grain 'hour') or a day (grain 'day', `hour` is its first) by source. Replaced as a
-- whole by version, never incremented: platforms take figures back.
CREATE TABLE IF NOT EXISTS campaign_metrics_hourly
(
    client_id    UUID,
    campaign_id  UUID,
    platform     LowCardinality(String),
    source       LowCardinality(String),
    grain        Enum8('hour' = 1, 'day' = 2),
    hour         DateTime('UTC'),
    project_id   UUID,
    currency     LowCardinality(String),
    impressions  UInt64,
    clicks       UInt64,
    conversions  Decimal(38, 6),
    cost         Decimal(38, 6),
    revenue      Decimal(38, 6),
    event_count  UInt64,
    version      UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(hour)
ORDER BY (client_id, campaign_id, platform, source, grain, hour);

-- Days in the client's time zone. formatDateTime takes the zone from a column; toDate would silently use the first row's.
CREATE VIEW IF NOT EXISTS campaign_daily_stats AS
SELECT
    client_id,
    project_id,
    campaign_id,
    platform,
    source,
    currency,
    toDate(formatDateTime(hour, '%F', dictGet('{database}.campaigns_dict', 'time_zone', campaign_id))) AS date,
    sum(impressions) AS impressions,
    sum(clicks) AS clicks,
    sum(conversions) AS conversions,
    sum(cost) AS cost,
    sum(revenue) AS revenue
FROM campaign_metrics_hourly FINAL
WHERE grain = 'hour'
GROUP BY client_id, project_id, campaign_id, platform, source, currency, date;

-- Events whose time is out of bounds. They count in no figure; repeats collapse.
CREATE TABLE IF NOT EXISTS campaign_events_quarantine
(
    client_id       UUID,
    campaign_id     UUID,
    event_time      DateTime64(6, 'UTC'),
    event_id        UUID,
    reason          Enum8('too_old' = 1, 'in_future' = 2),
    event           String COMMENT 'The event as serialized mrm.statistics.v1.Event',
    quarantine_time DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(quarantine_time)
PARTITION BY toYYYYMM(quarantine_time)
ORDER BY (client_id, campaign_id, event_time, event_id)
TTL toDateTime(quarantine_time) + INTERVAL 90 DAY;
