"""PromptService's labels: pointers that are moved by compare-and-set, with a history that has no gaps."""

from uuid import UUID

from mrm.ai.v1 import prompt_service_pb2 as pb
from server.prompts import convert
from server.prompts.owning import check_active, check_may_decide, found_version, locked, locked_of_version
from server.rpc import rights
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import Aborted, FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import optional_id
from server.settings import PromptsSettings
from storage.postgres import experiments, prompts
from storage.postgres.database import Database
from storage.postgres.experiments import Experiment
from storage.postgres.prompts import Label, Prompt


class LabelRpcs:
    """Implements the labels of mrm.ai.v1.PromptService.

    Args:
        database: Where prompts live.
        pager: Makes page tokens.
        settings: Which labels are protected.
    """

    def __init__(self, database: Database, pager: Pager, settings: PromptsSettings) -> None:
        self._database = database
        self._pager = pager
        self._protected = settings.protected_labels

    async def MovePromptLabel(self, request: pb.MovePromptLabelRequest, call: Mutation) -> pb.MovePromptLabelResponse:
        """Points a label to a version, or makes it."""
        prompt, version = await locked_of_version(call, UUID(request.prompt_version_id))
        check_may_decide(call, request.label, self._protected)
        present = await prompts.label(call.tx, call.scope, prompt.id, request.label)
        check_present(request.label, present, optional_id(request.expected_prompt_version_id))
        check_active(version)
        if present is not None and present.version_id == version.id:
            raise InvalidRequest.field("prompt_version_id", "SAME_VERSION", "is where the label points to already")
        await self._end_experiment(call, prompt, request.label, f"the label was moved: {request.reason}")
        moved = await prompts.move_label(
            call.tx,
            call.scope,
            prompt.id,
            request.label,
            present=present,
            to_version_id=version.id,
            reason=request.reason,
            moved_by=await rights.person(call),
        )
        await record_move(call, "move", prompt, present, moved[0], self._protected)
        return pb.MovePromptLabelResponse(
            prompt_label=convert.label(moved[0], self._protected), move=convert.move(moved[1])
        )

    async def RollbackPromptLabel(
        self, request: pb.RollbackPromptLabelRequest, call: Mutation
    ) -> pb.RollbackPromptLabelResponse:
        """Takes back the last move of a label that was not taken back."""
        prompt = await locked(call, UUID(request.prompt_id))
        check_may_decide(call, request.label, self._protected)
        present = await prompts.label(call.tx, call.scope, prompt.id, request.label)
        if present is None:
            raise NotFound(
                "the prompt has no such label", metadata={"resource_type": "prompt_label", "label": request.label}
            )
        if request.expected_prompt_version_id:
            check_present(request.label, present, UUID(request.expected_prompt_version_id))
        last = await prompts.standing_move(call.tx, call.scope, present.id)
        if last is None or last.from_version_id is None:
            raise FailedPrecondition(
                "the label has pointed to nothing before",
                metadata={"resource_type": "prompt_label", "state": "first", "wanted": "moved"},
            )
        version = await found_version(call.tx, call, last.from_version_id)
        check_active(version)
        await self._end_experiment(call, prompt, request.label, f"the label was rolled back: {request.reason}")
        moved = await prompts.move_label(
            call.tx,
            call.scope,
            prompt.id,
            request.label,
            present=present,
            to_version_id=version.id,
            reason=request.reason,
            moved_by=await rights.person(call),
            kind="rollback",
            undoes=last.number,
        )
        await record_move(call, "rollback", prompt, present, moved[0], self._protected)
        return pb.RollbackPromptLabelResponse(
            prompt_label=convert.label(moved[0], self._protected), move=convert.move(moved[1])
        )

    async def ListPromptLabelMoves(
        self, request: pb.ListPromptLabelMovesRequest, call: Call
    ) -> pb.ListPromptLabelMovesResponse:
        """Tells how the labels of a prompt came to where they are."""
        page = self._pager.start(request, call)
        prompt_id = UUID(request.prompt_id)
        rows, next_token = page.cut(
            await prompts.moves_page(
                self._database,
                call.scope,
                prompt_id,
                limit=page.size + 1,
                after=page.after,
                label=request.filter.label,
            )
        )
        if not rows and await prompts.get(self._database, call.scope, prompt_id) is None:
            raise NotFound.resource("prompt", request.prompt_id)
        return pb.ListPromptLabelMovesResponse(moves=map(convert.move, rows), next_page_token=next_token)

    async def _end_experiment(self, call: Mutation, prompt: Prompt, label: str, reason: str) -> None:
        """Ends what runs under a label that moves: its control would no longer be what the label serves."""
        running = await experiments.running(call.tx, call.scope, prompt.id, label)
        if running is not None:
            await ended(call, running, reason)


async def ended(call: Mutation, running: Experiment, reason: str) -> Experiment:
    """Ends an experiment of a held prompt."""
    after = await experiments.stop(call.tx, call.scope, running.id, by=await rights.person(call), reason=reason[:2000])
    await record_experiment(call, "stop", running, after)
    return after


async def record_experiment(call: Mutation, action: str, before: Experiment | None, after: Experiment) -> None:
    """Records a change of an experiment."""
    was = None if before is None else convert.experiment(before)
    entry = AuditEntry(action, "prompt_experiment", after.id, after.client_id, None, was, convert.experiment(after))
    await call.record(entry)


async def record_move(
    call: Mutation, action: str, prompt: Prompt, before: Label | None, after: Label, protected: tuple[str, ...]
) -> None:
    """Records a move of a label."""
    was = None if before is None else convert.label(before, protected)
    entry = AuditEntry(action, "prompt_label", after.id, prompt.client_id, None, was, convert.label(after, protected))
    await call.record(entry)


def check_present(name: str, present: Label | None, expected: UUID | None) -> None:
    """Raises Aborted if a label does not point to where the caller believes it does.

    Args:
        name: Of the label.
        present: The label as it is; None if there is none.
        expected: The version that the caller knows of; None if there is to be no label.
    """
    current = None if present is None else present.version_id
    if current == expected:
        return
    number = 0 if present is None else present.version
    told = f"points to version {number}" if present is not None else "does not exist"
    raise Aborted(
        f"the label {name} {told} by now: read it again and decide anew",
        reason="PROMPT_LABEL_MOVED",
        metadata={
            "label": name,
            "expected": str(expected or ""),
            "current": str(current or ""),
            "current_version": str(number),
        },
    )
