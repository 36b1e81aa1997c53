"""Every function of storage that reads what belongs to a tenant takes a scope, found by looking at all of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import storage.clickhouse
import storage.milvus
import storage.postgres

# Whatever holds a client's id, or belongs to something that does.
TENANT_TABLES = {
    "clients", "client_memberships", "client_integrations", "projects", "project_team", "plan_lineages", "media_plans",
    "media_plan_decisions", "media_plan_comments",
    "campaigns", "campaign_statistics", "reports", "ai_feedback", "event_streams", "audit_log",
    "jobs", "job_attempts",
    "rollups", "rollup_marks", "rollup_checks", "restatements", "campaign_statistics_quarantine",
    "alerts", "budget_alert_policies", "emails",
    "campaign_imports", "campaign_import_errors", "client_usage", "backfills", "backfill_chunks",
    "prompt_lineages", "ai_prompts", "prompt_labels", "prompt_label_moves", "prompt_experiments",
}  # fmt: skip
_READ = re.compile(r"\b(?:FROM|JOIN|USING|UPDATE)\s+([a-z_]+)")


def functions(package: ModuleType) -> Iterator[Callable[..., object]]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == found.name and not name.startswith("_"):
                yield value


def texts(function: Callable[..., object], seen: set[str]) -> Iterator[str]:
    """What a function and the private helpers that it calls are written in: texts, and constants of the module."""
    code, known = function.__code__, function.__globals__  # type: ignore[attr-defined]
    codes = [code]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
        yield from (constant for constant in code.co_consts if isinstance(constant, str))
        for name in code.co_names:
            value = known.get(name)
            for text in value.values() if isinstance(value, dict) else (value,):
                if isinstance(text, str):
                    yield text
            if inspect.isfunction(value) and value.__globals__ is known and name not in seen:
                seen.add(name)
                yield from texts(value, seen)


def tables(function: Callable[..., object]) -> set[str]:
    return {table for text in texts(function, set()) for table in _READ.findall(text)}


def parameters(function: Callable[..., object]) -> str:
    return " ".join(str(each.annotation) for each in inspect.signature(function).parameters.values())


def unscoped(package: ModuleType, wanted: str, reads: Callable[[Callable[..., object]], bool]) -> set[str]:
    """Functions that read and have no parameter of a wanted type."""
    return {
        f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        for function in functions(package)
        if reads(function)
        and not re.search(rf"\b(?:{wanted})\b", parameters(function))
        and not function.__name__.endswith("_internal")
    }


def test_whoever_reads_a_tenants_rows_takes_a_scope() -> None:
    exempt = {
        "campaigns.create",  # reads back the row it has just made, with the state of the account that it was given
        "campaigns.create_many",  # likewise
        "changes.head",  # a position in the record, nothing of what it says
        "clients.create",  # reads back the row it has just made
        "media_plans.create",  # likewise, with what its project says
        "streams.advance",  # moves what `open_stream` has found in scope, as its epoch proves
        "users.drop_memberships",  # takes every client away from somebody who is gone
        "visibility.project",  # is the scope's condition
    }
    assert unscoped(storage.postgres, "Scope", lambda function: bool(tables(function) & TENANT_TABLES)) == exempt


def test_whoever_reads_measurements_is_told_whose() -> None:
    """Measurements carry no memberships: `storage.postgres.reach` turns a scope into what these functions are given."""
    own = {
        f"rebuild.{name}"
        for name in (
            "look", "marked_slices", "now_millis", "rebuild", "stale_slices", "stored_rows", "unmarked_slices",
        )
    }  # fmt: skip
    own |= {
        "archived.events",
        "campaigns_dim.outdated",
        "campaigns_dim.reload",
        "campaigns_dim.write",
        "target.set_durability",
    }
    told = "Selection|Extract|Watched|Group|UUID"
    assert unscoped(storage.clickhouse, told, lambda function: "ClickHouse" in parameters(function)) == own


def test_whoever_reads_vectors_takes_a_scope() -> None:
    """What is left writes, or says nothing of any row."""
    own = {
        f"collections.{name}"
        for name in ("create", "delete", "delete_client", "drop", "exists", "flush", "load", "point", "upsert")
    }
    assert unscoped(storage.milvus, "Scope", lambda function: "Milvus" in parameters(function)) == own
