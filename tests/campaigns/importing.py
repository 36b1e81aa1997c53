"""Importing campaigns over gRPC, as tests want it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from uuid import uuid4

from mrm.campaigns.v1 import campaign_import_pb2
from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from mrm.common.v1 import platform_pb2
from tests.conftest import Caller


def fingerprint() -> str:
    """A file that was never there before."""
    return uuid4().hex * 2


def row(line: int, external_id: str, **fields: object) -> pb.CampaignImportRow:
    """A row that nothing is wrong with, unless a field says so."""
    values = {"platform": platform_pb2.PLATFORM_OTHER, **fields}
    return pb.CampaignImportRow(line=line, external_id=external_id, **values)  # type: ignore[arg-type]


async def bring(
    caller: Caller,
    project_id: str,
    requests: Iterable[Sequence[pb.CampaignImportRow]],
    *,
    last: bool = True,
    **options: object,
) -> tuple[campaign_import_pb2.CampaignImport, list[campaign_import_pb2.CampaignImportError]]:
    """Sends rows, each element of `requests` in a request of its own; the last state, and all errors."""
    values = {"fingerprint": fingerprint(), **options}
    parts = list(requests)

    async def messages() -> AsyncIterator[pb.ImportCampaignsRequest]:
        yield pb.ImportCampaignsRequest(
            options=pb.CampaignImportOptions(project_id=project_id, **values),  # type: ignore[arg-type]
            last=last and not parts,
        )
        for index, part in enumerate(parts, start=1):
            yield pb.ImportCampaignsRequest(rows=part, last=last and index == len(parts))

    state, errors = campaign_import_pb2.CampaignImport(), []
    async for reply in caller.imports.ImportCampaigns(messages(), metadata=caller.auth):
        state = reply.campaign_import
        errors += reply.errors
    return state, errors
