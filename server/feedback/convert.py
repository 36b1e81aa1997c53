"""Between messages of feedback and rows."""

from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from mrm.ai.v1 import feedback_pb2 as pb
from mrm.ai.v1 import prompt_pb2
from server.rpc.values import EnumWords, moment, optional_id, timestamp
from storage.postgres.feedback import Feedback, Selection

ACTIONS: Final = EnumWords(pb.FeedbackAction, "FEEDBACK_ACTION_")
ARTIFACT_TYPES: Final = EnumWords(pb.ArtifactType, "ARTIFACT_TYPE_")
CATEGORIES: Final = EnumWords(prompt_pb2.PromptCategory, "PROMPT_CATEGORY_")


def percent(value: Decimal | None) -> str | None:
    """A percentage in plain notation; None stays None, so that the field stays absent."""
    if value is None:
        return None
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def feedback(row: Feedback) -> pb.Feedback:
    """Feedback; texts that the row has not are empty."""
    message = pb.Feedback(
        feedback_id=str(row.id),
        key=row.key,
        client_id=str(row.client_id),
        project_id=_id(row.project_id),
        user_id=_id(row.user_id),
        user_pseudonym=_id(row.user_pseudonym),
        api_key_id=_id(row.api_key_id),
        prompt_version_id=str(row.prompt_version_id),
        prompt_id=str(row.prompt_id),
        prompt_name=row.prompt_name,
        prompt_version=row.prompt_version,
        prompt_category=CATEGORIES.number(row.category),
        label=row.label,
        prompt_experiment_id=_id(row.experiment_id),
        action=ACTIONS.number(row.action),
        edit_percent=percent(row.edit_percent),
        input_text=row.input_text or "",
        output_text=row.output_text or "",
        edited_text=row.edited_text or "",
        comment=row.comment,
        action_time=timestamp(row.acted_at),
        create_time=timestamp(row.created_at),
    )
    if row.artifact_type is not None:
        message.artifact.type = ARTIFACT_TYPES.number(row.artifact_type)
        message.artifact.artifact_id = _id(row.artifact_id)
    return message


def selection(wanted: pb.FeedbackFilter, since: datetime | None = None, before: datetime | None = None) -> Selection:
    """Which feedback a filter means.

    Args:
        wanted: The filter.
        since: First instant of the time to cover, besides the filter's.
        before: First instant after it.
    """
    begins, ends = [since] if since else [], [before] if before else []
    if wanted.HasField("action_times"):
        begins.append(moment(wanted.action_times.start_time))
        ends.append(moment(wanted.action_times.end_time))
    return Selection(
        client_ids=[UUID(each) for each in wanted.client_ids] or None,
        project_id=optional_id(wanted.project_id),
        user_id=optional_id(wanted.user_id),
        prompt_id=optional_id(wanted.prompt_id),
        prompt_version_id=optional_id(wanted.prompt_version_id),
        categories=CATEGORIES.optional_words(wanted.prompt_categories),
        label=wanted.label or None,
        experiment_id=optional_id(wanted.prompt_experiment_id),
        actions=ACTIONS.optional_words(wanted.actions),
        artifact_id=optional_id(wanted.artifact_id),
        since=max(begins, default=None),
        before=min(ends, default=None),
    )


def _id(value: UUID | None) -> str:
    return "" if value is None else str(value)
