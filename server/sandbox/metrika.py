"""What stands in for Yandex Metrika: a counter on the site that the campaigns of its source accounts lead to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from server.sandbox.figures import hourly, reached
from server.sandbox.sandbox import Refusal, Sandbox
from server.sandbox.state import Account

_CAMPAIGN = re.compile(
    r"ym:s:(?P<model>first|last|lastsign|last_yandex_direct_click|automatic)(?P<kind>DirectClickOrder|UTMCampaign)"
)
_METRIC = re.compile(r"ym:s:goal(?P<goal>\d+)(?P<kind>reaches|converted[A-Z]{3}Revenue)")
# Other models find some conversions elsewhere: so many of a hundred that the last significant click has.
_MODELS = {"first": 93, "last": 88, "lastsign": 100, "last_yandex_direct_click": 112, "automatic": 104}
_MOST_METRICS = 20
_MOST_VALUES = 100


def counter(account: Account) -> dict[str, Any]:
    """The counter."""
    return {"counter": {"id": int(account.name), "status": "Active", "name": "Сайт", "time_zone_name": "Europe/Moscow"}}


def goals(account: Account) -> dict[str, Any]:
    """Its goals."""
    return {
        "goals": [
            {
                "id": each.goal_id,
                "name": each.name,
                "type": each.kind,
                "default_price": each.value_micros / 1_000_000,
                "goal_source": "user",
                "is_favorite": False,
                "status": "Active",
                "conditions": [{"type": "exact", "url": f"goal-{each.goal_id}"}],
            }
            for each in account.goals
        ]
    }


def data(sandbox: Sandbox, account: Account, query: Mapping[str, str]) -> dict[str, Any]:
    """The table of a report."""
    try:
        first, last = date.fromisoformat(query["date1"]), date.fromisoformat(query["date2"])
        limit, offset = int(query.get("limit", "100")), int(query.get("offset", "1"))
        dimensions, metrics = query["dimensions"].split(","), query["metrics"].split(",")
    except (KeyError, ValueError):
        raise Refusal("invalid_parameter", 400) from None
    campaign = _CAMPAIGN.fullmatch(dimensions[0])
    by_hour = dimensions[1:] == ["ym:s:date", "ym:s:hour"]
    known = {each.goal_id: each for each in account.goals}
    asked = [_METRIC.fullmatch(each) for each in metrics]
    if campaign is None or not (by_hour or dimensions[1:] == ["ym:s:date"]) or len(metrics) > _MOST_METRICS:
        raise Refusal("invalid_parameter", 400)
    if any(each is None or int(each["goal"]) not in known for each in asked):
        raise Refusal("invalid_parameter", 400)
    direct = campaign["kind"] == "DirectClickOrder"
    only = None
    if "filters" in query:
        named = re.fullmatch(r"(\S+?)=\.\((.+)\)", query["filters"])
        if named is None or named[1] != dimensions[0] or named[2].count(",") >= _MOST_VALUES:
            raise Refusal("invalid_parameter", 400)
        only = set(named[2].replace("'", "").split(","))
    table: dict[tuple[str, str, int], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * len(metrics))
    names: dict[str, str] = {}
    for source in account.sources:
        for each in sandbox.state.accounts[source].campaigns.values():
            # Only Direct knows its campaigns by itself; all of them are tagged with their number.
            if direct and not source.startswith("yandex_direct:"):
                continue
            number = str(each.campaign_id)
            if only is not None and number not in only:
                continue
            names[number] = each.name
            for day in (first + timedelta(days=one) for one in range((last - first).days + 1)):
                for hour, figures in enumerate(hourly(sandbox.state, each, day)):
                    if not figures.clicks:
                        continue
                    row = table[number, day.isoformat(), hour if by_hour else 0]
                    for at, found in enumerate(asked):
                        assert found is not None
                        goal = known[int(found["goal"])]
                        times, worth = reached(sandbox.state, each, goal, day, hour, figures.clicks)
                        share = _MODELS[campaign["model"]]
                        row[at] += (
                            Decimal(times if found["kind"] == "reaches" else worth).scaleb(
                                0 if found["kind"] == "reaches" else -6
                            )
                            * share
                            / 100
                        )
    rows = []
    for (number, day_name, hour), figures_of_row in sorted(table.items()):
        told = {"id": number, "name": names[number], "direct_id": f"N-{number}"} if direct else {"name": number}
        cells: list[dict[str, Any]] = [told, {"name": day_name}]
        if by_hour:
            cells.append({"id": str(hour), "name": f"{hour:02d}:00"})
        rows.append({"dimensions": cells, "metrics": [float(each) for each in figures_of_row]})
    columns = [[float(row[at]) for row in table.values()] for at in range(len(metrics))]
    return {
        "query": {"ids": [int(account.name)], "dimensions": dimensions, "metrics": metrics, "date1": query["date1"],
                  "date2": query["date2"], "limit": limit, "offset": offset},
        "data": rows[offset - 1 : offset - 1 + limit],
        "total_rows": len(rows), "total_rows_rounded": False, "sampled": False, "contains_sensitive_data": False,
        "sample_share": 1.0, "sample_size": len(rows), "sample_space": len(rows), "data_lag": 0,
        "totals": [sum(each) for each in columns],
        "min": [min(each, default=0.0) for each in columns], "max": [max(each, default=0.0) for each in columns],
    }  # fmt: skip
