"""``loadgen theory step``: its flags, and its answer as plain data."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from math import fsum
from typing import Any

from rich.console import Console

from loadgen.config import known
from loadgen.errors import CapacityError, ConfigError
from loadgen.launch import Launch, Launcher
from loadgen.physics.breakdown import (
    Chunk,
    Group,
    Mix,
    Rows,
    breakdown,
    decode_groups,
    prefill_mix,
    request_cost,
)
from loadgen.physics.formats import DTYPES
from loadgen.physics.memory import memory_budget
from loadgen.physics.models import find_model
from loadgen.physics.profile_file import find_board
from loadgen.physics.transformer import StepModel
from loadgen.server.limits import derive_limits
from loadgen.terminal import print_json
from loadgen.verbs.numbers import MOST_SEQUENCES, MOST_TOKENS, at_least
from loadgen.verbs.theory_step_view import render

_MOST_BOARDS = 1024

_DESCRIPTION = """One forward pass of any mix of prefill and decode rows, by the model that `loadgen serve`
simulates: each kernel group takes the larger of its arithmetic and its memory time on one board,
boards exchange two all-reduces a layer, the host takes its part of every step, and power follows
from how hard memory and arithmetic work. With --request a whole static batch: the prompts in one
pass, then g - 1 decode steps. Estimated, not measured: every constant has its source in
`loadgen.physics.hardware` and `boards`, or in the profile given."""
_EPILOG = """examples:
  loadgen theory step --decode 16x1000
  loadgen theory step --prefill 2048@4096 --decode 8x1200 --decode 24x300
  loadgen theory step --model llama-3.1-70b --shards 4 --dtype fp8 --prefill 1000x4 --json
  loadgen theory step --request 1200,52 --batch 8 --gpu measured.json

FLOP, bytes and seconds are of one board, joules of all of them. u_m: bytes of memory over the
peak bandwidth; u_c: FLOP over the peak of the layers' products. A step's energy cannot fall under
the idle floor, what the boards draw with a model loaded and nothing to do.

