"""CampaignImportService over gRPC: what rows come to, what is said of those at fault, and where a file goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import grpc
import pytest

from mrm.accounts.v1 import integration_service_pb2
from mrm.campaigns.v1 import campaign_import_pb2, campaign_pb2, campaign_service_pb2
from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from mrm.common.v1 import money_pb2, platform_pb2
from mrm.operations.v1 import change_pb2, change_service_pb2
from mrm.planning.v1 import media_plan_pb2, media_plan_service_pb2, project_member_pb2
from tests.campaigns.importing import bring, fingerprint, row
from tests.conftest import Failing, World
from tests.planning import plans

SKIP, UPDATE = campaign_import_pb2.DUPLICATE_HANDLING_SKIP, campaign_import_pb2.DUPLICATE_HANDLING_UPDATE
YANDEX, VK, OTHER = platform_pb2.PLATFORM_YANDEX_DIRECT, platform_pb2.PLATFORM_VK_ADS, platform_pb2.PLATFORM_OTHER


def counts(state: campaign_import_pb2.CampaignImport) -> tuple[int, int, int, int]:
    found = (state.created_count, state.updated_count, state.skipped_count, state.failed_count)
    assert state.row_count == sum(found)
    return found


async def campaigns_of(world: World, project_id: str) -> list[campaign_pb2.Campaign]:
    request = campaign_service_pb2.ListCampaignsRequest(
        page_size=500, filter=campaign_service_pb2.CampaignFilter(project_id=project_id)
    )
    return list((await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)).campaigns)


async def test_campaigns_of_the_past_belong_to_a_plan_without_money(world: World, failing: Failing) -> None:
    client = await world.client()
    budget = money_pb2.Money(currency_code="RUB", micros=1_000_000)
    project = await world.project(client.client_id, total_budget=budget)
    rows = [
        row(2, " 1 ", display_name="First", status=4, total_budget_micros=900_000_000_000, daily_budget_micros=7),
        row(3, "2", currency_code="USD", configuration={"a": [1, None]}),
    ]
    state, errors = await bring(world.admin, project.project_id, [rows], source_name="old.csv")
    assert (counts(state), errors) == ((2, 0, 0, 0), [])
    assert state.state == campaign_import_pb2.CAMPAIGN_IMPORT_STATE_COMPLETED
    assert state.acknowledged_line == 3
    first, second = await campaigns_of(world, project.project_id)
    assert (first.display_name, first.external_id, first.status) == (
        "First",
        "1",
        campaign_pb2.CAMPAIGN_STATUS_PAUSED,
    )
    assert (first.total_budget.micros, first.daily_budget.micros) == (900_000_000_000, 7)
    assert (second.display_name, second.currency_code) == ("2", "USD")
    assert second.status == campaign_pb2.CAMPAIGN_STATUS_ARCHIVED
    assert list(second.configuration["a"]) == [1, None]

    # A plan of its own, completed, without money: the project's budget of one rouble does not mind.
    listed = await world.admin.plans.ListMediaPlans(
        media_plan_service_pb2.ListMediaPlansRequest(
            filter=media_plan_service_pb2.MediaPlanFilter(project_id=project.project_id)
        ),
        metadata=world.admin.auth,
    )
    [plan] = listed.media_plans
    assert (plan.display_name, plan.total_budget.micros) == ("Imported", 0)
    assert plan.status == media_plan_pb2.MEDIA_PLAN_STATUS_COMPLETED
    assert plan.approver_id == "" and plan.HasField("approve_time")
    assert {first.media_plan_lineage_id, second.media_plan_lineage_id} == {plan.lineage_id}
    assert state.media_plan_lineage_id == plan.lineage_id

    # The second file finds the plan, and a campaign of it can be changed like any other.
    again, _ = await bring(world.admin, project.project_id, [[row(1, "3")]])
    assert again.media_plan_lineage_id == plan.lineage_id
    first.total_budget.micros = 5_000_000
    changed = await world.admin.campaigns.UpdateCampaign(
        campaign_service_pb2.UpdateCampaignRequest(campaign=first, update_mask={"paths": ["total_budget"]}),  # type: ignore[arg-type]
        metadata=world.admin.auth,
    )
    assert changed.campaign.media_plan_lineage_id == plan.lineage_id
    assert changed.campaign.media_plan_version == 1

    # Whatever becomes of that plan, it pays for nothing.
    other = await world.user("admin")
    version = await plans.version(world.admin, plan.media_plan_id)
    money = [plans.channel(1_000_000)]
    await plans.change(world.admin, version.media_plan_id, channels=money, total_budget=plans.rub(1_000_000))
    for caller, step in ((world.admin, "submit"), (other, "approve"), (other, "activate")):
        await plans.step(caller, step, version.media_plan_id)
    failure = await failing(
        world.admin.campaigns.ResumeCampaign(
            campaign_service_pb2.ResumeCampaignRequest(campaign_id=first.campaign_id), metadata=world.admin.auth
        )
    )
    assert (failure.reason, failure.metadata["missing"]) == ("STATE_FORBIDS", "media_plan")

    # Every campaign has its record, and so has the plan, of the service itself.
    found = await world.admin.changes.ListChanges(
        change_service_pb2.ListChangesRequest(
            page_size=100, filter=change_service_pb2.ChangeFilter(project_id=project.project_id)
        ),
        metadata=world.admin.auth,
    )
    made = [c for c in found.changes if c.action == "create"]
    assert sorted(c.resource_id for c in made if c.resource_type == "campaign") == [
        each.campaign_id for each in await campaigns_of(world, project.project_id)
    ]
    of_plan = next(c for c in reversed(made) if c.resource_type == "media_plan")
    assert of_plan.actor.kind == change_pb2.CHANGE_ACTOR_KIND_SYSTEM
    assert len([c for c in made if c.resource_type == "campaign_import"]) == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"external_id": " "}, ("external_id", "STRING_PATTERN"), id="no-external-id"),
        pytest.param({"external_id": "x" * 256}, ("external_id", "STRING_MAX_LEN"), id="long-external-id"),
        pytest.param({"external_id": "a\x00"}, ("", "NUL_CHARACTER"), id="nul"),
        pytest.param({"platform": 0}, ("platform", "ENUM_NOT_IN"), id="no-platform"),
        pytest.param({"platform": 77}, ("platform", "ENUM_DEFINED_ONLY"), id="unknown-platform"),
        pytest.param({"currency_code": "rub"}, ("currency_code", "STRING_PATTERN"), id="currency"),
        pytest.param({"status": 1}, ("status", "ENUM_IN"), id="draft"),
        pytest.param({"status": 3}, ("status", "ENUM_IN"), id="active"),
        pytest.param({"account_id": "nobody's"}, ("account_id", "ACCOUNT_UNKNOWN"), id="account"),
        pytest.param({"total_budget_micros": -1}, ("total_budget_micros", "INT64_GTE_LT"), id="negative"),
        pytest.param({"total_budget_micros": 10**18}, ("total_budget_micros", "INT64_GTE_LT"), id="too-much"),
        pytest.param(
            {"total_budget_micros": 1, "daily_budget_micros": 2}, ("daily_budget_micros", "BUDGET_ORDER"), id="order"
        ),
        pytest.param({"configuration": {"a": "x" * 66_000}}, ("configuration", "TOO_LARGE"), id="configuration"),
        pytest.param({"configuration": {"a": ["\x00"]}}, ("configuration", "NUL_CHARACTER"), id="configuration-nul"),
    ],
)
async def test_a_row_at_fault_is_named_and_left_out(
    world: World, refusing: str, fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    values = {"external_id": "bad", **fields}
    rows = [row(5, "good"), row(9, **values)]
    for only_check in (True, False):
        state, errors = await bring(world.admin, refusing, [rows], validate_only=only_check, on_duplicate=UPDATE)
        assert [(error.line, error.field, error.reason) for error in errors] == [(9, *expected)]
        assert state.failed_count == 1
        assert "x" * 20 not in errors[0].message
    listed = await world.admin.imports.ListCampaignImportErrors(
        pb.ListCampaignImportErrorsRequest(campaign_import_id=state.campaign_import_id), metadata=world.admin.auth
    )
    assert list(listed.errors) == errors
    assert [each.external_id for each in await campaigns_of(world, refusing)] == ["good"]


@pytest.fixture(scope="module")
async def refusing(world: World) -> str:
    """A project for rows at fault."""
    return (await world.project((await world.client()).client_id)).project_id


async def test_the_same_campaign_is_known_by_platform_account_and_id(world: World) -> None:
    agency = await world.client(type=1)
    client = await world.client(parent_client_id=agency.client_id)
    sibling = await world.client(parent_client_id=agency.client_id)
    project, other = await world.project(client.client_id), await world.project(client.client_id)
    foreign = await world.project(sibling.client_id)
    for owner, account in ((agency, "top"), (client, "one")):
        connect = integration_service_pb2.ConnectIntegrationRequest(
            client_id=owner.client_id,
            platform_account_id=account,
            credentials={"vk_ads": {"access_token": "a", "refresh_token": "b"}},  # type: ignore[arg-type]
        )
        await world.admin.integrations.ConnectIntegration(connect, metadata=world.admin.auth)
    rows = [
        row(2, "1", platform=VK, account_id="top"),
        row(3, "1", platform=VK, account_id="one"),
        # The client's only account is meant.
        row(4, "1", platform=VK),
        row(5, "1", platform=YANDEX),
        row(6, "1", platform=OTHER),
        row(7, " 1", platform=OTHER, display_name="again"),
    ]
    state, errors = await bring(world.admin, project.project_id, [rows])
    assert (counts(state), errors) == ((4, 0, 2, 0), [])
    # In any division into requests the rows come to the same, and another file brings nothing new.
    state, errors = await bring(world.admin, project.project_id, [[each] for each in rows])
    assert (counts(state), errors) == ((0, 0, 6, 0), [])
    state, errors = await bring(world.admin, other.project_id, [rows[-1:]])
    assert [(e.line, e.field, e.reason) for e in errors] == [(7, "external_id", "OTHER_PROJECT")]
    state, errors = await bring(world.admin, foreign.project_id, [rows[:1]])
    assert [(e.line, e.field, e.reason) for e in errors] == [(2, "external_id", "EXTERNAL_ID_TAKEN")]
    assert await campaigns_of(world, foreign.project_id) == []


async def test_rows_change_what_is_there_only_if_asked_to(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    old = [row(1, "a", display_name="Old", total_budget_micros=5), row(2, "b")]
    await bring(world.admin, project.project_id, [old])
    new = [
        row(1, "a", display_name="New", daily_budget_micros=4),
        row(2, "a", display_name="Newer"),
        row(3, "a", daily_budget_micros=6, display_name="x"),
        row(4, "b"),
        row(5, "b", currency_code="USD"),
        row(6, "c", display_name="C"),
        row(7, "c", display_name="C2", status=campaign_pb2.CAMPAIGN_STATUS_PAUSED),
    ]
    state, errors = await bring(world.admin, project.project_id, [new], validate_only=True, on_duplicate=UPDATE)
    assert counts(state) == (1, 3, 1, 2)
    assert [each.display_name for each in await campaigns_of(world, project.project_id)] == ["Old", "b"]
    state, errors = await bring(world.admin, project.project_id, [new], on_duplicate=UPDATE)
    assert counts(state) == (1, 3, 1, 2)
    assert [(e.line, e.reason) for e in errors] == [(3, "BUDGET_ORDER"), (5, "CURRENCY_MISMATCH")]
    a, b, c = await campaigns_of(world, project.project_id)
    assert (a.display_name, a.daily_budget.micros, a.total_budget.micros) == ("Newer", 4, 5)
    assert (b.display_name, c.display_name) == ("b", "C2")
    assert c.status == campaign_pb2.CAMPAIGN_STATUS_ARCHIVED


async def test_a_file_goes_on_where_it_stopped(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    rows = [row(line, f"{line}") for line in range(1, 61)]
    file = fingerprint()
    state, _ = await bring(world.admin, project.project_id, [rows[:20], rows[20:30]], fingerprint=file, last=False)
    assert state.state == campaign_import_pb2.CAMPAIGN_IMPORT_STATE_RUNNING
    assert (state.acknowledged_line, state.created_count) == (30, 30)
    # All of it again: what was taken is passed over, in whatever requests it comes.
    state, _ = await bring(world.admin, project.project_id, [rows[:45], rows[45:]], fingerprint=file)
    assert counts(state) == (60, 0, 0, 0)
    # Twice is once.
    before = await campaigns_of(world, project.project_id)
    again, errors = await bring(world.admin, project.project_id, [rows], fingerprint=file)
    assert counts(again) == (60, 0, 0, 0)
    assert again.complete_time == state.complete_time
    assert (await campaigns_of(world, project.project_id), errors) == (before, [])
    # From the beginning, if asked to.
    again, _ = await bring(world.admin, project.project_id, [rows], fingerprint=file, restart=True)
    assert counts(again) == (0, 0, 60, 0)
    listed = await world.admin.imports.ListCampaignImports(
        pb.ListCampaignImportsRequest(filter=pb.CampaignImportFilter(project_id=project.project_id)),
        metadata=world.admin.auth,
    )
    assert [each.campaign_import_id for each in listed.campaign_imports] == [state.campaign_import_id]
    got = await world.admin.imports.GetCampaignImport(
        pb.GetCampaignImportRequest(campaign_import_id=state.campaign_import_id), metadata=world.admin.auth
    )
    assert got.campaign_import == again


async def test_a_call_that_breaks_off_loses_nothing(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    rows = [row(line, f"{line}") for line in range(1, 401)]
    file = fingerprint()
    for taken in (0, 1, 3):

        async def requests() -> AsyncIterator[pb.ImportCampaignsRequest]:
            yield pb.ImportCampaignsRequest(
                options=pb.CampaignImportOptions(project_id=project.project_id, fingerprint=file)
            )
            for start in range(0, 400, 50):
                yield pb.ImportCampaignsRequest(rows=rows[start : start + 50])

        call = world.admin.imports.ImportCampaigns(requests(), metadata=world.admin.auth)
        for _ in range(taken):
            await call.read()
        call.cancel()
    state, _ = await bring(world.admin, project.project_id, [rows], fingerprint=file)
    assert (counts(state), state.acknowledged_line) == ((400, 0, 0, 0), 400)
    assert len(await campaigns_of(world, project.project_id)) == 400


async def test_two_files_at_once_make_each_campaign_once(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    parts = [[row(line, f"{line}") for line in range(start, start + 10)] for start in range(1, 61, 10)]
    same = fingerprint()
    files = [bring(world.admin, project.project_id, parts, fingerprint=same) for _ in range(2)]
    files += [bring(world.admin, project.project_id, parts) for _ in range(2)]
    states = [state for state, _ in await asyncio.gather(*files)]
    assert len(await campaigns_of(world, project.project_id)) == 60
    by_import = {state.campaign_import_id: state for state in states}
    assert sum(state.created_count for state in by_import.values()) == 60
    assert sum(state.skipped_count for state in by_import.values()) == 120
    made = await world.database.fetchval(
        "SELECT count(*) FROM media_plans WHERE project_id = $1", UUID(project.project_id)
    )
    assert made == 1


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        pytest.param([{"rows": [row(1, "a")]}], "options", id="no-options"),
        pytest.param([{"options": {}}], "options.project_id", id="no-project"),
        pytest.param([{"options": {"project_id": "PROJECT"}}], "options.fingerprint", id="no-fingerprint"),
        pytest.param([{"options": {"fingerprint": "x"}}], "options.fingerprint", id="bad-fingerprint"),
        pytest.param([{"rows": [row(2, "a"), row(2, "b")]}], "rows[1].line", id="same-line"),
        pytest.param([{"rows": [row(2, "a")]}, {"rows": [row(1, "b")]}], "rows[0].line", id="earlier-line"),
        pytest.param([{"rows": [row(0, "a")]}], "rows[0].line", id="no-line"),
        pytest.param([{"rows": [row(i, "a") for i in range(1, 1002)]}], "rows", id="too-many"),
        pytest.param([{}, {"options": {"validate_only": True}}], "options", id="options-twice"),
    ],
)
async def test_a_call_that_is_none_is_refused(
    world: World, refusing: str, failing: Failing, requests: list[dict[str, Any]], field: str
) -> None:
    async def messages() -> Any:
        for index, each in enumerate(requests):
            values = dict(each)
            if not (index == 0 and field == "options" and "rows" in each):
                usual = {"project_id": refusing, "fingerprint": fingerprint()}
                if index == 0 and each.get("options") in (None, {"fingerprint": "x"}):
                    values["options"] = {**usual, **each.get("options", {})}
                elif index == 0 and each["options"]:
                    values["options"] = {"project_id": refusing}
            yield pb.ImportCampaignsRequest(**values)

    async def drained() -> None:
        async for _ in world.admin.imports.ImportCampaigns(messages(), metadata=world.admin.auth):
            pass

    failure = await failing(drained())
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == [field]


async def test_who_may_import(world: World, failing: Failing) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    for role, allowed in (("pm", True), ("specialist", True), ("account_manager", False), ("analyst", False)):
        caller = await world.user(role, client.client_id)
        if allowed:
            state, _ = await bring(caller, project.project_id, [[row(1, role)]])
            assert state.created_count == 1
        else:
            failure = await failing(bring(caller, project.project_id, [[row(1, role)]]))
            assert failure.code == grpc.StatusCode.PERMISSION_DENIED
    # In a project's team: with the letter, and only there.
    member = await world.user("specialist")
    for raci, allowed in ((project_member_pb2.RACI_RESPONSIBLE, True), (project_member_pb2.RACI_INFORMED, False)):
        own = await world.project(client.client_id)
        assert member.user_id is not None
        await world.member(own.project_id, member.user_id, project_member_pb2.PROJECT_ROLE_SPECIALIST, raci)
        if allowed:
            await bring(member, own.project_id, [[row(1, f"of {own.project_id}")]])
        else:
            failure = await failing(bring(member, own.project_id, [[row(1, "x")]]))
            assert failure.code == grpc.StatusCode.PERMISSION_DENIED
    failure = await failing(bring(member, project.project_id, [[row(1, "x")]]))
    assert failure.code == grpc.StatusCode.NOT_FOUND


async def test_sums_of_millions_stay_exact(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    most = 999_999_999_999_999_999
    await bring(world.admin, project.project_id, [[row(1, "a", total_budget_micros=most)]])
    stored = await world.database.fetchval(
        "SELECT budget_total FROM campaigns WHERE project_id = $1", UUID(project.project_id)
    )
    assert stored == Decimal(most).scaleb(-6)
