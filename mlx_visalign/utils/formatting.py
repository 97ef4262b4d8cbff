"""Counts, durations and numbers as text."""

from collections.abc import Sequence


def counted(count: float, noun: str) -> str:
    """Count and noun: "1 update", "1,200 updates"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_a_row(names: Sequence[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def duration(seconds: float) -> str:
    """Duration in its natural unit, to two significant digits."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return counted(_two_digits(seconds / size), unit)
    return counted(_two_digits(seconds), "second")


def with_minus(numbers: str) -> str:
    """Replace hyphens by typographic minus signs (for HTML and plots)."""
    return numbers.replace("-", "\N{MINUS SIGN}")


def _two_digits(number: float) -> float:
    rounded = float(f"{number:.2g}")
    return int(rounded) if rounded.is_integer() else rounded