exit status: 0, or 2 for a mistake, and for a mix that the memory cannot hold."""


def add_step(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds ``step`` to the subparsers of ``theory``; ``go`` answers and prints (see ``show``)."""
    step = verbs.add_parser(
        "step",
        help="time, energy and memory of one forward pass, kernel group by kernel group",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    default = " (default %(default)s)"
    step.add_argument(
        "--model", metavar="M", default="llama-3.1-8b", help=f"an id or the path of a config.json{default}"
    )
    step.add_argument(
        "--gpu", metavar="G", default="h100-sxm", help=f"an id or the path of a hardware profile{default}"
    )
    step.add_argument("--dtype", metavar="D", default="bfloat16", help=f"number format{default}")
    step.add_argument(
        "--shards",
        "--num-shard",
        metavar="P",
        type=at_least(1, _MOST_BOARDS),
        default=1,
        help=f"tensor parallelism: boards that share the model{default}",
    )
    step.add_argument(
        "--prefill",
        metavar="N[@C][xB]",
        action="append",
        default=[],
        type=_chunk,
        help="B sequences with N new tokens each after C cached ones (1, 0); repeatable",
    )
    step.add_argument(
        "--decode",
        metavar="BxC",
        action="append",
        default=[],
        type=_rows,
        help="B sequences with C tokens cached that decode one each; repeatable",
    )
    step.add_argument(
        "--emitting",
        metavar="N",
        type=at_least(0, MOST_SEQUENCES),
        help="sequences that emit a token; others are chunks of prompts that go on (all)",
    )
    step.add_argument(
        "--request", metavar="S,G", type=_request, help="a prompt of S tokens and a reply of G, instead"
    )
    step.add_argument(
        "--batch",
        metavar="B",
        type=at_least(1, MOST_SEQUENCES),
        help="equal requests at a time, with --request (1)",
    )
    step.add_argument("--json", action="store_true", help="one JSON object on stdout")
    step.set_defaults(go=go, parser=step)


def _counts(
    pattern: str, expected: str, least: Sequence[int], most: Sequence[int]
) -> Callable[[str], list[int]]:
    form = re.compile(pattern, re.ASCII)

    def parse(text: str) -> list[int]:
        match = form.fullmatch(text.strip())
        # Longer digits are no count that anything here can hold, and slow to read.
        if match is not None and all(len(part or "") <= 12 for part in match.groups()):
            found = [
                at if part is None else int(part) for part, at in zip(match.groups(), (1, 0, 1), strict=False)
            ]
            if all(low <= value <= high for value, low, high in zip(found, least, most, strict=True)):
                return found
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


_read_chunk = _counts(
    r"(\d+)(?:@(\d+))?(?:x(\d+))?",
    "N, N@C, NxB or N@CxB: new tokens >= 1, cached ones >= 0, sequences >= 1, such as 512@1024x4",
    (1, 0, 1),
    (MOST_TOKENS, MOST_TOKENS, MOST_SEQUENCES),
)
_read_rows = _counts(
    r"(\d+)x(\d+)",
    "BxC: sequences >= 1 and their cached tokens >= 0, such as 16x1000",
    (1, 0),
    (MOST_SEQUENCES, MOST_TOKENS),
)
_read_request = _counts(
    r"(\d+)\s*,\s*(\d+)",
    "S,G: prompt and reply tokens, each >= 1, such as 1200,52",
    (1, 1),
    (MOST_TOKENS, MOST_TOKENS),
)


def _chunk(text: str) -> Chunk:
    return Chunk(*_read_chunk(text))


def _rows(text: str) -> Rows:
    return Rows(*_read_rows(text))


def _request(text: str) -> tuple[int, int]:
    prompt, reply = _read_request(text)
    return prompt, reply


def show(args: argparse.Namespace) -> int:
    """Prints the answer; returns the exit status. Raises ConfigError or CapacityError for a mistake."""
    if args.request is None and not (args.prefill or args.decode):
        raise ConfigError("theory step: expected --prefill, --decode or --request, e.g. --decode 16x1000")
    if args.request is not None and (args.prefill or args.decode or args.emitting is not None):
        raise ConfigError("--request is a whole batch by itself: leave out --prefill, --decode, --emitting")
    if args.request is None and args.batch is not None:
        raise ConfigError("--batch is of --request; the rows of a step are --decode BxC and --prefill NxB")
    gpu, efficiency = find_board(args.gpu, place="--gpu")
    model = StepModel(
        find_model(args.model),
        gpu,
        known("dtype", args.dtype, DTYPES),
        shards=args.shards,
        efficiency=efficiency,
    )
    if args.request is not None:
        prompt, reply = args.request
        found = request_object(model, prompt, reply, args.batch or 1)
    else:
        found = step_object(model, args.prefill, args.decode, args.emitting)
    if args.json:
        print_json(found)
    else:
        render(found, Console(highlight=False, soft_wrap=True))
    return 0


def step_object(
    model: StepModel, prefill: Sequence[Chunk], decode: Sequence[Rows], emitting: int | None = None
) -> dict[str, Any]:
    """One step as plain numbers: the command's keys. Raises CapacityError when the memory cannot hold it."""
    sequences = sum(c.sequences for c in prefill) + sum(r.rows for r in decode)
    emitted = sequences if emitting is None else emitting
    if emitted > sequences:
        raise ConfigError(
            f"--emitting: expected at most the {sequences} sequences of the step, got {emitted}"
        )
    mix = Mix.of(prefill, decode, emitted)
    longest = max([c.cached + c.new for c in prefill] + [r.context + 1 for r in decode])
    held = sum(c.sequences * (c.cached + c.new) for c in prefill)
    held += sum(r.rows * (r.context + 1) for r in decode)
    rows = sum(c.sequences * c.new for c in prefill) + sum(r.rows for r in decode)
    memory = _memory(model, rows, held, longest)
    cost = model.step(**mix.counts())
    energy_j = model.shards * cost.power_w * cost.duration_s
    step = _phase(model, breakdown(model, mix), energy_j)
    counts = {"new_tokens": rows, "emitted_tokens": emitted}
    return _head(model) | {
        "mix": {
            "prefill": [c._asdict() for c in prefill],
            "decode": [r._asdict() for r in decode],
            **counts,
        },
        "step": step
        | {f"energy_per_{name[:-1]}_j": energy_j / n if n else None for name, n in counts.items()},
        **memory,
    }


def request_object(model: StepModel, prompt: int, reply: int, batch: int) -> dict[str, Any]:
    """A static batch of equal requests as plain numbers. Raises CapacityError when it cannot be held."""
    length = prompt + reply - 1
    memory = _memory(model, batch * prompt, batch * length, length)
    cost = request_cost(model, prompt, reply, batch)
    prefill_j, decode_j = float(cost.prefill_j), float(cost.decode_j)
    prefill = _phase(model, breakdown(model, prefill_mix(prompt, batch)), prefill_j)
    decode = _phase(model, decode_groups(model, prompt, reply, batch), decode_j)
    total_s, total_j = prefill["duration_s"] + decode["duration_s"], prefill_j + decode_j
    return _head(model) | {
        "request": {"prompt_tokens": prompt, "output_tokens": reply, "batch": batch},
        "prefill": prefill | {"energy_per_prompt_token_j": prefill_j / (batch * prompt)},
        "decode": decode
        | {
            "steps": reply - 1,
            "energy_per_token_j": decode_j / (batch * (reply - 1)) if reply > 1 else None,
        },
        "total": {
            "duration_s": total_s,
            "energy_j": total_j,
            "above_idle_j": prefill["above_idle_j"] + decode["above_idle_j"],
            "energy_per_request_j": total_j / batch,
            "energy_per_request_wh": total_j / batch / 3600,
            "energy_per_output_token_j": total_j / (batch * reply),
            "output_tokens_per_s": batch * reply / total_s,
        },
        **memory,
    }


def _head(model: StepModel) -> dict[str, Any]:
    return {
        "model": model.model.id,
        "parameters": model.model.parameters,
        "gpu": model.gpu.id,
        "dtype": model.dtype.name,
        "shards": model.shards,
        "label": "estimated",
    }


def _phase(model: StepModel, groups: Sequence[Group], energy_j: float) -> dict[str, Any]:
    """Groups that take part, their sums, what they use of the board, and its power. Zero steps: no rates."""
    rows: list[dict[str, Any]] = [
        {
            "name": group.name,
            "flop": float(group.flop),
            "traffic_bytes": float(group.traffic_bytes),
            "link_bytes": float(group.link_bytes),
            "time_s": float(group.time_s),
            "bound": str(group.bound),
        }
        for group in groups
        if group.bound != "none"
    ]
    seconds, flop, moved = (fsum(row[key] for row in rows) for key in ("time_s", "flop", "traffic_bytes"))
    board_s = model.shards * seconds
    busy = seconds > 0
    return {
        "groups": rows,
        "duration_s": seconds,
        "flop": flop,
        "traffic_bytes": moved,
        "memory_utilisation": moved / (seconds * model.gpu.bandwidth_bytes_per_s) if busy else None,
        "compute_utilisation": flop / (seconds * model.peak_flop_per_s) if busy else None,
        "power_w": energy_j / board_s if busy else None,
        "energy_j": energy_j,
        "above_idle_j": energy_j - model.gpu.context_idle_w * board_s,
    }


def _memory(model: StepModel, rows: int, held_tokens: int, longest: int) -> dict[str, Any]:
    """What a board's memory is spent on, and the limits; CapacityError when the step does not fit."""
    shape, positions = model.model, model.model.max_position_embeddings
    if longest > positions:
        raise ConfigError(
            f"{shape.id}: expected sequences of at most its {positions} positions, got {longest} tokens"
        )
    launch = Launch(launcher=Launcher(num_shard=model.shards))
    limits = derive_limits(shape, model.gpu, model.dtype, launch)
    forward = max(rows, limits.max_batch_prefill_tokens)
    budget = memory_budget(shape, model.gpu, model.dtype, model.shards, forward)
    if held_tokens > budget.kv_tokens:
        raise CapacityError(f"{held_tokens} tokens to hold are more than fit; {budget.explain()}")
    notes = []
    if rows > limits.max_batch_prefill_tokens:
        notes.append(
            f"a TGI server would split these {rows} new tokens: its forward has at most "
            f"{limits.max_batch_prefill_tokens}"
        )
    return {
        "memory": {
            "weights_bytes": budget.items["weights"],
            "items_bytes": dict(budget.items),
            "forward_tokens": forward,
            "free_for_kv_bytes": budget.free_for_kv_bytes,
            "kv_token_bytes": shape.kv_token_bytes_per_shard(model.dtype, model.shards),
            "kv_tokens": budget.kv_tokens,
            "held_tokens": held_tokens,
        },
        "limits": {
            "max_position_embeddings": positions,
            "max_batch_prefill_tokens": limits.max_batch_prefill_tokens,
            "max_batch_total_tokens": limits.max_batch_total_tokens,
            "max_total_tokens": limits.max_total_tokens,
        },
        "idle_w": model.gpu.context_idle_w,
        "notes": notes,
    }
