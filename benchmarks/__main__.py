"""`python -m benchmarks [NAME ...]`: measures, prints a table, writes results.json, fails when a bar is missed."""

import argparse
import asyncio
import importlib
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.table import Table

from benchmarks.harness import Bench, Result, console, is_short, service

# Modules, each loaded only when it is measured.
NAMES = (
    "ingest",
    "small_appends",
    "vs_fastapi_ingest",
    "unary",
    "mutation",
    "plan_update",
    "mutate_1000",
    "vs_fastapi_unary",
    "query_daily",
    "export_arrow",
    "watch",
    "fanout",
    "jobs_throughput",
    "feedback_stream",
    "reports",
    "embed_throughput",
    "search_projects",
    "observability",
    "growth",
    "steps",
)
SHARES = {"growth": 0.1}
"""What takes half an hour is measured at this share of the scale when everything is measured."""


async def measure(names: list[str], scale: float, output: Path) -> list[Result]:
    """Runs the named benchmarks, each on engines of its own, so that none finds the other's data.

    In short forms, whose figures mean nothing, all but those that start their servers themselves share one server.
    """
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        shared: Bench | None = None
        for name in names or NAMES:
            console.print(f"[bold]{name}[/bold]")
            module = importlib.import_module(f"benchmarks.{name}")
            share = 1.0 if names else SHARES.get(name, 1.0)
            prepared = getattr(module, "prepared", None)
            if prepared is None and is_short(scale):
                shared = shared or await stack.enter_async_context(service(scale))
                found = await module.run(replace(shared, scale=scale * share, output=output))
            else:
                async with (prepared or service)(scale * share) as bench:
                    found = await module.run(replace(bench, output=output))
            results += [replace(each, scale=scale * share) for each in found]
    return results


def merged(results: list[Result], output: Path) -> list[dict[str, object]]:
    """The results, and those of earlier runs that these do not replace: of others, or at a larger scale."""
    kept = {each["name"]: each for each in json.loads(output.read_text())} if output.exists() else {}
    for result in results:
        if kept.get(result.name, {}).get("scale", 0.0) <= result.scale:
            kept[result.name] = result.as_dict()
    return list(kept.values())


def show(results: list[Result]) -> None:
    """Prints the figures."""
    table = Table("measured", "value", "floor", "unit", "ratio", "bar", "")
    for result in results:
        table.add_row(
            result.name,
            f"{result.value:,.3f}" if result.value < 100 else f"{result.value:,.0f}",
            "" if result.floor is None else f"{result.floor:,.0f}",
            result.unit,
            "" if result.ratio is None else f"{result.ratio:.3f}",
            f"{result.bar}",
            "ok" if result.ok else "[red]missed[/red]",
        )
    console.print(table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"what to measure: {', '.join(NAMES)}; everything if left out")
    parser.add_argument("--scale", type=float, default=1.0, help="size of each round, 1 for the real measurement")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(measure(arguments.names, arguments.scale, arguments.output.parent))
    show(results)
    arguments.output.write_text(json.dumps(merged(results, arguments.output), indent=2) + "\n")
    sys.exit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
