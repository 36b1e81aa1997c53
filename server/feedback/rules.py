"""What a record of feedback must be by itself, before anything is looked up."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final
from uuid import UUID

from mrm.ai.v1 import feedback_pb2 as pb
from server.feedback import convert, edits
from server.rpc.call import Principal
from server.rpc.errors import InvalidRequest
from server.rpc.validation import validate
from server.rpc.values import moment, optional_id
from storage.postgres.feedback import NewFeedback, Place
from storage.postgres.ids import new_id

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_HASH_BYTES: Final = 16
_UNTOUCHED: Final = Decimal(0)
# Many records are of the same client, project and prompt.
_uuid: Final = lru_cache(maxsize=4096)(UUID)
_TEXTS: Final = ("input_text", "output_text", "edited_text", "comment", "label")


@dataclass(frozen=True, slots=True)
class Draft:
    """A record that is right by itself.

    Attributes:
        row: The row to add; `edit_percent` is None as long as `texts` wait to be compared.
        texts: The answer and what became of it, in the form in which they are compared.
    """

    row: NewFeedback
    texts: tuple[str, str] | None

    @property
    def place(self) -> Place:
        """What the record says it is of."""
        row = self.row
        return Place(row.client_id, row.project_id, row.prompt_version_id, row.experiment_id, row.user_id)


def read(record: pb.FeedbackRecord, path: str, principal: Principal) -> Draft:
    """Reads a record.

    Args:
        record: The record; its fields are not checked yet.
        path: Where it stands in the request.
        principal: Who records it.

    Raises:
        InvalidRequest: Fields break their rules or contradict each other.
    """
    validate(record, path)
    for name in _TEXTS:
        if "\x00" in getattr(record, name):
            raise InvalidRequest.field(f"{path}.{name}", "TEXT_NUL", "holds a character that no text has: U+0000")
    by_person = principal.kind == "user"
    user_id = optional_id(record.user_id)
    if by_person:
        if user_id not in (None, principal.principal_id):
            raise InvalidRequest.field(
                f"{path}.user_id", "NOT_CALLER", "is somebody else: people record for themselves"
            )
        user_id = principal.principal_id
    texts = _texts(record, path)
    row = NewFeedback(
        id=new_id(),
        client_id=_uuid(record.client_id),
        key=record.key,
        content_hash=_content_hash(record, user_id),
        project_id=_uuid(record.project_id) if record.project_id else None,
        prompt_version_id=_uuid(record.prompt_version_id),
        label=record.label,
        experiment_id=optional_id(record.prompt_experiment_id),
        user_id=user_id,
        api_key_id=None if by_person else principal.principal_id,
        artifact_type=convert.ARTIFACT_TYPES.word(record.artifact.type) if record.HasField("artifact") else None,
        artifact_id=optional_id(record.artifact.artifact_id),
        action=convert.ACTIONS.word(record.action),
        edit_percent=_told_percent(record, path, texts is not None),
        input_text=record.input_text or None,
        output_text=record.output_text or None,
        edited_text=record.edited_text or None,
        comment=record.comment,
        acted_at=_acted_at(record, path),
    )
    return Draft(row, texts)


def _texts(record: pb.FeedbackRecord, path: str) -> tuple[str, str] | None:
    """The answer and what became of it, if both are told."""
    if not record.edited_text:
        return None
    if record.action != pb.FEEDBACK_ACTION_EDITED:
        raise InvalidRequest.field(f"{path}.edited_text", "NOT_EDITED", "is given, but the answer was not edited")
    if not record.output_text:
        raise InvalidRequest.field(f"{path}.output_text", "REQUIRED", "is needed with edited_text")
    before, after = edits.plain(record.output_text), edits.plain(record.edited_text)
    if before == after:
        raise InvalidRequest.field(f"{path}.edited_text", "NOT_EDITED", "is what the answer was: it was accepted")
    return before, after


def _told_percent(record: pb.FeedbackRecord, path: str, computed: bool) -> Decimal | None:
    """How much was changed as far as the record tells it without texts."""
    told = Decimal(record.edit_percent) if record.edit_percent else None
    fault = ""
    if computed and told is not None:
        fault = "is worked out of the texts: leave it out"
    elif record.action == pb.FEEDBACK_ACTION_ACCEPTED and told:
        fault = "must be 0 for an accepted answer"
    elif record.action == pb.FEEDBACK_ACTION_EDITED and told == _UNTOUCHED:
        fault = "must be more than 0 for an edited answer"
    elif record.action == pb.FEEDBACK_ACTION_REJECTED and told is not None:
        fault = "is of answers that were taken, not of rejected ones"
    if fault:
        raise InvalidRequest.field(f"{path}.edit_percent", "EDIT_PERCENT_CONTRADICTS", fault)
    return _UNTOUCHED if record.action == pb.FEEDBACK_ACTION_ACCEPTED else told


def _acted_at(record: pb.FeedbackRecord, path: str) -> datetime | None:
    if not record.HasField("action_time"):
        return None
    acted_at = moment(record.action_time)
    if acted_at > datetime.now(UTC) + _CLOCKS_DIFFER:
        raise InvalidRequest.field(f"{path}.action_time", "IN_FUTURE", "is in the future")
    return acted_at


def _content_hash(record: pb.FeedbackRecord, user_id: UUID | None) -> bytes:
    """What tells a repeat from another record under the same key."""
    digest = hashlib.blake2b(record.SerializeToString(deterministic=True), digest_size=_HASH_BYTES)
    digest.update(user_id.bytes if user_id else b"")
    return digest.digest()
