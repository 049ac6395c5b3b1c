"""Formulas as MathML, which browsers draw by themselves: the pages need no script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """Return a page with each formula that arithmatex marked as MathML."""
    return FORMULA.sub(_as_mathml, page_html)


def _as_mathml(found: re.Match[str]) -> str:
    return convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline")
