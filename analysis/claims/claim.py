"""A published energy figure, as ``--claim K=V`` states it.

The figure is the mean energy of one request in steady state: requests come with
the mean spacing that is claimed, without end, and ``gpus`` equal boards serve
nothing else. What is not claimed stays unknown, and the rules of
`analysis.claims.rules` then concede whatever would lower their bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from analysis.words import J_PER_WH
from loadgen.config import near
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import MODELS, Transformer, read_config
from loadgen.physics.profile_file import read_profile

T = TypeVar("T")


KEYS = (
    "gpu",
    "gpus",
    "model",
    "dtype",
    "interval_s",
    "spacing",
    "low_s",
    "high_s",
    "prompt_tokens",
    "output_tokens",
    "prefix_cache",
    "cached_tokens",
    "max_in_flight",
    "speculation",
    "energy_wh",
)
"""What can be claimed; `docs/lint.md` says what each means."""
_REQUIRED = ("gpu", "energy_wh")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "f32": "float32"}
_UNKNOWN = "unknown"
_DECORATION = re.compile(r"nvidia|geforce|torch\.|[-_ ]?instruct|\bmeta[-_ ]?")
_SIZES = re.compile(r"80gb|141gb|hbm3e?")
"""Memory of boards known by one size only; an A100 of 40 GB is another board than one of 80."""
_KNOWN = {"on": True, "off": False, "unknown": None}

_UNIFORM = ("uniform", "uniform_script")
"""Laws of U(low_s, high_s), as scenarios name them; the mean gap of both is (low_s + high_s) / 2."""
_SMALLEST, _LARGEST = 1e-15, 1e15


class Range(NamedTuple):
    """What a quantity may lie between, both ends included; equal ends: it is known."""

    least: float
    most: float

    @property
    def known(self) -> bool:
        return self.least == self.most


@dataclass(frozen=True, slots=True)
class Claim:
    """``energy_j`` and the token counts are means of one request, ``interval_s`` the mean spacing.

    ``cached_tokens``: what a prefix cache may have saved of a prompt; None without a prompt length.
    """

    gpu: Gpu
    energy_j: float
    boards: int
    spacing: str
    interval_s: float | None
    model: Transformer | None
    dtype: Dtype | None
    prompt_tokens: float | None
    output_tokens: float | None
    cached_tokens: Range | None
    max_in_flight: float | None
    speculation: bool | None


def parse_claim(words: Sequence[str]) -> Claim:
    """The claim of ``K=V`` words.

    Raises ConfigError naming the key, its value, what was expected and the nearest name.
    """
    stated = _Stated(words)
    gpu = stated.gpu()
    dtype_name = stated.choice("dtype", {**{name: name for name in DTYPES}, **_SHORT})
    dtype = DTYPES[dtype_name] if dtype_name is not None else None
    if dtype is not None:
        dtype.rate_on(gpu)
    model = stated.model()
    prompt = stated.number("prompt_tokens", least=1.0)
    spacing, interval_s = stated.interval_s()
    claim = Claim(
        gpu=gpu,
        energy_j=J_PER_WH * stated.required("energy_wh"),
        boards=int(stated.number("gpus", least=1.0, whole=True) or 1),
        spacing=spacing,
        interval_s=interval_s,
        model=model,
        dtype=dtype,
        prompt_tokens=prompt,
        output_tokens=stated.number("output_tokens", least=1.0),
        cached_tokens=stated.cached_tokens(prompt),
        max_in_flight=stated.number("max_in_flight", least=1.0, whole=True),
        speculation=stated.choice("speculation", _KNOWN),
    )
    if claim.interval_s is None and (model is None or prompt is None):
        raise ConfigError(
            "--claim: nothing bounds an energy alone: add interval_s (idle floors, mean power), or model and "
            "prompt_tokens (FLOP floor)"
        )
    return claim


def _plain(name: str) -> str:
    """A name without case, owner, maker and punctuation: ``h100sxm`` of ``NVIDIA H100-SXM5``."""
    bare = _DECORATION.sub("", name.casefold().rpartition("/")[2])
    return re.sub(r"sxm\d", "sxm", re.sub(r"[^a-z0-9.]", "", bare))


def _meant(text: str, known: Mapping[str, T]) -> T | None:
    """The one known thing whose name is ``text`` but for case and punctuation; None: none, or several."""
    for words in (_plain(text), _SIZES.sub("", _plain(text))):
        found = {id(value): value for name, value in known.items() if _plain(name) == words}
        if len(found) == 1:
            return next(iter(found.values()))
    return None


class _Stated:
    """The words by key, each refused by name where it does not fit."""

    def __init__(self, words: Sequence[str]) -> None:
        self._values: dict[str, str] = {}
        for word in words:
            key, equals, value = (part.strip() for part in word.partition("="))
            if not equals or not key or not value:
                raise ConfigError(f"--claim: expected K=V, got {word!r}; keys: {', '.join(KEYS)}")
            if key not in KEYS:
                known = near(key, KEYS) or f"; known: {', '.join(KEYS)}"
                raise ConfigError(f"--claim {word}: no such key{known}")
            if key in self._values:
                raise ConfigError(f"--claim {word}: {key} is claimed twice")
            self._values[key] = value
        missing = [key for key in _REQUIRED if key not in self._values]
        if missing:
            raise ConfigError(f"--claim: {' and '.join(missing)} missing, e.g. {_EXAMPLES[missing[0]]}")

    def refuse(self, key: str, expectation: str) -> ConfigError:
        return ConfigError(f"--claim {key}={self._values[key]}: expected {expectation}")

    def number(self, key: str, *, least: float | None = None, whole: bool = False) -> float | None:
        """A number above 0 or >= ``least``, within 1e15 either way; None when not claimed."""
        text = self._values.get(key)
        if text is None:
            return None
        kind = "a whole number" if whole else "a number"
        expected = f"{kind} {'> 0' if least is None else f'>= {least:g}'}"
        try:
            value = float(text)
        except ValueError:
            raise self.refuse(key, expected) from None
        fits = (_SMALLEST if least is None else least) <= value <= _LARGEST
        if not fits or (whole and not value.is_integer()):
            inside = "" if not abs(value) > _LARGEST else f", at most {_LARGEST:g}"
            raise self.refuse(key, f"{expected}{inside}")
        return value

    def required(self, key: str) -> float:
        value = self.number(key)
        assert value is not None  # __init__ refused its absence
        return value

    def choice(self, key: str, known: Mapping[str, T]) -> T | None:
        """What ``known`` maps the value to; None when not claimed, or claimed to be unknown."""
        text = self._values.get(key)
        if text is None or (text.casefold() == _UNKNOWN and key not in _REQUIRED):
            return None
        if text in known:
            return known[text]
        meant = _meant(text, known)
        if meant is None:
            raise self.refuse(key, f"one of {', '.join(known)}{near(text.casefold(), known)}")
        return meant

    def gpu(self) -> Gpu:
        text = self._values.get("gpu")
        if text is not None and text.endswith(".json"):
            return read_profile(Path(text)).gpu
        found = self.choice("gpu", GPUS | {gpu.name: gpu for gpu in GPUS.values()})
        assert found is not None
        return found

    def model(self) -> Transformer | None:
        text = self._values.get("model")
        if text is not None and text not in MODELS and (text.endswith(".json") or Path(text).is_dir()):
            return read_config(text)
        return self.choice("model", MODELS | {model.hub_id: model for model in MODELS.values()})

    def interval_s(self) -> tuple[str, float | None]:
        """The law of the gaps and their mean; None when no spacing is claimed."""
        mean_s, high_s = self.number("interval_s"), self.number("high_s")
        low_s = self.number("low_s", least=0.0)
        bounded = low_s is not None or high_s is not None
        law = self.choice("spacing", {law: law for law in ("constant", *_UNIFORM)})
        law = law or ("uniform" if bounded else "constant")
        if law == "constant":
            if bounded:
                raise ConfigError(f"--claim spacing={law}: expected interval_s, got low_s and high_s")
            return law, mean_s
        if mean_s is not None:
            raise ConfigError(f"--claim interval_s: spacing={law} has low_s and high_s, which give the mean")
        if low_s is None or high_s is None:
            raise ConfigError(f"--claim spacing={law}: expected both low_s and high_s")
        if low_s > high_s:
            raise ConfigError(f"--claim low_s={low_s:g}: expected at most high_s, {high_s:g}")
        return f"{law}({low_s:g}, {high_s:g})", (low_s + high_s) / 2

    def cached_tokens(self, prompt: float | None) -> Range | None:
        """A prompt's last token is always computed: at most all others were cached."""
        cache = self.choice("prefix_cache", _KNOWN)
        saved = self.number("cached_tokens", least=0.0)
        if saved and cache is False:
            raise ConfigError(f"--claim cached_tokens={saved:g}: expected 0 with prefix_cache=off")
        if prompt is None:
            if saved is not None:
                raise ConfigError(f"--claim cached_tokens={saved:g}: expected prompt_tokens beside it")
            return None
        most = prompt - 1.0
        if saved is not None:
            if saved > most:
                raise self.refuse("cached_tokens", f"at most prompt_tokens - 1, {most:g}")
            return Range(saved, saved)
        return Range(0.0, 0.0) if cache is False else Range(0.0, most)


_EXAMPLES = {"gpu": "gpu=h100-sxm", "energy_wh": "energy_wh=1.1e-3"}
