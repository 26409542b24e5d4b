"""Words that a guesser tries first: the owner's names, and the academy's (R10).

Compared without regard to case, spelled with look-alikes, backwards, and as far as
they are merely alike (ASVS 6.2.11).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

ACADEMY = ("blatam", "academy")
SHORTEST = 3  # a username's least; shorter words are in everything
SHORTEST_PART = 4
LONGEST_COMPARED = 64  # what it costs grows with the square
ALIKE = 0.7  # of SequenceMatcher's ratio, as Django's validator has it
_LOOK_ALIKES = str.maketrans("0134578@$!", "oleastbasi")


def holds(password: str, word: str) -> bool:
    """Tell whether the password holds the word, plainly or with look-alikes."""
    if len(word) < SHORTEST:
        return False
    plain = word.lower() in password.lower()
    return plain or _folded(word) in _folded(password)


def is_like(password: str, word: str) -> bool:
    """Tell whether the password holds the word backwards, or is nearly the word."""
    if len(word) < SHORTEST:
        return False
    ours, theirs = _folded(password), _folded(word[:LONGEST_COMPARED])
    if len(word) >= SHORTEST_PART and theirs[::-1] in ours:
        return True
    return SequenceMatcher(None, ours, theirs).ratio() >= ALIKE


def email_words(email: str) -> Iterator[str]:
    """Give the local part of an address, and those parts of it that are words."""
    local = email.partition("@")[0]
    yield local
    for part in re.split(r"[._%+-]+", local):
        if len(part) >= SHORTEST_PART and part != local:
            yield part


def _folded(text: str) -> str:
    return text.lower().translate(_LOOK_ALIKES)
