"""Template of self-contained HTML pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape


def page(title: str, body: str, *, style: str, images: str = "data:", script: str = "") -> str:
    """Return an HTML page that contains its style and script.

    The Content-Security-Policy blocks any other script, whatever text names of files and labels contain.

    Args:
        title: plain text.
        body: HTML.
        style: CSS.
        images: allowed sources of images, in the syntax of a Content-Security-Policy.
        script: JavaScript to run at the end of the page.
    """
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src {images}"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body += f"\n<script>{script}</script>"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def definitions(values: Mapping[str, str]) -> str:
    """Return an HTML list of names and values, without the names that have no value."""
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items() if value]
    return f"<dl>{''.join(rows)}</dl>"
