"""A summary for people: tables that fit 80 columns, labels visible, the verdict last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from analysis.absent import without_intervals
from analysis.console import bare_table, line
from analysis.words import interval, number, percent, quantity
from loadgen.types import STATUSES

_WIDE = 110
_MOST_NAMES = 4
_LATENCIES = (
    ("ttft_s", "ttft"),
    ("ttft_from_due_s", "  from due"),
    ("ttft_from_demand_s", "  from demand"),
    ("tpot_s", "tpot"),
    ("itl_s", "itl"),
    ("e2e_s", "e2e"),
    ("e2e_from_due_s", "  from due"),
    ("e2e_from_demand_s", "  from demand"),
)
_ENERGIES = (
    ("total_j", "total"),
    ("bound_j", "  within"),
    ("active_j", "  active"),
    ("static_j", "  static"),
    ("mean_power_w", "mean power"),
    ("idle_power_w", "idle power"),
    ("energy_per_attempt", "per attempt"),
    ("energy_per_attempt_wh", ""),
    ("energy_per_request", "per success"),
    ("energy_per_request_wh", ""),
    ("energy_per_output_token", "per output token"),
    ("energy_per_output_token_wh", ""),
    ("output_tokens_per_joule", "output tokens"),
)


def render(summary: Mapping[str, Any], console: Console) -> None:
    """Prints what `analysis.summary.summarize` returned. Colours only where the console has them."""
    header(summary, console)
    _requests(summary, console)
    _latency(summary, console)
    _energy(summary, console)
    _sources(summary, console)
    for sentence in without_intervals(summary):
        line(console, "", sentence, "dim")
    for warning in summary["warnings"]:
        line(console, "warning ", warning, "yellow")
    verdict(summary, console)


def header(summary: Mapping[str, Any], console: Console) -> None:
    """The run's name, its model, board and server."""
    server = summary.get("server") or {}
    shards = server.get("shards") or 1
    gpu = server.get("gpu") and f"{f'{shards} x ' if shards > 1 else ''}{server['gpu']}"
    board = " on ".join(str(part) for part in (server.get("dtype"), gpu) if part)
    if board and server.get("kind") != "embedded":
        board = f"declared {board}"  # the scenario's word; a real server does not tell
    kind = server.get("kind")
    between = " " if kind == "embedded" else ", "
    where = between.join(str(part) for part in (server.get("model"), board) if part)
    about = [where] if where else []
    held = {"sm_clock_mhz": "SM clock {:g} MHz", "power_cap_w": "power cap {:g} W"}
    about += [said.format(server[key]) for key, said in held.items() if server.get(key) is not None]
    like = "" if server.get("dialect") in (None, "tgi") else f" {server['dialect']}"
    about.append(f"{kind}{like} server" if kind else "unknown server")
    about += [f"{summary.get(key) or 'unknown'} {key}" for key in ("protocol", "clock")]
    console.print()
    line(console, f"{summary['name']}  ", ", ".join(about))
    if server.get("url"):
        line(console, "url       ", str(server["url"]))


def _requests(summary: Mapping[str, Any], console: Console) -> None:
    requests, rate = summary["requests"], summary["rate"]
    counts = [f"{requests[s]:,} {s}" for s in STATUSES if requests[s] or s == "ok"]
    if requests["missing"]:
        counts.append(f"{requests['missing']:,} missing")
    ratio = requests["success_ratio"]["value"]
    share = "" if ratio is None else f" ({percent(ratio)} succeeded)"
    line(console, "requests  ", f"{requests['planned']:,} planned: " + ", ".join(counts) + share)
    for cause, count in list(requests["errors"].items())[:3]:
        shown = cause if len(cause) <= console.width - 22 else f"{cause[: console.width - 25]}..."
        line(console, "          ", f"{count:,} x {shown}", "red")
    parts = []
    if rate["offered_rps"]["value"] is not None:
        parts.append(f"offered {number(rate['offered_rps']['value'])}/s")
    if rate["achieved_rps"]["value"] is not None:
        parts.append(f"achieved {number(rate['achieved_rps']['value'])}/s")
    if rate["in_flight_mean"]["value"] is not None:
        parts.append(f"{number(rate['in_flight_mean']['value'])} in flight")
    if summary["window_s"] is not None:
        parts.append(f"window {quantity(summary['window_s'], 's', digits=4)}")
    line(console, "rate      ", ", ".join(parts) or "-")
    late = summary["lateness_s"]
    if late is None:
        text = summary["lateness_reason"]
    else:
        text = ", ".join(f"{key} {quantity(late[key], 's')}" for key in ("p50", "p99", "max"))
        text += f" - {summary['lateness_reason']}" if summary["lateness_reason"] else ""
    line(console, "lateness  ", text)
    tokens = summary["tokens"]
    if tokens["output"] is not None:
        per_s = tokens["output_tokens_per_s"]["value"]
        origin = ", ".join(f"{n:,} from {who}" for who, n in tokens["from"].items())
        text = f"{tokens['output']:,} out, {number(per_s)} tokens/s" if per_s is not None else "-"
        text = (f"{tokens['input']:,} in, " if tokens["input"] is not None else "") + text
        line(console, "tokens    ", f"{text} (counts of replies: {origin})")
    good = summary["goodput"]
    if good is not None:
        limits = ", ".join(
            f"{name.removesuffix('_s')} {quantity(limit, 's')}" for name, limit in good["slo"].items()
        )
        value, per_s = good["ratio"]["value"], good["rps"]["value"]
        if value is None or per_s is None:
            text = f"- ({good['ratio']['method'].removeprefix('unavailable: ')})"
        else:
            ends = [good["ratio"][end] for end in ("low", "high")]
            spread = "" if None in ends else f" [{', '.join(percent(end) for end in ends)}]"
            text = f"{percent(value)}{spread} of {good['ratio']['n']:,} records, {number(per_s)}/s"
        line(console, "goodput   ", f"{text} within {limits}")


