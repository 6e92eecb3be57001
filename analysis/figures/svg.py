"""A drawn figure as SVG for a page, or as a file.

matplotlib's SVG is rewritten so that several stand in one page and follow its colours:

- every id begins with the figure's name; ids nobody refers to, metadata and dates are gone, numbers
  have two decimals: equal input gives equal bytes;
- ``style`` attributes are gone. A colour is an attribute, for programs that know no CSS, and a class
  whose rule follows the page: ink is ``var(--fg, currentColor)``, a series ``var(--series-1, #0072b2)``
  and so on. Rules are scoped by the figure's id;
- text is text, in the page's font; ``role="img"``, ``<title>`` and ``<desc>`` say what it shows.

There is nothing in it that runs or loads: no script, no handler, no reference outside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree as ET

from analysis.figures.style import FAINT, INK, MUTED, SERIES, Drawn, house
from loadgen.errors import ConfigError

FORMATS = (".svg", ".png", ".pdf")
PNG_DPI = 150
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_DARK_PAGE = "@media (prefers-color-scheme:dark){svg{color:#ececec}}"
_CLASS: Mapping[str, str] = MappingProxyType(
    {INK: "ink", MUTED: "muted", FAINT: "faint", **{color: f"s{k + 1}" for k, color in enumerate(SERIES)}}
)
_INK = "var(--fg,currentColor)"
_PAINT: Mapping[str, tuple[str, float | None]] = MappingProxyType(
    {
        "ink": (_INK, None),
        "muted": (_INK, 0.74),
        "faint": (_INK, 0.2),
        **{f"s{k + 1}": (f"var(--series-{k + 1},{color})", None) for k, color in enumerate(SERIES)},
    }
)
_NAMESPACE = "http://www.w3.org/2000/svg"
_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?|-?\d(?:\.\d+)?e-\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_GEOMETRY = ("d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "transform", "points", "viewBox")
_NOT_INHERITED = ("x", "y", "href", "class", "clip-path", "opacity", "id", "transform")


def svg(drawn: Drawn, *, standalone: bool = False) -> str:
    """The figure as one ``<svg>`` element, for a page; ``standalone``: as a file of its own.

    The page may set ``--fg`` and ``--series-1`` to ``--series-5``, and need not.
    """
    with house(**{"svg.hashsalt": drawn.name}):
        text = io.StringIO()
        drawn.figure.savefig(text, format="svg", transparent=True)
    made = _without_namespaces(ET.fromstring(text.getvalue()))
    root = ET.Element("svg", {"xmlns": _NAMESPACE, "id": drawn.name, "class": "figure", "role": "img"})
    root.set("aria-labelledby", f"{drawn.name}-title {drawn.name}-desc")
    root.set("viewBox", _rounded(made.attrib["viewBox"]))
    root.set("font-family", FONT)
    root.set("stroke-linejoin", "round")
    root.set("fill", INK)
    ET.SubElement(root, "title", {"id": f"{drawn.name}-title"}).text = drawn.title
    ET.SubElement(root, "desc", {"id": f"{drawn.name}-desc"}).text = drawn.alt
    sheet = ET.SubElement(root, "style")
    root.extend(child for child in made if child.tag != "metadata")
    used: set[str] = set()
    _rewrite(root, used)
    _prune(root)
    _scope_ids(root, drawn.name)
    sheet.text = _rules(drawn.name, used) + (f"svg{{color:{INK}}}{_DARK_PAGE}" if standalone else "")
    return ET.tostring(root, encoding="unicode")


def save(drawn: Drawn, path: Path | str) -> Path:
    """Writes the figure by the name's ending: ``.svg``, ``.pdf``, or ``.png`` at 150 dpi on white.

    Raises ConfigError for another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    if ending == ".svg":
        path.write_text(svg(drawn, standalone=True) + "\n", encoding="utf-8")
        return path
    with house():
        if ending == ".png":
            drawn.figure.savefig(path, dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
        else:
            dateless = {"CreationDate": None, "Creator": None, "Producer": None, "Title": drawn.title}
            drawn.figure.savefig(path, format="pdf", metadata=dateless)
    return path


def _without_namespaces(element: ET.Element) -> ET.Element:
    for each in element.iter():
        each.tag = each.tag.rpartition("}")[2]
        each.attrib = {key.rpartition("}")[2]: value for key, value in each.attrib.items()}
        each.text = each.text if each.tag == "text" else None
        each.tail = None
    return element


def _rewrite(root: ET.Element, used: set[str]) -> None:
    """Styles to attributes and classes; matplotlib's rule for the whole page goes."""
    for parent in root.iter():
        for child in [c for c in parent if c.tag == "style" and c.get("type") is not None]:
            parent.remove(child)
    for each in root.iter():
        for part in each.attrib.pop("style", "").split(";"):
            name, colon, value = part.partition(":")
            if colon and name.strip() != "font-family":
                each.set(name.strip(), value.strip().removesuffix("px"))
        classes = []
        for paint in ("fill", "stroke"):
            role = _CLASS.get(each.get(paint, "").lower())
            if role is not None and each is not root:
                own, page = each.get(f"{paint}-opacity"), _PAINT[role][1]
                if own is not None and page is not None:  # a rule's opacity would win over the element's own
                    role = "ink"
                    each.set(paint, INK)
                    each.set(f"{paint}-opacity", f"{float(own) * page:.2g}")
                classes.append(f"{paint[0]}-{role}")
        if classes:
            each.set("class", " ".join(classes))
            used.update(classes)
        for name in _GEOMETRY:
            if name in each.attrib:
                each.set(name, _rounded(each.attrib[name]))
        if (
            each.get("transform", "").startswith("rotate(0 ")
            or each.get("transform", "")[:10] == "rotate(-0 "
        ):
            del each.attrib["transform"]


def _rounded(text: str) -> str:
    short = _NUMBER.sub(lambda m: f"{round(float(m[0]), 2) + 0.0:.2f}".rstrip("0").rstrip("."), text)
    return " ".join(short.split())


def _prune(element: ET.Element) -> None:
    """Drops what nobody sees, and writes once what all points of a series share."""
    for child in list(element):
        _prune(child)
        invisible = child.get("fill") == "none" and child.get("stroke", "none") == "none"
        if (child.tag == "path" and invisible) or (child.tag in ("g", "defs") and not len(child)):
            element.remove(child)
    points = list(element)
    if element.tag == "g" and len(points) > 1 and all(c.tag == "use" for c in points):
        for name in set(points[0].attrib) - set(_NOT_INHERITED):
            if len({c.get(name) for c in points}) == 1 and name not in element.attrib:
                element.set(name, points[0].attrib[name])
                for child in points:
                    del child.attrib[name]
        if len({c.get("class") for c in points}) == 1 and points[0].get("class") and not element.get("class"):
            element.set("class", points[0].attrib["class"])
            for child in points:
                del child.attrib["class"]


def _scope_ids(root: ET.Element, name: str) -> None:
    """Ids that something refers to begin with the figure's name; the others go."""
    referred = {each.attrib["href"][1:] for each in root.iter() if "href" in each.attrib}
    referred |= {
        found for each in root.iter() for v in each.attrib.values() for found in _REFERENCE.findall(v)
    }
    short = {old: f"{name}-{k}" for k, old in enumerate(sorted(referred))}
    for each in root.iter():
        if each.tag in ("title", "desc") or each is root:
            continue
        old = each.attrib.pop("id", None)
        if old in short:
            each.set("id", short[old])
        if "href" in each.attrib:
            each.set("href", f"#{short[each.attrib['href'][1:]]}")
        for key, value in each.attrib.items():
            if "url(#" in value:
                each.set(key, _REFERENCE.sub(lambda m: f"url(#{short[m[1]]})", value))


def _rules(name: str, used: set[str]) -> str:
    found = []
    for role in sorted(used):
        paint, color = ("fill" if role[0] == "f" else "stroke"), role[2:]
        value, opacity = _PAINT[color]
        more = "" if opacity is None else f";{paint}-opacity:{opacity}"
        found.append(f"#{name} .{role}{{{paint}:{value}{more}}}")
    return "".join(found)
