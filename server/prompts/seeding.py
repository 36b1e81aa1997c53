"""The prompts that come with the service: one for each category, in Russian and in English.

Their ids follow from what they say, so loading them again changes nothing. What people made of them is theirs: a prompt
that is there keeps its labels, and a later edition of its text is only added as a version that nobody is served.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Any, Final
from uuid import UUID, uuid5

from server.prompts import convert
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from storage.errors import Conflict
from storage.postgres import prompts
from storage.postgres.audit import Cause
from storage.postgres.database import Database, Transaction
from storage.scope import EVERYTHING

LABEL: Final = "production"

_NAMESPACE: Final = UUID("b3c5f0f2-5f6d-5b0e-8f43-0a3d7c1d9e21")
_LANGUAGES: Final = ("ru", "en")
_CAUSE: Final = Cause("operator", description="mrm seed prompts")
_NOTE: Final = "Comes with the service"

# Of each category how freely the model is to write, and what its texts name: type, and meaning in both languages.
_CATEGORIES: Final[dict[str, tuple[float, dict[str, tuple[str, str, str]]]]] = {
    "brief": (
        0.1,
        {
            "client_name": ("text", "Название клиента", "Name of the client"),
            "today": ("date", "Сегодняшний день", "Today"),
            "known": ("json", "Что о клиенте известно", "What is known of the client"),
            "message": ("text", "Что клиент написал", "What the client has written"),
        },
    ),
    "media_plan": (
        0.4,
        {
            "brief": ("json", "Бриф", "The brief"),
            "total_budget": ("number", "Бюджет", "The budget"),
            "currency_code": ("text", "Его валюта", "Its currency"),
            "start_date": ("date", "Первый день", "First day"),
            "end_date": ("date", "Последний день", "Last day"),
            "channels": ("json", "Каналы, из которых выбирать", "Channels to choose from"),
            "benchmarks": ("json", "Бенчмарки с источниками", "Benchmarks with their sources"),
            "examples": ("json", "Принятые планы по похожим брифам", "Accepted plans for similar briefs"),
        },
    ),
    "report": (
        0.3,
        {
            "project_name": ("text", "Название проекта", "Name of the project"),
            "start_date": ("date", "Первый день", "First day"),
            "end_date": ("date", "Последний день", "Last day"),
            "figures": ("json", "Показатели периода", "Figures of the period"),
            "previous": ("json", "Показатели периода до него", "Figures of the period before"),
            "plan": ("json", "Что было запланировано", "What was planned"),
            "reader": ("text", "Для кого", "Whom it is for"),
        },
    ),
    "migration": (
        0.0,
        {
            "kind": ("text", "Что в строках", "What rows are"),
            "columns": ("json", "Колонки с примерами", "Columns with samples"),
            "fields": ("json", "Поля, которые заполнить", "Fields to fill"),
            "examples": ("json", "Принятые соответствия для похожих файлов", "Accepted mappings of similar files"),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Seed:
    """A prompt that comes with the service, as it is stored."""

    name: str
    category: str
    template: str
    variables: list[dict[str, Any]]
    metadata: dict[str, Any]

    @property
    def prompt_id(self) -> UUID:
        """Id of the prompt."""
        return uuid5(_NAMESPACE, self.name)

    @property
    def version_id(self) -> UUID:
        """Id of this edition of it."""
        said = json.dumps([self.template, self.variables, self.metadata], sort_keys=True)
        return uuid5(self.prompt_id, sha256(said.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Seeded:
    """What became of the prompts that come with the service, by their names.

    Attributes:
        added: Those that were missing.
        renewed: Those that were there in another edition, and have this one as a further version.
        kept: Those that were there in this edition.
        taken: Those whose name another prompt of the agency has.
    """

    added: list[str]
    renewed: list[str]
    kept: list[str]
    taken: list[str]


def seeds() -> list[Seed]:
    """The prompts that come with the service."""
    folder = resources.files("server.prompts").joinpath("seeds")
    return [
        Seed(
            name=f"{category}.{language}",
            category=category,
            template=folder.joinpath(f"{category}.{language}.txt").read_text(encoding="utf-8"),
            variables=[
                {"name": name, "type": kind, "description": meanings[place]}
                for name, (kind, *meanings) in variables.items()
            ],
            metadata={"temperature": temperature},
        )
        for category, (temperature, variables) in _CATEGORIES.items()
        for place, language in enumerate(_LANGUAGES)
    ]


async def load(database: Database) -> Seeded:
    """Adds what is missing of the prompts that come with the service, and changes nothing that is there."""
    found = Seeded([], [], [], [])
    for seed in seeds():

        async def work(tx: Transaction, seed: Seed = seed) -> list[str]:
            return await _write(tx, seed, found)

        try:
            told = await database.run("seed_prompt", work)
        except Conflict:
            told = found.taken
        told.append(seed.name)
    return found


async def _write(tx: Transaction, seed: Seed, found: Seeded) -> list[str]:
    """Writes what is missing of one prompt; which list of `found` tells of it."""
    there = await prompts.get_for_update(tx, EVERYTHING, seed.prompt_id)
    if there is not None and await prompts.get_version(tx, EVERYTHING, seed.version_id) is not None:
        return found.kept
    record = recorder(append_to(tx), SYSTEM, cause=_CAUSE)
    if there is None:
        await prompts.create(
            tx, prompt_id=seed.prompt_id, client_id=None, name=seed.name, category=seed.category, created_by=None
        )
    version = await prompts.add_version(
        tx,
        EVERYTHING,
        seed.prompt_id,
        version_id=seed.version_id,
        template=seed.template,
        variables=seed.variables,
        metadata=seed.metadata,
        change_note=_NOTE,
        created_by=None,
    )
    assert version is not None
    if there is not None:
        await record(AuditEntry("create", "prompt_version", version.id, None, None, None, convert.version(version)))
        return found.renewed
    label, _ = await prompts.move_label(
        tx,
        EVERYTHING,
        seed.prompt_id,
        LABEL,
        present=None,
        to_version_id=version.id,
        reason=_NOTE,
        moved_by=None,
    )
    made = await prompts.get(tx, EVERYTHING, seed.prompt_id)
    assert made is not None
    for kind, row_id, message in (
        ("prompt", made.id, convert.prompt(made, [label], [LABEL])),
        ("prompt_version", version.id, convert.version(version)),
        ("prompt_label", label.id, convert.label(label, [LABEL])),
    ):
        await record(AuditEntry("create", kind, row_id, None, None, None, message))
    return found.added
