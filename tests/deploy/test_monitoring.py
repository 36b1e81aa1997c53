"""Dashboards and alert rules ask for what the service really tells, in expressions that read as PromQL."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mrm.accounts.v1 import session_service_pb2
from server.app import Application
from server.monitoring import events
from tests.conftest import Caller, World

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana" / "mrm.json").read_text())

# What Prometheus itself adds to everything that it reads.
ADDED = {"job", "instance"}
ITS_OWN: Mapping[str, set[str]] = {"up": set()}
AGGREGATIONS = {"sum", "min", "max", "avg", "count", "topk"}
FUNCTIONS = {"rate", "increase", "histogram_quantile", "time", "absent"}
WORDS = {"by", "on", "unless", "and", "or"}
_TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:[^"\\]|\\.)*") | (?P<window>\[(?:\d+[smhd]|\$__rate_interval)\])
    | (?P<number>\d+(?:\.\d+)?) | (?P<name>[a-zA-Z_:][\w:]*) | (?P<sign>=~|!~|!=|==|>=|<=|[-+*/<>=(){},]) )""",
    re.VERBOSE,
)


def expressions() -> Iterator[tuple[str, str]]:
    """Where each expression stands, and the expression."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


EXPRESSIONS = dict(expressions())


class Parser:
    """Reads the part of PromQL that is used here, by recursive descent; notes the metrics and their labels.

    Raises ValueError for what is not an expression.
    """

    def __init__(self, text: str) -> None:
        self.metrics: list[tuple[str, set[str]]] = []
        self.grouped: set[str] = set()
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            found = _TOKEN.match(text, place)
            if found is None:
                raise ValueError(f"no PromQL from {text[place:]!r}")
            assert found.lastgroup is not None
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            place = found.end()
        self._tokens.append(("end", ""))

    def parse(self) -> None:
        self.expression()
        self.expect("")

    def expression(self) -> None:
        self.operand()
        while self.peek() in {"+", "-", "*", "/", "<", ">", ">=", "<=", "==", "!=", "unless", "and", "or"}:
            self.take()
            if self.peek() == "on":
                self.take()
                self.labels()
            self.operand()

    def operand(self) -> None:
        kind, value = self.take()
        if value == "(":
            self.expression()
            self.expect(")")
        elif kind == "name" and value in AGGREGATIONS:
            if self.peek() == "by":
                self.take()
                self.labels()
            self.arguments()
        elif kind == "name" and value in FUNCTIONS:
            self.arguments()
        elif kind == "name" and value not in WORDS:
            self.selector(value)
        elif kind != "number":
            raise ValueError(f"{value!r} stands where a value belongs")

    def arguments(self) -> None:
        self.expect("(")
        while self.peek() != ")":
            self.expression()
            if self.peek() == ",":
                self.take()
        self.expect(")")

    def labels(self) -> None:
        self.expect("(")
        while self.peek() != ")":
            kind, value = self.take()
            if kind != "name":
                raise ValueError(f"{value!r} is no label")
            self.grouped.add(value)
            if self.peek() == ",":
                self.take()
        self.expect(")")

    def selector(self, name: str) -> None:
        labels: set[str] = set()
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                (kind, label), (_, operator), (text, value) = self.take(), self.take(), self.take()
                if kind != "name" or operator not in {"=", "!=", "=~", "!~"} or text != "string":
                    raise ValueError(f"{label}{operator}{value} is no condition")
                re.compile(json.loads(value))
                labels.add(label)
                if self.peek() == ",":
                    self.take()
            self.take()
        if self._tokens and self._tokens[0][0] == "window":
            self.take()
        self.metrics.append((name, labels))

    def peek(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def take(self) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError("the expression ends too early")
        return self._tokens.pop(0)

    def expect(self, value: str) -> None:
        if self.take()[1] != value:
            raise ValueError(f"{value!r} is missing")


@pytest.fixture(scope="module")
async def told(world: World) -> dict[str, set[str]]:
    """Every metric that a server or worker tells, with its labels: of a real scrape, after things happened."""
    settings = world.settings.model_copy(deep=True)
    settings.monitoring.port, settings.monitoring.interval = 0, 0.1
    # These belong to workers; here they only have to have happened.
    events.JOBS_ENDED.labels("apply_retention", "completed")
    events.JOB_SECONDS.labels("apply_retention")
    events.EMAILS.labels("sent")
    await world.database.execute(
        "INSERT INTO milestones (name, reached_at) VALUES ('retention.jobs', now()) ON CONFLICT DO NOTHING"
    )
    application = Application(settings)
    await application.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            request = session_service_pb2.GetCurrentSessionRequest()
            await Caller(channel).sessions.GetCurrentSession(request, metadata=world.admin.auth)
        text = ""
        async with httpx2.AsyncClient(trust_env=False) as http, asyncio.timeout(20):
            # Queues are read from the stores, and figures are behind only once some have been made.
            while not all(name in text for name in ("mrm_queue_jobs", "mrm_rebuild_lag_seconds")):
                text = (await http.get(f"http://127.0.0.1:{application.monitoring_port}/metrics")).text
    finally:
        await application.stop()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_expressions_parse_and_name_what_is_told(told: dict[str, set[str]], place: str) -> None:
    parser = Parser(EXPRESSIONS[place])
    parser.parse()
    assert parser.metrics or EXPRESSIONS[place] == "time()"
    known: set[str] = set(ADDED)
    for name, labels in parser.metrics:
        assert name in told or name in ITS_OWN, f"nobody tells {name}"
        has = told.get(name, set()) | ADDED
        assert labels <= has, f"{name} has no {labels - has}"
        known |= has
    assert parser.grouped <= known


@pytest.mark.parametrize(
    "wrong", ["sum(", "sum by (x) rate(y[5m])", "rate(x[5 minutes])", 'x{a="b"', "x{a=b}", "x >", "(x))", "by (x)"]
)
def test_what_is_not_promql_does_not_parse(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Parser(wrong).parse()


def test_everything_of_ours_is_on_the_dashboard_or_in_a_rule(told: dict[str, set[str]]) -> None:
    """What nobody looks at need not be told."""
    looked_at = " ".join(EXPRESSIONS.values())
    ours = {name for name in told if name.startswith(("mrm_", "grpc_"))}
    plain = {re.sub(r"_(?:bucket|sum|count|created)$", "", name) for name in ours}
    spared = {"mrm_build_info", *(name for name in plain if f"{name}_total" in told)}
    assert {name for name in plain - spared if name not in looked_at} == set()


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["ds"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${ds}"
        place = panel["gridPos"]
        assert (place["x"], place["y"]) not in places and place["x"] + place["w"] <= 24
        places.add((place["x"], place["y"]))


def test_rules_are_whole() -> None:
    rules: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        # A label in a text must be there when the rule fires.
        parser = Parser(rule["expr"])
        parser.parse()
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert named <= parser.grouped | ADDED
    configured = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [(DEPLOY / "prometheus" / name).exists() for name in configured["rule_files"]] == [True]
    assert {config["job_name"] for config in configured["scrape_configs"]} == {"mrm"}
