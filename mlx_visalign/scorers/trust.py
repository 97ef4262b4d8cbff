"""Whether a judge can be trusted, found without labels.

Looked at are the objects that the untrained model names, first mentions only:

    sees       how often the judge scores an object higher about its own image than about another, and than about a blank one;
               0.5 where it does not look
    agreement  rank correlation with a second judge, the position in the answer held constant. Late mentions are more often
               made up, so two judges that know nothing but the position would agree too
    position   rank correlation of the judge with the position; near -1 or 1 it knows nothing else

Intervals are 95 %, from a bootstrap over images. `sees` is close to the judge's AUC on named objects, which needs labels: in
the tiny world, CLIPs of AUC .98, .80, .72, .65, .60 and .55 see .89, .76, .69, .63, .59 and .55. So a judge is stopped where
the interval excludes an AUC of .6, or any agreement worth mentioning, and trusted where it excludes less.

How the parts of a judge agree also gives them weights, without labels. Let every part's standardised score be l_i t plus an
error of its own, t being whether the object is there. Then the correlation of two parts is r_ij = l_i l_j, so that three parts
tell how much each of them knows:

    l_i^2 = r_ij r_ik / r_jk                        (Spearman 1904)
    w_i   proportional to l_i / (1 - l_i^2)         (the best weights for t: Bartlett 1937)

Errors that two parts share count as truth. Consistency and the model's own yes or no come from the same model, so they share
some: no weight falls below `LEAST_WEIGHT`.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.records import Record
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.formatting import counted, with_minus

RESAMPLES, SEED = 500, 0
LEAST_SEEN = 0.6  # share of objects scored higher about their own image
LEAST_AGREEMENT = 0.1  # a judge whose interval ends below it is stopped; it is trusted if the interval is above 0
MOST_POSITION = 0.8
FEW_IMAGES = 20  # too few for an interval: no judge is trusted on fewer
COMBINED = ("clip", "consistency")
"""The parts of the judge `combined`."""
WITNESS = "self_check"
"""The third part, which tells how much the two know."""
LEAST_WEIGHT = 0.2
LEAST_CORRELATION, MOST_KNOWN = 1e-3, 0.95  # keep l^2 between 0 and 1 where correlations are by chance negative or too high
Verdict = Literal["trust", "doubt", "stop"]
NAMES = {
    "clip": "CLIP",
    "consistency": "the consistency of the model's answers",
    "self_check": "the model's own yes or no",
    "combined": "CLIP and consistency together",
}
"""What parts are called; a scorer of the user's own stands in CLIP's place."""


@dataclass(frozen=True)
class JudgedObject(Record):
    """An object that the untrained model names about an image.

    place    where its first mention begins in the greedy answer, from 0 to 1; none: only sampled answers name it
    own      each part's score about the image itself
    swapped  the same about another image; empty where only sampled answers name the object
    blank    the same about a blank image
    """

    object: str
    place: float | None
    own: dict[str, float]
    swapped: dict[str, float]
    blank: dict[str, float]


@dataclass(frozen=True)
class JudgedImage(Record):
    """A greedy answer about an image, with its objects' scores.

    `tokens`: its length, end token included.
    """

    id: str
    image: str
    text: str
    tokens: int
    objects: tuple[JudgedObject, ...]


@dataclass(frozen=True)
class Trust(Record):
    """What the check of a judge found.

    judge, other  the parts whose scores are compared
    images        images looked at
    mentions      objects named in their greedy answers
    agreement, sees, sees_blank, position
                  as in this module; `low` and `high` are the ends of an interval
    verdict       trust, doubt or stop
    own_scorer    whether the part clip is a scorer of the user's own
    weights       of the parts of the combined judge; empty: equal
    """

    judge: str
    other: str
    images: int
    mentions: int
    agreement: float
    agreement_low: float
    agreement_high: float
    sees: float
    sees_low: float
    sees_high: float
    sees_blank: float
    sees_blank_high: float
    position: float
    verdict: Verdict
    own_scorer: bool = False
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def in_short(self) -> str:
        """The verdict with its reason, in one sentence."""
        return f"{self._begin}: {self._reason}."

    @property
    def in_words(self) -> str:
        """The verdict with its reason and figures, in one sentence."""
        return f"{self._begin}: {self._reason}{self._figures}."

    @property
    def advice(self) -> str:
        """What to do next."""
        if not self.mentions:
            return "Name the objects in your images in a file (--vocabulary FILE), or take SeVa, which needs no judge."
        return {
            "trust": "CSR and FiSAO can train on it.",
            "doubt": "Training on it may gain little. Check it on more images, try another CLIP or a scorer of your own, or "
            "take SeVa, which needs no judge.",
            "stop": "Try another CLIP or a scorer of your own, or take SeVa, which needs no judge.",
        }[self.verdict]

    def name(self, part: str) -> str:
        """What a part is called."""
        return NAMES.get(part, part).replace("CLIP", "your scorer" if self.own_scorer else "CLIP")

    @property
    def _begin(self) -> str:
        return {"trust": "Trust this judge", "doubt": "Doubt this judge", "stop": "Stop: do not train on this judge"}[
            self.verdict
        ]

    @property
    def _reason(self) -> str:
        judge, other = self.name(self.judge), self.name(self.other)
        if not self.mentions:
            return f"the model names no object of the vocabulary in {counted(self.images, 'image')}"
        if self.is_blind:
            return f"{judge} hardly tells an object's own image from another"
        if self.agreement_high < LEAST_AGREEMENT:
            return f"{judge} and {other} do not agree on what is there"
        if abs(self.position) > MOST_POSITION:
            return f"{judge} knows little more than how early an object is named"
        if self.verdict == "trust":
            return f"{judge} tells an object's own image from another, and agrees with {other}"
        few = f", and {counted(self.images, 'image')} are few" if self.images < FEW_IMAGES else ""
        if self.agreement_low > 0:
            return f"{judge} may hardly tell an object's own image from another{few}"
        return f"{judge} may agree with {other} by chance{few}"

    @property
    def is_blind(self) -> bool:
        """Whether its scores are much the same for any image."""
        return min(self.sees_high, self.sees_blank_high) < LEAST_SEEN

    @property
    def _figures(self) -> str:
        if not self.mentions:
            return ""
        looked_at = f"{counted(self.mentions, 'mention')} in {counted(self.images, 'image')}"
        sees, least, blank = (f"{100 * share:.0f} %" for share in (self.sees, self.sees_low, self.sees_blank))
        return with_minus(
            f" (of {looked_at}, {sees} score higher about their own image than about another, at least {least}, and {blank} "
            f"than about a blank one; agreement {self.agreement:.2f}, at least {self.agreement_low:.2f}; position "
            f"{self.position:.2f})"
        )


def require_scores(rows: Sequence[JudgedImage], parts: Set[str], where: str) -> None:
    """Raise `UserError` for rows without a score of every part."""
    for number, row in enumerate(rows, 1):
        sides = [(one.own, one.swapped, one.blank) if one.place is not None else (one.own,) for one in row.objects]
        if any(side.keys() != parts for some in sides for side in some):
            raise UserError(
                f"{where}:{number}: expected scores by {', '.join(sorted(parts))} for every object, and found others. "
                "Restore the file, or move it away."
            )


def scale_of(rows: Sequence[JudgedImage], part: str) -> tuple[float, float]:
    """Mean and standard deviation of a part's scores.

    Of all objects that greedy and sampled answers name; (0, 1) where all scores are the same, or there are none.
    """
    scores = [one.own[part] for row in rows for one in row.objects]
    spread = float(np.std(scores)) if scores else 0.0
    return (float(np.mean(scores)), spread) if spread > 0 else (0.0, 1.0)


def weights_of(rows: Sequence[JudgedImage]) -> dict[str, float]:
    """Weights of the two parts of `combined`, summing to 1.

    Equal where there are too few images to tell, or no third part.
    """
    if len(rows) < FEW_IMAGES:
        return dict.fromkeys(COMBINED, 0.5)
    scores = {part: np.array([one.own.get(part, 0.0) for row in rows for one in row.objects]) for part in (*COMBINED, WITNESS)}
    both, *with_witness = (
        max(correlation(scores[one], scores[other]), LEAST_CORRELATION)
        for one, other in (COMBINED, (COMBINED[0], WITNESS), (COMBINED[1], WITNESS))
    )
    known = [min(both * own / other, MOST_KNOWN) for own, other in (with_witness, reversed(with_witness))]
    first, second = (share**0.5 / (1 - share) for share in known)
    weight = min(max(first / (first + second), LEAST_WEIGHT), 1 - LEAST_WEIGHT)
    return {COMBINED[0]: weight, COMBINED[1]: 1 - weight}


def trust(rows: Sequence[JudgedImage], judge: str, other: str, own_scorer: bool = False) -> Trust:
    """The check of the part `judge` against the part `other`."""
    tables = [table for row in rows if len(table := _table(row, judge, other))]
    agreement = with_interval(tables, lambda t: partial_correlation(t[:, 0], t[:, 1], t[:, 2]))
    sees = with_interval(tables, lambda t: wins(t[:, 0], t[:, 3]))
    sees_blank = with_interval(tables, lambda t: wins(t[:, 0], t[:, 4]))
    every = np.concatenate(tables) if tables else np.zeros((0, 5))
    found = Trust(
        judge,
        other,
        images=len(rows),
        mentions=len(every),
        agreement=agreement[0],
        agreement_low=agreement[1],
        agreement_high=agreement[2],
        sees=sees[0],
        sees_low=sees[1],
        sees_high=sees[2],
        sees_blank=sees_blank[0],
        sees_blank_high=sees_blank[2],
        position=correlation(ranks(every[:, 0]), ranks(every[:, 2])),
        verdict="doubt",
        own_scorer=own_scorer,
    )
    return replace(found, verdict=_verdict(found))


def _verdict(found: Trust) -> Verdict:
    if found.is_blind or found.agreement_high < LEAST_AGREEMENT or abs(found.position) > MOST_POSITION:
        return "stop"
    sure = found.agreement_low > 0 and found.sees_low > LEAST_SEEN
    return "trust" if sure and found.images >= FEW_IMAGES else "doubt"


def _table(row: JudgedImage, judge: str, other: str) -> Float[np.ndarray, "n 5"]:
    """The greedy mentions' scores: judge, other judge, place, judge about another image, judge about a blank one."""
    found = [
        (one.own[judge], one.own[other], one.place, one.swapped[judge], one.blank[judge])
        for one in row.objects
        if one.place is not None
    ]
    return np.array(found, dtype=float).reshape(-1, 5)


