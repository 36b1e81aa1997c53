"""The `mrm` command; also `python -m server`."""

import importlib
import sys
from collections.abc import Iterable

import typer

# Where each command is defined. Only the one that is asked for is loaded: all of them take a second.
_COMMANDS = {
    "up": "up:up",
    "serve": "serve:serve",
    "worker": "worker:worker",
    "migrate": "migrate:commands",
    "admin": "admin:commands",
    "seed": "seed:commands",
    "keys": "keys:commands",
    "sessions": "sessions:commands",
    "plan": "outlook:commands",
    "campaigns": "campaigns:commands",
    "report": "report:commands",
    "prompts": "prompts:commands",
    "rollup": "rollup:commands",
    "restatements": "rollup:restatements",
    "sync": "sync:commands",
    "jobs": "jobs:commands",
    "embed": "embed:commands",
    "retention": "retention:commands",
    "backup": "backup:commands",
    "budget": "budget:commands",
    "feedback": "feedback:commands",
    "search": "search:commands",
    "alerts": "alerts:commands",
    "mail": "mail:commands",
    "ingest": "ingest:ingest",
    "watch": "watch:watch",
    "changes": "changes:changes",
    "export": "export:export",
    "import": "files:commands",
    "backfill": "backfill:backfill",
    "demo": "demo:demo",
    "sandbox": "sandbox:sandbox",
    "health": "health:health",
    "top": "top:top",
}


def application(names: Iterable[str]) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        name="mrm",
        help="An advertising agency's working data behind one gRPC API.",
        no_args_is_help=True,
        add_completion=False,
        # The default prints local variables, and with them secrets.
        pretty_exceptions_enable=False,
        # Else typer takes a command that is alone for the whole.
        callback=lambda: None,
    )
    for name in names:
        module, attribute = _COMMANDS[name].split(":")
        found = getattr(importlib.import_module(f"server.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main() -> None:
    """Runs the command line."""
    asked = [name for name in sys.argv[1:2] if name in _COMMANDS]
    application(asked or _COMMANDS)()


if __name__ == "__main__":
    main()
