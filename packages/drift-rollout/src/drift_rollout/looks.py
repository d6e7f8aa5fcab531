"""What a text looks like: the characters that a reader would take for ASCII, and those not seen at all."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# What NFKD leaves as it is: letters of other scripts, small capitals, and shapes of < > / \.
_LOOK_ALIKES = {
    "a": "аАαΑᴀ",
    "b": "вВΒʙЬ",
    "d": "ԁᴅ",
    "e": "еЕεΕᴇ",
    "h": "һНΗʜ",
    "i": "іІιΙıɪ",
    "k": "кКκΚᴋ",
    "n": "ոηΝɴп",
    "o": "оОοΟᴏ",
    "r": "гʀᴦ",
    "s": "ѕЅꜱ",
    "t": "тТτΤᴛ",
    "w": "ԝԜωᴡ",
    "x": "хХχΧ",
    "<": "‹〈⟨❮≺ᐸ˂",
    ">": "›〉⟩❯≻ᐳ˃",
    "/": "⁄∕⧸╱",
    "\\": "∖⧵╲",
}
# Nothing to see in them, though Unicode counts them as letters or symbols.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"


def as_seen(text: str) -> bytes:
    """The text as a reader sees it: lower case, look-alikes made equal, without what shows nothing.

    Returns:
        ASCII; a character that looks like none of it is `?`. ASCII that shows is never lost, so that a tag
        in the text is one in here.
    """
    points_N = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    table = _look_table()
    folded_N = table[np.minimum(points_N, table.size - 1)]
    return bytes(folded_N[folded_N != 0])


@cache
def _look_table() -> npt.NDArray[np.uint8]:
    """For every code point the ASCII character that it looks like, 0 for none to see, ? for another."""
    table = np.full(0xE1001, ord("?"), dtype=np.uint8)
    # Without Han, Hangul, private use and rare scripts, of which nothing looks like ASCII.
    for first, end in ((0, 0x3400), (0xA000, 0xAC00), (0xF900, 0x10000), (0x1D000, 0x1F200)):
        table[first:end] = [_look(chr(point)) for point in range(first, end)]
    # Tags and variation selectors.
    table[0xE0000:0xE1000] = 0
    for looks, others in _LOOK_ALIKES.items():
        table[[ord(other) for other in others]] = ord(looks)
    table[[ord(blank) for blank in _BLANK]] = 0
    return table


def _look(character: str) -> int:
    if character.isspace():
        return ord(" ")
    if _shows_nothing(character):
        return 0
    bare = [part for part in unicodedata.normalize("NFKD", character) if not _shows_nothing(part)]
    lowered = "".join(bare).lower()
    return ord(lowered) if len(lowered) == 1 and lowered.isascii() else ord("?")


def _shows_nothing(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Mn", "Me")
