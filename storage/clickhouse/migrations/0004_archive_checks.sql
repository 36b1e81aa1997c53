-- Where files of archived events are read back into, each under an id of its own, before the rows they stand for are dropped.
CREATE TABLE IF NOT EXISTS archive_check_events
(
    check_id     UUID,
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
    ingest_time  DateTime64(3, 'UTC')
)
ENGINE = MergeTree
PARTITION BY check_id
ORDER BY tuple();
