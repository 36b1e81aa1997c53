"""`python -m benchmarks [NAME ...]`: measures, prints a table, writes results.json, fails when a bar is missed."""

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path

import uvloop
from rich.table import Table

from benchmarks.harness import Result, console, service

# Modules, each loaded only when it is measured.
NAMES = (
    "ingest",
    "small_appends",
    "vs_fastapi_ingest",
    "unary",
    "vs_fastapi_unary",
    "query_daily",
    "export_arrow",
    "watch",
    "fanout",
)


async def measure(names: list[str], scale: float) -> list[Result]:
    """Runs the named benchmarks, each on engines of its own, so that none finds the other's data."""
    results: list[Result] = []
    for name in names:
        console.print(f"[bold]{name}[/bold]")
        async with service(scale) as bench:
            results += await importlib.import_module(f"benchmarks.{name}").run(bench)
    return results


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
        results = runner.run(measure(arguments.names or list(NAMES), arguments.scale))
    show(results)
    arguments.output.write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")
    sys.exit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
