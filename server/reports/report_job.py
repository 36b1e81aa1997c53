"""The job that makes a report: keeps its figures, draws its file from what was kept, and stores that."""

import asyncio
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from server.jobs.handling import JobContext, JobFailed, Stores
from server.reports import convert, findings, gathering, pages, sheets, telling, wording
from server.reports.making import GenerateReport
from server.reports.wording import Words
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from storage.objects.store import client_prefix
from storage.postgres import reports
from storage.postgres.audit import Cause
from storage.postgres.jobs import Job
from storage.postgres.reports import Report


def written(data: Mapping[str, Any]) -> bytes:
    """The figures themselves."""
    return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


_DRAWN: Final[Mapping[str, Callable[[Mapping[str, Any], str], bytes]]] = {
    "json": lambda data, _: written(data),
    "pdf": pages.pdf,
    "xlsx": sheets.xlsx,
}


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Makes a report ready; begun anew, it draws the same from the figures that the first try kept."""
    database = context.stores.database
    report = await reports.get_internal(database, GenerateReport.model_validate(job.payload).report_id)
    if report is None or report.status == "ready":
        return {"outcome": "gone" if report is None else "ready"}
    objects = context.stores.objects
    if objects is None:
        raise JobFailed("no object storage is configured: set MRM_OBJECTS__URL")
    data = await _data(context, report)
    await context.progress(1, 3, "drawing")
    # On a thread: leases of other jobs are prolonged meanwhile.
    file = await asyncio.to_thread(_DRAWN[report.format], data, report.language)
    await context.progress(2, 3, "storing")
    key = f"{client_prefix(report.client_id)}reports/{report.id}.{report.format}"
    await objects.put(key, file)
    async with context.transaction("finish_report") as tx:
        await reports.finish_internal(
            tx, report.id, bucket=_bucket(context.stores), key=key, size=len(file), sha256=sha256(file).digest()
        )
        ready = await reports.get_internal(tx, report.id)
        assert ready is not None
        record = recorder(append_to(tx), SYSTEM, cause=Cause("job", str(job.id), "report made"))
        before, after = convert.report(report), convert.report(ready)
        await record(AuditEntry("finish", "report", report.id, report.client_id, report.project_id, before, after))
        await telling.tell_of_ready(tx, ready, data)
    return {"outcome": "ready", "size_bytes": len(file)}


async def _data(context: JobContext, report: Report) -> Mapping[str, Any]:
    """The figures that count: kept before anything is drawn, so that all tries draw the same."""
    kept = await reports.kept_internal(context.stores.database, report.id)
    if kept is not None:
        return kept
    data, watermark = await gathering.gather(context.stores, report)
    words = Words()
    if report.type == "analytical_notes":
        data["findings"] = findings.found(data, report.language)
        settings = context.stores.settings.language_model
        words = await wording.worded(context.stores.platforms.http, settings, data["findings"], report.language)
        data["words"] = words.kept()
    async with context.transaction("keep_report") as tx:
        return await reports.keep_internal(
            tx,
            report.id,
            data,
            watermark,
            generated_by="ai" if words.paragraphs else "user",
            prompt_name=words.prompt_name,
            prompt_version=words.prompt_version,
            model=words.model,
            fallback=words.fallback,
        )


def _bucket(stores: Stores) -> str:
    """What the storage is called: the bucket, or ``local`` for a directory."""
    return urlsplit(stores.settings.objects.url or "").netloc[:63] or "local"
