"""Renders the API reference, docs/api.html, out of the contract's own comments, policies and rules.

    python tools/make_docs.py [FILE]

One page that needs nothing else: it can be mailed, or opened from a disk.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, duration_pb2, text_format
from google.protobuf.message import Message
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from buf.validate import validate_pb2
from mrm.common.v1 import options_pb2

ROOT = Path(__file__).parents[1]
CONTRACT = ROOT / "generated/mrm/contract.binpb"
OUTPUT = ROOT / "docs/api.html"
OWN = "mrm."
ERROR_REASONS = "mrm.common.v1.ErrorReason"

Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in Field.Type.items()}
_POLICY = (
    ("permission", "right", options_pb2.Permission),
    ("scope", "scope", options_pb2.Scope),
    ("rate_class", "rate class", options_pb2.RateClass),
    ("idempotency", "repeated", options_pb2.Idempotency),
)


@dataclass(frozen=True)
class Link:
    """A word, and the id of what it names on this page; empty if that is described elsewhere."""

    text: str
    target: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Choice:
    """A oneof: fields that exclude each other."""

    id: str
    name: str
    rule: str
    text: str


@dataclass(frozen=True)
class Row:
    """A field of a message."""

    id: str
    name: str
    number: int
    label: str
    types: tuple[Link, ...]
    text: str
    rules: tuple[str, ...]
    secret: bool
    choice: Choice | None


@dataclass
class Type:
    """A message or an enum."""

    id: str
    name: str
    kind: str
    text: str
    rules: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Value:
    """A value of an enum."""

    id: str
    name: str
    number: int
    text: str


@dataclass(frozen=True)
class Method:
    """An RPC, its policy, and the messages that only it uses."""

    id: str
    name: str
    text: str
    takes: Link
    gives: Link
    takes_stream: bool
    gives_stream: bool
    policy: tuple[tuple[str, Link], ...]
    own: tuple[Type, ...]


@dataclass(frozen=True)
class Service:
    """A service."""

    id: str
    name: str
    text: str
    methods: tuple[Method, ...]


@dataclass
class Package:
    """Everything of one proto package."""

    name: str
    text: str = ""
    services: list[Service] = field(default_factory=list)
    types: list[Type] = field(default_factory=list)


class Reference:
    """The contract, in the order in which it is read."""

    def __init__(self, contract: descriptor_pb2.FileDescriptorSet) -> None:
        """`contract` must have been read with the extensions of `options_pb2` and `validate_pb2` registered."""
        self._files = [file for file in contract.file if file.package.startswith(OWN)]
        self._types: dict[str, Type] = {}
        self._uses: Counter[str] = Counter()
        self._enums = dict(pair for file in self._files for pair in _enums(file, file.package))
        self.packages = self._read()

    def _read(self) -> list[Package]:
        packages: dict[str, Package] = {}
        for file in self._files:
            package = packages.setdefault(file.package, Package(file.package))
            comments = _comments(file)
            package.text = package.text or comments.get((2,), "")
            for index, message in enumerate(file.message_type):
                package.types += self._message(message, file.package, "", comments, (4, index))
            for index, enum in enumerate(file.enum_type):
                package.types.append(self._enum(enum, file.package, "", comments, (5, index)))
            for service in file.service:
                for method in service.method:
                    self._uses.update({method.input_type[1:], method.output_type[1:]})
        self._types = {one.id: one for package in packages.values() for one in package.types}
        # What belongs to one RPC stands with it.
        shown: set[str] = set()
        for file in self._files:
            for index, service in enumerate(file.service):
                made = self._service(service, file.package, _comments(file), (6, index))
                packages[file.package].services.append(made)
                shown |= {one.id for method in made.methods for one in method.own}
        for package in packages.values():
            package.types = sorted((one for one in package.types if one.id not in shown), key=lambda one: one.name)
        return sorted(packages.values(), key=lambda one: (one.name.startswith("mrm.common"), one.name))

    def _service(
        self,
        service: descriptor_pb2.ServiceDescriptorProto,
        package: str,
        comments: dict[tuple[int, ...], str],
        path: tuple[int, ...],
    ) -> Service:
        id = f"{package}.{service.name}"
        methods = tuple(
            Method(
                id=f"{id}.{method.name}",
                name=method.name,
                text=comments.get((*path, 2, index), ""),
                takes=self._link(method.input_type[1:]),
                gives=self._link(method.output_type[1:]),
                takes_stream=method.client_streaming,
                gives_stream=method.server_streaming,
                policy=self._policy(method.options.Extensions[options_pb2.policy]),
                own=tuple(self._own(method)),
            )
            for index, method in enumerate(service.method)
        )
        return Service(id, service.name, comments.get(path, ""), methods)

    def _own(self, method: descriptor_pb2.MethodDescriptorProto) -> Iterator[Type]:
        for name in (method.input_type[1:], method.output_type[1:]):
            if name in self._types and self._uses[name] == 1:
                yield self._types[name]
                yield from (one for id, one in self._types.items() if id.startswith(f"{name}."))

    def _policy(self, policy: options_pb2.MethodPolicy) -> tuple[tuple[str, Link], ...]:
        known = []
        for name, title, enum in _POLICY:
            value = enum.Name(getattr(policy, name))
            home = enum.DESCRIPTOR.full_name
            hint = next((one.text for one in self._types[home].values if one.name == value), "")
            known.append((title, Link(value.removeprefix(_prefix(enum.DESCRIPTOR.name)), f"{home}.{value}", hint)))
        seconds = f"{policy.deadline_ms / 1000:g} s" if policy.deadline_ms else "none"
        return (*known, ("deadline", Link(seconds)))

    def _message(
        self,
        message: descriptor_pb2.DescriptorProto,
        package: str,
        outer: str,
        comments: dict[tuple[int, ...], str],
        path: tuple[int, ...],
    ) -> Iterator[Type]:
        name = f"{outer}{message.name}"
        id = f"{package}.{name}"
        entries = {f"{id}.{one.name}": one for one in message.nested_type if one.options.map_entry}
        rules = message.options.Extensions[validate_pb2.message]
        made = Type(id, name, "message", comments.get(path, ""), tuple(rule.message for rule in rules.cel))
        for index, one in enumerate(message.field):
            choice = None
            if one.HasField("oneof_index") and not one.proto3_optional:
                oneof = message.oneof_decl[one.oneof_index]
                required = oneof.options.Extensions[validate_pb2.oneof].required
                text = comments.get((*path, 8, one.oneof_index), "")
                choice = Choice(
                    f"{id}.{oneof.name}", oneof.name, f"{'exactly' if required else 'at most'} one of these", text
                )
            made.rows.append(
                Row(
                    id=f"{id}.{one.name}",
                    name=one.name,
                    number=one.number,
                    label=_label(one, entries),
                    types=tuple(self._links(one, entries)),
                    text=comments.get((*path, 2, index), ""),
                    rules=tuple(
                        in_words(one.options.Extensions[validate_pb2.field], self._enums.get(one.type_name[1:], {}))
                    ),
                    secret=one.options.debug_redact,
                    choice=choice,
                )
            )
        yield made
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, package, f"{name}.", comments, (*path, 3, index))
        for index, enum in enumerate(message.enum_type):
            yield self._enum(enum, package, f"{name}.", comments, (*path, 4, index))

    @staticmethod
    def _enum(
        enum: descriptor_pb2.EnumDescriptorProto,
        package: str,
        outer: str,
        comments: dict[tuple[int, ...], str],
        path: tuple[int, ...],
    ) -> Type:
        id = f"{package}.{outer}{enum.name}"
        values = [
            Value(f"{id}.{value.name}", value.name, value.number, comments.get((*path, 2, index), ""))
            for index, value in enumerate(enum.value)
        ]
        return Type(id, f"{outer}{enum.name}", "enum", comments.get(path, ""), values=values)

    def _links(self, one: Field, entries: dict[str, descriptor_pb2.DescriptorProto]) -> Iterator[Link]:
        entry = entries.get(one.type_name[1:])
        if entry is not None:
            for part in entry.field:
                yield from self._links(part, {})
        elif one.type_name:
            yield self._link(one.type_name[1:])
        else:
            yield Link(_SCALARS[one.type])

    @staticmethod
    def _link(name: str) -> Link:
        if not name.startswith(OWN):
            return Link(name)
        return Link(re.sub(r"^[a-z0-9_.]+\.", "", name), name)

    @cached_property
    def targets(self) -> dict[str, str]:
        """What a word in a comment names, as far as it cannot be mistaken for a plain word."""
        found: dict[str, set[str]] = defaultdict(set)
        for id, one in self._types.items():
            found[one.name].add(id)
            for value in one.values:
                found[value.name].add(value.id)
        for package in self.packages:
            for service in package.services:
                found[service.name].add(service.id)
                for method in service.methods:
                    found[method.name].add(method.id)
                    found[f"{service.name}.{method.name}"].add(method.id)
        for value in self._types[ERROR_REASONS].values:
            found[value.name.removeprefix(_prefix("ErrorReason"))].add(value.id)
        for value in self._types[options_pb2.Permission.DESCRIPTOR.full_name].values:
            found[value.name.removeprefix(_prefix("Permission"))].add(value.id)
        telling = re.compile(r"[A-Z][a-z]+[A-Z]|[A-Z]+_[A-Z]")
        return {word: min(ids) for word, ids in found.items() if len(ids) == 1 and telling.match(word)}

    def prose(self, text: str) -> Markup:
        """A comment as paragraphs, with code marked and names linked."""
        paragraphs = filter(str.strip, re.split(r"\n\s*\n", text))
        return Markup("\n").join(Markup("<p>{}</p>").format(self._inline(paragraph)) for paragraph in paragraphs)

    def _inline(self, text: str) -> Markup:
        parts = []
        for part in re.split(r"(`[^`]+`)", " ".join(text.split())):
            if part.startswith("`"):
                parts.append(Markup("<code>{}</code>").format(self._linked(part.strip("`"))))
            else:
                parts.append(self._linked(part))
        return Markup("").join(parts)

    def _linked(self, text: str) -> Markup:
        parts = []
        for part in re.split(r"(\b[A-Z][A-Za-z_]+(?:\.[A-Z][A-Za-z]+)?\b)", text):
            target = self.targets.get(part)
            parts.append(Markup('<a href="#{}">{}</a>').format(target, part) if target else escape(part))
        return Markup("").join(parts)


def _prefix(enum: str) -> str:
    """What the values of an enum begin with: `RATE_CLASS_` of RateClass."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum).upper() + "_"


