"""Typed settings: one class per concern, read from the environment.

Every value has the variable ``MRM_<SECTION>__<NAME>``, for instance ``MRM_POSTGRES__DSN``. `mrm serve --help` and the
README list them. Secrets are masked in every representation.
"""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PositiveSeconds = Annotated[float, Field(gt=0, le=3600)]


class GrpcSettings(BaseModel):
    """The listening side."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    reflection: bool = Field(True, description="Whether grpcurl may list services")
    tls_certificate: Path | None = Field(None, description="PEM file with the certificate chain; plaintext if unset")
    tls_key: Path | None = Field(None, description="PEM file with the private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with authorities: every client must show a certificate of one of them (mTLS)"
    )
    allow_plaintext: bool = Field(
        False, description="Serve in the clear to other machines too, behind something that encrypts"
    )
    drain_delay: float = Field(
        1.0, ge=0, le=300, description="Pause between NOT_SERVING and refusing calls: balancers look away meanwhile"
    )
    drain_seconds: PositiveSeconds = Field(15.0, description="Longest wait for running calls at shutdown")
    reuse_port: bool = Field(False, description="Share the port with other server processes (SO_REUSEPORT)")


class PostgresSettings(BaseModel):
    """PostgreSQL, the truth for entities."""

    dsn: SecretStr = Field(SecretStr("postgresql://localhost/mrm"), description="Connection URL")
    replica_dsn: SecretStr | None = Field(None, description="A replica that takes reads off it; none if unset")
    replica_staleness: PositiveSeconds = Field(
        1.0, description="A replica that is further behind, in seconds, is not read from"
    )
    pool_min: int = Field(2, ge=1, le=100, description="Connections kept open")
    pool_max: int = Field(10, ge=1, le=200, description="Most connections")
    statement_cache_size: int = Field(200, ge=0, le=10000, description="0 behind PgBouncer in transaction mode")


class ClickHouseSettings(BaseModel):
    """ClickHouse, the truth for measurements."""

    dsn: SecretStr = Field(
        SecretStr("http://default@localhost:8123/mrm"), description="HTTP URL with user and database"
    )
    connections: int = Field(32, ge=4, le=500, description="Most connections")
    fsync_after_insert: bool = Field(False, description="Survive power loss, not only process death; slower")


class RedisSettings(BaseModel):
    """Redis: sessions, limits and queues (durable), cache (volatile)."""

    durable_dsn: SecretStr = Field(SecretStr("redis://localhost:6379/0"), description="Server with noeviction")
    volatile_dsn: SecretStr | None = Field(None, description="Server for the cache; the durable one if unset")


class ObjectsSettings(BaseModel):
    """Object storage: exported and imported files."""

    url: str | None = Field(
        None, description="s3://bucket/prefix or file:///directory; without it the service keeps no files"
    )
    endpoint: str = Field("", description="URL of the S3 server; Amazon's own if empty")
    region: str = Field("us-east-1", description="Region of the S3 server")
    access_key_id: str = Field("", description="Public half of the credentials; the instance's own role if empty")
    secret_access_key: SecretStr = Field(SecretStr(""), description="Secret half of the credentials")
    download_lifetime: timedelta = Field(
        timedelta(minutes=15), gt=timedelta(0), le=timedelta(days=7), description="Life of a download URL"
    )
    max_file_bytes: int = Field(
        16 * 2**30, ge=2**20, description="Largest file to upload or import; so much is kept in the temporary directory"
    )


class BackupSettings(BaseModel):
    """Backups: an object storage of their own, away from what it keeps."""

    url: str | None = Field(None, description="s3://bucket/prefix or file:///directory to keep backups in")
    endpoint: str = Field("", description="URL of the S3 server; Amazon's own if empty")
    region: str = Field("us-east-1", description="Region of the S3 server")
    access_key_id: str = Field("", description="Public half of the credentials; the instance's own role if empty")
    secret_access_key: SecretStr = Field(SecretStr(""), description="Secret half of the credentials")
    keyring: SecretStr | None = Field(
        None, description="Keys that encrypt backups, as `mrm keys new` makes them; keep them away from the backups"
    )
    keyring_file: Path | None = Field(None, description="File with these keys; used if they are unset")
    spool: Path = Field(Path(".mrm/spool"), description="Directory for files on their way; takes a whole backup")
    postgres_programs: Path | None = Field(
        None, description="Directory of pg_basebackup and pg_receivewal of the server's version; the embedded engine's"
    )
    clickhouse_directory: Path | None = Field(
        None, description="Directory in ClickHouse's `backups.allowed_path` that this process can read too"
    )


def _milvus_dsn(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(
        r"https?://(?:[^@/\s]+@)?[^@/\s:]+(?::\d+)?(?:/\w*)?", value.get_secret_value()
    ):
        raise ValueError("must be http://[user:password@]host:port[/database]")
    return value


class MilvusSettings(BaseModel):
    """Milvus: vectors for search by meaning."""

    dsn: Annotated[SecretStr | None, AfterValidator(_milvus_dsn)] = Field(
        None, description="http(s)://user:password@host:port/database; without it nothing is searched by meaning"
    )


def _endpoint(value: str | None) -> str | None:
    """The key and what clients wrote travel in these requests: encrypted, or not off this machine."""
    if value is not None:
        url = urlsplit(value)
        loopback = url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")
        if not url.hostname or not (url.scheme == "https" or loopback) or url.query or url.username:
            raise ValueError("must be https://host/path")
    return value


class EmbeddingSettings(BaseModel):
    """What makes vectors of texts: a model that comes with the service, or one behind an OpenAI-compatible endpoint."""

    endpoint: Annotated[str | None, AfterValidator(_endpoint)] = Field(
        None, description="Address that ends before /embeddings, for example https://host/v1; the own model if unset"
    )
    api_key: SecretStr = Field(SecretStr(""), description="Key for the endpoint")
    model: str = Field(
        "text-embedding-ada-002", pattern=r"^[\w.:/-]{1,100}$", description="Model to ask the endpoint for"
    )
    dimension: int = Field(1536, ge=2, le=32768, description="Numbers in a vector of that model")
    batch: int = Field(64, ge=1, le=2048, description="Most texts in one request to the endpoint")
    requests_per_minute: int = Field(300, ge=1, le=1_000_000, description="Most requests a minute to the endpoint")
    attempts: int = Field(5, ge=1, le=20, description="Tries of a request that the endpoint refuses for now")
    timeout: PositiveSeconds = Field(20.0, description="Longest wait for one answer of the endpoint")
    retired_for: timedelta = Field(
        timedelta(minutes=10),
        ge=timedelta(0),
        le=timedelta(days=30),
        description="How long vectors of the model before are kept after a change of models",
    )


class AuthSettings(BaseModel):
    """Sessions and call limits."""

    session_ttl: timedelta = Field(timedelta(hours=24), description="Life of a session")
    token_key: SecretStr | None = Field(
        None, description="Key that authenticates page and resume tokens; kept in PostgreSQL if unset"
    )
    session_poll: PositiveSeconds = Field(0.3, description="How often each process asks which sessions have ended")
    reset_ttl: timedelta = Field(timedelta(hours=1), description="How long a password reset token works")
    password_memory: int = Field(65536, ge=8, description="Memory of one password hash (argon2id) in KiB")
    password_passes: int = Field(3, ge=1, le=100, description="Passes of one password hash over that memory")
    limit_login: int = Field(20, ge=1, description="Sign-in attempts an hour per peer address and e-mail")
    limit_login_address: int = Field(300, ge=1, description="Sign-in attempts an hour per peer address, of all e-mails")
    limit_light: int = Field(3600, ge=1, description="Light calls an hour per caller and RPC")
    limit_heavy: int = Field(600, ge=1, description="Heavy calls an hour per caller and RPC")
    limit_ingest: int = Field(36000, ge=1, description="IngestEvents calls an hour per caller")
    limit_work: int = Field(360_000, ge=1, description="Calls of a worker an hour per key and RPC")
    limit_stream: int = Field(3600, ge=1, description="Streams opened an hour per caller and RPC")


class ClientsSettings(BaseModel):
    """The life of clients."""

    purge_delay: timedelta = Field(
        timedelta(days=7),
        ge=timedelta(0),
        description="How long a purge must have been requested before it is confirmed",
    )


class SecretsSettings(BaseModel):
    """The keys under which credentials of platforms are encrypted. Keep them apart from the database and its dumps."""

    keyring: SecretStr | None = Field(
        None, description="`id:key` entries, separated by commas; the first key seals, all open. Made by `mrm keys new`"
    )
    keyring_file: Path | None = Field(
        None, description="File with the entries, one a line, that only its owner may read; used if the ring is unset"
    )


def _platform_url(value: str) -> str:
    """Credentials travel in these requests: encrypted, or not off this machine."""
    url = urlsplit(value)
    loopback = url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")
    if not url.hostname or not (url.scheme == "https" or loopback) or url.path or url.query or url.username:
        raise ValueError("must be https://host, without a path")
    return value


PlatformUrl = Annotated[str, AfterValidator(_platform_url)]


class PlatformsSettings(BaseModel):
    """The advertising platforms: the only hosts that this server calls."""

    yandex_direct_url: PlatformUrl = Field("https://api.direct.yandex.com", description="Yandex Direct, API version 5")
    vk_ads_url: PlatformUrl = Field("https://ads.vk.com", description="VK Ads, API version 2")
    yandex_metrika_url: PlatformUrl = Field("https://api-metrika.yandex.net", description="Yandex Metrika")
    yandex_oauth_url: PlatformUrl = Field("https://oauth.yandex.com", description="Yandex OAuth, which renews tokens")
    yandex_client_id: str = Field("", description="Our application at Yandex OAuth; without it no token is renewed")
    yandex_client_secret: SecretStr = Field(SecretStr(""), description="Its secret")
    vk_ads_client_id: str = Field("", description="Our application at VK Ads; without it no token is renewed")
    vk_ads_client_secret: SecretStr = Field(SecretStr(""), description="Its secret")
    include_vat: bool = Field(
        False, description="Ask Yandex Direct for costs with value-added tax; those of VK Ads are always without"
    )
    timeout: PositiveSeconds = Field(10.0, description="Longest wait for an answer")
    report_timeout: PositiveSeconds = Field(60.0, description="Longest wait for statistics")


def _model_url(value: str) -> str:
    """The key and a client's figures travel in these requests: encrypted, or not off this machine."""
    url = urlsplit(value)
    loopback = url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")
    if value and (not url.hostname or not (url.scheme == "https" or loopback) or url.query or url.username):
        raise ValueError("must be https://host/path")
    return value


