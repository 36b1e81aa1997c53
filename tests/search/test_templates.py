"""TemplateService: files are described or uploaded, scrubbed, recognised, and learned from."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import openpyxl
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import template_pb2 as tpl
from mrm.ai.v1 import template_service_pb2 as pb
from mrm.common.v1 import options_pb2
from mrm.operations.v1 import change_service_pb2
from tests.conftest import Caller, Failing, World

PLAN = feedback_pb2.ARTIFACT_TYPE_MEDIA_PLAN
REPORT = feedback_pb2.ARTIFACT_TYPE_REPORT
TEXT, INTEGER, NUMBER, DATE = (
    tpl.COLUMN_TYPE_TEXT,
    tpl.COLUMN_TYPE_INTEGER,
    tpl.COLUMN_TYPE_NUMBER,
    tpl.COLUMN_TYPE_DATE,
)


def columns(**types: Any) -> list[tpl.TemplateColumn]:
    return [tpl.TemplateColumn(name=name.replace("_", " "), type=kind) for name, kind in types.items()]


async def made(caller: Caller, client_id: str, **fields: Any) -> tpl.Template:
    template = tpl.Template(
        **{
            "client_id": client_id,
            "display_name": "t",
            "artifact_type": REPORT,
            "columns": columns(Clicks=INTEGER),
            **fields,
        }
    )
    request = pb.CreateTemplateRequest(template=template, request_id=str(uuid4()))
    return (await caller.templates.CreateTemplate(request, metadata=caller.auth)).template


async def upload(caller: Caller, data: bytes, **fields: Any) -> pb.UploadTemplateResponse:
    async def requests() -> AsyncIterator[pb.UploadTemplateRequest]:
        first = pb.TemplateUpload(**{"file_name": "plan.csv", "artifact_type": PLAN, **fields})
        yield pb.UploadTemplateRequest(upload=first, data=data[:10])
        for start in range(10, len(data), 2**20):
            yield pb.UploadTemplateRequest(data=data[start : start + 2**20])

    [reply] = [each async for each in caller.templates.UploadTemplate(requests(), metadata=caller.auth)]
    return reply


async def suggested(caller: Caller, *names: str, **fields: Any) -> list[pb.TemplateSuggestion]:
    request = pb.SuggestTemplateRequest(columns=[tpl.TemplateColumn(name=name) for name in names], **fields)
    return list((await caller.templates.SuggestTemplate(request, metadata=caller.auth)).suggestions)


async def test_a_template_through_its_life(world: World, failing: Failing) -> None:
    client = (await world.client()).client_id
    planner = await world.user("media_planner", client)
    template = await made(
        planner,
        client,
        columns=columns(Manager=TEXT, Clicks=INTEGER),
        sample_rows=[tpl.TemplateRow(cells=["Olga", "12"]), tpl.TemplateRow(cells=["call +7 916 123-45-67"])],
    )
    assert template.creator_id == str(planner.user_id)
    assert [list(row.cells) for row in template.sample_rows] == [["<person>", "12"], ["<person>", ""]]
    listed = await planner.templates.ListTemplates(
        pb.ListTemplatesRequest(filter=pb.TemplateFilter(client_id=client, artifact_types=[REPORT])),
        metadata=planner.auth,
    )
    assert [each.template_id for each in listed.templates] == [template.template_id]

    changed = tpl.Template(template_id=template.template_id, etag=template.etag, display_name="Weekly")
    request = pb.UpdateTemplateRequest(template=changed, update_mask=FieldMask(paths=["display_name"]))
    updated = (await planner.templates.UpdateTemplate(request, metadata=planner.auth)).template
    assert (updated.display_name, len(updated.columns)) == ("Weekly", 2)
    assert (await failing(planner.templates.UpdateTemplate(request, metadata=planner.auth))).reason == "ETAG_MISMATCH"
    twice = tpl.Template(template_id=template.template_id, columns=columns(clicks=INTEGER, Clicks=INTEGER))
    request = pb.UpdateTemplateRequest(template=twice, update_mask=FieldMask(paths=["columns"]))
    failure = await failing(planner.templates.UpdateTemplate(request, metadata=planner.auth))
    assert failure.fields == {"template.columns": "NAMED_TWICE"}

    gone = pb.DeleteTemplateRequest(template_id=template.template_id, etag=updated.etag)
    await planner.templates.DeleteTemplate(gone, metadata=planner.auth)
    get = planner.templates.GetTemplate(pb.GetTemplateRequest(template_id=template.template_id), metadata=planner.auth)
    assert (await failing(get)).code == grpc.StatusCode.NOT_FOUND
    changes = await planner.changes.ListChanges(
        change_service_pb2.ListChangesRequest(
            filter=change_service_pb2.ChangeFilter(client_id=client, resource_types=["template"])
        ),
        metadata=planner.auth,
    )
    assert [each.action for each in changes.changes] == ["delete", "update", "create"]


async def test_a_specialist_reads_templates_and_writes_none(world: World, failing: Failing) -> None:
    client = (await world.client()).client_id
    template = await made(world.admin, client)
    specialist = await world.user("specialist", client)
    read = pb.GetTemplateRequest(template_id=template.template_id)
    assert (await specialist.templates.GetTemplate(read, metadata=specialist.auth)).template == template
    failure = await failing(made(specialist, client))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_file_becomes_a_template_once(world: World) -> None:
    client = (await world.client()).client_id
    key = await world.key([client], options_pb2.PERMISSION_TEMPLATES_WRITE, options_pb2.PERMISSION_TEMPLATES_READ)
    text = "Канал;Показы;Бюджет, руб.;Контакт\nПоиск;1000;120000,50;anna@mail.ru\nСети;2000;80000;Ольга Смирнова\n"
    first = await upload(key, text.encode("cp1251"), client_id=client)
    again = await upload(key, text.encode("cp1251"), client_id=client)
    assert (first.known, again.known) == (False, True)
    assert again.template == first.template
    template = first.template
    assert [(each.name, each.type) for each in template.columns] == [
        ("Канал", TEXT), ("Показы", INTEGER), ("Бюджет, руб.", NUMBER), ("Контакт", TEXT),
    ]  # fmt: skip
    assert [list(row.cells) for row in template.sample_rows] == [
        ["Поиск", "1000", "120000,50", "<person>"], ["Сети", "2000", "80000", "<person>"],
    ]  # fmt: skip
    assert (template.display_name, template.file_name, template.creator_id) == ("plan.csv", "plan.csv", "")
    bare = await upload(key, text.encode(), client_id=client, without_sample=True, display_name="План")
    assert not bare.template.sample_rows and bare.template.display_name == "План"


async def test_a_workbook_becomes_a_template(world: World) -> None:
    client = (await world.client()).client_id
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["Отчёт"], ["Дата", "Клики"], ["2026-03-01", 7]):
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    reply = await upload(world.admin, file.getvalue(), client_id=client, file_name="r.xlsx", artifact_type=REPORT)
    assert [(each.name, each.type) for each in reply.template.columns] == [("Дата", DATE), ("Клики", INTEGER)]


@pytest.mark.parametrize(
    ("data", "file_name", "reason"),
    [
        (b"%PDF-1.7", "plan.pdf", "FORMAT"),
        (b"1;2\n3;4\n", "plan.csv", "HEADER"),
        (b"a;b\n" * (2**21 + 1), "plan.csv", "TOO_LARGE"),
    ],
    ids=["pdf", "no_header", "large"],
)
async def test_a_file_that_is_none_is_refused(
    world: World, failing: Failing, data: bytes, file_name: str, reason: str
) -> None:
    client = (await world.client()).client_id
    failure = await failing(upload(world.admin, data, client_id=client, file_name=file_name))
    assert (failure.reason, failure.fields) == ("FILE_INVALID", {"data": reason})
    listed = await world.admin.templates.ListTemplates(
        pb.ListTemplatesRequest(filter=pb.TemplateFilter(client_id=client)), metadata=world.admin.auth
    )
    assert not listed.templates


async def test_a_new_file_is_recognised_and_its_columns_explained(world: World) -> None:
    client, other = (await world.client()).client_id, (await world.client()).client_id
    analyst = await world.user("analyst", client)
    weekly = await made(
        analyst, client, display_name="Weekly",
        columns=columns(Date=DATE, Campaign=TEXT, Impressions=INTEGER, Clicks=INTEGER, Spend=NUMBER),
    )  # fmt: skip
    await made(
        analyst, client, display_name="Plan", artifact_type=PLAN,
        columns=columns(Channel=TEXT, Format=TEXT, Geo=TEXT, Budget=NUMBER, Reach=INTEGER),
    )  # fmt: skip
    await made(
        world.admin, other, columns=columns(Date=DATE, Campaign=TEXT, Impressions=INTEGER, Clicks=INTEGER, Spend=NUMBER)
    )

    rows = [tpl.TemplateRow(cells=["01.03.2026", "Поиск", "1 000", "17", "250,50", "ok"])]
    names = ("Дата", "Название кампании", "Кол-во показов", "Переходы", "Расход, руб.", "Замечания куратора")
    [found] = await suggested(analyst, *names, sample_rows=rows)
    assert found.template.template_id == weekly.template_id
    mapped = {each.source_column: each.template_column for each in found.mappings}
    assert mapped == {
        "Дата": "Date", "Название кампании": "Campaign", "Кол-во показов": "Impressions", "Переходы": "Clicks",
        "Расход, руб.": "Spend",
    }  # fmt: skip
    assert list(found.unmatched_columns) == ["Замечания куратора"] and not found.missing_columns
    assert 0.8 < found.score < 1.0
    shown = next(each for each in found.mappings if each.template_column == "Impressions")
    assert shown.reasons[0].kind == pb.COLUMN_REASON_KIND_SYNONYM
    assert shown.reasons[-1].score == 1.0
    assert not await suggested(analyst, *names, filter=pb.TemplateFilter(artifact_types=[PLAN]))


async def test_names_are_also_compared_by_what_they_mean(world: World) -> None:
    client = (await world.client()).client_id
    await made(world.admin, client, columns=columns(Weather=TEXT, Number_of_employees=INTEGER, Clicks=INTEGER))
    wanted = pb.TemplateFilter(client_id=client)
    [found] = await suggested(world.admin, "Погода", "Численность сотрудников", "Clicks", filter=wanted)
    meant = {each.source_column: each for each in found.mappings}
    assert meant["Погода"].template_column == "Weather"
    assert meant["Численность сотрудников"].template_column == "Number of employees"
    assert meant["Погода"].reasons[0].kind == pb.COLUMN_REASON_KIND_MEANING


async def test_a_use_is_counted_and_learned_from(world: World, failing: Failing) -> None:
    client = (await world.client()).client_id
    pm = await world.user("pm", client)
    template = await made(pm, client, columns=columns(Campaign=TEXT, Uplift=NUMBER))
    [before] = await suggested(pm, "Кампания", "Дельта 7")
    assert [each.source_column for each in before.mappings] == ["Кампания"]
    request = pb.UseTemplateRequest(
        template_id=template.template_id,
        mappings=[pb.ColumnMapping(source_column="Дельта-7", template_column="Uplift"),
                  pb.ColumnMapping(source_column="Campaign", template_column="Campaign")],
        request_id=str(uuid4()),
    )  # fmt: skip
    for _ in range(2):
        used = (await pm.templates.UseTemplate(request, metadata=pm.auth)).template
    assert (used.use_count, used.etag, used.HasField("last_use_time")) == (1, template.etag, True)
    [after] = await suggested(pm, "Кампания", "Дельта 7")
    learned = next(each for each in after.mappings if each.source_column == "Дельта 7")
    assert (learned.template_column, learned.reasons[0].kind) == ("Uplift", pb.COLUMN_REASON_KIND_LEARNED)
    assert after.score > before.score
    request.mappings[0].template_column = "Nothing"
    request.request_id = ""
    failure = await failing(pm.templates.UseTemplate(request, metadata=pm.auth))
    assert failure.fields == {"mappings[0].template_column": "COLUMN_UNKNOWN"}
