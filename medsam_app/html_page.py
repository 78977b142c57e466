"""Template of self-contained HTML pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape


def page(title: str, body: str, *, style: str, images: str = "data:", script: str = "") -> str:
    """A page with its style and script inside.

    No other script runs, whatever the names of files and labels hold.

    Args:
        title: plain text.
        body: HTML.
        style: CSS.
        images: where they may come from, as a Content-Security-Policy says it.
        script: JavaScript, run at the end of the page.
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
    """Return a list of names and values; names without a value are left out."""
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items() if value]
    return f"<dl>{''.join(rows)}</dl>"
