"""What `deploy/` tells container engines agrees with the image, the settings and the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from server.__main__ import application
from server.rpc.health import PROCESS
from server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KNOWN = {
    f"MRM_{section}__{name}".upper()
    for section, field in Settings.model_fields.items()
    for name in field.annotation.model_fields  # type: ignore[union-attr]
}


def strings(value: Any) -> Iterator[str]:
    """Every string in a document, keys included."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from strings(key)
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, str):
        yield value


def resources() -> dict[tuple[str, str], Any]:
    """Kubernetes resources by kind and name."""
    read = [each for path in KUBERNETES for each in yaml.safe_load_all(path.read_text())]
    return {(each["kind"], each["metadata"]["name"]): each for each in read}


@pytest.mark.parametrize("path", [COMPOSE, *KUBERNETES], ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    named = {
        name
        for document in yaml.safe_load_all(path.read_text())
        for text in strings(document)
        for name in re.findall(r"\bMRM_[A-Z]+__[A-Z_]+\b", text)
    }
    assert named <= KNOWN


def test_the_image_speaks_of_settings_that_exist() -> None:
    assert set(re.findall(r"\bMRM_[A-Z]+__[A-Z_]*[A-Z]\b", DOCKERFILE)) <= KNOWN


def test_compose_runs_commands_there_are_on_engines_it_starts() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    commands = {name: each["command"] for name, each in services.items() if each["image"] == "mrm-ai-platform"}
    assert set(commands) == {"migrate", "server", "worker"}
    for command in commands.values():
        assert CliRunner().invoke(application(command[:1]), [*command, "--help"]).exit_code == 0
    environment = services["server"]["environment"]
    hosts = {re.search(r"//(?:[^@]*@)?([a-z0-9]+)", environment[name]) for name in environment if "DSN" in name}
    assert {host.group(1) for host in hosts if host} == {"postgres", "clickhouse", "redis", "cache", "milvus"}
    for name, each in services.items():
        for needed, wanted in each.get("depends_on", {}).items():
            condition = wanted["condition"]
            assert condition == "service_completed_successfully" or "healthcheck" in services[needed], (name, needed)
        # A secret without a value stops the start instead of being empty.
        assert not [text for text in strings(each) if re.search(r"\$\{\w+\}", text)]


def test_compose_asks_for_what_its_example_names() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?\}", COMPOSE.read_text()))
    example = (COMPOSE.parent / ".env.example").read_text()
    assert asked == set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_queues_are_never_evicted_and_the_cache_is() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    policies = {name: dict(pairwise(services[name]["command"]))["--maxmemory-policy"] for name in ("redis", "cache")}
    assert policies == {"redis": "noeviction", "cache": "allkeys-lru"}


def test_clickhouse_lets_nobody_in_without_a_password_but_itself() -> None:
    users = ElementTree.parse(COMPOSE.parent / "clickhouse-users.xml").getroot().find("users")
    assert users is not None
    for user in users:
        networks = {ip.text for ip in user.iter("ip")}
        password = user.find("password")
        assert password is not None
        assert password.get("from_env") or networks == {"127.0.0.1", "::1"}


def test_pods_are_found_by_their_services_and_budgets_and_end_in_time() -> None:
    found = resources()
    for name in ("server", "worker"):
        deployment = found["Deployment", f"mrm-{name}"]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"] == labels
        assert found["PodDisruptionBudget", f"mrm-{name}"]["spec"]["selector"]["matchLabels"] == labels
        pod = deployment["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == int(str(re.search(r"--uid (\d+)", DOCKERFILE)[1]))  # type: ignore[index]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        grpc, delay = Settings().grpc, 5.0
        needs = delay + 2 * grpc.drain_seconds if name == "server" else Settings().jobs.drain_seconds
        assert pod["terminationGracePeriodSeconds"] >= needs + 15
    service = found["Service", "mrm"]["spec"]
    server = found["Deployment", "mrm-server"]["spec"]["template"]
    assert service["selector"] == server["metadata"]["labels"]
    (container,) = server["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["grpc"] == service["ports"][0]["port"] == 50051
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["MRM_MONITORING__PORT"] == str(ports["metrics"])


def test_readiness_asks_for_the_process_and_liveness_for_the_port() -> None:
    (container,) = resources()["Deployment", "mrm-server"]["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"][:3] == ["mrm", "health", PROCESS]
    assert "tcpSocket" in container["livenessProbe"]
    assert f'["mrm", "health", "{PROCESS}"' in DOCKERFILE
