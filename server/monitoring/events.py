"""What happens once is counted where it happens, whether or not anybody asks. No label names a tenant."""

from prometheus_client import Counter, Histogram

INGESTED_EVENTS = Counter("mrm_ingest_events", "Events whose fate is durable, by what it is", ["outcome"])
INGEST_STORED = INGESTED_EVENTS.labels("stored")
INGEST_QUARANTINED = INGESTED_EVENTS.labels("quarantined")
INGEST_FAILED_BATCHES = Counter("mrm_ingest_failed_batches", "Batches that were refused or given up")
INGEST_SECONDS = Histogram(
    "mrm_ingest_batch_seconds",
    "Time from taking a batch to its being durable: the ingest lag",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
RELAYED_MESSAGES = Counter("mrm_relay_messages", "Messages of the outbox delivered to ClickHouse")
JOBS_ENDED = Counter("mrm_jobs_ended", "Tries of jobs, by how they ended", ["type", "status"])
JOB_SECONDS = Histogram(
    "mrm_job_seconds",
    "Time that a try of a job took",
    ["type"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0),
)
EMAILS = Counter("mrm_emails", "E-mails that ended, by how", ["outcome"])
