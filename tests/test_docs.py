"""The API reference of `make docs` tells everything that the contract says."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from buf.validate import validate_pb2
from mrm.common.v1 import options_pb2
from tools.make_docs import CONTRACT, in_words

ROOT = Path(__file__).parents[1]
STUBS = (path.relative_to(ROOT / "generated") for path in sorted((ROOT / "generated/mrm").rglob("*_pb2.py")))
MODULES = [".".join(stub.with_suffix("").parts) for stub in STUBS]


class Page(HTMLParser):
    """The text that follows each anchor up to the next, and the links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.texts: dict[str, str] = {"": ""}
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if named := values.get("id"):
            self.ids.append(named)
            self.texts[named] = ""
        if target := values.get("href"):
            self.links.add(target)

    def handle_data(self, data: str) -> None:
        self.texts[self.ids[-1] if self.ids else ""] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = tmp_path_factory.mktemp("docs") / "api.html"
    subprocess.run([sys.executable, "tools/make_docs.py", str(file)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return Page(file.read_text())


def described() -> dict[str, str]:
    """The comments of every service, RPC, message, field, oneof, enum and enum value of ours, by their full names."""
    found: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file:
        for location in file.source_code_info.location:
            of_a_named_part = location.path[:1] in ([4], [5], [6]) and len(location.path) % 2 == 0
            if file.package.startswith("mrm.") and location.leading_comments and of_a_named_part:
                at: Any = file
                names = [file.package]
                for kind, index in zip(location.path[::2], location.path[1::2], strict=True):
                    at = getattr(at, at.DESCRIPTOR.fields_by_number[kind].name)[index]
                    names.append(at.name)
                found[".".join(names)] = location.leading_comments
    return found


def test_everything_is_described_in_its_place(page: Page) -> None:
    def words(text: str) -> str:
        return " ".join(text.replace("`", "").split())

    comments = described()
    for module in MODULES:
        file = importlib.import_module(module).DESCRIPTOR
        assert {service.full_name for service in file.services_by_name.values()} <= set(comments)
        assert {message.full_name for message in file.message_types_by_name.values()} <= set(comments)
    for name, comment in comments.items():
        assert words(comment) in words(page.texts[name]), name


def test_every_rpc_tells_its_policy(page: Page) -> None:
    for file in descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()).file:
        for service in file.service:
            for method in service.method:
                policy = method.options.Extensions[options_pb2.policy]
                told = " ".join(page.texts[f"{file.package}.{service.name}.{method.name}"].split())
                deadline = f"{policy.deadline_ms / 1000:g} s" if policy.deadline_ms else "none"
                assert f"right {options_pb2.Permission.Name(policy.permission)[11:]} " in told
                assert f"rate class {options_pb2.RateClass.Name(policy.rate_class)[11:]} " in told
                assert f"repeated {options_pb2.Idempotency.Name(policy.idempotency)[12:]} " in told
                assert f"deadline {deadline}" in told


def test_every_link_leads_somewhere(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    # Comments link what they name.
    assert "mrm.common.v1.ErrorReason.ERROR_REASON_STREAM_FENCED" in {link.removeprefix("#") for link in page.links}


def test_secrets_are_marked(page: Page) -> None:
    assert "Secret: " in page.texts["mrm.accounts.v1.LoginRequest.password"]
    assert "Secret: " not in page.texts["mrm.accounts.v1.LoginRequest.email"]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("mrm.accounts.v1.LoginRequest.email", "3 to 255 characters; an e-mail address"),
        ("mrm.accounts.v1.CreateApiKeyRequest.request_id", "empty or a UUID"),
        ("mrm.accounts.v1.CreateApiKeyRequest.expire_time", "in the future"),
        ("mrm.accounts.v1.RotateApiKeyRequest.overlap", "0 s to 30 days"),
        ("mrm.common.v1.Money.currency_code", "three capital letters"),
        ("mrm.statistics.v1.AppendMetricsRequest.source", "not UNSPECIFIED, EVENTS"),
        ("mrm.statistics.v1.AppendMetricsRequest.goal_ids", "at most 100 items; none twice; each 1 to 64 characters"),
        ("mrm.statistics.v1.Event.attributes", "at most 32 pairs; each key 1 to 64 characters; each value at most 512"),
        ("mrm.statistics.v1.QueryStatisticsRequest.period", "exactly one of these"),
        ("mrm.accounts.v1.CreateApiKeyRequest", "Rule: name client_ids, or set all_clients, not both."),
    ],
)
def test_rules_are_told_in_words(page: Page, field: str, told: str) -> None:
    assert told in " ".join(page.texts[field].split())


def test_a_rule_without_words_is_told_all_the_same() -> None:
    rules = validate_pb2.FieldRules(string=validate_pb2.StringRules(prefix="y0_", max_len=9))
    assert list(in_words(rules, {})) == ["at most 9 characters", "prefix `y0_`"]


def test_the_page_needs_nothing_else(page: Page) -> None:
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"<(script|img|link)\b", (ROOT / "tools/reference.html.j2").read_text())
