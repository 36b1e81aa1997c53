"""ClickHouse, the truth for measurements."""
