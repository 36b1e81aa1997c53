"""Makes the benchmarks that `mrm seed benchmarks` loads, server/planning/seeds/benchmarks.csv, from examples/data.

Of the online advertising data an observation is a campaign, day and format; of the Open Bandit data a campaign and
day. It counts for a figure only if its denominator is large enough to mean something. The quartiles interpolate
linearly between observations (`statistics.quantiles`, inclusive) and are rounded half to even to six digits.
"""

from __future__ import annotations

import csv
import gzip
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples/data"
OUTPUT = ROOT / "server/planning/seeds/benchmarks.csv"
VERSION = "2026-11"

ONLINE = (
    "Online advertising performance, April to June 2020, a public data set: three display campaigns, one observation "
    "per campaign, day and format; the source names neither place nor currency"
)
BANDIT = (
    "Open Bandit Dataset (ZOZO, Inc., CC BY 4.0), November 2019: advertising slots of a fashion shop, one observation "
    "per campaign and day"
)
COLUMNS = (
    *("industry", "platform", "channel", "format", "geo", "start_date", "end_date", "metric"),
    *("p25", "p50", "p75", "sample_size", "source", "currency", "version"),
)


@dataclass
class Sums:
    """What one observation adds up to."""

    impressions: int = 0
    clicks: int = 0
    conversions: Decimal = Decimal()
    cost: Decimal = Decimal()
    sales: Decimal = Decimal()


def figures(sums: Sums) -> Iterator[tuple[str, Decimal]]:
    """The figures that an observation is large enough for."""
    if sums.impressions >= 1000:
        yield "ctr", Decimal(100 * sums.clicks) / sums.impressions
        if sums.cost:
            yield "cpm", 1000 * sums.cost / sums.impressions
    if sums.clicks >= 10 and sums.cost:
        yield "cpc", sums.cost / sums.clicks
        yield "cr", 100 * sums.conversions / sums.clicks
    if sums.conversions >= 10 and sums.cost:
        yield "cpa", sums.cost / sums.conversions
    if sums.cost >= 1:
        yield "roas", sums.sales / sums.cost


def online() -> dict[str, list[Sums]]:
    """Observations by format."""
    found: dict[tuple[str, ...], Sums] = defaultdict(Sums)
    with gzip.open(DATA / "online_advertising_performance.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            size = row["banner"].replace(" ", "")
            sums = found[size, row["campaign_number"], row["month"], row["day"]]
            sums.impressions += int(row["displays"])
            sums.clicks += int(row["clicks"])
            sums.conversions += Decimal(row["post_click_conversions"])
            sums.cost += Decimal(row["cost"])
            sums.sales += Decimal(row["post_click_sales_amount"])
    return by_format(found)


def bandit() -> dict[str, list[Sums]]:
    """Observations, of no particular format."""
    found: dict[tuple[str, ...], Sums] = defaultdict(Sums)
    with gzip.open(DATA / "open_bandit_events.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sums = found["", row["campaign"], row["timestamp"][:10]]
            sums.impressions += 1
            sums.clicks += int(row["click"])
    return by_format(found)


def by_format(found: Mapping[tuple[str, ...], Sums]) -> dict[str, list[Sums]]:
    """Puts observations together by their first key."""
    formats: dict[str, list[Sums]] = defaultdict(list)
    for (size, *_), sums in found.items():
        formats[size].append(sums)
    return formats


def rows(
    formats: Mapping[str, list[Sums]], *, industry: str, geo: str, start: str, end: str, source: str
) -> Iterator[list[object]]:
    """One row for each figure, for each format and for each broader level."""
    everything = [sums for observations in formats.values() for sums in observations]
    levels: list[tuple[str, str, str, list[Sums]]] = [
        *(("other", "display", size, formats[size]) for size in sorted(formats) if size),
        ("other", "display", "", everything),
        ("other", "", "", everything),
        ("", "", "", everything),
    ]
    for platform, channel, size, observations in levels:
        for metric, values in sorted(collected(observations).items()):
            if len(values) < 4:
                continue
            currency = "XXX" if metric in ("cpc", "cpm", "cpa") else ""
            quartiles = (f"{value:.6f}" for value in statistics.quantiles(values, n=4, method="inclusive"))
            dimensions = (industry, platform, channel, size, geo, start, end, metric)
            yield [*dimensions, *quartiles, len(values), source, currency, VERSION]


def collected(observations: Iterable[Sums]) -> dict[str, list[Decimal]]:
    """The values of each figure."""
    values: dict[str, list[Decimal]] = defaultdict(list)
    for sums in observations:
        for metric, value in figures(sums):
            values[metric].append(value)
    return values


def main() -> None:
    """Writes the file."""
    with OUTPUT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows(online(), industry="", geo="", start="2020-04-01", end="2020-06-30", source=ONLINE))
        writer.writerows(
            rows(bandit(), industry="fashion", geo="JP", start="2019-11-24", end="2019-11-30", source=BANDIT)
        )


if __name__ == "__main__":
    main()
