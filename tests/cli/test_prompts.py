"""`mrm prompts`, as a process against the running service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from mrm.ai.v1 import prompt_pb2
from server.cli.console import CommandFailed
from server.cli.prompts import description, differences, given
from server.prompts import seeding
from tests.prompts import writing
from tests.prompts.test_experiments import judged

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


async def test_an_analyst_serves_another_text_and_takes_it_back(mrm: Mrm, world: World) -> None:
    analyst = await world.user("analyst")
    name = f"note {uuid4().hex}"
    first = await writing.create(analyst, name=name, template="Dear {{who}},\n[x]", variables={"who": "TEXT"})
    variables = {"who": "TEXT", "n": "INTEGER"}
    second = await writing.version(analyst, first.prompt_id, template="Hi {{who}} {{n}}", variables=variables)
    await writing.move(analyst, first, "staging")
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": analyst.token}

    moved = await mrm("prompts", "move", name, "staging", "2", "--reason", "shorter", **server)
    assert (moved.code, moved.out) == (0, "staging: version 1 -> 2\n"), moved.err
    filled = await mrm("prompts", "render", name, "--label", "staging", "--set", "who=Ёж", "--json", "n=3", **server)
    assert (filled.code, filled.out) == (0, "Hi Ёж 3\n"), filled.err
    back = await mrm("prompts", "rollback", name, "staging", "--reason", "too short", **server)
    assert (back.code, back.out) == (0, "staging: version 2 -> 1 (rollback)\n"), back.err
    experiment = await writing.start(analyst, "staging", first, second, min_sample_count=2)
    client = (await world.client()).client_id
    await judged(world, client, experiment.prompt_experiment_id, first, accepted=3, rejected=1)

    missing, told, listed, shown = await asyncio.gather(
        mrm("prompts", "render", name, "--label", "staging", **server),
        mrm("prompts", "history", name, **server),
        mrm("prompts", "list", "--category", "brief", **server),
        mrm("prompts", "result", experiment.prompt_experiment_id, **server),
    )
    assert missing.code == 1 and "variables.who: is missing" in missing.err
    assert [line.split(" staging ")[1] for line in words(told.out)[1:]] == [
        f"version 2 -> 1 (rollback) too short {analyst.user_id}",
        f"version 1 -> 2 shorter {analyst.user_id}",
        f"-> 1 because {analyst.user_id}",
    ]
    assert f"{name} brief the agency 2 staging 1 {first.prompt_id}" in words(listed.out)
    assert words(shown.out) == [
        "under staging, running: no hypothesis",
        "version weight judged accepted 95 % against control 95 % promotion",
        "1 1 4 75.0 % 30.1 to 95.4 control",
        "2 1 0 not yet: sample, acceptance",
    ]


async def test_prompts_of_the_service_are_loaded_by_a_command(mrm: Mrm, world: World) -> None:
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    await seeding.load(world.database)
    again, shown, failed = await asyncio.gather(
        mrm("seed", "prompts", MRM_POSTGRES__DSN=world.connections.postgres_dsn),
        mrm("prompts", "show", "migration.ru", **server),
        mrm("prompts", "diff", "migration.ru", "production", "nowhere", **server),
    )
    assert again.code == 0 and again.out.startswith("0 prompts added, "), again.out + again.err
    assert shown.code == 0, shown.err
    assert "variable: columns, json: Колонки с примерами" in shown.out
    assert "{{columns}}" in shown.out
    assert failed.code == 1 and "migration.ru has no version and no label nowhere" in failed.err


def test_a_version_is_described_and_compared() -> None:
    def version(number: int, template: str, temperature: float) -> prompt_pb2.PromptVersion:
        return prompt_pb2.PromptVersion(
            name="x",
            version=number,
            prompt_version_id=str(number),
            category=prompt_pb2.PROMPT_CATEGORY_REPORT,
            template=template,
            change_note="n",
            variables=[{"name": "a", "type": prompt_pb2.PROMPT_VARIABLE_TYPE_JSON}],  # type: ignore[list-item]
            parameters=prompt_pb2.PromptParameters(temperature=temperature),
        )

    label = prompt_pb2.PromptLabel(label="production", prompt_version_id="1")
    prompt = prompt_pb2.Prompt(latest_version=2, labels=[label])
    one, two = version(1, "{{a}}\nend", 0.5), version(2, "{{a}}!\nend", 1)
    assert description(prompt, one) == [
        "x, report, version 1 of 2, served under production",
        "note: n",
        "variable: a, json",
        "parameter: temperature 0.5",
    ]
    changed = [line for line in differences(one, two) if line[0] in "+-"]
    assert changed == [
        "--- x version 1",
        "+++ x version 2",
        '-  "temperature": 0.5',
        '+  "temperature": 1.0',
        "-{{a}}",
        "+{{a}}!",
    ]


def test_values_are_taken_from_options_before_a_file(tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"a": 1, "b": "x", "c": None}))
    assert given(["b=y=z"], ["a=[2]"], file) == {"a": [2], "b": "y=z", "c": None}
    file.write_text("[]")
    for arguments in ((["b"], [], None), ([], ["a=x"], None), ([], [], file)):
        with pytest.raises(CommandFailed):
            given(*arguments)  # type: ignore[arg-type]