def _label(one: Field, entries: Iterable[str]) -> str:
    if one.type_name[1:] in entries:
        return "map"
    if one.label == Field.LABEL_REPEATED:
        return "repeated"
    return "optional" if one.proto3_optional else ""


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {tuple(at.path): at.leading_comments for at in file.source_code_info.location}


def _enums(
    scope: descriptor_pb2.FileDescriptorProto | descriptor_pb2.DescriptorProto, path: str
) -> Iterator[tuple[str, dict[int, str]]]:
    for enum in scope.enum_type:
        prefix = _prefix(enum.name)
        yield f"{path}.{enum.name}", {value.number: value.name.removeprefix(prefix) for value in enum.value}
    messages = scope.message_type if isinstance(scope, descriptor_pb2.FileDescriptorProto) else scope.nested_type
    for message in messages:
        yield from _enums(message, f"{path}.{message.name}")


def in_words(rules: validate_pb2.FieldRules, values: Mapping[int, str]) -> Iterator[str]:
    """A field's validation rules for people, one phrase each.

    Args:
        rules: The rules.
        values: Names of the values if the field, its items or entries are of an enum.
    """
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return
    if rules.required:
        yield "required"
    phrases = [rule.message for rule in rules.cel]
    kind = rules.WhichOneof("type")
    if kind is not None:
        phrases += _of_kind(kind, getattr(rules, kind), values)
    if phrases and rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        phrases[0] = f"{'0' if 'int' in str(kind) else 'empty'} or {phrases[0]}"
    yield from phrases


