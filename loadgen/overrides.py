"""Command-line flags as changes to a scenario, under the names other load generators use.

Each function edits a `Tree` before it is validated, so a bad flag is reported by
the same one-line rule as a bad line of the file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from loadgen.config import Tree, parse_value
from loadgen.errors import ConfigError

_OWN_TIMES = ("steps", "ramp", "on_off", "trace", "closed_loop")  # patterns that no mean rate describes

_RATE_KEYS = (
    "interval_s",
    "rate_rps",
    "low_s",
    "high_s",
    "burstiness",
    "stages",
    "start_rps",
    "end_rps",
    "mean_rps",
    "amplitude",
    "period_s",
    "phase_rad",
    "on_s",
    "off_s",
    "off_rate_rps",
    "dwell",
    "law",
    "path",
    "time_scale",
    "thin",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that change a scenario."""
    target = parser.add_argument_group("target (overrides server:)")
    target.add_argument(
        "--url",
        metavar="U",
        help="server to drive, e.g. http://gpu-host:8080; without it the embedded server",
    )
    target.add_argument(
        "--protocol",
        metavar="P",
        help="API to speak: auto (default), tgi, openai-chat, openai-completions, null",
    )
    target.add_argument(
        "--model", metavar="M", help="model name to ask for; embedded: which model to simulate"
    )
    target.add_argument(
        "--gpu", metavar="G", help="embedded: which GPU to simulate, e.g. h100-sxm or a profile.json"
    )
    target.add_argument("--dtype", metavar="D", help="embedded: number format, e.g. bfloat16, float32")
    target.add_argument(
        "--num-shard", metavar="N", type=int, help="embedded: GPUs that share the model (tensor parallelism)"
    )
    target.add_argument(
        "--api-key", metavar="K", help="sent as a bearer token (or set LOADGEN_API_KEY); never stored"
    )
    target.add_argument(
        "--header", metavar="'N: V'", action="append", default=[], help="extra HTTP header; repeatable"
    )
    target.add_argument(
        "--streaming",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="stream replies (default) or not",
    )
    target.add_argument("--extra-body", metavar="JSON", help="JSON object merged into every request body")

    load = parser.add_argument_group("load (overrides load:)")
    load.add_argument(
        "--arrival-pattern", metavar="P", help="constant, poisson, gamma, ... at the scenario's mean rate"
    )
    load.add_argument(
        "--request-rate", metavar="R", type=float, help="requests per second; inf sends all at once"
    )
    load.add_argument(
        "--burstiness", metavar="B", type=float, help="gamma shape: 1 Poisson, below 1 burstier"
    )
    load.add_argument(
        "--concurrency",
        "--max-concurrency",
        metavar="N",
        type=int,
        help="cap on requests in flight (max_in_flight)",
    )
    load.add_argument(
        "--request-count",
        "--num-requests",
        "--num-prompts",
        metavar="N",
        type=int,
        help="how many requests to send",
    )
    load.add_argument("--duration", metavar="S", type=float, help="seconds of arrivals, instead of a count")
    load.add_argument(
        "--warmup-requests", metavar="N", type=int, help="requests sent one by one beforehand, not counted"
    )

    power = parser.add_argument_group("power (overrides power:)")
    power.add_argument(
        "--sidecar",
        metavar="[NAME=]URL",
        action="append",
        default=[],
        help="read power from `loadgen sidecar` at this address; repeatable, one a host",
    )
    power.add_argument(
        "--sidecar-token-file",
        metavar="F",
        help="file with the sidecars' bearer token (or set LOADGEN_SIDECAR_TOKEN)",
    )

    other = parser.add_argument_group("other overrides")
    other.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json to count prompt tokens with")
    other.add_argument("--seed", metavar="N", type=int, help="seed of every random stream; 0 is a seed")
    other.add_argument(
        "--goodput",
        metavar="KEY:MS",
        nargs="+",
        help="limits of a good request in ms, e.g. ttft:200 tpot:50; all must hold",
    )
    other.add_argument(
        "--set",
        metavar="K=V",
        action="append",
        default=[],
        help="any scenario key, e.g. --set load.interval_s=0.3; repeatable; keys in docs/scenarios.md",
    )


