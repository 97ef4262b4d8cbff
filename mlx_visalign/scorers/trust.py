"""Whether a judge can be trusted, found without labels.

Looked at are the objects that the untrained model names, first mentions only:

    sees       how often the judge scores an object higher about its own image than about another, and than about a blank one;
               0.5 where it does not look
    agreement  rank correlation with a second judge, the position in the answer held constant. Late mentions are more often
               made up, so two judges that know nothing but the position would agree too
    position   rank correlation of the judge with the position; near -1 or 1 it knows nothing else

Intervals are 95 %, from a bootstrap over images. The thresholds are set by what trained models gained in the tiny world
(tests/benchmarks/README.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.records import Record

RESAMPLES, SEED = 500, 0
LEAST_SEEN = 0.55  # share of objects scored higher about their own image
LEAST_AGREEMENT = 0.0  # of the interval's lower end: below it, the judges' agreement may be chance
SURE_AGREEMENT = 0.1
MOST_POSITION = 0.8
Verdict = Literal["trust", "doubt", "stop"]


@dataclass(frozen=True)
class JudgedObject(Record):
    """An object that the untrained model names about an image.

    place    where its first mention begins in the greedy answer, from 0 to 1; none: only sampled answers name it
    own      each part's score about the image itself
    swapped  the same about another image
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
    agreement, agreement_low, sees, sees_low, sees_blank, position
                  as in this module; `low` is the lower end of the interval
    verdict       trust, doubt or stop
    """

    judge: str
    other: str
    images: int
    mentions: int
    agreement: float
    agreement_low: float
    sees: float
    sees_low: float
    sees_blank: float
    position: float
    verdict: Verdict

    @property
    def in_words(self) -> str:
        """The verdict with its reasons, in one sentence."""
        begin = {"trust": "Trust this judge", "doubt": "Doubt this judge", "stop": "Stop: do not train on this judge"}
        return (
            f"{begin[self.verdict]}: it scores {self.sees:.0%} of the named objects higher about their own image than about "
            f"another ({self.sees_blank:.0%} than about a blank one), and agrees with {self.other} by {self.agreement:.2f} "
            f"(at least {self.agreement_low:.2f}; position in the answer: {self.position:.2f}), over "
            f"{self.mentions:,} mentions in {self.images:,} images."
        ).replace("-", "\N{MINUS SIGN}")


def scale_of(rows: Sequence[JudgedImage], part: str) -> tuple[float, float]:
    """Mean and standard deviation of a part's scores.

    Of all objects that greedy and sampled answers name; (0, 1) where all scores are the same, or there are none.
    """
    scores = [one.own[part] for row in rows for one in row.objects]
    spread = float(np.std(scores)) if scores else 0.0
    return (float(np.mean(scores)), spread) if spread > 0 else (0.0, 1.0)


def trust(rows: Sequence[JudgedImage], judge: str, other: str) -> Trust:
    """The check of the part `judge` against the part `other`."""
    tables = [table for row in rows if len(table := _table(row, judge, other))]
    agreement, agreement_low = _with_low(tables, lambda t: partial_correlation(t[:, 0], t[:, 1], t[:, 2]))
    sees, sees_low = _with_low(tables, lambda t: _wins(t[:, 0], t[:, 3]))
    every = np.concatenate(tables) if tables else np.zeros((0, 5))
    sees_blank, position = _wins(every[:, 0], every[:, 4]), correlation(ranks(every[:, 0]), ranks(every[:, 2]))
    verdict = _verdict(agreement_low, agreement, min(sees_low, sees_blank), position)
    return Trust(judge, other, len(rows), len(every), agreement, agreement_low, sees, sees_low, sees_blank, position, verdict)


def _verdict(agreement_low: float, agreement: float, sees: float, position: float) -> Verdict:
    if sees < LEAST_SEEN or agreement <= LEAST_AGREEMENT or abs(position) > MOST_POSITION:
        return "stop"
    return "trust" if agreement_low > LEAST_AGREEMENT and agreement >= SURE_AGREEMENT else "doubt"


def _table(row: JudgedImage, judge: str, other: str) -> Float[np.ndarray, "n 5"]:
    """The greedy mentions' scores: judge, other judge, place, judge about another image, judge about a blank one."""
    found = [
        (one.own[judge], one.own[other], one.place, one.swapped[judge], one.blank[judge])
        for one in row.objects
        if one.place is not None
    ]
    return np.array(found, dtype=float).reshape(-1, 5)


def _wins(own: Float[np.ndarray, " n"], others: Float[np.ndarray, " n"]) -> float:
    """The share of `own` above its counterpart; ties count half, and 0.5 where there are none."""
    return float(np.mean((own > others) + (own == others) / 2)) if len(own) else 0.5


def _with_low(
    tables: Sequence[Float[np.ndarray, "_ 5"]], figure: Callable[[Float[np.ndarray, "n 5"]], float]
) -> tuple[float, float]:
    """A figure over all images' tables, and the lower end of its interval."""
    if not tables:
        return figure(np.zeros((0, 5))), float("-inf")
    rng = np.random.default_rng(SEED)
    drawn = [figure(np.concatenate([tables[i] for i in rng.integers(len(tables), size=len(tables))])) for _ in range(RESAMPLES)]
    return figure(np.concatenate(tables)), float(np.quantile(drawn, 0.025))


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, the lowest first; ties share their mean rank."""
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
