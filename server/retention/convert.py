"""Archives, holds and erasures as messages."""

from mrm.operations.v1 import retention_pb2 as pb
from server.rpc.values import EnumWords, timestamp
from storage.postgres import erasures
from storage.postgres.archives import Hold, Partition
from storage.postgres.erasures import Erasure

TABLES = EnumWords(pb.ArchiveTable, "ARCHIVE_TABLE_")
STATES = EnumWords(pb.ArchiveState, "ARCHIVE_STATE_")
SUBJECTS = EnumWords(pb.ErasureSubject, "ERASURE_SUBJECT_")


def archive_month(row: Partition) -> pb.ArchiveMonth:
    """A month of the manifest."""
    return pb.ArchiveMonth(
        archive_month_id=str(row.id),
        table=TABLES.number(row.table_name),
        month=f"{row.month:%Y-%m}",
        state=STATES.number(row.state),
        close_time=timestamp(row.closed_at),
        archive_time=timestamp(row.archived_at),
        drop_time=timestamp(row.dropped_at),
        restore_time=timestamp(row.restored_at),
        keep_until_time=timestamp(row.kept_until),
        client_count=row.clients,
        row_count=row.rows,
        size_bytes=row.bytes,
    )


def legal_hold(row: Hold) -> pb.LegalHold:
    """A hold."""
    return pb.LegalHold(
        client_id=str(row.client_id),
        reason=row.reason,
        setter_id=str(row.set_by or ""),
        set_time=timestamp(row.set_at),
    )


def erasure(row: Erasure) -> pb.Erasure:
    """An erasure with its receipts."""
    given = {each.store for each in row.receipts}
    return pb.Erasure(
        erasure_id=str(row.id),
        subject=SUBJECTS.number(row.subject),
        subject_id=str(row.subject_id),
        request_time=timestamp(row.requested_at),
        deadline_time=timestamp(row.deadline),
        complete_time=timestamp(row.completed_at),
        receipts=[
            pb.ErasureReceipt(store=each.store, erase_time=timestamp(each.erased_at), note=each.note)
            for each in row.receipts
        ],
        missing_stores=[store for store in erasures.STORES[row.subject] if store not in given],
    )
