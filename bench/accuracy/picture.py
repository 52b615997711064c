"""The picture of docs/accuracy.md: the error of each engine by the rate of the line, as SVG."""

from html import escape
from math import log10
from pathlib import Path
from statistics import median

from bench.accuracy.lines import RATES, parse
from bench.accuracy.runs import Runs

WIDTH, HEIGHT, PANEL, LEFT, TOP, BOTTOM = 860, 400, 336, 72, 58, 300
SMALLEST, LARGEST = 0.01, 100.0
"""Percent at the bottom and at the top of the scale, which is logarithmic."""
BAR = 0.5
COLOURS = ("#6b7280", "#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#a16207")
DELAYS = {10: "", 40: "6 4"}
"""The round-trip times that are drawn, in ms, and how their lines are dashed."""


def draw(runs: Runs) -> str:
    """Return the picture: download on the left, upload on the right, lines without loss."""
    colours = dict(zip(runs.engines(), COLOURS, strict=False))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#1f2937">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 22, "How far each engine is off, by the rate of the line (median; no loss)", size=15),
    ]
    for number, (direction, title) in enumerate({"down": "download", "up": "upload"}.items()):
        left = LEFT + number * (PANEL + LEFT)
        parts += _axes(left, f"error of the {title}", [rate.split("/")[number] for rate in RATES])
        for engine, colour in colours.items():
            for delay, dash in DELAYS.items():
                parts += _curve(left, _points(runs, engine, direction, delay), colour, dash)
    return "\n".join([*parts, *_legend(colours), "</svg>", ""])


def write(path: Path, runs: Runs) -> None:
    """Write the picture to a file."""
    path.write_text(draw(runs))


def _points(runs: Runs, engine: str, direction: str, delay: int) -> list[tuple[int, float]]:
    """Return the place of each rate and the size of the error there, in percent."""
    found = []
    for place, rate in enumerate(RATES):
        if errors := runs.errors(parse(f"{rate},{delay}ms"), engine, direction):
            found.append((place, abs(median(errors)) * 100))
    return found


def _axes(left: int, title: str, labels: list[str]) -> list[str]:
    parts = [_text(left, TOP - 12, title, size=13)]
    for value in (0.01, 0.1, 1, 10, 100):
        y = _height(value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + PANEL}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g} %" if value > SMALLEST else f"≤ {value:g} %", anchor="end"))
    y = _height(BAR)
    parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + PANEL}" y2="{y:.1f}" stroke="#dc2626" stroke-dasharray="2 3"/>')
    parts.append(_text(left + PANEL, y - 4, f"{BAR:g} %", anchor="end", colour="#dc2626"))
    parts += [_text(_across(left, place), BOTTOM + 20, label, anchor="middle") for place, label in enumerate(labels)]
    return [*parts, _text(left + PANEL / 2, BOTTOM + 38, "rate of the line (Mbit/s)", anchor="middle")]


def _curve(left: int, points: list[tuple[int, float]], colour: str, dash: str) -> list[str]:
    at = [(_across(left, place), _height(error)) for place, error in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'] if len(at) > 1 else []
    filling = "#ffffff" if dash else colour
    return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{filling}" stroke="{colour}" stroke-width="2"/>' for x, y in at]


def _legend(colours: dict[str, str]) -> list[str]:
    parts, x, y = [], LEFT, HEIGHT - 22
    for engine, colour in colours.items():
        parts += [f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colour}"/>', _text(x + 10, y, engine)]
        x += 34 + 8 * len(engine)
    return [*parts, _text(WIDTH - 20, y, "filled: 10 ms round trip; hollow: 40 ms", anchor="end")]


def _height(error: float) -> float:
    share = log10(min(max(error, SMALLEST), LARGEST) / SMALLEST) / log10(LARGEST / SMALLEST)
    return BOTTOM - share * (BOTTOM - TOP)


def _across(left: int, place: int) -> float:
    return left + PANEL * (place + 0.5) / len(RATES)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#1f2937") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
