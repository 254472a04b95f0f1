"""Put a figure's SVG into a page, so that it takes the colours of the page's theme."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from hskd.analysis.figures import style

THEMED = {style.INK: "var(--ink)", "#ffffff": "var(--page)", style.CURVE: "var(--curve)"}
"""Colours of figures that follow the page's theme, and their CSS variables in ``templates/base.html.j2``."""

_COLOUR = re.compile("|".join(THEMED))
_REFERENCE = re.compile(r"(?<=^#)[^)]+|(?<=url\(#)[^)]+")
"""The id in ``href="#id"`` and in ``clip-path="url(#id)"``."""
_REFERRING = ("href", "clip-path", "style")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COORDINATES = ("d", "x", "y", "width", "height")
_DROPPED = ("metadata", "style")
"""Metadata hold URLs, and the rules of a style element would apply to the whole page."""


def inline_svg(svg: bytes, prefix: str, title: str) -> Markup:
    """An SVG file of :func:`hskd.analysis.figures.style.save` as an element of an HTML page.

    Comments, metadata and unused ids are dropped. Coordinates are rounded to a hundredth of a point.

    Args:
        svg: the file's content.
        prefix: of all ids; must differ between the figures of a page.
        title: what screen readers say of the figure.
    """
    root = ElementTree.fromstring(svg)
    _clean(root)
    _rename(root, prefix)
    _unwrap(root)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": title}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # a serialised tree is escaped


def _clean(element: ElementTree.Element) -> None:
    """Drop namespaces, white space and unwanted elements, round coordinates and use the page's colours."""
    element.tag = _local(element.tag)
    element.text = element.tail = None
    attributes = {_local(name): value for name, value in element.attrib.items()}
    # Variables are valid in a style, so colours move there.
    rules = [f"{name}: {attributes.pop(name)}" for name in ("fill", "stroke") if name in attributes]
    rules += [attributes.pop("style")] if "style" in attributes else []
    if rules:
        attributes["style"] = _COLOUR.sub(lambda match: THEMED[match.group()], "; ".join(rules))
    for name in _COORDINATES:
        if name in attributes:
            attributes[name] = _LONG_NUMBER.sub(_rounded, " ".join(attributes[name].split()))
    element.attrib = attributes
    element[:] = [child for child in element if _local(child.tag) not in _DROPPED]
    for child in element:
        _clean(child)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Give every id that is referred to a short name that begins with ``prefix``, and drop the others."""
    used = {
        identifier
        for element in root.iter()
        for name in _REFERRING
        for identifier in _REFERENCE.findall(element.get(name, ""))
    }
    names = {identifier: f"{prefix}{number}" for number, identifier in enumerate(sorted(used))}
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in names:
            element.set("id", names[identifier])
        for name in _REFERRING:
            if name in element.attrib:
                element.set(name, _REFERENCE.sub(lambda match: names[match.group()], element.attrib[name]))


def _unwrap(element: ElementTree.Element) -> None:
    """Replace groups without attributes by what they hold."""
    children: list[ElementTree.Element] = []
    for child in element:
        _unwrap(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
