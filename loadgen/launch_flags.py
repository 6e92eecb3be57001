"""The flags of ``loadgen serve``: TGI's launcher's own names, so that a deployment's line can be pasted.

Limits and switches come from `Launcher`, one flag a field. Launcher flags that
change nothing observable here are taken and named in a note, not refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from loadgen.config import parse_value
from loadgen.errors import ConfigError
from loadgen.launch import (
    DEFAULT_DTYPE,
    DEFAULT_GPU,
    DEFAULT_MODEL,
    Dialect,
    Faults,
    Hardware,
    Launch,
    Launcher,
)
from loadgen.section import Section

S = TypeVar("S", bound=Section)

_QUANTIZE = {
    "bitsandbytes": "int8",
    "bitsandbytes-nf4": "int4",
    "bitsandbytes-fp4": "fp4",
    "awq": "awq",
    "fp8": "fp8",
}
_WITHOUT_EFFECT = {
    **dict.fromkeys(("revision", "huggingface-hub-cache", "weights-cache-override", "lora-adapters"), "M"),
    **dict.fromkeys(("rope-scaling", "rope-factor", "watermark-gamma", "watermark-delta"), "N"),
    **dict.fromkeys(("sharded", "shard-uds-path", "master-addr", "master-port", "prometheus-port"), "P"),
    **dict.fromkeys(("otlp-endpoint", "otlp-service-name", "cors-allow-origin", "usage-stats"), "U"),
    **dict.fromkeys(("tokenizer-config-path", "max-batch-total-tokens"), "T"),
    **dict.fromkeys(("trust-remote-code", "disable-custom-kernels", "json-output"), None),
    "disable-grammar-support": None,
}
"""Launcher flags with nothing to change here (no weights, no processes, no telemetry), and their values."""
_NOT_SIMULATED = ("speculate", "kv-cache-dtype")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares every flag but host and port."""
    model = parser.add_argument_group("what is simulated")
    model.add_argument(
        "--model-id", "--model", metavar="M", help=f"a model's id or a config.json (default {DEFAULT_MODEL})"
    )
    model.add_argument(
        "--gpu", metavar="G", help=f"the board, e.g. a100-sxm or a profile.json (default {DEFAULT_GPU})"
    )
    model.add_argument("--dtype", metavar="D", help=f"number format, e.g. float16 (default {DEFAULT_DTYPE})")
    model.add_argument("--quantize", choices=sorted(_QUANTIZE), help="instead of --dtype, as TGI names it")
    model.add_argument(
        "--dialect",
        choices=get_args(Dialect),
        default="tgi",
        help="whose HTTP interface is spoken (default %(default)s)",
    )
    model.add_argument("--scheduler", choices=("tgi", "vllm"), help="whose batching (default: the dialect's)")
    model.add_argument("--seed", metavar="N", help="seed of reply lengths, faults and boards (default 0)")
    model.add_argument(
        "--max-concurrent-requests", metavar="N", help="refuse with 429 beyond (default 128; TGI's dialect)"
    )
    _add_fields(parser.add_argument_group("the launcher's flags"), Launcher)
    _add_fields(parser.add_argument_group("how this board differs"), Hardware)
    faults = parser.add_argument_group("faults on demand")
    faults.add_argument(
        "--fault",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="repeatable: " + "; ".join(f"{k}: {f.description}" for k, f in Faults.model_fields.items()),
    )
    names = ", ".join(f"--{name}" for name in _WITHOUT_EFFECT)
    rest = parser.add_argument_group("taken for compatibility, without effect", names)
    for name, value in _WITHOUT_EFFECT.items():
        if value is None:
            rest.add_argument(f"--{name}", action="store_true", default=None, help=argparse.SUPPRESS)
        else:
            rest.add_argument(f"--{name}", metavar=value, help=argparse.SUPPRESS)
    for name in _NOT_SIMULATED:
        rest.add_argument(f"--{name}", help=argparse.SUPPRESS)


def _add_fields(group: Any, section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        names = [f"--{name.replace('_', '-')}"]
        if name == "max_input_tokens":
            names.append("--max-input-length")
        shown = (field.description or "") + _default(field)
        if field.annotation is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=shown)
        else:
            group.add_argument(*names, dest=name, metavar="LIST" if _is_list(field) else "N", help=shown)


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return ""
    value = field.default
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
    return f" (default {text})"


def _is_list(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(get_origin(kind) is tuple for kind in kinds)


def launch_of(args: argparse.Namespace) -> Launch:
    """The launch the flags describe. Raises ConfigError, one line per mistake."""
    for name in _NOT_SIMULATED:
        if getattr(args, name.replace("-", "_")) is not None:
            raise ConfigError(f"--{name}: is not simulated, and would change what a real server does")
    if args.quantize and args.dtype:
        raise ConfigError(f"--dtype {args.dtype}, --quantize {args.quantize}: expected one of the two")
    return Launch(
        model=args.model_id or DEFAULT_MODEL,
        gpu=args.gpu or DEFAULT_GPU,
        dtype=_QUANTIZE[args.quantize] if args.quantize else args.dtype or DEFAULT_DTYPE,
        seed=_whole("--seed", args.seed, 0, 0),
        dialect=args.dialect,
        scheduler=args.scheduler,
        max_concurrent_requests=_whole("--max-concurrent-requests", args.max_concurrent_requests, 128, 1),
        launcher=_section(Launcher, args),
        hardware=_section(Hardware, args),
        faults=_faults(args.fault),
    )


def without_effect(args: argparse.Namespace) -> list[str]:
    """The flags that were given and change nothing."""
    return [f"--{name}" for name in _WITHOUT_EFFECT if getattr(args, name.replace("-", "_")) is not None]


def _whole(flag: str, text: str | None, default: int, least: int) -> int:
    value = default if text is None else parse_value(text, flag)
    if type(value) is not int or value < least:
        raise ConfigError(f"{flag}: expected a whole number >= {least}, got {text}")
    return value


def _section(section: type[S], args: argparse.Namespace) -> S:
    given: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        value = getattr(args, name)
        if isinstance(value, str):
            flag = f"--{name.replace('_', '-')}"
            words = value.split(",") if _is_list(field) else [value]
            values = [parse_value(word, flag) for word in words]
            value = values if _is_list(field) else values[0]
        if value is not None:
            given[name] = value
    return _checked(section, given, "--{}", dashes=True)


def _faults(words: Sequence[str]) -> Faults:
    given: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"--fault {word}: expected KEY=VALUE, e.g. reset_rate=0.01")
        given[key] = parse_value(value, f"--fault {key}")
    return _checked(Faults, given, "--fault {}", dashes=False)


def _checked(section: type[S], given: dict[str, Any], place: str, *, dashes: bool) -> S:
    try:
        return section.model_validate(given)
    except ValidationError as exc:
        lines = []
        for error in exc.errors(include_url=False):
            name = str(error["loc"][0])
            flag = place.format(name.replace("_", "-") if dashes else name)
            if error["type"] == "extra_forbidden":
                lines.append(f"{flag}: expected one of {', '.join(section.model_fields)}")
            else:
                lines.append(f"{flag}: {error['msg']}, got {error['input']}")
        raise ConfigError("\n".join(lines)) from None
