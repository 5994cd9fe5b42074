"""Text of annotation files in their encoding: declared, marked, or evident from the bytes alone.

Nothing is guessed. Bytes of an old code page are taken only where every code page that gives plausible text gives
the same one; a class name or a file name that is read wrong would pass for another.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

from zoo.storage.opening import read_file

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CODE_PAGES = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "shift_jis", "gb2312", "euc_kr", "big5")
_LOOKED_AT = 4096  # bytes that tell UTF-16 from anything else, an even number
_MOST = 1 << 16  # bytes of text outside ASCII that code pages are compared on
_WORD = re.compile(r"[^\W\d_]+")
_DECLARED = re.compile(r"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z][\w.:-]*)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml.*?\?>", re.DOTALL)
_ODD_LETTERS = frozenset("ƒªºˆ")  # Unicode calls them letters, but no name of a class or a file has them


def decode_text(data: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: if the encoding is not certain, with the encodings that it may be.
    """
    encoding = encoding_of(data)
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            message = f"it begins as {encoding.upper()} and is cut or damaged ({error.reason}); save it again"
            raise ValueError(message) from error
        return _of_code_page(data, error)


def encoding_of(data: bytes) -> str | None:
    """`utf-8-sig`, `utf-16...`, `utf-32` by a byte order mark or by the places of zero bytes; None: neither."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    head = data[:_LOOKED_AT]
    even, odd = head[::2].count(0), head[1::2].count(0)  # UTF-8 has none
    if bool(even) == bool(odd) or len(data) % 2:
        return None
    encoding = "utf-16-le" if odd else "utf-16-be"
    text = head.decode(encoding, errors="replace")
    return encoding if text.isprintable() or all(c.isprintable() or c.isspace() for c in text) else None


def decode_xml(data: bytes) -> str:
    """The text of an xml file without its declaration, in the encoding that this gives, else in UTF-8.

    Raises:
        ValueError: if the encoding is unknown, or the bytes are not of it.
    """
    encoding = encoding_of(data)
    if encoding is None and (match := _DECLARED.match(data[:_LOOKED_AT].decode("latin-1"))):
        encoding = match[1].lower()
        if encoding.startswith(("utf-16", "utf16", "ucs-2", "utf-8", "utf8")):
            encoding = None  # some programs declare UTF-16 and save UTF-8
    try:
        text = data.decode(encoding or "utf-8")
    except LookupError as error:
        message = f"it declares the encoding {encoding!r}, which is not known; save it as UTF-8"
        raise ValueError(message) from error
    except UnicodeDecodeError as error:
        known = (
            f"it declares {encoding} and is not that" if encoding else "it is not UTF-8 and declares no other"
        )
        raise ValueError(f"{known} (byte {error.start}: {error.reason}); save it as UTF-8") from error
    return _DECLARATION.sub("", text.lstrip("\ufeff"), count=1)


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: naming the file, if its encoding is not certain.
    """
    try:
        return decode_text(read_file(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def as_utf8(data: bytes) -> bytes:
    """The beginning of a file as UTF-8, wrong bytes replaced: to look for keys and tags, not to read values."""
    encoding = encoding_of(data)
    if encoding is None:
        return data
    return data.decode(encoding, errors="replace").lstrip("\ufeff").encode("utf-8", errors="replace")


def _of_code_page(data: bytes, why: UnicodeDecodeError) -> str:
    """The text on which all code pages agree that turn the bytes into plausible words."""
    readings = {text: page for page in reversed(_CODE_PAGES) if (text := _plausible(data, page)) is not None}
    if len(readings) == 1:
        return next(iter(readings))
    message = f"it is not UTF-8 (byte 0x{data[why.start]:02X} at {why.start})"
    if readings:
        words = {page: _first_word(text) for text, page in readings.items()}
        message += "; it may be " + " or ".join(f"{page} ({word!r})" for page, word in sorted(words.items()))
    raise ValueError(f"{message}, which its bytes do not tell; save it as UTF-8")


def _plausible(data: bytes, page: str) -> str | None:
    """The text of a code page, if all that is not ASCII in it are letters, and no word mixes two scripts."""
    try:
        text = data.decode(page)
    except UnicodeDecodeError:
        return None
    seen = 0
    for match in _WORD.finditer(text):
        word = match[0]
        if word.isascii():
            continue
        if (
            len({_script(c) for c in word}) > 1
            or not _ODD_LETTERS.isdisjoint(word)
            or _capital_after_small(word)
        ):
            return None
        seen += sum(not c.isascii() for c in word)
        if seen > _MOST:
            break
    foreign = sum(not c.isascii() for c in text) if seen <= _MOST else seen
    return text if seen == foreign else None


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "?").split()[0]
    return "JAPANESE" if name in ("HIRAGANA", "KATAKANA") else name


def _capital_after_small(word: str) -> bool:
    """Whether a capital outside ASCII follows a small letter: no language does so, a wrong code page does."""
    return any(b.isupper() and not b.isascii() and a.islower() for a, b in pairwise(word))


def _first_word(text: str) -> str:
    return next((m[0] for m in _WORD.finditer(text) if not m[0].isascii()), "")