def _of_kind(kind: str, rules: Any, values: Mapping[int, str]) -> list[str]:
    if kind in ("string", "bytes"):
        unit = "characters" if kind == "string" else "bytes"
        return [*_bounds(rules, "min_len", "max_len", unit), *_others(rules, {"min_len", "max_len"})]
    if kind == "repeated":
        phrases = [*_bounds(rules, "min_items", "max_items", "items"), *(["none twice"] if rules.unique else [])]
        phrases += [f"each {phrase}" for phrase in in_words(rules.items, values)]
        return [*phrases, *_others(rules, {"min_items", "max_items", "unique", "items"})]
    if kind == "map":
        phrases = [*_bounds(rules, "min_pairs", "max_pairs", "pairs")]
        phrases += [f"each key {phrase}" for phrase in in_words(rules.keys, values)]
        phrases += [f"each value {phrase}" for phrase in in_words(rules.values, values)]
        return [*phrases, *_others(rules, {"min_pairs", "max_pairs", "keys", "values"})]
    if kind == "enum":
        sets = [("one of ", getattr(rules, "in")), ("not ", rules.not_in)]
        return [start + ", ".join(values[number] for number in numbers) for start, numbers in sets if numbers]
    return _others(rules, set())


def _bounds(rules: Any, least: str, most: str, unit: str) -> Iterator[str]:
    low = getattr(rules, least) if rules.HasField(least) else None
    high = getattr(rules, most) if rules.HasField(most) else None
    if low is not None and high is not None:
        yield f"{low} to {high} {unit}"
    elif low is not None:
        yield f"at least {low} {unit}"
    elif high is not None:
        yield f"at most {high} {unit}"


