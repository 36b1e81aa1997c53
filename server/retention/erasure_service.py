"""ErasureService: what was erased where."""

from datetime import timedelta
from uuid import UUID

from mrm.operations.v1 import erasure_service_pb2 as pb
from server.retention import convert, erase_job
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.values import optional_id
from storage.postgres import archives, clients, erasures, user_id_salts
from storage.postgres.database import Database


class ErasureService:
    """Implements mrm.operations.v1.ErasureService.

    Args:
        database: Holds receipts and salts.
        pager: Makes page tokens.
        deadline: By when all stores must have forgotten.
    """

    def __init__(self, database: Database, pager: Pager, deadline: timedelta) -> None:
        self._database = database
        self._pager = pager
        self._deadline = deadline

    async def EraseUserIds(self, request: pb.EraseUserIdsRequest, call: Mutation) -> pb.EraseUserIdsResponse:
        """Drops a client's salt."""
        client_id = UUID(request.client_id)
        if await clients.get(call.tx, call.scope, client_id) is None:
            raise NotFound.resource("client", request.client_id)
        await archives.lock_holds_internal(call.tx)
        if await archives.get_hold(call.tx, client_id) is not None:
            raise FailedPrecondition("the client is held: nothing of it may be erased", reason="LEGAL_HOLD")
        await user_id_salts.drop_internal(call.tx, client_id)
        erasure = convert.erasure(await erase_job.request(call.tx, "user_ids", client_id, self._deadline))
        await call.record(
            AuditEntry("erase_user_ids", "erasure", UUID(erasure.erasure_id), client_id, None, None, erasure)
        )
        return pb.EraseUserIdsResponse(erasure=erasure)

    async def GetErasure(self, request: pb.GetErasureRequest, call: Call) -> pb.GetErasureResponse:
        """Reads one erasure."""
        row = await erasures.get_internal(self._database, UUID(request.erasure_id))
        if row is None:
            raise NotFound.resource("erasure", request.erasure_id)
        return pb.GetErasureResponse(erasure=convert.erasure(row))

    async def ListErasures(self, request: pb.ListErasuresRequest, call: Call) -> pb.ListErasuresResponse:
        """Lists erasures."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await erasures.list_page(
                self._database,
                limit=page.size + 1,
                after=page.after,
                subject_id=optional_id(request.filter.subject_id),
                only_open=request.filter.only_open,
            )
        )
        return pb.ListErasuresResponse(erasures=[convert.erasure(row) for row in rows], next_page_token=next_token)
