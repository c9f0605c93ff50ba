"""Tags of words that form entities: IOB1, IOB2 and BIOES, read and written as IOB2.

IOB2 begins every entity with ``B-``. IOB1 (Ramshaw and Marcus 1995) does where one follows
another of its type, and with ``I-`` elsewhere. BIOES ends one of several words with ``E-``, and
marks one of a single word with ``S-``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxbert.data.tasks import SCHEMES


class SchemeError(ValueError):
    """A tag cannot stand where it does.

    Attributes:
      place: its number, from 0.
    """

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.place = place


def to_iob2(tags: Sequence[str], scheme: str) -> list[str]:
    """Tags of a sentence in IOB2.

    Args:
      tags: ``O``, or ``MARK-TYPE``.
      scheme: the one they are in, out of ``SCHEMES``.

    Raises:
      SchemeError: the first tag that breaks its rules.
    """
    found = []
    mark, kind = "O", ""  # of the tag before
    for place, tag in enumerate(tags):
        before, last = (mark, kind), tags[place - 1] if place else "the beginning"
        mark, _, kind = tag.partition("-")
        if mark not in _MARKS[scheme] or bool(kind) == (mark == "O"):
            raise SchemeError(f"{tag!r} is no tag of {scheme}", place)
        goes_on = _goes_on(scheme, before, mark, kind)
        if goes_on is None:
            raise SchemeError(f"{tag!r} cannot follow {last!r} in {scheme}", place)
        found.append("O" if mark == "O" else f"{'I' if goes_on else 'B'}-{kind}")
    if scheme == "BIOES" and mark in "BI":
        raise SchemeError(f"{tags[-1]!r} is not closed by 'E-{kind}'", len(tags) - 1)
    return found


_MARKS = {"IOB2": "BIO", "IOB1": "BIO", "BIOES": "BIOES"}


def _goes_on(scheme: str, before: tuple[str, str], mark: str, kind: str) -> bool | None:
    """Whether a tag continues the entity before it; None if it cannot stand there."""
    same = before[0] != "O" and before[1] == kind
    if scheme == "IOB2":
        return None if mark == "I" and not same else mark == "I"
    if scheme == "IOB1":
        return None if mark == "B" and not same else mark == "I" and same
    inside = before[0] in "BI"
    if inside:
        return True if mark in "IE" and same else None
    return None if mark in "IE" else False


def find_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme that the fewest sentences break, the first of ``SCHEMES`` at a tie."""
    broken = dict.fromkeys(SCHEMES, 0)
    for tags in sentences:
        for scheme in SCHEMES:
            try:
                to_iob2(tags, scheme)
            except SchemeError:
                broken[scheme] += 1
    return min(broken, key=broken.__getitem__)