_PATTERNS = {
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "a day as YYYY-MM-DD",
    "^[A-Z]{3}$": "three capital letters",
    "^[!-~]*$": "visible ASCII characters only",
    "^[!-~]+$": "visible ASCII characters only",
    "[^ ]": "not only blanks",
}
_PHRASES = {
    "uuid": "a UUID",
    "email": "an e-mail address",
    "uri": "a URI",
    "gt_now": "in the future",
    "lt_now": "in the past",
    "pattern": "matches {}",
    "gt": "more than {}",
    "gte": "at least {}",
    "lt": "less than {}",
    "lte": "at most {}",
    "const": "exactly {}",
    "in": "one of {}",
    "not_in": "not {}",
    "len": "exactly {} long",
}


def _others(rules: Any, told: set[str]) -> list[str]:
    """Every rule that was not told yet; one that has no words here, under its own name."""
    phrases = []
    if {"gte", "lte"} <= {rule.name for rule, _ in rules.ListFields()}:
        phrases.append(f"{_plain(rules.gte)} to {_plain(rules.lte)}")
        told = {*told, "gte", "lte"}
    for rule, value in rules.ListFields():
        if rule.name == "pattern" and value in _PATTERNS:
            phrases.append(_PATTERNS[value])
        elif rule.name not in told:
            phrases.append(_PHRASES.get(rule.name, f"{rule.name} {{}}").format(_plain(value)))
    return phrases


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, int | float):
        return f"{value}"
    if isinstance(value, duration_pb2.Duration):
        span = value.ToTimedelta()
        return f"{span.days} days" if span.days and not span.seconds else f"{span.total_seconds():g} s"
    if isinstance(value, Message):
        return text_format.MessageToString(value, as_one_line=True)
    return ", ".join(_plain(one) for one in value)


def render(contract: descriptor_pb2.FileDescriptorSet) -> str:
    """The page."""
    reference = Reference(contract)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["prose"] = reference.prose
    return environment.get_template("reference.html.j2").render(
        packages=reference.packages, error_reasons=ERROR_REASONS
    )


def main(output: Path) -> None:
    """Reads the contract and writes the page."""
    page = render(descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(f"{output} ({len(page) // 1024} KiB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
