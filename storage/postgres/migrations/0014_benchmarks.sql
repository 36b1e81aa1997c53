-- Reference figures that plans are measured against.

CREATE TABLE benchmarks (
  id UUID PRIMARY KEY,
  industry VARCHAR(100) NOT NULL DEFAULT '',
  platform VARCHAR(50) NOT NULL DEFAULT '',
  channel VARCHAR(50) NOT NULL DEFAULT '',
  format VARCHAR(100) NOT NULL DEFAULT '',
  geo VARCHAR(10) NOT NULL DEFAULT '',
  period DATERANGE NOT NULL CONSTRAINT benchmarks_period_bounded
    CHECK (NOT isempty(period) AND NOT lower_inf(period) AND NOT upper_inf(period)),
  metric VARCHAR(20) NOT NULL CONSTRAINT benchmarks_metric_known
    CHECK (metric IN ('ctr', 'cpc', 'cpm', 'cr', 'cpa', 'roas')),
  p25 NUMERIC(18, 6) NOT NULL,
  p50 NUMERIC(18, 6) NOT NULL,
  p75 NUMERIC(18, 6) NOT NULL,
  sample_size BIGINT NOT NULL CONSTRAINT benchmarks_sample_size_positive CHECK (sample_size > 0),
  source TEXT NOT NULL CONSTRAINT benchmarks_source_given CHECK (btrim(source) <> ''),
  currency VARCHAR(3) NOT NULL DEFAULT '',
  version VARCHAR(50) NOT NULL CONSTRAINT benchmarks_version_given CHECK (btrim(version) <> ''),
  CONSTRAINT benchmarks_order CHECK (0 <= p25 AND p25 <= p50 AND p50 <= p75),
  CONSTRAINT benchmarks_currency_of_costs
    CHECK (CASE WHEN metric IN ('cpc', 'cpm', 'cpa') THEN currency ~ '^[A-Z]{3}$' ELSE currency = '' END),
  CONSTRAINT benchmarks_narrowing CHECK ((format = '' OR channel <> '') AND (channel = '' OR platform <> '')),
  CONSTRAINT benchmarks_key UNIQUE (industry, platform, channel, format, geo, period, metric, currency, version)
);
COMMENT ON TABLE benchmarks IS
  'What others reached: quartiles by line of business, platform, channel and format. Belongs to no client.';
COMMENT ON COLUMN benchmarks.industry IS 'Empty: spans all. The same holds for platform, channel, format and geo.';
COMMENT ON COLUMN benchmarks.currency IS 'Of cpc, cpm and cpa; XXX when the source does not name it.';
COMMENT ON COLUMN benchmarks.version IS 'Edition of the data set; a later edition sorts after an earlier one.';
