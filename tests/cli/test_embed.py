"""What `mrm embed status` prints; the tour runs it, and `mrm embed run`, as processes."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from mrm.ai.v1 import embedding_pb2
from server.cli.embed import line, table

COLLECTION = embedding_pb2.EmbeddingCollection(
    name="project__usem3_512",
    model="usem3",
    dimension=512,
    state=embedding_pb2.EMBEDDING_COLLECTION_STATE_SERVING,
    vector_count=12,
    refused_count=1,
    check_time=Timestamp(seconds=1_800_000_000),
)
WAITS = embedding_pb2.EmbeddingKind(name="project", waiting_count=3, oldest_wait_time=Timestamp(seconds=1_700_000_000))


def test_a_line_tells_what_waits_and_what_there_is() -> None:
    assert line((embedding_pb2.EmbeddingKind(name="project"), COLLECTION)) == (
        "project: nothing waits; project__usem3_512 serving 12 vectors (1 refused) usem3, 512"
        " compared 2027-01-15T08:00:00Z"
    )
    empty = line((WAITS, embedding_pb2.EmbeddingCollection()))
    assert empty.startswith("project: 3 wait, ")
    assert empty.endswith("; no collection")


def test_the_table_has_a_row_for_each_collection() -> None:
    console = Console(width=200, record=True)
    console.print(table([(WAITS, COLLECTION), (WAITS, embedding_pb2.EmbeddingCollection())]))
    shown = console.export_text()
    assert shown.count("project ") >= 2
    assert "usem3, 512" in shown