def apply(tree: Tree, flags: argparse.Namespace) -> None:
    """Writes the flags into the tree, ``--set`` last. Raises ConfigError for one that cannot apply."""
    plain = {
        "--url": ("server.url", flags.url),
        "--protocol": ("server.protocol", flags.protocol),
        "--model": ("server.model", flags.model),
        "--gpu": ("server.gpu", flags.gpu),
        "--dtype": ("server.dtype", flags.dtype),
        "--num-shard": ("server.launcher.num_shard", flags.num_shard),
        "--streaming": ("server.streaming", flags.streaming),
        "--concurrency": ("load.max_in_flight", flags.concurrency),
        "--warmup-requests": ("load.warmup_requests", flags.warmup_requests),
        "--tokenizer": ("prompts.tokenizer", flags.tokenizer),
        "--seed": ("seed", flags.seed),
        "--sidecar": ("power.sidecars", flags.sidecar or None),
        "--sidecar-token-file": ("power.sidecar_token_file", flags.sidecar_token_file),
    }
    for flag, (dotted, value) in plain.items():
        if value is not None:
            tree.assign(dotted, value, flag)
    for header in flags.header:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise ConfigError("--header: expected 'Name: value', got one without a name or a colon")
        tree.assign(
            "server.headers", {**(tree.get("server.headers") or {}), name.strip(): value.strip()}, "--header"
        )
    if flags.extra_body is not None:
        tree.assign("server.extra_body", _json_object("--extra-body", flags.extra_body), "--extra-body")
    _apply_load(tree, flags)
    if flags.goodput:
        tree.assign("slo", _goodput(flags.goodput), "--goodput")
    for pair in flags.set:
        dotted, equals, text = pair.partition("=")
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set: expected KEY=VALUE such as load.interval_s=0.3, got {pair!r}")
        tree.assign(dotted.strip(), parse_value(text, f"--set {dotted}"), "--set")


def _apply_load(tree: Tree, flags: argparse.Namespace) -> None:
    if flags.request_count is not None:
        tree.assign("load.requests", flags.request_count, "--request-count")
    if flags.duration is not None:
        tree.assign("load.duration_s", flags.duration, "--duration")
        if flags.request_count is None and tree.get("load.pattern") not in ("closed_loop", "all_at_once"):
            tree.drop("load", "requests")
    section = tree.get("load")
    known_rps = mean_rate(section) if isinstance(section, dict) else None
    rate_rps = flags.request_rate if flags.request_rate is not None else known_rps
    pattern = flags.arrival_pattern
    if flags.burstiness is not None and pattern is None:
        pattern = "gamma"
    if flags.request_rate is not None and math.isinf(flags.request_rate):
        pattern = "all_at_once"
    if pattern is not None and pattern != tree.get("load.pattern"):
        _change_pattern(tree, pattern, rate_rps)
    elif flags.request_rate is not None:
        _set_rate(tree, str(tree.get("load.pattern")), flags.request_rate)
    if flags.burstiness is not None:
        tree.assign("load.burstiness", flags.burstiness, "--burstiness")


def mean_rate(load: Mapping[str, Any]) -> float | None:
    """Requests per second that a load section asks for on average, or None when it says none."""
    try:
        if load.get("pattern") == "ramp":
            return (float(load["start_rps"]) + float(load["end_rps"])) / 2
        if load.get("pattern") == "on_off":
            on_s, off_s = float(load["on_s"]), float(load["off_s"])
            during_off = float(load.get("off_rate_rps", 0.0)) * off_s
            return (float(load["rate_rps"]) * on_s + during_off) / (on_s + off_s)
        if load.get("rate_rps") or load.get("mean_rps"):
            return float(load.get("rate_rps") or load["mean_rps"])
        if load.get("interval_s"):
            return 1 / float(load["interval_s"])
        if load.get("high_s"):
            return 2 / (float(load["low_s"]) + float(load["high_s"]))
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        return None
    return None


def _change_pattern(tree: Tree, pattern: str, rate_rps: float | None) -> None:
    flag = "--arrival-pattern"
    tree.drop("load", *_RATE_KEYS)
    tree.assign("load.pattern", pattern, flag)
    if pattern == "gamma":
        tree.assign("load.burstiness", 1.0, flag)
    if rate_rps is not None and math.isfinite(rate_rps) and pattern not in _OWN_TIMES:
        _set_rate(tree, pattern, rate_rps)


def _set_rate(tree: Tree, pattern: str, rate_rps: float) -> None:
    flag = "--request-rate"
    if pattern in ("constant", "poisson", "gamma"):
        tree.drop("load", "interval_s")
        tree.assign("load.rate_rps", rate_rps, flag)
    elif pattern == "sine":
        tree.assign("load.mean_rps", rate_rps, flag)
    elif pattern in ("uniform", "uniform_script", "uniform_literal"):
        if rate_rps <= 0:
            raise ConfigError(f"--request-rate: expected > 0, got {rate_rps}")
        tree.assign("load.low_s", 0.0, flag)
        tree.assign("load.high_s", 2 / rate_rps, flag)
    elif pattern in _OWN_TIMES:
        raise ConfigError(
            f"--request-rate: load.pattern {pattern} sets its own rate; "
            "add --arrival-pattern constant (or poisson)"
        )


def _json_object(flag: str, text: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except ValueError as exc:
        raise ConfigError(f"{flag}: expected a JSON object: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{flag}: expected a JSON object, got {text[:40]}")
    return value


def _goodput(limits: list[str]) -> dict[str, float]:
    slo: dict[str, float] = {}
    for limit in (part for word in limits for part in word.split(",")):
        key, _, milliseconds = limit.partition(":")
        try:
            slo[{"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}[key]] = float(milliseconds) / 1000
        except (KeyError, ValueError):
            raise ConfigError(f"--goodput: expected ttft:MS, tpot:MS or e2e:MS, got {limit!r}") from None
    return slo
