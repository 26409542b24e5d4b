"""QR codes as SVG documents."""

from __future__ import annotations

import segno

_SCALE = 4  # pixels of a module


def qr_code(text: str) -> str:
    """Return the QR code of a text as an SVG document, for an <img> or inline."""
    return segno.make_qr(text, error="m").svg_inline(scale=_SCALE, light="white")
