"""``loadgen theory video`` and ``loadgen theory thresholds``: their flags, and what they print."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen.errors import ConfigError
from loadgen.physics import thresholds
from loadgen.physics.video import (
    MODELS,
    PEAK_FLOP_PER_S,
    POWER_W,
    TOKEN_RULES,
    UTILISATION,
    VideoCost,
    VideoTransformer,
    elasticity,
    find_model,
    token_count,
    video_cost,
)
from loadgen.physics.video_decoder import DECODERS
from loadgen.physics.video_sweeps import Setting
from loadgen.terminal import bare_table, print_json
from loadgen.verbs.compare import figure
from loadgen.verbs.numbers import at_least
from loadgen.verbs.theory_measured import compare, render

_VIDEO = """The text-to-video study's model of one video: tokens of its latent, FLOP of every part (those of
the denoising steps for all steps and guidance passes), seconds and watt-hours of an H100.
  config  paper (the study's parameters, of no release), wan2.1-1.3b, wan2.1-14b
  tokens  paper: (1 + T/4)(H/16)(W/16), not rounded; exact: rounded down as the pipeline does
  vae     table: the study's rows once; text: repeated as its prose says; wan21: the released decoder"""
_VIDEO_EPILOG = """examples:
  loadgen theory video                                           the study's default point
  loadgen theory video --config wan2.1-1.3b --tokens exact --vae wan21 --mu-attn 0.349 --mu-linear 0.196
  loadgen theory video --height 480 --width 832 --json | jq .energy_wh
  loadgen theory video --config wan2.1-14b --tokens exact --vae wan21 --measured points.csv --steps 50
  loadgen theory video --figure scaling.svg                      seconds by part over height, frames, steps

A CSV of measured points (plain or .gz) has the columns height, width, num_frames, steps,
duration_generate (s), and may have energy_generate_gpu (kWh) and model_name, of which the rows
of the config's size are taken. --steps counts instead of the file's column. Errors are of all points,
and of those that vary one dimension with the others held, as the study's Table 3.

exit status: 0, 2 for what cannot be computed."""
_THRESHOLDS = """From how many tokens on attention and MLP of a diffusion transformer are bound by arithmetic:
the text-to-video study's Table 7 as printed, by its rules from peak and bandwidth, and rightly counted
(attention reads Q, K, V and writes O; a product is 2 FLOP a weight and row)."""

Draw = Callable[[VideoTransformer, Mapping[str, Any], Setting, Sequence[Mapping[str, Any]]], object]
"""Draws cost by part around a setting: of model, settings of ``video_cost``, setting, measured points."""

_MOST = 1_000_000
_DEFAULTS = {"height": 720, "width": 1280, "frames": 81, "steps": 50}


def add_video(sub: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds ``video`` to the subparsers of ``theory``; ``go`` computes, prints and returns the exit status."""
    video = sub.add_parser(
        "video",
        help="tokens, FLOP, seconds and energy of a generated video",
        description=_VIDEO,
        epilog=_VIDEO_EPILOG,
        formatter_class=formatter,
    )
    video.add_argument("--config", default="paper", metavar="C", help=f"{', '.join(MODELS)} (paper)")
    video.add_argument("--tokens", default="paper", metavar="RULE", help=f"{', '.join(TOKEN_RULES)} (paper)")
    video.add_argument("--vae", default="table", metavar="ROWS", help=f"{', '.join(DECODERS)} (table)")
    for name, unit in (("height", "pixels"), ("width", "pixels"), ("frames", "frames"), ("steps", "steps")):
        video.add_argument(
            f"--{name}", type=at_least(1, _MOST), metavar="N", help=f"{unit} ({_DEFAULTS[name]})"
        )
    video.add_argument(
        "--guidance-passes",
        type=at_least(1, _MOST),
        default=2,
        metavar="G",
        help="passes a step: 2 guided, 1 not (2)",
    )
    video.add_argument(
        "--mu", type=float, metavar="MU", help=f"sustained share of the peak, of everything ({UTILISATION})"
    )
    video.add_argument(
        "--mu-attn", type=float, metavar="MU", help="of the attention products, 4 l^2 d a block"
    )
    video.add_argument("--mu-linear", type=float, metavar="MU", help="of everything else")
    video.add_argument(
        "--measured", type=Path, metavar="CSV", help="compare with measured points: mean percentage error"
    )
    video.add_argument(
        "--figure",
        type=figure,
        metavar="F",
        help="also draw seconds by part over height, frames and steps (.svg .png .pdf)",
    )
    video.add_argument("--json", action="store_true", help="one JSON object on stdout")
    video.set_defaults(go=go, parser=video)


def add_thresholds(sub: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds ``thresholds`` to the subparsers of ``theory``; ``go`` as for ``add_video``."""
    parser = sub.add_parser(
        "thresholds",
        help="tokens from which a diffusion transformer is bound by arithmetic, by accelerator",
        description=_THRESHOLDS,
        formatter_class=formatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(go=go, parser=parser)


def show_video(args: argparse.Namespace, draw: Draw | None = None) -> int:
    """What ``video`` does; ``draw`` sees what is drawn before anything is printed.

    Raises ConfigError for a value that cannot be computed with.
    """
    model, settings = find_model(args.config), _settings(args)
    if args.measured is not None:
        given = [f"--{name}" for name in ("height", "width", "frames") if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--measured: the sizes come from the file; leave out {', '.join(given)}")
        found = compare(args.measured, model, args.steps, settings)
        if draw is not None:
            draw(model, settings, Setting(**_DEFAULTS), found["points"])
        _show(found | {"parameters": _parameters(model, settings)}, args, render)
        return 0
    size: dict[str, Any] = {name: getattr(args, name) or default for name, default in _DEFAULTS.items()}
    cost = video_cost(model, **size, **settings)
    if draw is not None:
        draw(model, settings, Setting(**size), [])
    parameters = _parameters(model, settings)
    found = as_object(cost, parameters | size) | {
        "elasticity": float(elasticity(model, cost.tokens)),
        "notes": _notes(model, cost, size, args.tokens),
    }
    _show(found, args, _render_video)
    return 0


def show_thresholds(args: argparse.Namespace) -> int:
    """What ``thresholds`` does."""
    _show(thresholds_object(), args, _render_thresholds)
    return 0


def as_object(cost: VideoCost, parameters: dict[str, Any]) -> dict[str, Any]:
    """One video's cost as plain numbers: the command's keys."""
    return {
        "tokens": float(cost.tokens),
        "flop": {name: float(part) for name, part in cost.flop.parts.items()}
        | {"total": float(cost.flop.total)},
        "attention_products_flop": float(cost.flop.attention_products),
        "latency_s": float(cost.latency_s),
        "energy_wh": float(cost.energy_wh),
        "label": "estimated",
        "parameters": parameters,
    }


def thresholds_object() -> dict[str, Any]:
    """Table 7 as plain numbers; a threshold that does not exist is None."""
    return {
        "parameters": {
            "scalar_bytes": thresholds.SCALAR_BYTES,
            "hidden": thresholds.HIDDEN,
            "expansion": thresholds.EXPANSION,
        },
        "accelerators": [
            {
                "name": row.printed.name,
                "peak_flop_per_s": row.printed.peak_flop_per_s,
                "bandwidth_bytes_per_s": row.printed.bandwidth_bytes_per_s,
                "printed": _thresholds(
                    thresholds.Thresholds(
                        row.printed.beta_flop_per_byte, row.printed.attention_tokens, row.printed.mlp_tokens
                    )
                ),
                "rule": _thresholds(row.rule) | {"mlp_root_tokens": _finite(row.rule.mlp_root_tokens)},
                "corrected": _thresholds(row.corrected),
                "dense_flop_per_s": row.printed.dense_flop_per_s,
                "dense": None if row.dense is None else _thresholds(row.dense),
                "note": row.printed.note or None,
            }
            for row in thresholds.table()
        ],
    }


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    if args.mu is not None and (args.mu_attn is not None or args.mu_linear is not None):
        raise ConfigError("--mu is both rates at once: expected either --mu or --mu-attn and --mu-linear")
    if args.mu is not None and not 0 < args.mu <= 1:
        raise ConfigError(f"--mu: expected a share of the peak, 0 < mu <= 1, got {args.mu:g}")
    both = UTILISATION if args.mu is None else args.mu
    return {
        "tokens": args.tokens,
        "vae": args.vae,
        "guidance_passes": args.guidance_passes,
        "mu_attention": both if args.mu_attn is None else args.mu_attn,
        "mu_linear": both if args.mu_linear is None else args.mu_linear,
    }


def _parameters(model: VideoTransformer, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": model.id,
        "layers": model.layers,
        "hidden": model.hidden,
        "ffn": model.ffn,
        "tokens": settings["tokens"],
        "vae": settings["vae"],
        "guidance_passes": settings["guidance_passes"],
        "mu_attn": settings["mu_attention"],
        "mu_linear": settings["mu_linear"],
        "peak_flop_per_s": PEAK_FLOP_PER_S,
        "power_w": POWER_W,
    }


def _notes(model: VideoTransformer, cost: VideoCost, size: dict[str, Any], rule: str) -> list[str]:
    notes = []
    if rule == "paper":
        height, width, frames = size["height"], size["width"], size["frames"]
        if min(height, width) < 16:
            notes.append(f"the pipeline makes no video of {height}x{width}: a token is 16 x 16 pixels")
        else:
            made = float(token_count(height, width, frames, "exact"))
            if made != float(cost.tokens):
                notes.append(
                    f"the paper's rule is not rounded: {cost.tokens:,g} tokens, the pipeline {made:,g}"
                )
    if model.id == "paper":
        count, real = model.block_parameters / 1e9, MODELS["wan2.1-1.3b"].block_parameters / 1e9
        notes.append(
            f"config paper is no released model: {count:.2f}e9 weights in its blocks, 1.3B {real:.2f}e9"
        )
    return notes


def _thresholds(found: thresholds.Thresholds) -> dict[str, float | None]:
    return {
        "beta_flop_per_byte": found.beta_flop_per_byte,
        "attention_tokens": _finite(found.attention_tokens),
        "mlp_tokens": _finite(found.mlp_tokens),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _show(
    found: dict[str, Any], args: argparse.Namespace, render: Callable[[dict[str, Any], Console], None]
) -> None:
    if args.json:
        print_json(found)
    else:
        render(found, Console(highlight=False, soft_wrap=True))


def _render_video(found: dict[str, Any], console: Console) -> None:
    total, used = found["flop"]["total"], found["parameters"]
    console.print(
        f"{used['config']}  {used['height']}x{used['width']}, {used['frames']} frames, {used['steps']} steps "
        f"of {used['guidance_passes']}: {found['tokens']:,g} tokens ({used['tokens']}); estimated",
        soft_wrap=False,
    )
    table = bare_table("part", "FLOP", "share")
    for name, flop in found["flop"].items():
        table.add_row(name, f"{flop:.4g}", f"{flop / total:.2%}")
    console.print(table)
    console.print(
        f"{found['latency_s']:,.5g} s   mu {used['mu_attn']:g} for attention products, "
        f"{used['mu_linear']:g} for the rest, of {used['peak_flop_per_s']:.4g} FLOP/s",
        soft_wrap=False,
    )
    console.print(f"{found['energy_wh']:,.5g} Wh  {used['power_w']:g} W")
    console.print(f"1 % more tokens: {found['elasticity']:.3f} % more work a step")
    for note in found["notes"]:
        console.print(f"note: {note}", style="dim", soft_wrap=False)


def _render_thresholds(found: dict[str, Any], console: Console) -> None:
    table = bare_table("accelerator", "beta", "printed", "its rules", "corrected", "at the dense peak")
    for row in found["accelerators"]:
        cells = [
            "-" if pair is None else " / ".join(_tokens(pair[k]) for k in ("attention_tokens", "mlp_tokens"))
            for pair in (row["printed"], row["rule"], row["corrected"], row["dense"])
        ]
        table.add_row(row["name"], f"{row['rule']['beta_flop_per_byte']:.1f}", *cells)
    console.print("tokens from which attention / MLP is bound by arithmetic; beta in FLOP/byte")
    console.print(table)
    for row in found["accelerators"]:
        if row["note"]:
            console.print(f"note: {row['name']}: {row['note']}", style="dim")


def _tokens(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"
