"""A small line chart as SVG: ratios over sizes that grow tenfold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 50, 55
_COLORS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#57606a")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the chart.

    Attributes:
        name: What it is.
        points: Size and ratio, by size.
        bar: What the ratio may be at most, if there is a bar.
    """

    name: str
    points: Sequence[tuple[float, float]]
    bar: float | None = None


def draw(title: str, below: str, lines: Sequence[Line]) -> str:
    """The chart: sizes on a logarithmic axis, ratios from 0 on a linear one, bars dashed."""
    sizes = [size for size, _ in lines[0].points]
    top = 0.25 * math.ceil(4 * max(2.0, *(ratio for line in lines for _, ratio in line.points)))
    low, high = math.log10(sizes[0]), math.log10(max(sizes[-1], 10 * sizes[0]))

    def x(size: float) -> float:
        return _LEFT + (math.log10(size) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(ratio: float) -> float:
        return _HEIGHT - _BOTTOM - ratio / top * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="16">{escape(title)}</text>',
    ]
    for step in range(int(top / 0.5) + 1):
        height = y(step / 2)
        out.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{step / 2:g}x</text>')
    for size in sizes:
        out.append(f'<path d="M{x(size):.1f} {y(0):.1f}v5" stroke="#57606a"/>')
        out.append(f'<text x="{x(size):.1f}" y="{y(0) + 20:.1f}" text-anchor="middle">{_short(size)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    out.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(below)}</text>')
    for bar in sorted({line.bar for line in lines if line.bar is not None}):
        names = ", ".join(line.name for line in lines if line.bar == bar)
        out.append(
            f'<path d="M{_LEFT} {y(bar):.1f}H{_WIDTH - _RIGHT}" stroke="#cf222e" stroke-dasharray="6 4"/>'
            f'<text x="{_LEFT + 6}" y="{y(bar) - 5:.1f}" fill="#cf222e" font-size="11">bar of {escape(names)}</text>'
        )
    # Names at the right end, moved apart where lines end close together.
    ends = sorted(range(len(lines)), key=lambda index: -lines[index].points[-1][1])
    label = float(_TOP)
    for index in ends:
        line, color = lines[index], _COLORS[index % len(_COLORS)]
        path = " ".join(f"{x(size):.1f},{y(ratio):.1f}" for size, ratio in line.points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x(size):.1f}" cy="{y(ratio):.1f}" r="3" fill="{color}"/>' for size, ratio in line.points]
        label = max(label + 16, y(line.points[-1][1]) + 4)
        text = f"{line.name} {line.points[-1][1]:.2f}x"
        out.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{label:.1f}" fill="{color}">{escape(text)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _short(size: float) -> str:
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:g}{suffix}"
    return f"{size:g}"