class LanguageModelSettings(BaseModel):
    """A language model that puts the findings of analytical notes into words. Without one the rules speak alone."""

    url: Annotated[str, AfterValidator(_model_url)] = Field(
        "", description="Address under which an OpenAI-compatible API has `/chat/completions`, such as https://host/v1"
    )
    key: SecretStr = Field(SecretStr(""), description="Its key; none is sent if empty")
    model: str = Field("", max_length=100, description="Which of its models to ask")
    timeout: PositiveSeconds = Field(60.0, description="Longest wait for an answer")

    @model_validator(mode="after")
    def _model_is_named(self) -> Self:
        if self.url and not self.model:
            raise ValueError("the model has to be named")
        return self


class IngestSettings(BaseModel):
    """Event ingest."""

    max_event_age: timedelta = Field(timedelta(days=365), description="Older events are put into quarantine")
    max_event_future: timedelta = Field(timedelta(minutes=10), description="Later events are put into quarantine")
    inserts_in_flight: int = Field(4, ge=1, le=64, description="Inserts at the same time")
    queue_bytes: int = Field(64 * 2**20, ge=2**20, description="Batches waiting for an insert, in bytes of all streams")
    stream_batches: int = Field(
        4, ge=1, le=64, description="Unacknowledged batches of one stream before reading pauses"
    )
    insert_timeout: PositiveSeconds = Field(30.0, description="Longest single insert")
    small_events: int = Field(
        2000, ge=0, description="Batches of at most this many events may share an insert with other clients; 0: none"
    )
    small_bytes: int = Field(
        128 * 2**10, ge=0, description="Batches of at most this many bytes may share an insert with other clients"
    )
    # All far below what makes ClickHouse cut an insert into several blocks: a shared one must be atomic too.
    group_events: int = Field(20_000, ge=1, le=100_000, description="Most events of a shared insert")
    group_bytes: int = Field(3 * 2**20, ge=1, le=4 * 2**20, description="Most bytes of a shared insert")
    client_group_events: int = Field(
        60_000, ge=0, le=200_000, description="Most events of an insert of one client's batches"
    )
    client_group_bytes: int = Field(
        12 * 2**20, ge=0, le=16 * 2**20, description="Most bytes of an insert of one client's batches; 0: one at a time"
    )
    group_inserts: int = Field(
        2, ge=1, le=64, description="Shared inserts at the same time, large ones of each client; more make them smaller"
    )
    group_delay: float = Field(0.004, ge=0, le=1, description="Seconds a small batch waits for others, at most")


