"""The page around the data: markup, style and script joined into one file that needs nothing else.

    html = page(title="bottle", data={…}, chunks=[[…], …])

Data is JSON in blocks that no browser runs, with `<`, `>` and `&` escaped, so that a name can never become markup; the
script makes elements, never markup from text; a content security policy allows the one style and the one script by
their hashes, pictures from data, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "page"

#: In this order; each part uses what stands before it.
SCRIPTS = ("elements", "state", "leaderboard", "curves", "panels", "gallery", "viewer", "records", "page")

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(*, title: str, data: dict[str, Any], chunks: Sequence[str]) -> str:
    """Join everything into one HTML document.

    Args:
        title: Title of the document, plain text.
        data: What the script reads first.
        chunks: Blocks of pictures, already as `json_text` writes them.
    """
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    parts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
    blocks = [_block("data", json_text(data))]
    blocks += [_block(f"pictures-{number}", chunk) for number, chunk in enumerate(chunks)]
    pieces = {
        "TITLE": html.escape(title),
        "POLICY": (
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "STYLE": style,
        "DATA": "\n".join(blocks),
        "SCRIPT": script,
    }
    frame = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"@@([A-Z]+)@@", lambda match: pieces[match[1]], frame)


def json_text(value: Any) -> str:
    """Compact JSON without a character that could end the block it stands in.

    Raises:
        ValueError: When a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: _ESCAPES[match[0]], text)


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>'


def _hash(text: str) -> str:
    """The hash by which a content security policy allows an inline element of this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
