"""How well each part of a judge scores mentions.

Without labels they are the figures of `scorers/trust`. With labels of the images there are two more: the AUC, and the share of
pairs, of a true and a false mention of the same image, in which the true one has the higher score. Ties count half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.records import Record
from mlx_visalign.evaluation.bootstrap import Interval
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.scorers.trust import (
    COMBINED,
    JudgedImage,
    JudgedObject,
    Trust,
    correlation,
    partial_correlation,
    ranks,
    scale_of,
    separation,
    wins,
    with_interval,
)

SINGLE = ("clip", "consistency", "self_check")
OWN, OTHER, BLANK, PLACE, TRUE = range(5)


@dataclass(frozen=True)
class PartFigures(Record):
    """One part's figures over first mentions in greedy answers.

    sees           share of mentions scored higher about their own image than about another
    sees_blank     the same against a blank image
    agreement      rank correlation with every other part that it does not contain, the position held constant
    position       rank correlation with the position in the answer
    auc            probability that a true mention outscores a false one; None without labels of both kinds
    pair_accuracy  share of pairs of a true and a false mention of one image that it orders rightly; None without such pairs
    weight         in the combined judge; None where it is no part of that
    """

    part: str
    sees: Interval
    sees_blank: float
    agreement: dict[str, float]
    position: float
    auc: float | None
    pair_accuracy: float | None
    weight: float | None = None


@dataclass(frozen=True)
class LabelCounts(Record):
    """The labelled mentions, and the pairs that they make.

    pairs  of a true and a false mention of the same image
    """

    true: int
    false: int
    pairs: int


@dataclass(frozen=True)
class Dot:
    """A mention's place in the answer, and its score.

    place    from 0 to 1
    score    standardised
    correct  whether the object is in the image; None: unknown
    """

    place: float
    score: float
    correct: bool | None


@dataclass(frozen=True)
class JudgeFigures(Record):
    """What is known about a judge.

    trust   the check without labels, and its verdict
    parts   the figures of each part, and of the combined judge
    labels  None where the images have no labels
    """

    trust: Trust
    parts: tuple[PartFigures, ...]
    labels: LabelCounts | None


def judge_figures(rows: Sequence[JudgedImage], trust: Trust, truth: Annotations) -> JudgeFigures:
    """A judge's figures, from the rows of its check.

    `truth` has the objects in those images, by their path in the rows, that have labels.
    """
    parts = _parts(rows, trust)
    first = _tables(rows, next(iter(parts.values()), {}), truth)
    sides = [_sides(table) for table in first]
    counts = LabelCounts(
        sum(len(true) for true, _ in sides),
        sum(len(false) for _, false in sides),
        sum(len(true) * len(false) for true, false in sides),
    )
    return JudgeFigures(
        trust,
        tuple(_part(name, parts, rows, truth) for name in parts),
        counts if counts.true + counts.false else None,
    )


def dots(rows: Sequence[JudgedImage], trust: Trust, truth: Annotations) -> list[Dot]:
    """The mentions that the verdict is about."""
    members = _parts(rows, trust).get(trust.judge, {})
    table = np.concatenate([np.zeros((0, 5)), *_tables(rows, members, truth)])
    return [
        Dot(float(row[PLACE]), float(row[OWN]), None if np.isnan(row[TRUE]) else bool(row[TRUE])) for row in table if members
    ]


def _parts(rows: Sequence[JudgedImage], trust: Trust) -> dict[str, dict[str, float]]:
    """Each part's name, with the weights of the single parts that it is the mean of."""
    known = {part for row in rows for one in row.objects for part in one.own}
    single = {part: {part: 1.0} for part in SINGLE if part in known}
    return single | ({"combined": trust.weights or dict.fromkeys(COMBINED, 0.5)} if known.issuperset(COMBINED) else {})


def _part(name: str, parts: Mapping[str, dict[str, float]], rows: Sequence[JudgedImage], truth: Annotations) -> PartFigures:
    tables = _tables(rows, parts[name], truth)
    every = np.concatenate([np.zeros((0, 5)), *tables])
    true, false = _sides(every)
    others = [other for other in parts if len(parts[other]) == 1 and other not in parts[name]]
    against = {other: np.concatenate([np.zeros((0, 5)), *_tables(rows, parts[other], truth)]) for other in others}
    return PartFigures(
        name,
        Interval(*with_interval([table for table in tables if len(table)], lambda t: wins(t[:, OWN], t[:, OTHER]))),
        wins(every[:, OWN], every[:, BLANK]),
        {other: partial_correlation(every[:, OWN], one[:, OWN], every[:, PLACE]) for other, one in against.items()},
        correlation(ranks(every[:, OWN]), ranks(every[:, PLACE])),
        separation(true, false) if len(true) and len(false) else None,
        _pair_accuracy([_sides(table) for table in tables]),
        parts.get("combined", {}).get(name),
    )


def _tables(rows: Sequence[JudgedImage], members: Mapping[str, float], truth: Annotations) -> list[Float[np.ndarray, "_ 5"]]:
    """A table for every image: a row per greedy mention of its scores, place, and whether it is true (nan: unknown).

    A score is the weighted mean of the members' standardised scores.
    """
    scales = {part: scale_of(rows, part) for part in members}

    def score(side: Mapping[str, float]) -> float:
        return sum(members[part] * (side[part] - mean) / std for part, (mean, std) in scales.items())

    def line(image: str, one: JudgedObject) -> list[float]:
        known = float(one.object in truth[image]) if image in truth else float("nan")
        return [score(one.own), score(one.swapped), score(one.blank), float(one.place or 0.0), known]

    return [
        np.array([line(row.image, one) for one in row.objects if one.place is not None], dtype=float).reshape(-1, 5)
        for row in rows
    ]


def _sides(table: Float[np.ndarray, "n 5"]) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " f"]]:
    """The scores of true and of false mentions."""
    return table[table[:, TRUE] == 1, OWN], table[table[:, TRUE] == 0, OWN]


def _pair_accuracy(images: Sequence[tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]]) -> float | None:
    """The share of true-false pairs within an image that are ordered rightly."""
    both = [(true, false) for true, false in images if len(true) and len(false)]
    pairs = [len(true) * len(false) for true, false in both]
    if not pairs:
        return None
    return float(np.average([separation(true, false) for true, false in both], weights=pairs))