class MetricsSettings(BaseModel):
    """The aggregator that turns events into figures, and the relay that feeds it campaigns."""

    tick: PositiveSeconds = Field(0.2, description="Pause between two looks for dirty slices")
    lease_ttl: PositiveSeconds = Field(5.0, description="After this long without a sign the next process takes over")
    mark_overlap: timedelta = Field(
        timedelta(seconds=90), description="Longest insert plus replica lag plus clock skew"
    )
    sweep_interval: PositiveSeconds = Field(300.0, description="Pause between two searches for lost marks")
    sweep_window: timedelta = Field(timedelta(hours=6), description="How far back the sweep looks, by ingest time")
    max_threads: int = Field(2, ge=1, le=64, description="Threads of the engine that a rebuild may use")


class QuerySettings(BaseModel):
    """Questions about statistics."""

    max_read_rows: int = Field(
        200_000_000, ge=1, description="A question that would make ClickHouse read more rows is refused before it runs"
    )


class WatchSettings(BaseModel):
    """Live streams."""

    tick: PositiveSeconds = Field(0.25, description="Shortest pause between two messages to one watcher")
    poll: PositiveSeconds = Field(2.0, description="Look for changes this often even without a signal")
    recheck: PositiveSeconds = Field(0.5, description="How often the rights behind open streams are checked again")
    write_timeout: PositiveSeconds = Field(30.0, description="A reader that takes nothing for this long is cut off")


