"""The `mrm` command; also `python -m server`."""

import typer

from server.cli import (
    admin,
    alerts,
    backfill,
    budget,
    campaigns,
    changes,
    demo,
    export,
    files,
    health,
    ingest,
    jobs,
    keys,
    mail,
    migrate,
    outlook,
    plans,
    report,
    rollup,
    sandbox,
    seed,
    serve,
    sessions,
    sync,
    up,
    watch,
    worker,
)

app = typer.Typer(
    name="mrm",
    help="An advertising agency's working data behind one gRPC API.",
    no_args_is_help=True,
    add_completion=False,
    # The default prints local variables, and with them secrets.
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(serve.serve)
app.command()(worker.worker)
app.add_typer(migrate.commands, name="migrate")
app.add_typer(admin.commands, name="admin")
app.add_typer(seed.commands, name="seed")
app.add_typer(keys.commands, name="keys")
app.add_typer(sessions.commands, name="sessions")
app.add_typer(plans.commands, name="plan")
plans.commands.command()(outlook.forecast)
plans.commands.command()(outlook.fact)
app.add_typer(campaigns.commands, name="campaigns")
app.add_typer(report.commands, name="report")
app.add_typer(rollup.commands, name="rollup")
app.command()(rollup.restatements)
app.add_typer(sync.commands, name="sync")
app.add_typer(jobs.commands, name="jobs")
app.add_typer(budget.commands, name="budget")
app.add_typer(alerts.commands, name="alerts")
app.add_typer(mail.commands, name="mail")
app.command()(ingest.ingest)
app.command()(watch.watch)
app.command()(changes.changes)
app.command()(export.export)
app.add_typer(files.commands, name="import")
app.command()(backfill.backfill)
app.command()(demo.demo)
app.command()(sandbox.sandbox)
app.command()(health.health)


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
