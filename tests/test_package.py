"""The package that callers install: what its wheel wants, and that it works with nothing else there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Imports every module of the callers' part, and finds nothing but those, Python's own modules and the allowed ones.
PROBE = """
import importlib, pathlib, sys
wheel, *allowed = sys.argv[1:]

class Base:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed and top not in ("buf", "mrm", "mrm_client"):
            raise ModuleNotFoundError(f"{name} is not in the base install", name=name)

sys.meta_path.insert(0, Base())
sys.path.insert(0, wheel)
names = [
    ".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__")
    for package in ("buf", "mrm", "mrm_client")
    for path in pathlib.Path(wheel, package).rglob("*.py")
]
for name in names:
    assert importlib.import_module(name).__file__.startswith(wheel), name
for absent in ("asyncpg", "server", "storage"):
    try:
        importlib.import_module(absent)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{absent} was found")
print(*names)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def base_distributions() -> set[str]:
    """Names of everything that an install without extras brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = [Requirement(text) for text in project["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        waiting += map(Requirement, metadata.requires(requirement.name) or [])
    return found


def test_a_base_install_wants_grpc_and_protobuf_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        description = message_from_string(archive.read(path).decode())
    wanted = [Requirement(text) for text in description.get_all("Requires-Dist", [])]
    base = {requirement.name for requirement in wanted if requirement.marker is None}
    assert base == {"googleapis-common-protos", "grpcio", "grpcio-status", "protobuf"}
    assert all("extra ==" in str(requirement.marker) for requirement in wanted if requirement.marker is not None)
    assert set(description.get_all("Provides-Extra", [])) == {"server", "embedded", "tracing", "dev"}
    assert base_distributions() == {*base, "typing-extensions"}


def test_stubs_and_client_helper_need_nothing_else(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "mrm_client/py.typed").exists()
    assert (tmp_path / "mrm/py.typed").exists()
    base = base_distributions()
    owners = metadata.packages_distributions().items()
    modules = {module for module, names in owners if base & {name.replace("_", "-") for name in names}}
    probe = [sys.executable, "-I", "-c", PROBE, str(tmp_path), *sorted(modules)]
    done = subprocess.run(probe, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stubs = {path.relative_to(ROOT / "generated").with_suffix("") for path in (ROOT / "generated").rglob("*_pb2*.py")}
    assert {str(stub).replace("/", ".") for stub in stubs} <= set(done.stdout.split())
    assert "mrm_client.producer" in done.stdout.split()
