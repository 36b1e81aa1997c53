"""PromptExperimentService: compares versions of prompts by what people make of their answers."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from mrm.ai.v1 import prompt_experiment_service_pb2 as pb
from server.prompts import convert, deciding
from server.prompts.deciding import Check
from server.prompts.labels import check_present, ended, record_experiment, record_move
from server.prompts.owning import check_active, check_may_decide, found_version, locked
from server.rpc import rights
from server.rpc.call import Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import check_etag, optional_id
from server.settings import PromptsSettings
from storage.postgres import experiments, prompts
from storage.postgres.database import Database, Executor
from storage.postgres.experiments import Counts, Experiment

_MIN_SAMPLE_COUNT: Final = 100
_MAX_ACCEPTANCE_LOSS: Final = 0.05


class PromptExperimentService:
    """Implements mrm.ai.v1.PromptExperimentService.

    Args:
        database: Where experiments live.
        pager: Makes page tokens.
        settings: Which labels are protected.
    """

    def __init__(self, database: Database, pager: Pager, settings: PromptsSettings) -> None:
        self._database = database
        self._pager = pager
        self._protected = settings.protected_labels

    async def StartPromptExperiment(
        self, request: pb.StartPromptExperimentRequest, call: Mutation
    ) -> pb.StartPromptExperimentResponse:
        """Begins to serve versions side by side."""
        prompt = await locked(call, UUID(request.prompt_id))
        check_may_decide(call, request.label, self._protected)
        arm_ids = [UUID(each.prompt_version_id) for each in request.shares]
        for number, version_id in enumerate(arm_ids):
            field = f"shares[{number}].prompt_version_id"
            version = await found_version(call.tx, call, version_id)
            if version.lineage_id != prompt.id:
                raise InvalidRequest.field(field, "OTHER_PROMPT", "is a version of another prompt")
            if version_id in arm_ids[:number]:
                raise InvalidRequest.field(field, "VERSION_TWICE", "is there twice")
            check_active(version)
        label = await prompts.label(call.tx, call.scope, prompt.id, request.label)
        if label is None or label.version_id not in arm_ids:
            raise FailedPrecondition(
                "the version that the label points to must be one of the experiment: the others are held against it",
                metadata={
                    "resource_type": "prompt_label",
                    "label": request.label,
                    "state": "missing" if label is None else f"version {label.version}",
                    "wanted": "among the shares",
                },
            )
        running = await experiments.running(call.tx, call.scope, prompt.id, request.label)
        if running is not None:
            raise FailedPrecondition(
                "an experiment runs under this label: stop it first",
                metadata={
                    "resource_type": "prompt_experiment",
                    "resource_id": str(running.id),
                    "state": "running",
                    "wanted": "stopped",
                },
            )
        loss = request.max_acceptance_loss if request.HasField("max_acceptance_loss") else _MAX_ACCEPTANCE_LOSS
        made = await experiments.create(
            call.tx,
            call.scope,
            prompt_id=prompt.id,
            label=request.label,
            control_version_id=label.version_id,
            arm_ids=arm_ids,
            weights=[each.weight for each in request.shares],
            hypothesis=request.hypothesis,
            min_sample_count=request.min_sample_count or _MIN_SAMPLE_COUNT,
            max_acceptance_loss=loss,
            started_by=await rights.person(call),
        )
        await record_experiment(call, "start", None, made)
        return pb.StartPromptExperimentResponse(prompt_experiment=convert.experiment(made))

    async def StopPromptExperiment(
        self, request: pb.StopPromptExperimentRequest, call: Mutation
    ) -> pb.StopPromptExperimentResponse:
        """Has only the label's own version served again."""
        row = await self._held(request.prompt_experiment_id, request.etag, call)
        if row.status != "running":
            raise FailedPrecondition.transition("prompt_experiment", row.status, "stopped")
        return pb.StopPromptExperimentResponse(
            prompt_experiment=convert.experiment(await ended(call, row, request.reason))
        )

    async def GetPromptExperiment(
        self, request: pb.GetPromptExperimentRequest, call: Call
    ) -> pb.GetPromptExperimentResponse:
        """Returns an experiment."""
        row = await _found(self._database, request.prompt_experiment_id, call)
        return pb.GetPromptExperimentResponse(prompt_experiment=convert.experiment(row))

    async def ListPromptExperiments(
        self, request: pb.ListPromptExperimentsRequest, call: Call
    ) -> pb.ListPromptExperimentsResponse:
        """Lists experiments."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await experiments.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(request.filter.client_id),
                prompt_id=optional_id(request.filter.prompt_id),
                statuses=convert.EXPERIMENT_STATUSES.optional_words(request.filter.statuses),
            )
        )
        return pb.ListPromptExperimentsResponse(
            prompt_experiments=map(convert.experiment, rows), next_page_token=next_token
        )

    async def GetPromptExperimentResult(
        self, request: pb.GetPromptExperimentResultRequest, call: Call
    ) -> pb.GetPromptExperimentResultResponse:
        """Counts the feedback on each version."""
        row = await _found(self._database, request.prompt_experiment_id, call)
        counts = await experiments.counts(self._database, call.scope, row.id)
        control = counts[row.control_version_id]
        return pb.GetPromptExperimentResultResponse(
            prompt_experiment=convert.experiment(row),
            results=[convert.result(row, version_id, counts[version_id], control) for version_id in row.arm_ids],
        )

    async def PromotePromptExperiment(
        self, request: pb.PromotePromptExperimentRequest, call: Mutation
    ) -> pb.PromotePromptExperimentResponse:
        """Points the label to a version that has proven itself."""
        row = await self._held(request.prompt_experiment_id, request.etag, call)
        version_id = UUID(request.prompt_version_id)
        if version_id not in row.arm_ids or version_id == row.control_version_id:
            raise InvalidRequest.field(
                "prompt_version_id", "NOT_AN_ARM", "is control, or no version of this experiment"
            )
        if row.promoted_version_id is not None:
            raise FailedPrecondition.transition("prompt_experiment", "promoted", "promoted")
        approver = await rights.person(call)
        assert approver is not None
        present = await prompts.label(call.tx, call.scope, row.lineage_id, row.label)
        check_present(row.label, present, row.control_version_id)
        check_active(await found_version(call.tx, call, version_id))
        counts = await experiments.counts(call.tx, call.scope, row.id)
        _check_gate(row, counts[version_id], counts[row.control_version_id], by_starter=approver == row.started_by)
        result = convert.result(row, version_id, counts[version_id], counts[row.control_version_id])
        if row.status == "running":
            row = await ended(call, row, f"promoted: {request.reason}")
        moved, move = await prompts.move_label(
            call.tx,
            call.scope,
            row.lineage_id,
            row.label,
            present=present,
            to_version_id=version_id,
            reason=request.reason,
            moved_by=approver,
            kind="promotion",
            experiment_id=row.id,
        )
        after = await experiments.promote(call.tx, call.scope, row.id, version_id=version_id, by=approver)
        await record_experiment(call, "promote", row, after)
        prompt = await prompts.get(call.tx, call.scope, row.lineage_id)
        assert prompt is not None
        await record_move(call, "promote", prompt, present, moved, self._protected)
        return pb.PromotePromptExperimentResponse(
            prompt_experiment=convert.experiment(after),
            prompt_label=convert.label(moved, self._protected),
            move=convert.move(move),
            result=result,
        )

    async def _held(self, experiment_id: str, etag: str, call: Mutation) -> Experiment:
        """An experiment whose prompt is held."""
        row = await _found(call.tx, experiment_id, call)
        await locked(call, row.lineage_id)
        row = await _found(call.tx, experiment_id, call)
        check_etag(etag, row.revision)
        return row


async def _found(db: Executor, experiment_id: str, call: Call) -> Experiment:
    row = await experiments.get(db, call.scope, UUID(experiment_id))
    if row is None:
        raise NotFound.resource("prompt_experiment", experiment_id)
    return row


def _check_gate(row: Experiment, counts: Counts, control: Counts, *, by_starter: bool) -> None:
    """Raises FailedPrecondition unless all conditions of a promotion hold; says which fail, and by how much."""
    failed = [
        check
        for check in deciding.gate(
            counts, control, min_sample_count=row.min_sample_count, max_acceptance_loss=row.max_acceptance_loss
        )
        if not check.met
    ]
    if not failed and not by_starter:
        return
    names = [*(check.condition for check in failed), *(["approver"] if by_starter else [])]
    raise FailedPrecondition(
        f"the version cannot be promoted: {'; '.join([*map(_told, failed), *([_APPROVER] if by_starter else [])])}",
        reason="PROMPT_GATE",
        metadata={"failed": ",".join(names), **_figures(failed)},
    )


_APPROVER: Final = "whoever started the experiment does not promote"


def _told(check: Check) -> str:
    match check.condition:
        case "sample" | "control_sample":
            whose = "its" if check.condition == "sample" else "control's"
            return f"{check.actual:.0f} of {whose} answers were judged, {check.required:.0f} are needed"
        case "acceptance":
            if check.actual is None:
                return "there is no acceptance to compare"
            return (
                f"it may be accepted less often than control by {-check.actual:.4f}, allowed are"
                f" {0.0 - check.required:g}: {check.required - check.actual:.4f} too much"
            )


def _figures(failed: Sequence[Check]) -> dict[str, str]:
    found = {}
    for check in failed:
        found[f"{check.condition}_required"] = _number(check.required)
        if check.actual is not None:
            found[f"{check.condition}_actual"] = _number(check.actual)
            found[f"{check.condition}_missing"] = _number(check.required - check.actual)
    return found


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.6f}"
