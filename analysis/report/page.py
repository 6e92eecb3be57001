"""The one way from blocks to HTML: a template that escapes everything it is given.

Prompts, replies, server names and error texts are other people's. They pass `_shown`, which
makes characters visible that would reorder or hide text, and then Jinja's autoescaping. The page's own
style, script and figures are the only markup; the script's hash is in the page's policy, so
a browser runs no other, and the policy lets the page ask nobody for anything.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import loadgen
from analysis.report.blocks import Page, Picture

if TYPE_CHECKING:
    import jinja2

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Controls, direction marks and zero-width characters, surrogates, line and paragraph separators."""
_KEPT = "\t\n"
_ACTIVE = {"script", "foreignobject", "iframe", "object", "embed", "animate", "set", "handler"}
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
)


def html(page: Page) -> str:
    """The page as one self-contained document."""
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made: str = _template().render(
        page=page,
        style=_own(asset("style.css"), "</style"),
        script=_own(script, "</script"),
        policy=_POLICY.format(digest=digest),
        version=loadgen.__version__,
    )
    return made.lstrip()


def asset(name: str) -> str:
    """A file of this package's ``assets``."""
    return files("analysis.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError(f"report: expected text or a number in the page, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"report: expected a finite number in the page, got {value}")
        return visible(format(value, ".12g") if isinstance(value, float) else str(value))

    environment = jinja2.Environment(
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = lambda picture: Markup(inert(picture))
    return environment.from_string(asset("page.html.jinja"))


def visible(text: str) -> str:
    """The text with every character that hides or reorders others written as its code point."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in _INVISIBLE and c not in _KEPT else c for c in text
    )


def inert(picture: Picture) -> str:
    """A drawing's SVG, which can run nothing and fetch nothing, named by its title and caption.

    Raises ValueError for one that could: that is a mistake of the program which drew it.
    """
    svg = picture.svg[picture.svg.index("<svg") :]
    for element in ElementTree.fromstring(svg).iter():
        name = str(element.tag).rpartition("}")[2].lower()
        if name in _ACTIVE or (name == "style" and re.search(r"@import|url\(", element.text or "")):
            raise ValueError(f"report: {picture.title}: expected a drawing, got the element {name}")
        for key, value in element.attrib.items():
            key = key.rpartition("}")[2].lower()
            if key.startswith("on") or (
                key in ("href", "src") and not value.startswith(("#", "data:image/"))
            ):
                raise ValueError(f"report: {picture.title}: expected a drawing, got {key}={value[:40]!r}")
            if re.search(r"url\(\s*['\"]?(?!#)", value):
                raise ValueError(f"report: {picture.title}: expected a drawing, got {key}={value[:40]!r}")
    return svg


def _own(text: str, end: str) -> Any:
    from markupsafe import Markup

    assert end not in text.lower()
    return Markup(text)
