"""What ``loadgen theory step`` prints for people: groups of each phase, power, energy, memory, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from loadgen.terminal import bare_table


def render(found: Mapping[str, Any], console: Console) -> None:
    """Prints an answer of ``theory_step.step_object`` or ``request_object``."""
    boards = f"{found['shards']} x {found['gpu']}" if found["shards"] > 1 else found["gpu"]
    console.print(
        f"{found['model']} in {found['dtype']} on {boards}, {_what(found)} (estimated)",
        markup=False,
        soft_wrap=False,
    )
    for name in ("step", "prefill", "decode"):
        if name in found and found[name]["groups"]:
            _render_phase(name, found[name], found, console)
    if "total" in found:
        total = found["total"]
        console.print(
            f"together: {_si(total['duration_s'], 's')}, {total['energy_j']:,.5g} J, "
            f"{total['above_idle_j']:,.5g} J above idle; a request {total['energy_per_request_j']:,.5g} J "
            f"({total['energy_per_request_wh']:.4g} Wh), an output token "
            f"{total['energy_per_output_token_j']:,.4g} J; {total['output_tokens_per_s']:,.4g} tokens/s",
            soft_wrap=False,
        )
    memory, limits = found["memory"], found["limits"]
    items = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in memory["items_bytes"].items())
    console.print(
        f"memory of a board: {items}; left for the KV cache {memory['free_for_kv_bytes'] / 1e9:.1f} GB = "
        f"{memory['kv_tokens']:,} tokens of {memory['kv_token_bytes']:,} bytes, "
        f"{memory['held_tokens']:,} held here",
        soft_wrap=False,
    )
    console.print(
        f"limits: {limits['max_position_embeddings']:,} positions; as TGI sets them "
        f"{limits['max_batch_prefill_tokens']:,} tokens a forward, "
        f"{limits['max_batch_total_tokens']:,} in the cache, {limits['max_total_tokens']:,} a request",
        soft_wrap=False,
    )
    for note in found["notes"]:
        console.print(f"note: {note}", style="dim", soft_wrap=False)


def _what(found: Mapping[str, Any]) -> str:
    if "request" in found:
        asked = found["request"]
        return f"batch {asked['batch']}, s = {asked['prompt_tokens']}, g = {asked['output_tokens']}"
    mix = found["mix"]
    said = [f"{c['sequences']} prefill of {c['new']} after {c['cached']}" for c in mix["prefill"]]
    said += [f"{r['rows']} decode at {r['context']}" for r in mix["decode"]]
    return " + ".join(said)


def _render_phase(name: str, phase: Mapping[str, Any], found: Mapping[str, Any], console: Console) -> None:
    table = bare_table(name, "FLOP", "bytes", "over the link", "time", "share")
    table.add_column("bound", no_wrap=True)
    for row in phase["groups"]:
        amounts = (f"{row[key]:.4g}" if row[key] else "-" for key in ("flop", "traffic_bytes", "link_bytes"))
        share = row["time_s"] / phase["duration_s"]
        table.add_row(row["name"], *amounts, _si(row["time_s"], "s"), f"{share:.1%}", row["bound"])
    console.print(table)
    per = {k: v for k, v in phase.items() if k.startswith("energy_per_") and v is not None}
    each = "".join(f", {value:.4g} J a{_unit(key)}" for key, value in per.items())
    boards = " each" if found["shards"] > 1 else ""
    steps = f" in {phase['steps']} steps" if "steps" in phase else ""
    console.print(
        f"{name}: {_si(phase['duration_s'], 's')}{steps}, u_m {phase['memory_utilisation']:.3f}, u_c "
        f"{phase['compute_utilisation']:.3f}, {phase['power_w']:.1f} W{boards}; {phase['energy_j']:,.5g} J, "
        f"{phase['above_idle_j']:,.5g} J above idle ({found['idle_w']:g} W{boards}){each}",
        soft_wrap=False,
    )


def _unit(key: str) -> str:
    words = key.removeprefix("energy_per_").removesuffix("_j").replace("_", " ")
    return f"{'n' if words[0] in 'aeiou' else ''} {words}"


def _si(value: float, unit: str) -> str:
    for scale, prefix in ((1.0, ""), (1e-3, "m")):
        if value >= scale:
            return f"{value / scale:,.4g} {prefix}{unit}"
    return f"{value * 1e6:,.4g} µ{unit}"
