"""What e-mails say: a model for each kind, and its texts in Russian and English.

A kind is a subclass of `Letter` and two files in ``texts/``, ``<template>.ru.j2`` and ``<template>.en.j2``, each with
the blocks ``subject``, ``body`` (paragraphs, separated by empty lines) and ``facts`` (``name: value`` lines). Both
forms of the e-mail, plain and HTML, are laid out from these, so that they cannot say different things.
"""

import re
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, ClassVar, Final, Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context, select_autoescape
from jinja2.runtime import Context
from pydantic import BaseModel, ConfigDict

from mrm.common.v1 import money_pb2
from server.platforms.names import PLATFORM_NAMES

Language: TypeAlias = Literal["ru", "en"]

REGISTRY: Final[dict[str, type["Letter"]]] = {}
"""Every kind of e-mail, by the name of its template."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONGEST_SUBJECT: Final = 200
_NARROW: Final = "\N{NO-BREAK SPACE}"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Letter(BaseModel):
    """What an e-mail of one kind says; never a secret.

    Attributes:
        template: Name of the kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "template" in cls.__dict__:
            REGISTRY[cls.template] = cls


class Amount(BaseModel):
    """Money, in millionths of a currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    micros: int
    currency: str

    @classmethod
    def of(cls, money: money_pb2.Money) -> "Amount":
        """The amount of a message."""
        return cls(micros=money.micros, currency=money.currency_code)


class PlanLetter(Letter):
    """About a version of a media plan.

    Attributes:
        actor: Who did it; empty if it was a program.
        comment: What they said about it.
    """

    client: str
    project: str
    plan: str
    version: int
    budget: Amount
    actor: str
    comment: str


class PlanSubmitted(PlanLetter):
    """Somebody is to decide on a version."""

    template = "plan_submitted"


class PlanApproved(PlanLetter):
    """A version may run."""

    template = "plan_approved"


class PlanRejected(PlanLetter):
    """A version is back with its authors."""

    template = "plan_rejected"


class BudgetAlert(Letter):
    """A budget needs attention; figures as in `mrm.operations.v1.BudgetAlertDetails`.

    Attributes:
        kind: Kind of alert.
        reminder: Whether it was told before.
    """

    template = "budget_alert"

    kind: Literal["budget_threshold", "budget_exhaustion", "overspend", "overpacing", "underpacing"]
    reminder: bool
    client: str
    project: str
    name: str
    budget: Amount
    spent: Amount
    threshold_percent: int = 0
    planned: Amount | None = None
    pacing: str = ""
    exhaustion_date: str = ""
    end_date: str = ""


class IntegrationAlert(Letter):
    """A platform account cannot be used until somebody acts.

    Attributes:
        reason: A word of ours.
    """

    template = "integration_alert"

    reminder: bool
    client: str
    platform: str
    account: str
    reason: str


class ServiceAlert(Letter):
    """Something else needs attention: figures that differ, or work that was given up."""

    template = "service_alert"

    kind: Literal["rollup_drift", "job_failed"]
    reminder: bool
    client: str
    subject_line: str


class ReportReady(Letter):
    """A report can be downloaded by whoever asked for it."""

    template = "report_ready"

    client: str
    project: str
    type: Literal["performance", "channel_comparison", "analytical_notes"]
    start_date: str
    end_date: str
    format: Literal["json", "pdf", "xlsx"]
    report_id: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """An e-mail's texts."""

    subject: str
    text: str
    html: str


def language_of(tag: str | None) -> Language:
    """The language to write in for a BCP 47 tag: Russian for Russian, English for any other."""
    return "ru" if (tag or "ru").lower().split("-")[0] == "ru" else "en"


def render(letter: Letter, language: Language, *, name: str = "", unsubscribe: str = "") -> Rendered:
    """An e-mail's subject and texts.

    Args:
        letter: What it says.
        language: In which language.
        name: What the recipient is called; empty if that is not known.
        unsubscribe: Where the recipient can ask for no more; empty for nowhere.
    """
    blocks = _ENVIRONMENT.get_template(f"{letter.template}.{language}.j2")
    said = {**dict(letter), "language": language}
    subject, body, facts = (
        "".join(blocks.blocks[block](blocks.new_context(said))) for block in ("subject", "body", "facts")
    )
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", _plain(body)) if part.strip()]
    rows = [line.strip().partition(": ")[::2] for line in _plain(facts).splitlines() if line.strip()]
    layout = {
        "language": language,
        "subject": _subject(subject),
        "name": _subject(name),
        "paragraphs": paragraphs,
        "facts": rows,
        "unsubscribe": unsubscribe,
    }
    return Rendered(
        layout["subject"],  # type: ignore[arg-type]
        _ENVIRONMENT.get_template("layout.txt.j2").render(layout).strip() + "\n",
        _ENVIRONMENT.get_template("layout.html.j2").render(layout),
    )


def _subject(text: str) -> str:
    """One line, whatever names it is made of: nothing of them can begin a header."""
    line = " ".join(_plain(text).split())
    return line if len(line) <= _LONGEST_SUBJECT else line[: _LONGEST_SUBJECT - 1] + "…"


def _plain(text: str) -> str:
    """Without characters that act instead of being read; line ends are kept."""
    return _CONTROL.sub(" ", text)


def _one_line(text: str) -> str:
    """A value of a fact, which is a line."""
    return " ".join(_plain(text).split())


@pass_context
def _money(context: Context, amount: Amount) -> str:
    value = Decimal(amount.micros).scaleb(-6).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
    text = f"{value:,.2f}"
    if context["language"] == "ru":
        text = text.replace(",", _NARROW).replace(".", ",")
    return f"{text}{_NARROW}{amount.currency}"


@pass_context
def _day(context: Context, text: str) -> str:
    day = date.fromisoformat(text)
    if context["language"] == "ru":
        return f"{day:%d.%m.%Y}"
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


@pass_context
def _percent(context: Context, ratio: str) -> str:
    value = (Decimal(ratio) * 100).quantize(Decimal("0.1"), ROUND_HALF_EVEN).normalize()
    text = f"{value:f}"
    return text.replace(".", ",") + f"{_NARROW}%" if context["language"] == "ru" else f"{text}%"


@pass_context
def _platform(context: Context, word: str) -> str:
    russian, english = PLATFORM_NAMES.get(word, (word, word))
    return russian if context["language"] == "ru" else english


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("server.mail", "texts"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(money=_money, day=_day, percent=_percent, platform=_platform, line=_one_line)
    return environment


_ENVIRONMENT: Final = _environment()
