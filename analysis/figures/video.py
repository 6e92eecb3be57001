"""The figure of ``loadgen theory video``: seconds by part over size, frames and steps; measured points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.figures.axes import number_axis
from analysis.figures.style import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILLION,
    Drawn,
    Sheet,
    in_house_style,
    key,
)
from analysis.figures.words import count
from analysis.words import number
from loadgen.physics.video import POWER_W, VideoFlop, VideoTransformer, latency_s, video_cost, video_flop
from loadgen.physics.video_sweeps import VARIES, Setting, find_sweeps
from loadgen.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANGES: Mapping[str, tuple[float, float]] = {"resolution": (256, 3520), "frames": (4, 100), "steps": (1, 200)}
"""The study's sweeps: width in pixels, frames, steps."""
PARTS = ("text", "VAE", "cross-attention", "MLP", "self: projections", "self: products")
_LOOK = ((MUTED, ""), (AMBER, "++"), (PURPLE, "xx"), (GREEN, "///"), (VERMILLION, "\\\\\\"), (BLUE, ""))
_POINTS = 241
_WH_PER_S = POWER_W / 3600
_ROOM = 1.25
"""Where an axis with measured points ends, over the greatest of them: beyond, the areas would dwarf them."""

_MARKS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("latency_s", 1.0, {"marker": "o", "markersize": 6}),
    ("energy_wh", 1 / _WH_PER_S, {"marker": "s", "markersize": 9, "markerfacecolor": "none"}),
)


class _Panel(NamedTuple):
    """One axis of the figure: what varies, the setting around which, and the settings that were measured."""

    dimension: str
    at: Setting
    points: Sequence[Mapping[str, Any]]


def latency_by_part(model: VideoTransformer, setting: Mapping[str, Any], rules: Mapping[str, Any]) -> Floats:
    """Seconds of each of ``PARTS`` (6, ...), which add up to ``video_cost``'s latency.

    ``setting``: height, width, frames, steps, arrays that broadcast; ``rules``: what else
    ``video_cost`` takes by name. The timestep's MLP, 1e-7 of a video, is with the MLP.
    """
    rates = {name: rules[name] for name in ("mu_attention", "mu_linear") if name in rules}
    flop = video_flop(model, **setting, **{k: v for k, v in rules.items() if k not in rates})
    none = VideoFlop(*(np.zeros_like(flop.total) for _ in flop))
    products = flop.attention_products
    parts = (
        none._replace(text=flop.text),
        none._replace(vae_conv=flop.vae_conv, vae_mid=flop.vae_mid),
        none._replace(cross_attention=flop.cross_attention),
        none._replace(mlp=flop.mlp, timestep=flop.timestep),
        none._replace(self_attention=flop.self_attention - products),
        none._replace(self_attention=products, attention_products=products),
    )
    return np.stack([latency_s(part, **rates) for part in parts])


@in_house_style
def scaling(
    model: VideoTransformer,
    rules: Mapping[str, Any],
    at: Setting,
    points: Sequence[Mapping[str, Any]] = (),
) -> Drawn | None:
    """Seconds of a video by part over its height, its frames and its steps, stacked; watt-hours on the right.

    Each panel varies one thing around ``at`` over the study's range (``RANGES``); with measured
    ``points`` (as ``theory video --measured`` lists them) around the sweep that they hold
    (``video_sweeps.find_sweeps``), to a little beyond it: means of a setting and standard deviations,
    dots for seconds and squares for watt-hours.
    """
    settings = [Setting(*(point[name] for name in Setting._fields)) for point in points]
    found = find_sweeps(settings)
    panels = [
        _Panel(d, at, ())
        if d not in found
        else _Panel(d, _around(d, found[d].example, at), [points[row] for row in found[d].rows])
        for d in VARIES
    ]
    cost = video_cost(model, *at, **rules)
    shares = latency_by_part(model, at._asdict(), rules) / cost.latency_s
    what = f"{at.height:g}x{at.width:g}, {at.frames:g} frames, {at.steps:g} steps"
    said = f"estimated: {model.id}, H100 at {POWER_W:g} W"
    if points:
        said += f"; measured: {count(len(points), 'videos')} at {len(set(settings))} settings"
    sheet = Sheet(
        "Seconds of a generated video by part", said, (2.5, 2.5, 2.5), note=_note(panels, rules, what)
    )
    areas: list[Any] = []
    for ax, panel in zip(sheet.axes, panels, strict=True):
        areas = _draw(ax, panel, model, rules)
    for area, name, share in zip(areas, PARTS, shares, strict=True):
        area.set_label(f"{name} {_percent(float(share))}")
    sheet.keys = areas[::-1]
    if points:
        sheet.keys.append(key(INK, "measured, s", linestyle="", **_MARKS[0][2]))
        if any(point["energy_wh"] is not None for point in points):
            sheet.keys.append(key(INK, "measured, Wh", linestyle="", **_MARKS[1][2]))
    alt = (
        f"Estimated seconds of a video by part over height, frames and steps: at {what} "
        f"{number(float(cost.latency_s), 4)} s and {number(float(cost.energy_wh), 4)} Wh, "
        f"{_percent(float(shares[-1]))} of it the products of self-attention{_misses(points)}."
    )
    return sheet.finish("video-scaling", alt)