class RollupSettings(BaseModel):
    """Daily figures in PostgreSQL."""

    grace: timedelta = Field(
        timedelta(hours=3),
        ge=timedelta(0),
        le=timedelta(hours=24),
        description="How long after its end a day is rolled up",
    )
    trailing_days: int = Field(
        3,
        ge=0,
        le=90,
        description="So many days before the last one are rolled up again each time: platforms restate them",
    )
    check_days: int = Field(35, ge=0, le=400, description="So many days are compared with the measurements each time")
    keep_months: int = Field(24, ge=1, le=120, description="Figures of older days come too late and are put aside")
    restatement_delay: timedelta = Field(
        timedelta(seconds=0.5),
        ge=timedelta(0),
        le=timedelta(minutes=10),
        description="How long a restated day waits for others before all of them are rolled up",
    )


class SyncSettings(BaseModel):
    """How often accounts on platforms are read."""

    entities_every: timedelta = Field(
        timedelta(minutes=15),
        ge=timedelta(seconds=1),
        description="Time between two readings of an account's campaigns",
    )
    statistics_every: timedelta = Field(
        timedelta(minutes=30), ge=timedelta(seconds=1), description="Time between two readings of an account's figures"
    )
    whole_every: timedelta = Field(
        timedelta(hours=24),
        description="After this long all campaigns are read, also where the platform tells which have changed",
    )
    initial_days: int = Field(
        30, ge=1, le=1000, description="So many days of figures are read when a campaign is first seen in an account"
    )
    reading_life: timedelta = Field(
        timedelta(hours=2),
        gt=timedelta(0),
        description="Reports that were not ready for so long are asked for anew",
    )


