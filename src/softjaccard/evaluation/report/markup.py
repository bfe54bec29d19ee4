"""HTML and SVG from nested calls; every text and value is escaped on the way in."""

from __future__ import annotations

from html import escape

_WITHOUT_END = {"img", "meta"}


class Markup(str):
    """Text that is markup already, and so is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        children: Markup, or anything else as text; None is left out.
        attributes: `class_` means class, `stroke_width` stroke-width; None is left out.

    Example:
        >>> tag("td", "a < b", tag("b", 1), class_="wide", title=None)
        '<td class="wide">a &lt; b<b>1</b></td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    # Written so that the page is well-formed XML, too.
    end = "/>" if name in _WITHOUT_END else f">{join(*children)}</{name}>"
    return Markup(f"<{name}{written}{end}")


def join(*children: object) -> Markup:
    """Return markup and texts after another.

    Example:
        >>> join("R&D", tag("b", 1), None)
        'R&amp;D<b>1</b>'
    """
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(str(child), quote=False)
            for child in children
            if child is not None
        )
    )