def _around(dimension: str, example: Setting, at: Setting) -> Setting:
    """The setting that a sweep holds; what it varies is as in ``at``."""
    return example._replace(**{name: getattr(at, name) for name in VARIES[dimension]})


def _draw(ax: Axes, panel: _Panel, model: VideoTransformer, rules: Mapping[str, Any]) -> list[Any]:
    """Draws one panel; the areas, in the order of ``PARTS``."""
    dimension, at = panel.dimension, panel.at
    ratio = at.width / at.height
    low, high = (end / (ratio if dimension == "resolution" else 1.0) for end in RANGES[dimension])
    measured = _means(panel)
    if measured:
        low = min(low, *measured)
        high = max(_ROOM * max(measured), 4 * low)
    x = np.linspace(low, high, _POINTS)
    if dimension == "resolution":
        varied = at._asdict() | {"height": x, "width": ratio * x}
        ax.set_xlabel(f"height, pixels; {at.frames:g} frames, {at.steps:g} steps")
    else:
        x = np.unique(np.round(x))
        varied = at._asdict() | {dimension: x}
        other = f"{at.steps:g} steps" if dimension == "frames" else f"{at.frames:g} frames"
        ax.set_xlabel(f"{dimension}; {at.height:g}x{at.width:g}, {other}")
    stack = np.cumsum(latency_by_part(model, varied, rules), axis=0)
    areas, below = [], np.zeros_like(x)
    for top, (color, hatch) in zip(stack, _LOOK, strict=True):
        areas.append(
            ax.fill_between(x, below, top, facecolor=color, hatch=hatch, edgecolor=INK, linewidth=0.4)
        )
        below = top
    ax.plot(x, stack[-1], color=INK, linewidth=1.2)
    for place, points in measured.items():
        for name, scale, look in _MARKS:
            known = np.array([p[name] for p in points if p[name] is not None]) * scale
            if known.size:
                spread = float(np.std(known, ddof=1)) if known.size > 1 else 0.0
                ax.errorbar(
                    place, known.mean(), yerr=spread, color=INK, capsize=4, linewidth=1.4, zorder=5, **look
                )
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(0, None)
    ax.set_ylabel("time, s")
    right = ax.secondary_yaxis("right", functions=(_wh, _seconds))
    right.set_ylabel("energy, Wh")
    right.tick_params(length=4)
    number_axis(right.yaxis)
    return areas


def _wh(seconds: Any) -> Any:
    return seconds * _WH_PER_S


def _seconds(wh: Any) -> Any:
    return wh / _WH_PER_S


def _means(panel: _Panel) -> dict[float, list[Mapping[str, Any]]]:
    """A panel's points by their place: of a size in other proportions the height of as many pixels."""
    ratio = panel.at.width / panel.at.height
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for point in panel.points:
        size = math.sqrt(point["height"] * point["width"] / ratio)
        place = size if panel.dimension == "resolution" else float(point[panel.dimension])
        groups.setdefault(place, []).append(point)
    return groups


def _note(panels: Sequence[_Panel], rules: Mapping[str, Any], what: str) -> str:
    rates = [f"{rules[name]:g}" for name in ("mu_attention", "mu_linear") if name in rules]
    mu = f", mu {' and '.join(dict.fromkeys(rates))}" if rates else ""
    note = f"Shares at {what}{mu}. Width in proportion to height. No interval: a formula, not a sample."
    shown = [str(len(panel.points)) for panel in panels]
    if any(panel.points for panel in panels):
        note += (
            " Points: mean of a setting, whiskers its standard deviation, other proportions by area; "
            f"{', '.join(shown)} videos in the panels."
        )
    return note


def _misses(points: Sequence[Mapping[str, Any]]) -> str:
    if not points:
        return ""
    off = [abs(point["predicted_latency_s"] / point["latency_s"] - 1) for point in points]
    return f", and {len(points)} measured videos, off by {_percent(float(np.mean(off)))} on average"


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"
