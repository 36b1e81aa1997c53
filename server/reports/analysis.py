"""What changed between two periods and by how much each part of it did: exact arithmetic over kept figures.

Every split is exact: its parts add up to the change that they explain, without a residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from server.reports.measures import Metrics, change, value

CHANGED: Final = ("cost", "impressions", "clicks", "conversions", "revenue", "ctr", "cpc", "cr", "cpa", "romi")
"""The figures whose changes are told."""
SUMS: Final = ("cost", "conversions", "revenue")
"""The sums of which it is told who changed them."""
_PERCENTS: Final = frozenset({"ctr", "cr", "romi"})
# A sum is a volume times what one unit of it brings: what, the volume, and what that product's other factor is called.
_PRODUCTS: Final = (("cost", "clicks", "cpc"), ("conversions", "clicks", "cr"), ("revenue", "conversions", "value"))
# A ratio of sums over parts: its name, of what, by what.
_RATIOS: Final = (("cpa", "cost", "conversions"), ("roas", "revenue", "cost"))


def analysed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of one currency tell about the change between both periods.

    Args:
        kept: The currency, as `gathering` keeps it.
    """
    now, before = kept["metrics"], kept["previous_metrics"]
    parts = "platforms" if len(kept["platforms"]) > 1 else "campaigns"
    both = now is not None and before is not None
    return {
        "changes": [_changed(name, now, before) for name in CHANGED],
        "contributions": {
            "platforms": [_contribution(each, before) for each in kept["platforms"]],
            "campaigns": sorted(
                (_contribution(each, before) for each in kept["campaigns"]),
                key=lambda each: (-abs(Decimal(each["cost"])), each["display_name"], each["campaign_id"]),
            ),
        },
        "products": [made for each in _PRODUCTS if both and (made := _product(each, now, before))],
        "ratios": [
            made
            for each in _RATIOS
            if both and len(kept[parts]) > 1 and (made := _ratio(each, parts, kept[parts], now, before))
        ],
    }


def _changed(name: str, now: Metrics, before: Metrics) -> dict[str, Any]:
    """A figure then and now; shares change by points, which are said instead of percent."""
    present = value(now, name)
    past = value(before, name) if before is not None else None
    grown = None if present is None or past is None else present - past
    percent = None if name in _PERCENTS else change(present, past)
    return {
        "metric": name,
        "value": _text(present),
        "previous_value": _text(past),
        "change": _text(grown),
        "change_percent": _text(percent),
    }


def _contribution(part: Mapping[str, Any], whole_before: Metrics) -> dict[str, Any]:
    """By how much a part changed each sum, and how many percent of the whole's former sum that is."""
    found: dict[str, Any] = {
        name: part[name] for name in ("platform", "campaign_id", "display_name") if name in part
    } | {"state": _state(part)}
    for name in SUMS:
        grown = (value(part["metrics"], name) or Decimal()) - (value(part["previous_metrics"], name) or Decimal())
        past = value(whole_before, name)
        found[name] = _text(grown)
        found[f"{name}_points"] = _text(grown / past * 100 if past else None)
    return found


def _state(part: Mapping[str, Any]) -> str:
    if part["previous_metrics"] is None:
        return "new"
    return "ended" if part["metrics"] is None else "kept"


def _product(names: tuple[str, str, str], now: Metrics, before: Metrics) -> dict[str, Any] | None:
    """Splits the change of ``whole = volume * rate`` in what the volume did and what the rate did.

    Each factor's change is taken at the mean of the other one, so that neither is favoured and nothing is left over.
    """
    whole, volume, rate = names
    wholes = [_sum(each, whole) for each in (before, now)]
    volumes = [_sum(each, volume) for each in (before, now)]
    if not all(volumes) or wholes[0] == wholes[1]:
        return None
    rates = [total / count for total, count in zip(wholes, volumes, strict=True)]
    by_volume = (volumes[1] - volumes[0]) * (rates[0] + rates[1]) / 2
    return {
        "metric": whole,
        "volume": volume,
        "rate": rate,
        **_split(wholes[1] - wholes[0], {"by_volume": by_volume}, "by_rate"),
    }


def _ratio(
    names: tuple[str, str, str], by: str, parts: Sequence[Mapping[str, Any]], now: Metrics, before: Metrics
) -> dict[str, Any] | None:
    """Splits the change of a ratio in what the parts' own ratios did (rate) and what their weights did (mix).

    The ratio of the whole is the mean of the parts' ratios, weighted by the denominator. A part's rate effect is the
    change of its ratio at its mean weight; its mix effect is the change of its weight at the distance of its mean ratio
    from the whole's. A part that has no ratio in one of the periods (nothing to divide by) has a mix effect only.
    """
    name, over, under = names
    unders = [_sum(each, under) for each in (before, now)]
    if not all(unders):
        return None
    wholes = [_sum(each, over) / total for each, total in zip((before, now), unders, strict=True)]
    middle = (wholes[0] + wholes[1]) / 2
    rows = []
    for part in parts:
        tops = [_sum(each, over) for each in (part["previous_metrics"], part["metrics"])]
        bottoms = [_sum(each, under) for each in (part["previous_metrics"], part["metrics"])]
        weights = [bottom / total for bottom, total in zip(bottoms, unders, strict=True)]
        given = tops[1] / unders[1] - tops[0] / unders[0]
        rate = Fraction()
        if all(bottoms):
            rate = (tops[1] / bottoms[1] - tops[0] / bottoms[0]) * (weights[0] + weights[1]) / 2
        mix = given - rate - middle * (weights[1] - weights[0])
        if rate or mix:
            rows.append((part, rate, mix))
    if wholes[0] == wholes[1] or not rows:
        return None
    rows.sort(key=lambda row: (-abs(row[1] + row[2]), str(row[0].get("campaign_id", row[0]["platform"]))))
    return {
        "metric": name,
        "by": by,
        **_split(wholes[1] - wholes[0], {"rate": sum((rate for _, rate, _ in rows), Fraction())}, "mix"),
        "parts": [
            {each: part[each] for each in ("platform", "campaign_id", "display_name") if each in part}
            | _split(rate + mix, {"rate": rate}, "mix")
            for part, rate, mix in rows
        ],
    }


def _split(whole: Fraction, parts: Mapping[str, Fraction], rest: str) -> dict[str, str | None]:
    """A change and its parts as text; the last part is what the others leave, so that they add up as written."""
    total = _exact(whole)
    written = {name: _exact(part) for name, part in parts.items()}
    last = total - sum(written.values(), Decimal())
    return {"change": _text(total), **{name: _text(part) for name, part in written.items()}, rest: _text(last)}


def _sum(metrics: Metrics, name: str) -> Fraction:
    return Fraction(value(metrics, name) or 0)


def _exact(number: Fraction) -> Decimal:
    """To a millionth, as amounts are kept."""
    return Decimal(round(number * 1_000_000)).scaleb(-6)


def _text(number: Decimal | None) -> str | None:
    if number is None:
        return None
    return f"{number.quantize(Decimal('0.000001')).normalize():f}" if number else "0"
