"""Experiments: who gets what, what is found, and what it takes to promote."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import client_service_pb2
from mrm.ai.v1 import feedback_pb2, prompt_pb2, prompt_service_pb2
from mrm.ai.v1 import prompt_experiment_pb2 as experiment_pb
from mrm.ai.v1 import prompt_experiment_service_pb2 as pb
from mrm.common.v1 import options_pb2
from mrm.operations.v1 import change_service_pb2
from storage.postgres.ids import new_id
from tests.conftest import Caller, Failing, World, failure_of
from tests.feedback import asking
from tests.prompts import writing
from tests.prompts.writing import Version
from tests.test_bars import FULL

_FEEDBACK = """
INSERT INTO ai_feedback (id, key, prompt_id, client_id, user_action, edit_distance, experiment_id)
SELECT id, id::text, $2, $3, action, CASE action WHEN 'accepted' THEN 0 WHEN 'edited' THEN 7.5 END, $4
FROM unnest($1::uuid[], $5::text[]) AS given (id, action)"""


async def judged(world: World, client_id: str, experiment_id: str, arm: Version, **actions: int) -> None:
    """Feedback on answers of one version."""
    told = [action for action, count in actions.items() for _ in range(count)]
    ids = [new_id() for _ in told]
    arguments = UUID(arm.prompt_version_id), UUID(client_id), UUID(experiment_id)
    await world.database.execute(_FEEDBACK, ids, *arguments, told)


async def result(caller: Caller, experiment: experiment_pb.PromptExperiment) -> list[experiment_pb.PromptArmResult]:
    request = pb.GetPromptExperimentResultRequest(prompt_experiment_id=experiment.prompt_experiment_id)
    return list((await caller.experiments.GetPromptExperimentResult(request, metadata=caller.auth)).results)


async def get(caller: Caller, experiment_id: str) -> experiment_pb.PromptExperiment:
    request = pb.GetPromptExperimentRequest(prompt_experiment_id=experiment_id)
    return (await caller.experiments.GetPromptExperiment(request, metadata=caller.auth)).prompt_experiment


async def pair(world: World, label: str = "staging", **fields: str) -> tuple[Version, Version]:
    """Two versions of a prompt, the label at the first."""
    control = await writing.create(world.admin, template="A", **fields)
    other = await writing.version(world.admin, control.prompt_id, template="B")
    await writing.move(world.admin, control, label)
    return control, other


async def test_a_subject_gets_the_same_version_as_long_as_the_experiment_runs(world: World, failing: Failing) -> None:
    admin, analyst = world.admin, await world.user("analyst")
    control, other = await pair(world)
    third = await writing.version(admin, control.prompt_id)
    elsewhere = await writing.create(admin)
    for arms, reason in (
        ((other, third), "STATE_FORBIDS"),
        ((control, control), "INVALID_FIELDS"),
        ((control, elsewhere), "INVALID_FIELDS"),
    ):
        assert (await failing(writing.start(analyst, "staging", *arms))).reason == reason
    failure = await failing(writing.start(analyst, "production", control, other))
    assert failure.metadata["permission"] == "PROMPTS_PROMOTE"
    experiment = await writing.start(analyst, "staging", control, other, weights=(1, 3), hypothesis="shorter is better")
    assert [(arm.version, arm.weight, arm.control) for arm in experiment.arms] == [(1, 1, True), (2, 3, False)]
    assert (experiment.min_sample_count, experiment.max_acceptance_loss) == (100, 0.05)
    failure = await failing(writing.start(analyst, "staging", control, third))
    assert failure.metadata["resource_id"] == experiment.prompt_experiment_id

    async def served(subject: str = "") -> tuple[str, str]:
        got = await writing.render(analyst, control.name, label="staging", subject_key=subject)
        return got.text, got.prompt_experiment_id

    subjects = [f"user {n}" for n in range(40)]
    first = [await served(subject) for subject in subjects]
    assert first == [await served(subject) for subject in subjects]
    assert {text for text, _ in first} == {"A", "B"}
    assert sum(text == "B" for text, _ in first) > 20
    assert {chosen for _, chosen in first} == {experiment.prompt_experiment_id}
    # Nobody in particular is in no experiment.
    assert await served() == ("A", "")
    deprecate = prompt_service_pb2.DeprecatePromptVersionRequest(prompt_version_id=other.prompt_version_id, reason="x")
    failure = await failing(analyst.prompts.DeprecatePromptVersion(deprecate, metadata=analyst.auth))
    assert "experiment" in failure.message

    stopped = await writing.stop(analyst, experiment)
    assert (stopped.status, stopped.stop_reason) == (experiment_pb.PROMPT_EXPERIMENT_STATUS_STOPPED, "enough")
    assert [await served(subject) for subject in subjects] == [("A", "")] * len(subjects)
    assert (await failing(writing.stop(analyst, experiment))).metadata["state"] == "stopped"

    # Whatever moves the label ends what runs under it: a way back must not wait for anybody.
    again = await writing.start(analyst, "staging", control, other)
    assert (await served(subjects[0]))[1] == again.prompt_experiment_id
    await writing.move(analyst, third, "staging", control)
    ended = await get(analyst, again.prompt_experiment_id)
    assert (ended.status, ended.stop_reason) == (stopped.status, "the label was moved: because")
    failure = await failing(writing.promote(admin, again, other))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "PROMPT_LABEL_MOVED")
    listed = pb.ListPromptExperimentsRequest(filter=pb.PromptExperimentFilter(prompt_id=control.prompt_id))
    found = (await analyst.experiments.ListPromptExperiments(listed, metadata=analyst.auth)).prompt_experiments
    assert [each.prompt_experiment_id for each in found] == [
        again.prompt_experiment_id,
        experiment.prompt_experiment_id,
    ]


@pytest.mark.bar_g
async def test_nothing_is_promoted_past_the_gate(world: World, failing: Failing) -> None:
    control, other = await pair(world, "production")
    client = (await world.client()).client_id
    starter, approver = await world.user("admin"), world.admin
    experiment = await writing.start(
        starter, "production", control, other, min_sample_count=50, max_acceptance_loss=0.04
    )
    failure = await failing(writing.promote(await world.user("analyst"), experiment, other))
    assert failure.metadata["permission"] == "PROMPTS_PROMOTE"
    failure = await failing(writing.promote(approver, experiment, control))
    assert failure.fields == {"prompt_version_id": "NOT_AN_ARM"}

    async def refused(by: Caller) -> dict[str, str]:
        failure = await failing(writing.promote(by, experiment, other))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROMPT_GATE")
        assert (await get(by, experiment.prompt_experiment_id)).status == experiment_pb.PROMPT_EXPERIMENT_STATUS_RUNNING
        return failure.metadata

    nothing = await refused(starter)
    assert nothing["failed"] == "sample,control_sample,acceptance,approver"
    assert (nothing["sample_actual"], nothing["sample_required"], nothing["sample_missing"]) == ("0", "50", "50")
    assert "acceptance_actual" not in nothing

    await judged(world, client, experiment.prompt_experiment_id, control, accepted=35, edited=10, rejected=5)
    await judged(world, client, experiment.prompt_experiment_id, other, accepted=34, edited=6)
    few = await refused(approver)
    assert (few["failed"], few["sample_missing"]) == ("sample", "10")
    await judged(world, client, experiment.prompt_experiment_id, other, rejected=14)
    worse = await refused(approver)
    assert worse["failed"] == "acceptance"
    found = await result(approver, experiment)
    assert [(each.feedback_count, each.accepted_count, each.edited_count, each.rejected_count) for each in found] == [
        (50, 35, 10, 5),
        (54, 34, 6, 14),
    ]
    assert not found[0].checks and not found[0].HasField("difference")
    assert found[1].difference == pytest.approx(34 / 54 - 0.7)
    assert found[1].difference_interval.low < found[1].difference < found[1].difference_interval.high
    assert float(worse["acceptance_actual"]) == pytest.approx(found[1].difference_interval.low, rel=1e-5)
    assert float(worse["acceptance_missing"]) == pytest.approx(-0.04 - found[1].difference_interval.low, rel=1e-5)
    assert [(check.met, check.required) for check in found[1].checks] == [(True, 50), (True, 50), (False, -0.04)]

    # What is given back of a filled text counts; without the experiment's name it counts nowhere.
    texts = [await writing.render(starter, control.name, subject_key=f"{n}") for n in range(20)]
    got = next(each for each in texts if each.prompt_version_id == other.prompt_version_id)
    for named, action in ((got.prompt_experiment_id, asking.ACCEPTED), ("", asking.REJECTED)):
        record = feedback_pb2.FeedbackRecord(
            key=uuid4().hex,
            client_id=client,
            prompt_version_id=got.prompt_version_id,
            prompt_experiment_id=named,
            action=action,
        )
        await asking.said(world.admin, record)
    await judged(world, client, experiment.prompt_experiment_id, other, accepted=299)
    # Who started it does not promote it, however good it is.
    assert (await refused(starter))["failed"] == "approver"
    promoted = await writing.promote(approver, experiment, other)
    assert promoted.prompt_label.prompt_version_id == other.prompt_version_id
    assert promoted.move.kind == prompt_pb2.PROMPT_LABEL_MOVE_KIND_PROMOTION
    assert (promoted.move.reason, promoted.move.prompt_experiment_id) == ("no worse", experiment.prompt_experiment_id)
    assert promoted.move.mover_id == promoted.prompt_experiment.promoter_id == str(approver.user_id)
    assert promoted.result.accepted_count == 334 and all(check.met for check in promoted.result.checks)
    assert promoted.prompt_experiment.status == experiment_pb.PROMPT_EXPERIMENT_STATUS_STOPPED
    assert promoted.prompt_experiment.stop_reason == "promoted: no worse"
    assert (await writing.render(starter, control.name, subject_key="a")).text == "B"
    failure = await failing(writing.promote(approver, experiment, other))
    assert failure.metadata["state"] == "promoted"
    for kind, resource_id, actions in (
        ("prompt_label", promoted.prompt_label.prompt_label_id, ["promote", "move"]),
        ("prompt_experiment", experiment.prompt_experiment_id, ["promote", "stop", "start"]),
    ):
        wanted = change_service_pb2.ChangeFilter(resource_types=[kind], resource_id=resource_id)
        listing = change_service_pb2.ListChangesRequest(filter=wanted)
        changes = (await approver.changes.ListChanges(listing, metadata=approver.auth)).changes
        assert [change.action for change in changes] == actions
    # One call takes it back.
    back = await writing.rollback(starter, control.prompt_id, "production")
    assert (back.prompt_label.version, back.move.undone_number) == (1, 2)


async def test_whoever_made_the_key_that_started_does_not_promote_either(world: World, failing: Failing) -> None:
    control, other = await pair(world)
    rights = [options_pb2.PERMISSION_PROMPTS_READ, options_pb2.PERMISSION_PROMPTS_WRITE]
    experiment = await writing.start(await world.key([], *rights), "staging", control, other, min_sample_count=1)
    client = (await world.client()).client_id
    for arm, accepted in ((control, 1), (other, 1000)):
        await judged(world, client, experiment.prompt_experiment_id, arm, accepted=accepted, rejected=1000 - accepted)
    failure = await failing(writing.promote(world.admin, experiment, other))
    assert failure.metadata["failed"] == "approver"
    assert (await writing.promote(await world.user("admin"), experiment, other)).prompt_label.version == 2


@pytest.mark.bar_g
async def test_of_fifty_who_move_and_promote_one_wins_and_all_is_told(world: World) -> None:
    """Promotions and moves that start from the same version at once: one of them happens, and the experiment knows."""
    client = (await world.client()).client_id
    approvers = [await world.user("admin") for _ in range(2)]
    won = set()
    for _ in range(20 if FULL else 2):
        control, other = await pair(world, "production")
        third = await writing.version(world.admin, control.prompt_id)
        experiment = await writing.start(world.admin, "production", control, other, min_sample_count=1)
        for arm, accepted in ((control, 10), (other, 990)):
            await judged(
                world, client, experiment.prompt_experiment_id, arm, accepted=accepted, rejected=1000 - accepted
            )
        attempts = [
            writing.promote(approvers[n // 2 % 2], experiment, other)
            if n % 2
            else writing.move(approvers[n // 2 % 2], third, "production", control)
            for n in range(50)
        ]
        random.shuffle(attempts)
        answers = await asyncio.gather(*attempts, return_exceptions=True)
        (winner,) = [answer for answer in answers if not isinstance(answer, BaseException)]
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, grpc.aio.AioRpcError)
                failure = failure_of(answer)
                assert failure.reason == "PROMPT_LABEL_MOVED" or failure.metadata["state"] == "promoted", failure
        told = await writing.history(world.admin, control.prompt_id)
        assert [move.to_version for move in told] == [1, winner.prompt_label.version]
        assert told[1] == winner.move
        ended = await get(world.admin, experiment.prompt_experiment_id)
        promoted = isinstance(winner, pb.PromotePromptExperimentResponse)
        assert ended.status == experiment_pb.PROMPT_EXPERIMENT_STATUS_STOPPED
        assert ended.promoted_prompt_version_id == (other.prompt_version_id if promoted else "")
        won.add(promoted)
    assert not FULL or won == {True, False}


async def test_a_purge_takes_the_words_of_a_clients_own_prompts(world: World) -> None:
    client = (await world.client()).client_id
    control, other = await pair(world, client_id=client, name=f"secret plans of {client}")
    experiment = await writing.start(world.admin, "staging", control, other, hypothesis="secret plans")
    await writing.stop(world.admin, experiment)
    of_client = {"client_id": client}
    clients, auth = world.admin.clients, world.admin.auth
    await clients.ArchiveClient(client_service_pb2.ArchiveClientRequest(**of_client), metadata=auth)
    ask = client_service_pb2.RequestClientPurgeRequest(**of_client)
    await clients.RequestClientPurge(ask, metadata=auth)
    await world.database.execute(
        "UPDATE clients SET purge_allowed_at = purge_allowed_at - interval '7 days' WHERE id = $1", UUID(client)
    )
    asked = await clients.RequestClientPurge(ask, metadata=auth)
    await clients.ConfirmClientPurge(
        client_service_pb2.ConfirmClientPurgeRequest(confirmation_token=asked.confirmation_token, **of_client),
        metadata=auth,
    )
    for table in ("prompt_lineages", "ai_prompts", "prompt_label_moves", "prompt_experiments"):
        texts = await world.database.fetch(f"SELECT to_jsonb(t)::text FROM {table} t")
        assert not any("secret plans" in row[0] for row in texts), table
    moves = await world.database.fetchval(
        "SELECT count(*) FROM prompt_label_moves WHERE to_version_id = $1 AND reason = ''",
        UUID(control.prompt_version_id),
    )
    assert moves == 1