JobQueue = Literal["sync", "reports", "email", "maintenance"]


def _default_concurrency() -> dict[JobQueue, int]:
    return {"sync": 8, "reports": 2, "email": 4, "maintenance": 2}


class JobsSettings(BaseModel):
    """The process that runs jobs."""

    concurrency: dict[JobQueue, Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=_default_concurrency,
        description="Queues to work on, as JSON, with the jobs of each at the same time in one process",
    )
    lease: PositiveSeconds = Field(
        30.0, description="After this long without a sign of its worker a job is tried again"
    )
    redeliver: PositiveSeconds = Field(60.0, description="After this long a delivery that nobody took is repeated")
    tick: PositiveSeconds = Field(0.25, description="Pause between two looks for jobs that are due")
    drain_seconds: PositiveSeconds = Field(20.0, description="Longest wait for running jobs at shutdown")


def _mailbox(value: str) -> str:
    if not re.fullmatch(r"(?:[^<>@\r\n]* )?<?[^<>@\s]+@[A-Za-z0-9.-]+>?", value):
        raise ValueError("must be an address, or a name and an address in angle brackets")
    return value


def _unsubscribe_url(value: str) -> str:
    if "{token}" not in value or not re.fullmatch(r"(?:https://|mailto:)[^\s<>]+", value):
        raise ValueError("must be an https or mailto URL with {token} in it")
    return value


class EmailSettings(BaseModel):
    """The mail server that takes e-mails from us."""

    host: str = Field("", description="Name of the mail server; without one no e-mails are sent")
    port: int = Field(587, ge=1, le=65535, description="Its port")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is encrypted; `none` sends no password to another machine"
    )
    ca_file: Path | None = Field(None, description="PEM file of the authorities to trust; the system's if unset")
    user: str = Field("", description="Account there; none if empty")
    password: SecretStr = Field(SecretStr(""), description="Its password")
    sender: Annotated[str, AfterValidator(_mailbox)] = Field(
        "MRM <mrm@localhost>", description="Who e-mails are from: an address, or a name and an address"
    )
    unsubscribe: Annotated[str, AfterValidator(_unsubscribe_url)] = Field(
        "mailto:unsubscribe@localhost?subject={token}",
        description="Where a recipient asks for no more: a page that calls EmailService/Unsubscribe, or a mailbox",
    )
    timeout: PositiveSeconds = Field(30.0, description="Longest wait for one answer of the mail server")

    @model_validator(mode="after")
    def _password_stays_secret(self) -> Self:
        if self.security == "none" and self.user and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("user and password are sent over an encrypted connection only")
        return self


class AlertsSettings(BaseModel):
    """When people are told of what needs attention."""

    remind: timedelta = Field(
        timedelta(hours=24),
        gt=timedelta(0),
        description="An alert that is still open is told again after this long; one resolved by hand rests as long",
    )
    threshold_percents: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        (50, 80, 100), description="Percents of a budget that are told when they are spent, as JSON"
    )
    pacing_low_percent: int = Field(
        70, ge=0, le=1000, description="Spending below this percent of the plan stays behind"
    )
    pacing_high_percent: int = Field(
        130, ge=1, le=100_000, description="Spending above this percent of the plan runs ahead"
    )


class PromptsSettings(BaseModel):
    """Prompts and their labels."""

    protected_labels: tuple[Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,49}$")], ...] = Field(
        ("production",), description="Labels that only whoever may promote moves, as JSON"
    )
    cache_ttl: timedelta = Field(
        timedelta(minutes=1),
        ge=timedelta(0),
        le=timedelta(days=1),
        description="How long callers may keep a filled text without watching for changes",
    )


