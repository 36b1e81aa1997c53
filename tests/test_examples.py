"""The examples of examples/, run as their readers would run them, against the service itself."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PASSWORD

if TYPE_CHECKING:
    from tests.conftest import World

ROOT = Path(__file__).parents[1]
# What npm says when it cannot reach the packages, as opposed to disagreeing with the lock file.
UNREACHABLE = re.compile(
    r"\b(EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ENOTFOUND|E?TIMEDOUT|ERR_SOCKET|E(401|403|5\d\d))\b"
)


async def run(*command: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Runs a command of the installed tools to its end; its exit code and output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await asyncio.wait_for(process.communicate(), 90))[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output


async def check(world: World, *command: object, cwd: Path) -> list[str]:
    """Runs an example; what it printed."""
    code, output = await run(
        *command, cwd=cwd, MRM_TARGET=world.target, MRM_ADMIN_EMAIL="admin@example.com", MRM_ADMIN_PASSWORD=PASSWORD
    )
    assert code == 0, output
    lines = output.splitlines()
    assert "signed in as admin@example.com" in lines
    assert "created campaign Banner" in lines
    changes = [line for line in lines if line.startswith("change: ")]
    assert changes == ["change: create client", "change: create project", "change: create campaign"]
    assert lines[-1].startswith("refused: INVALID_ARGUMENT INVALID_FIELDS ")
    assert "campaign_id" in lines[-1]
    assert "UUID" in lines[-1]
    return lines


async def test_the_python_example_works(world: World, tmp_path: Path) -> None:
    lines = await check(world, sys.executable, ROOT / "examples/python/quickstart.py", cwd=tmp_path)
    appended = [line for line in lines if line.startswith(("appending", "stored"))]
    assert appended == [
        "appending from event 0",
        "stored 6 events",
        "appending from event 6",
        "stored 4 events",
    ]
    assert "impressions: 10" in lines


async def test_the_node_example_works(world: World, tmp_path: Path) -> None:
    example = shutil.copytree(
        ROOT / "examples/node", tmp_path / "examples/node", ignore=shutil.ignore_patterns("node_modules")
    )
    (tmp_path / "generated").symlink_to(ROOT / "generated")
    code, output = await run(
        "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=example
    )
    if code and UNREACHABLE.search(output):
        pytest.skip(f"npm cannot reach the packages of examples/node: {output.strip().splitlines()[-1]}")
    assert code == 0, output
    lines = await check(world, "node", "quickstart.js", cwd=example)
    assert [line for line in lines if line.startswith("appended")] == [
        "appended from event 0 to 6",
        "appended from event 6 to 10",
    ]
    assert any(re.fullmatch(r"(snapshot|update) 10", line) for line in lines)


def test_the_lock_of_the_node_example_names_no_registry() -> None:
    assert '"resolved"' not in (ROOT / "examples/node/package-lock.json").read_text()
