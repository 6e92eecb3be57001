"""The forms that are fitted: sums of coefficients times products of a request's or a step's sizes.

The study's (arXiv 2601.22362) are laws of one request at a time:

    t_prefill = alpha s + beta s^2 + gamma          t_decode = eta n + theta s n + phi n^2 + rho
    E_prefill = A s + B                             E_decode = C n + D s n + E

with s prompt tokens and n = g - 1 decode steps of a reply of g tokens, as the first token
comes from prefill. The study counted two more (its own constants say so: rho = -2.04 eta, E =
-2.21 C), so its g is n + 2. With n a roofline has rho = 0. P is the ratio of summed energy and
summed time, where the study's 293 W is the ratio of two slopes.

A step that decodes rows over so many tokens of context takes ``a + b rows + c context``; one
that only prefills s tokens ``c0 + c1 s + c2 q``, q the sum of its prompts' squared lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factor:
    """One coefficient: it multiplies the product of the inputs, each to its power."""

    name: str
    unit: str
    powers: Mapping[str, int]
    cost: bool = True
    """Whether it stands for work, which costs something or nothing: never less."""


@dataclass(frozen=True, slots=True)
class Form:
    """``formula`` in words for people; ``unit`` of what it gives; ``first``: factors in the order in which
    they are kept when not all can be told apart."""

    name: str
    formula: str
    unit: str
    factors: tuple[Factor, ...]
    first: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the sizes it depends on."""
        return tuple(dict.fromkeys(name for factor in self.factors for name in factor.powers))

    @property
    def order(self) -> tuple[int, ...]:
        """Places of the factors by ``first``."""
        names = [factor.name for factor in self.factors]
        return tuple(names.index(name) for name in self.first)


def column(powers: Mapping[str, int], inputs: Mapping[str, Floats], n: int) -> Floats:
    """What a coefficient multiplies, (n,)."""
    found: Floats = np.ones(n, dtype=np.float64)
    for name, power in powers.items():
        found = found * np.asarray(inputs[name], dtype=np.float64) ** power
    return found


def design(form: Form, inputs: Mapping[str, Floats], n: int) -> Matrix:
    """(n, m), a column a factor."""
    return np.stack([column(factor.powers, inputs, n) for factor in form.factors], axis=1)


def _energies(name: str, which: str) -> tuple[Form, Form]:
    return (
        Form(
            f"E_prefill{name}",
            f"E = A s + B, {which}",
            "J",
            (Factor("A", "J/token", {"s": 1}), Factor("B", "J", {}, cost=False)),
            ("B", "A"),
        ),
        Form(
            f"E_decode{name}",
            f"E = C n + D s n + E, {which}",
            "J",
            (
                Factor("C", "J/token", {"n": 1}),
                Factor("D", "J/token^2", {"s": 1, "n": 1}),
                Factor("E", "J", {}, cost=False),
            ),
            ("C", "E", "D"),
        ),
    )


_FORMS = (
    Form(
        "t_prefill",
        "t = alpha s + beta s^2 + gamma",
        "s",
        (
            Factor("alpha", "s/token", {"s": 1}),
            Factor("beta", "s/token^2", {"s": 2}),
            Factor("gamma", "s", {}, cost=False),
        ),
        ("gamma", "alpha", "beta"),
    ),
    Form(
        "t_decode",
        "t = eta n + theta s n + phi n^2 + rho",
        "s",
        (
            Factor("eta", "s/token", {"n": 1}),
            Factor("theta", "s/token^2", {"s": 1, "n": 1}),
            Factor("phi", "s/token^2", {"n": 2}),
            Factor("rho", "s", {}, cost=False),
        ),
        ("eta", "rho", "theta", "phi"),
    ),
    *_energies("", "idle power included"),
    *_energies("_active", "above idle"),
    Form("P_prefill", "P = sum E / sum t", "J", (Factor("P", "W", {"t": 1}),), ("P",)),
    Form("P_decode", "P = sum E / sum t", "J", (Factor("P", "W", {"t": 1}),), ("P",)),
    Form(
        "prefill_step",
        "t = c0 + c1 s + c2 q",
        "s",
        (
            Factor("c0", "s", {}),
            Factor("c1", "s/token", {"s": 1}),
            Factor("c2", "s/token^2", {"q": 1}),
        ),
        ("c0", "c1", "c2"),
    ),
    Form(
        "decode_step",
        "t = a + b rows + c context",
        "s",
        (
            Factor("a", "s", {}),
            Factor("b", "s/row", {"rows": 1}),
            Factor("c", "s/token", {"context": 1}),
        ),
        ("a", "b", "c"),
    ),
)
FORMS: Mapping[str, Form] = MappingProxyType({form.name: form for form in _FORMS})