class MonitoringSettings(BaseModel):
    """What a process tells Prometheus of itself, over HTTP."""

    host: str = Field("127.0.0.1", description="Address to answer on; nobody is asked who they are")
    port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of /metrics, 0 for a free one, off if unset; `mrm serve --workers N` takes N from it on",
    )
    interval: PositiveSeconds = Field(
        10.0, description="How often queues, lags and alerts are read from the stores while that is on"
    )


def _collector(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^@/\s]+(/[^@\s?]*)?", value):
        raise ValueError("must be http(s)://host:port/path; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
    return value


class TracingSettings(BaseModel):
    """Spans of calls and of what they ask the stores, for an OpenTelemetry collector."""

    endpoint: Annotated[str | None, AfterValidator(_collector)] = Field(
        None, description="Where OTLP over HTTP goes, such as https://host:4318/v1/traces; off if unset"
    )
    ratio: float = Field(
        0.01, ge=0, le=1, description="Share of calls traced; one that comes with a traceparent follows that one"
    )


class RetentionSettings(BaseModel):
    """How long things are kept, and how soon they are erased. Daily figures: see MRM_ROLLUP__KEEP_MONTHS."""

    event_months: int = Field(12, ge=1, le=120, description="Events of older months are archived, then dropped")
    archive_years: int = Field(5, ge=1, le=100, description="Files of the archive are deleted after this long")
    settle: timedelta = Field(
        timedelta(minutes=10),
        ge=timedelta(0),
        le=timedelta(days=1),
        description="How long after events of a month stopped being taken it is archived",
    )
    restored_for: timedelta = Field(
        timedelta(days=30), gt=timedelta(0), le=timedelta(days=366), description="How long restored months stay"
    )
    patience: timedelta = Field(
        timedelta(days=3), gt=timedelta(0), description="A month that has not left after this long raises an alert"
    )
    erasure_deadline: timedelta = Field(
        timedelta(days=30), gt=timedelta(0), description="An erasure that takes longer in any store raises an alert"
    )
    log_days: int = Field(30, ge=1, le=3650, description="Logs of the data directory are kept for so many days")


class LoggingSettings(BaseModel):
    """Logs, one JSON object a line on standard error."""

    level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least severity")


class Settings(BaseSettings):
    """All settings of a server process."""

    model_config = SettingsConfigDict(env_prefix="MRM_", env_nested_delimiter="__", extra="ignore")

    grpc: GrpcSettings = GrpcSettings()
    postgres: PostgresSettings = PostgresSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    redis: RedisSettings = RedisSettings()
    objects: ObjectsSettings = ObjectsSettings()
    backup: BackupSettings = BackupSettings()
    milvus: MilvusSettings = MilvusSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    auth: AuthSettings = AuthSettings()
    clients: ClientsSettings = ClientsSettings()
    secrets: SecretsSettings = SecretsSettings()
    platforms: PlatformsSettings = PlatformsSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()
    ingest: IngestSettings = IngestSettings()
    metrics: MetricsSettings = MetricsSettings()
    query: QuerySettings = QuerySettings()
    watch: WatchSettings = WatchSettings()
    rollup: RollupSettings = RollupSettings()
    sync: SyncSettings = SyncSettings()
    jobs: JobsSettings = JobsSettings()
    email: EmailSettings = EmailSettings()
    alerts: AlertsSettings = AlertsSettings()
    prompts: PromptsSettings = PromptsSettings()
    retention: RetentionSettings = RetentionSettings()
    logging: LoggingSettings = LoggingSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    tracing: TracingSettings = TracingSettings()


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings, beyond those that this one's own environment gives it."""
    inherited, found = Settings(), {}
    for section in Settings.model_fields:
        mine, theirs = getattr(settings, section), getattr(inherited, section)
        plain = mine.model_dump(mode="json")
        for name in type(mine).model_fields:
            value = getattr(mine, name)
            if value is not None and value != getattr(theirs, name):
                text = value.get_secret_value() if isinstance(value, SecretStr) else plain[name]
                found[f"MRM_{section}__{name}".upper()] = text if isinstance(text, str) else json.dumps(text)
    return found
