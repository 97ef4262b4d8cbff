"""Counts, times and numbers as people write them."""

from collections.abc import Sequence


def counted(count: float, noun: str) -> str:
    """As in "1 update" and "1,200 updates": the noun takes an s where there is not just one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_a_row(names: Sequence[str]) -> str:
    """As in "a", "a and b" and "a, b and c"."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def duration(seconds: float) -> str:
    """A time in the unit that suits it, of two digits: more than an estimate is worth."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return counted(_two_digits(seconds / size), unit)
    return counted(_two_digits(seconds), "second")


def with_minus(numbers: str) -> str:
    """Numbers with the minus sign that is as wide as a plus, for pages and pictures."""
    return numbers.replace("-", "\N{MINUS SIGN}")


def _two_digits(number: float) -> float:
    rounded = float(f"{number:.2g}")
    return int(rounded) if rounded.is_integer() else rounded
