"""`mrm report`: reports made and brought here."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import grpc
import typer
from rich.markup import escape

from mrm.planning.v1 import report_pb2
from mrm.planning.v1 import report_service_pb2 as pb
from mrm.planning.v1.report_service_pb2_grpc import ReportServiceStub
from mrm_client import CallError
from mrm_client.retries import Retries
from server.cli import jobs, remote
from server.cli.console import CommandFailed, progress, say

commands = typer.Typer(help="Have reports made, and download them.", no_args_is_help=True)

_CALL_SECONDS = 15


class About(StrEnum):
    """What a report is about."""

    PERFORMANCE = "performance"
    CHANNEL_COMPARISON = "channel_comparison"
    ANALYTICAL_NOTES = "analytical_notes"


class Language(StrEnum):
    """What a report is written in."""

    RU = "ru"
    EN = "en"


_FORMATS = {
    ".json": report_pb2.REPORT_FORMAT_JSON,
    ".pdf": report_pb2.REPORT_FORMAT_PDF,
    ".xlsx": report_pb2.REPORT_FORMAT_XLSX,
}

Out = Annotated[Path, typer.Option("--out", help="Where to put the file; its ending says what a new report is to be.")]


@commands.command()
@remote.reaching
async def make(
    server: remote.Server,
    project: Annotated[UUID, typer.Option(help="The project.")],
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")],
    out: Out,
    about: Annotated[About, typer.Option("--about", help="What it is about.")] = About.PERFORMANCE,
    language: Annotated[Language, typer.Option(help="What it is written in.")] = Language.RU,
    patience: remote.Patience = 300,
) -> int:
    """Have a report made (.pdf, .xlsx or .json), follow that, and download it. Exit code 1 if it could not be made."""
    if out.suffix not in _FORMATS:
        raise CommandFailed(f"{out}: a report is a .pdf, .xlsx or .json")
    request = pb.GenerateReportRequest(
        project_id=str(project),
        type=report_pb2.ReportType.Value(f"REPORT_TYPE_{about.name}"),
        dates={"start_date": first.date().isoformat(), "end_date": last.date().isoformat()},  # type: ignore[arg-type]
        format=_FORMATS[out.suffix],
        language=report_pb2.ReportLanguage.Value(f"REPORT_LANGUAGE_{language.name}"),
        request_id=str(uuid4()),
    )
    async with server.open(watch=True) as channel:
        made = (await ReportServiceStub(channel).GenerateReport(request, timeout=_CALL_SECONDS)).report
        code = await jobs.follow(channel, made.job_id, patience)
        if code == 0:
            await _bring(channel, made.report_id, out, patience)
        return code


@commands.command()
@remote.reaching
async def download(
    server: remote.Server,
    report: Annotated[UUID, typer.Argument(help="The report.")],
    out: Out,
    patience: remote.Patience = 300,
) -> None:
    """Download a report that is ready."""
    async with server.open() as channel:
        await _bring(channel, str(report), out, patience)


async def _bring(channel: grpc.aio.Channel, report_id: str, out: Path, patience: float) -> None:
    """Downloads a file, which appears only when it is whole; goes on where a lost connection stopped it."""
    stub: Any = ReportServiceStub(channel)
    found = (await stub.GetReport(pb.GetReportRequest(report_id=report_id), timeout=_CALL_SECONDS)).report
    partial = out.with_name(f".{out.name}.part")
    digest, size = hashlib.sha256(), 0
    retries = Retries(patience, lambda error, pause: say(f"{escape(str(error))}; trying again in {pause:.0f} s"))
    try:
        with partial.open("wb") as file, progress("downloading", found.size_bytes, "bytes") as meter:
            whole = False
            while not whole:
                try:
                    async for piece in stub.DownloadReport(pb.DownloadReportRequest(report_id=report_id, offset=size)):
                        retries.succeeded()
                        await asyncio.to_thread(file.write, piece.data)
                        digest.update(piece.data)
                        size += len(piece.data)
                        meter(size)
                    whole = True
                except grpc.aio.AioRpcError as error:
                    await retries.pause_or_raise(CallError.of_rpc(error))
        if digest.hexdigest() != found.sha256:
            raise CommandFailed(f"{out}: the bytes are not those that were stored: try again")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    say(f"{escape(str(out))}: {size:,} bytes, report {report_id}, sha256 {found.sha256}")
