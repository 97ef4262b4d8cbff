"""Conversions as tables of rules for tensor names.

A rule renames tensors, or drops them on purpose. Every source tensor must match exactly one rule and every parameter of the
target must be filled. The inverse of a table verifies or undoes a conversion.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.utils.errors import NAMED, UserError, listed

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A change of shape; this base class changes nothing."""

    def shape(self, shape: Shape, wanted: Shape) -> Shape:
        """The shape that `shape` becomes.

        The plan refuses it unless it is `wanted`.
        """
        return shape

    def apply(self, array: np.ndarray, wanted: Shape) -> np.ndarray:
        return array

    @property
    def inverse(self) -> "Change":
        return self


@dataclass(frozen=True)
class Transpose(Change):
    """A permutation of axes, as for `numpy.transpose`."""

    axes: Shape

    def shape(self, shape: Shape, wanted: Shape) -> Shape:
        return tuple(shape[axis] for axis in self.axes) if len(shape) == len(self.axes) else shape

    def apply(self, array: np.ndarray, wanted: Shape) -> np.ndarray:
        return array.transpose(self.axes)

    @property
    def inverse(self) -> "Transpose":
        return Transpose(tuple(np.argsort(self.axes).tolist()))


AS_IT_IS = Change()
CHANNELS_LAST = Transpose((0, 2, 3, 1))  # a convolution: torch has OIHW, MLX has OHWI


@dataclass(frozen=True)
class Rule:
    """A rule that renames or drops tensors.

    Each `*` in `source` matches one or more characters; `target` has the same `*` in the same order. A `target` of None drops
    the tensor, for the reason `why`. Dropping rules take precedence over all others.
    """

    source: str
    target: str | None
    change: Change = AS_IT_IS
    why: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("(.+)".join(map(re.escape, self.source.split("*"))))

    def match(self, name: str) -> str | None:
        """The target's name, if the rule matches.

        "" for a tensor to drop, None without a match.
        """
        found = self._pattern.fullmatch(name)
        if found is None or self.target is None:
            return None if found is None else ""
        parts = iter(found.groups())
        return re.sub(r"\*", lambda _: next(parts), self.target)


def dropped(source: str, why: str) -> Rule:
    return Rule(source, None, why=why)


def under(source: str, target: str, rules: Iterable[Rule]) -> list[Rule]:
    """Prefix the names of `rules`.

    The prefixes are `source` and `target`, the module's names in the source and in the target.
    """
    return [replace(rule, source=source + rule.source, target=target + (rule.target or rule.source)) for rule in rules]


def same(*names: str) -> list[Rule]:
    """Rules that keep names, possibly `under` prefixes."""
    return [Rule(name, name) for name in names]


@dataclass(frozen=True)
class Move:
    """The conversion of one tensor.

    Read `source`, apply the rule's change, write `target`. Both have the source's type.
    """

    source: Tensor
    target: Tensor
    rule: Rule


@dataclass(frozen=True)
class Plan:
    """All moves of a conversion.

    `moves` fill the target, sorted by target name; `dropped` are left out, each by its rule.
    """

    moves: list[Move]
    dropped: list[tuple[Tensor, Rule]]


@dataclass(frozen=True)
class Table:
    rules: Sequence[Rule]

    def find(self, name: str) -> tuple[Rule, str] | None:
        """The rule for a source name, and the target's name.

        None without a matching rule. Raises `ValueError` if several match, which is a mistake in the table.
        """
        found = [(rule, target) for rule in self.rules if (target := rule.match(name)) is not None]
        dropping = [pair for pair in found if pair[0].target is None]
        found = dropping[:1] or found
        if len(found) > 1:
            raise ValueError(f"{name} matches {' and '.join(rule.source for rule, _ in found)}")
        return found[0] if found else None

    @property
    def inverse(self) -> "Table":
        """The table from targets to sources, without dropped tensors."""
        kept = [rule for rule in self.rules if rule.target is not None]
        return Table([Rule(str(rule.target), rule.source, rule.change.inverse) for rule in kept])

    def through(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Names and shapes after the conversion.

        Tensors that no rule keeps are left out.
        """
        found = ((self.find(name), shape) for name, shape in shapes.items())
        return {pair[1]: pair[0].change.shape(shape, shape) for pair, shape in found if pair and pair[1]}

    def matches(self, names: Iterable[str]) -> int:
        """How many of the names match a rule.

        The right one of several tables matches most.
        """
        return sum(self.find(name) is not None for name in names)


def plan(tensors: Mapping[str, Tensor], table: Table, wanted: Mapping[str, Shape], where: str) -> Plan:
    """Plan how `tensors` fill the parameters `wanted`.

    `wanted` has their names and shapes; `where` begins every error. Raises `UserError` for a tensor without a rule or
    parameter, a parameter that is left empty or filled twice, and a wrong shape; it suggests the nearest existing names.
    """
    moves: dict[str, Move] = {}
    left_out, unknown, twice = [], [], []
    for tensor in tensors.values():
        rule, name = table.find(tensor.name) or (None, "")
        if rule is not None and rule.target is None:
            left_out.append((tensor, rule))
        elif rule is None or name not in wanted:
            unknown.append(tensor.name)
        elif name in moves:
            twice.append(f"{name} (from {moves[name].source.name} and {tensor.name})")
        else:
            moves[name] = _move(tensor, name, rule, wanted[name], where)
    _refuse(f"{where}: parameters that two tensors would fill", twice, [])
    empty = wanted.keys() - moves.keys()
    _refuse(f"{where}: unknown tensors", unknown, _sources(table, empty or wanted))
    _refuse(f"{where}: missing tensors", _sources(table, empty), unknown)
    return Plan([moves[name] for name in sorted(moves)], left_out)


def _move(tensor: Tensor, name: str, rule: Rule, wanted: Shape, where: str) -> Move:
    shape = rule.change.shape(tensor.shape, wanted)
    if isinstance(rule.change, Transpose) and len(tensor.shape) != len(rule.change.axes):
        raise UserError(
            f"{where}: {tensor.name} has the shape {_shown(tensor.shape)}, expected {len(rule.change.axes)} dimensions."
        )
    if shape != wanted:
        raise UserError(
            f"{where}: {tensor.name} has the shape {_shown(tensor.shape)}, but config.json requires "
            f"{_shown(rule.change.inverse.shape(wanted, tensor.shape))}. Use files from the same model."
        )
    return Move(tensor, replace(tensor, name=name, shape=shape), rule)


def _sources(table: Table, targets: Iterable[str]) -> list[str]:
    """The names of the parameters `targets` in the source."""
    found = ((table.inverse.find(name), name) for name in sorted(targets))
    return [pair[1] if pair else name for pair, name in found]


def _refuse(title: str, names: Sequence[str], candidates: Iterable[str]) -> None:
    if not names:
        return
    others = list(candidates)
    ordered = sorted(names)  # finding the nearest is slow, and only the first are shown
    raise UserError(listed(title, [*(_with_nearest(name, others) for name in ordered[:NAMED]), *ordered[NAMED:]]))


def _with_nearest(name: str, others: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, others, n=1)
    return f"{name} (nearest: {nearest[0]})" if nearest else name


def _shown(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "of a single number"
