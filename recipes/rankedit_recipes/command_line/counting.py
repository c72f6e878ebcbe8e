"""Numbers with the things that they count."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun, in the singular where it is one.

    Args:
        number: how many.
        one: the noun for one thing.
        many: for several; with an s if empty.

    Example:
        >>> counted(1, "photo"), counted(1200, "fact"), counted(2, "search", "searches")
        ('1 photo', '1,200 facts', '2 searches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
