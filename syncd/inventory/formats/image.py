"""Keys that are pictures: recognised by what they contain, never by a name. Used by the reader."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

MAX_IMAGE: Final = 1 << 20
"""Bytes of the largest image that is taken as a key."""
_DATA_URI: Final = re.compile(r"data:[A-Za-z0-9.+/-]{0,64}(?:;[A-Za-z0-9=._-]{1,32}){0,3};base64,", re.IGNORECASE)
_STARTS: Final = ("iVBORw0KGgo", "/9j/", "_9j_", "R0lGOD", "UklGR", "data:image", "DATA:IMAGE")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]++={0,2}")
_WHITE: Final = dict.fromkeys(map(ord, " \t\r\n"))
_URL_SAFE: Final = str.maketrans("-_", "+/")
_SHORTEST: Final = 30
_MATRIX: Final = 10  # modules a side of the smallest code that a camera reads (ISO/IEC 16022)


def media_type(data: bytes) -> str:
    """The media type of a whole PNG, JPEG, GIF or WebP; "" for anything else, one that is cut off included."""
    if len(data) < _SHORTEST:
        return ""
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") and data.rstrip(b"\0").endswith(b"IEND\xaeB`\x82"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff") and data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")) and data.rstrip(b"\0").endswith(b";"):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 <= len(data):
        return "image/webp"
    return ""


def looks_like_image(text: str) -> bool:
    """Whether a text begins as an image in base64 or a data URI does, whole or not."""
    return text.startswith(_STARTS)


def image_of(text: str) -> bytes | None:
    """The image in a text of base64 or a data URI, or None if it holds none that is whole."""
    if not looks_like_image(text) or len(text) > MAX_IMAGE * 3 // 2:
        return None
    match = _DATA_URI.match(text)
    packed = (text[match.end() :] if match else text).translate(_WHITE)
    if not _BASE64.fullmatch(packed):
        return None
    packed = packed.rstrip("=").translate(_URL_SAFE)
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) <= MAX_IMAGE and media_type(data) and not _is_dot(data) else None


def _is_dot(data: bytes) -> bool:
    """Whether a PNG has too few pixels to show a key: a page's invisible dot. A Data Matrix has 10 a side and more.

    Of a GIF it cannot be told here: its screen need not be as large as what is drawn.
    """
    sides = (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    return data.startswith(b"\x89PNG") and max(sides) < _MATRIX


def data_uri(data: bytes) -> str:
    """The one spelling of an image: a function of its bytes alone, so that an image is de-duplicated by them."""
    return f"data:{media_type(data) or 'application/octet-stream'};base64,{base64.b64encode(data).decode('ascii')}"
