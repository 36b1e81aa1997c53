"""SystemService: how the service itself stands."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from mrm.operations.v1 import system_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.rights import denied
from server.rpc.values import EnumWords, timestamp
from storage.migrations import MigrationStatus

_STATES: Final = EnumWords(pb.MigrationState, "MIGRATION_STATE_")


class SystemService:
    """Implements mrm.operations.v1.SystemService.

    Args:
        migrations: Tells how each migration stands, by engine.
    """

    def __init__(self, migrations: Callable[[], Awaitable[Mapping[str, Sequence[MigrationStatus]]]]) -> None:
        self._migrations = migrations

    async def GetMigrationStatus(
        self, request: pb.GetMigrationStatusRequest, call: Call
    ) -> pb.GetMigrationStatusResponse:
        """Tells how each migration stands."""
        if not call.scope.everything:
            raise denied("OPERATIONS_READ")
        found = await self._migrations()
        return pb.GetMigrationStatusResponse(
            build_version=version("mrm-ai-platform"),
            complete=all(each.state == "applied" for each_engine in found.values() for each in each_engine),
            engines=[
                pb.EngineMigrations(engine=engine, migrations=[_message(each) for each in statuses])
                for engine, statuses in found.items()
            ],
        )


def _message(status: MigrationStatus) -> pb.Migration:
    return pb.Migration(
        version=status.version, state=_STATES.number(status.state), apply_time=timestamp(status.applied_at)
    )
