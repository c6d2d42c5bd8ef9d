"""An HTML document that opens from disk and loads nothing from elsewhere.

Its Content-Security-Policy allows its own styles and scripts by their SHA-256 and nothing else,
so that a browser would refuse any request even if one were made. A page of a folder may say that
it loads scripts from where it lies itself.
"""

import base64
from collections.abc import Sequence
from html import escape

from volumediff.storage.digests import sha256

__all__ = ["NOTICE", "document"]

NOTICE = "Research software. Not a medical device, not for diagnosis."


def document(
    title: str,
    body: Sequence[str],
    *,
    styles: Sequence[str],
    scripts: Sequence[str] = (),
    beside: bool = False,
) -> str:
    """The text of a document.

    Arguments:
        title: of the window
        body: HTML, all names in it escaped
        styles: CSS
        scripts: JavaScript, run in this order after the body
        beside: whether a script may load others from the place of the document
    """
    own = ["'self'"] if beside else []
    allowed = " ".join([*own, *(_source(text) for text in scripts)]) or "'none'"
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {' '.join(_source(text) for text in styles)}; script-src {allowed}"
    )
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        *(f"<style>{text}</style>" for text in styles),
        "</head><body>",
        *body,
        *(f"<script>{text}</script>" for text in scripts),
        "</body></html>\n",
    ]
    return "\n".join(lines)


def _source(text: str) -> str:
    digest = base64.b64encode(bytes.fromhex(sha256(text))).decode()
    return f"'sha256-{digest}'"