def wins(own: Float[np.ndarray, " n"], others: Float[np.ndarray, " n"]) -> float:
    """The share of `own` above its counterpart.

    Ties count half; 0.5 where there are none.
    """
    return float(np.mean((own > others) + (own == others) / 2)) if len(own) else 0.5


def with_interval(
    tables: Sequence[Float[np.ndarray, "_ c"]], figure: Callable[[Float[np.ndarray, "n c"]], float]
) -> tuple[float, float, float]:
    """A figure over all tables, and its interval's ends.

    One table per image, of a row per mention. The interval is the value alone where there is none.
    """
    if not tables:
        value = figure(np.zeros((0, 5)))
        return value, value, value
    rng = np.random.default_rng(SEED)
    drawn = [figure(np.concatenate([tables[i] for i in rng.integers(len(tables), size=len(tables))])) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return figure(np.concatenate(tables)), float(low), float(high)


def separation(correct: Float[np.ndarray, " c"], hallucinated: Float[np.ndarray, " h"]) -> float:
    """The AUC: P(a correct mention outscores a hallucinated one).

    Ties count half. There must be one of each.
    """
    below, up_to = (np.searchsorted(np.sort(hallucinated), correct, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(hallucinated))


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, lowest first; ties share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation; 0 where one of them is constant."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def partial_correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"], held: Float[np.ndarray, " n"]) -> float:
    """Rank correlation of two scores, a third held constant.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))
    """
    x, y, z = map(ranks, (one, other, held))
    both, first, second = correlation(x, y), correlation(x, z), correlation(y, z)
    rest = (1 - first**2) * (1 - second**2)
    return (both - first * second) / rest**0.5 if rest > 1e-9 else 0.0
