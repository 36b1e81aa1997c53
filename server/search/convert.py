"""Templates as messages, and back."""

from collections.abc import Iterable

from mrm.ai.v1 import feedback_pb2, template_pb2, template_service_pb2
from server.rpc.values import EnumWords, etag, timestamp
from server.search.mapping import Fit
from storage.postgres.templates import Template

ARTIFACT_TYPES = EnumWords(feedback_pb2.ArtifactType, "ARTIFACT_TYPE_")
COLUMN_TYPES = EnumWords(template_pb2.ColumnType, "COLUMN_TYPE_")
REASONS = EnumWords(template_service_pb2.ColumnReasonKind, "COLUMN_REASON_KIND_")


def template(row: Template) -> template_pb2.Template:
    """A template."""
    return template_pb2.Template(
        template_id=str(row.id),
        etag=etag(row.revision),
        client_id=str(row.client_id),
        display_name=row.name,
        artifact_type=ARTIFACT_TYPES.number(row.artifact_type),
        file_name=row.file_name,
        columns=(
            template_pb2.TemplateColumn(name=column["name"], type=COLUMN_TYPES.number(column["type"]))
            for column in row.columns
        ),
        sample_rows=(template_pb2.TemplateRow(cells=cells) for cells in row.sample),
        use_count=row.use_count,
        last_use_time=timestamp(row.last_used_at),
        creator_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def columns(given: Iterable[template_pb2.TemplateColumn]) -> list[dict[str, str]]:
    """Columns as rows hold them; an unknown type is empty."""
    return [{"name": column.name, "type": COLUMN_TYPES.optional_word(column.type) or ""} for column in given]


def suggestion(row: Template, fit: Fit) -> template_service_pb2.TemplateSuggestion:
    """A template that a file may be of."""
    return template_service_pb2.TemplateSuggestion(
        template=template(row),
        score=fit.score,
        mappings=(
            template_service_pb2.ColumnMapping(
                source_column=pair.source,
                template_column=pair.target,
                score=pair.score,
                reasons=(
                    template_service_pb2.ColumnReason(kind=REASONS.number(kind), score=score)
                    for kind, score in pair.reasons
                ),
            )
            for pair in fit.pairs
        ),
        unmatched_columns=fit.unmatched,
        missing_columns=fit.missing,
    )
