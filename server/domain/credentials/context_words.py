"""Words that an attacker tries first: the owner's names and the academy's (R10).

Compared without regard to case, with look-alike characters, backwards, and by
similarity (ASVS 6.2.11).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

ACADEMY_WORDS = ("blatam", "academy")
MIN_WORD_LENGTH = 3  # the minimum of a username; shorter words occur by chance
MIN_PART_LENGTH = 4
MAX_COMPARED_LENGTH = 64  # the cost of a comparison grows with the square
MIN_SIMILARITY = 0.7  # SequenceMatcher's ratio, the same as Django's validator
_LOOK_ALIKES = str.maketrans("0134578@$!", "oleastbasi")


def contains_word(password: str, word: str) -> bool:
    """Return whether a password contains a word, also with look-alike characters."""
    if len(word) < MIN_WORD_LENGTH:
        return False
    plain = word.lower() in password.lower()
    return plain or _folded(word) in _folded(password)


def resembles_word(password: str, word: str) -> bool:
    """Return whether a password contains a word backwards, or is similar to it."""
    if len(word) < MIN_WORD_LENGTH:
        return False
    folded_password = _folded(password)
    folded_word = _folded(word[:MAX_COMPARED_LENGTH])
    if len(word) >= MIN_PART_LENGTH and folded_word[::-1] in folded_password:
        return True
    matcher = SequenceMatcher(None, folded_password, folded_word)
    return matcher.ratio() >= MIN_SIMILARITY


def email_words(email: str) -> Iterator[str]:
    """Return the local part of an address, and the words in it."""
    local = email.partition("@")[0]
    yield local
    for part in re.split(r"[._%+-]+", local):
        if len(part) >= MIN_PART_LENGTH and part != local:
            yield part


def _folded(text: str) -> str:
    return text.lower().translate(_LOOK_ALIKES)