def _latency(summary: Mapping[str, Any], console: Console) -> None:
    wide = console.width >= _WIDE
    columns = ("mean", "p50", "p90", "p95", "p99") if wide else ("p50", "p90", "p99")
    rows = [(label, summary["latency"][key]) for key, label in _LATENCIES]
    if not any(row["n"] for _, row in rows):
        line(console, "latency   ", "- (no request succeeded)")
        return
    table = bare_table("latency")
    table.add_column("unit")
    for name in columns:
        table.add_column(name, justify="right")
    shown: list[Any] = []  # what the rows of one figure said
    for label, row in rows:
        if not label.startswith(" "):
            shown = []
        if row["p99"] in shown or not row["n"]:
            continue  # without shaping or lateness these repeat a row above them
        shown.append(row["p99"])
        unit, scale = ("s", 1.0) if (row["p99"]["value"] or 0.0) >= 1 else ("ms", 1e3)
        table.add_row(label, unit, *(_scaled(row[name], scale) for name in columns))
    console.print(table, highlight=False)


def _scaled(estimate: Mapping[str, Any], scale: float) -> str:
    if estimate["value"] is None:
        return "-"
    times = {
        key: None if estimate[key] is None else estimate[key] * scale for key in ("value", "low", "high")
    }
    spread = interval({**times, "unit": ""}, prefixed=False)
    return f"{number(times['value'] or 0.0)} {spread}".rstrip()


def _energy(summary: Mapping[str, Any], console: Console) -> None:
    energy = summary["energy"]
    shown = [p for p in ("gpu", "cpu", "ram") if p in energy and energy[p]["label"] != "unavailable"]
    if "gpu" not in shown:
        line(console, "GPU energy  ", f"unavailable: {energy['reason']}", "yellow")
    if not shown:
        return
    table = bare_table("energy")
    for part in shown:
        table.add_column(f"{part.upper()}\n{energy[part]['label']}", justify="right")
        if part == shown[0]:
            table.add_column("\n95 % interval", justify="left")
    for key, label in _ENERGIES:
        row = [label]
        if key == "bound_j":
            bounds = [energy[part].get(key) for part in shown]
            cells = ["-" if j is None else f"± {quantity(j, 'J')}" for j in bounds]
            if any(j is not None for j in bounds):
                table.add_row(label, cells[0], "sensor gain aside", *cells[1:])
            continue
        for part in shown:
            estimate = energy[part][key]
            unit = "/J" if key == "output_tokens_per_joule" else estimate["unit"]
            row.append(quantity(estimate["value"], unit))
            if part == shown[0]:
                row.append(interval(estimate))
        table.add_row(*row)
    console.print(table, highlight=False)
    apart = [
        f"{name} {quantity(joules, 'J')}{_what_it_holds(name)}"
        for name, joules in (energy.get("apart") or {}).items()
    ]
    if apart:
        line(console, "in no sum  ", ", ".join(apart))


def _sources(summary: Mapping[str, Any], console: Console) -> None:
    """How the measured joules were read: method, clock error, completeness."""
    for part in ("gpu", "cpu", "ram"):
        found = summary["energy"].get(part)
        if found is None or found["label"] != "measured":
            continue  # its label says how: from a model or a formula
        domains = found["domains"]
        what = ", ".join(domains) if len(domains) <= _MOST_NAMES else f"{len(domains)} series"
        text = f"{' and '.join(found['methods'])} of {what}"
        if found["update_s"] is not None:
            text += f", a new value every {_every(found['update_s'])}"
        if found["coverage"] is not None:
            text += f", {percent(found['coverage'])} of the window covered"
        if found["bound_j"] is None:
            text += f"; no bound: {found['bound_reason']}"
        line(console, f"{part.upper():<10}", text)
    for row in summary["sidecars"] or ():
        line(console, "sidecar   ", _sidecar(row))


def _sidecar(row: Mapping[str, Any]) -> str:
    who = f"{row['name']} ({row['url']})" if row["name"] else row["url"]
    bound_s = row["clock_bound_s"]
    if bound_s is None:
        clock = "clock not compared at the end"
    else:
        clock = f"clock ± {quantity(bound_s, 's')}, drift {row['drift_ppm']:.2f} ppm"
    skipped = row["expected"] - row["received"] - row["missing"]
    lacks = [f"{n} {what}" for n, what in ((row["missing"], "missing"), (skipped, "skipped")) if n > 0]
    samples = f"{row['received']:,} of {row['expected']:,} samples"
    samples += f" ({', '.join(lacks)})" if lacks else ""
    words = [clock, f"{samples}, one every {_every(row['interval_s'])}"]
    if row["reconnects"]:
        words.append(f"{row['reconnects']} x reconnected")
    if row["server_boards"]:
        words.append(f"server on {', '.join(row['server_boards'])}")
    return f"{who}: {'; '.join(words)}"


def _every(period_s: float) -> str:
    return f"{period_s:.4g} s" if period_s >= 1 else f"{1e3 * period_s:.4g} ms"


def _what_it_holds(domain: str) -> str:
    """Why a domain is in no sum, where its name does not tell; in brackets."""
    name = domain.rpartition("/")[2]
    if ".module" in name:
        return " (with the CPU beside it)"
    return " (the whole module)" if name.startswith("soc") else ""


def verdict(summary: Mapping[str, Any], console: Console) -> None:
    """Valid, or why not."""
    if summary["valid"]:
        line(console, "valid", "", "green")
        return
    line(console, "INVALID", "", "red")
    for reason in summary["reasons"]:
        line(console, "  - ", reason, "red")
