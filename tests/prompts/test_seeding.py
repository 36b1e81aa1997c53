"""The prompts that come with the service: twice is once, edits stay, and every text can be filled."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from mrm.ai.v1 import prompt_service_pb2 as pb
from server.prompts import seeding, texts
from tests.conftest import World
from tests.prompts import writing

VALUES = {"text": "Ёлка {{x}}", "json": {"a": [1.0]}, "number": 10.5, "date": "2026-11-24"}


def test_there_is_one_for_each_category_and_language_and_all_can_be_filled() -> None:
    found = seeding.seeds()
    assert sorted(seed.name for seed in found) == sorted(
        f"{category}.{language}"
        for category in ("brief", "media_plan", "report", "migration")
        for language in ("en", "ru")
    )
    by_name = {seed.name: seed for seed in found}
    for seed in found:
        texts.check(seed.template, seed.variables, "draft")
        text = texts.fill(
            seed.template, seed.variables, {each["name"]: VALUES[each["type"]] for each in seed.variables}
        )
        assert "10.5" in text or seed.category != "media_plan"
        # A caller changes the language and nothing else.
        russian = by_name[f"{seed.category}.ru"]
        assert [(each["name"], each["type"]) for each in seed.variables] == [
            (each["name"], each["type"]) for each in russian.variables
        ]
        assert all(each["description"] for each in seed.variables)


async def test_loading_again_changes_nothing_and_edits_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ("prompt_lineages", "ai_prompts", "prompt_labels", "prompt_label_moves")

    async def state(*ids: UUID) -> list[object]:
        """Everything of some prompts."""
        condition = "lineage_id = ANY ($1)"
        where = {
            "prompt_lineages": "id = ANY ($1)",
            "prompt_label_moves": f"label_id IN (SELECT id FROM prompt_labels WHERE {condition})",
        }
        return [
            await world.database.fetch(
                f"SELECT t::text FROM {table} t WHERE {where.get(table, condition)} ORDER BY 1", ids
            )
            for table in tables
        ]

    ids = [seed.prompt_id for seed in seeding.seeds()]
    await seeding.load(world.database)
    before = await state(*ids)
    assert [len(rows) for rows in before[:3]] == [8, 8, 8]  # type: ignore[arg-type]
    again = await seeding.load(world.database)
    assert (again.added, again.renewed, again.taken, len(again.kept)) == ([], [], [], 8)
    assert await state(*ids) == before
    got = await writing.render(
        await world.user("specialist"),
        "brief.en",
        {"client_name": "Acme", "today": "2026-11-24", "known": {}, "message": "we need {{clicks}}"},
    )
    assert got.version == 1 and "we need {{clicks}}" in got.text and got.parameters.temperature == 0.1

    # Somebody writes a better one and serves it; then a release comes with another text.
    first = (await versions(world, ids[0]))[0]
    edited = await writing.version(world.admin, str(ids[0]), template="Ours.")
    await writing.move(world.admin, edited, "production", first)
    others = seeding.seeds()
    changed = [replace(others[0], template=others[0].template + "\nBriefly."), replace(others[1], name="taken.en")]
    await writing.create(world.admin, name="taken.en")
    monkeypatch.setattr(seeding, "seeds", lambda: changed)
    later = await seeding.load(world.database)
    assert (later.added, later.renewed, later.kept, later.taken) == ([], [others[0].name], [], ["taken.en"])
    moves = await writing.history(world.admin, str(ids[0]), "production")
    assert [move.to_version for move in moves] == [1, 2]
    assert [each.version for each in await versions(world, ids[0])] == [1, 2, 3]


async def versions(world: World, prompt_id: UUID) -> list[writing.Version]:
    """Versions of a prompt, oldest first."""
    request = pb.ListPromptVersionsRequest(prompt_id=str(prompt_id))
    reply = await world.admin.prompts.ListPromptVersions(request, metadata=world.admin.auth)
    return list(reply.prompt_versions)[::-1]
