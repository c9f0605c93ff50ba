"""Equations as MathML, which browsers draw by themselves: nothing is fetched and nothing runs."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# As pymdownx.arithmatex leaves them: \(...\) within a line, \[...\] on lines of their own.
_FOUND = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **others: Any) -> str:
    """Replaces the equations of a page."""

    def replace(found: re.Match[str]) -> str:
        element, opening, text = found.groups()
        display = "inline" if opening == "(" else "block"
        try:
            math = convert(html.unescape(text).strip(), display=display)
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: no equation: {text}") from error
        return f'<{element} class="equation">{math}</{element}>'

    return _FOUND.sub(replace, content)
