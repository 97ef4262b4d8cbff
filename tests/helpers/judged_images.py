"""Judged images made up for a test: the model's mentions, with scores that a function gives."""

import numpy as np

from mlx_visalign.scorers.trust import JudgedImage, JudgedObject

MENTIONS = 4


def judged(number, *objects):
    """An image's rows: objects are (name, place, {part: (own, swapped, blank)})."""
    rows = []
    for name, place, scores in objects:
        own, swapped, blank = ({part: float(three[side]) for part, three in scores.items()} for side in range(3))
        rows.append(JudgedObject(name, place, own, {} if place is None else swapped, {} if place is None else blank))
    return JudgedImage(f"i{number}", f"{number}.png", "text", 9, tuple(rows))


def images(count, score, seed=0, mentions=MENTIONS):
    """`count` images; `score(place, true, rng)` gives {part: (own, swapped, blank)} of each mention.

    A mention is true with probability 0.9 at the beginning and 0.5 at the end of an answer, so that the place says something.
    """
    rng, rows, truth = np.random.default_rng(seed), [], {}
    for number in range(count):
        named = []
        for place in np.arange(mentions) / mentions:
            true = bool(rng.random() < 0.9 - 0.4 * place)
            named.append((f"{'true' if true else 'false'} {place}", float(place), score(place, true, rng)))
        rows.append(judged(number, *named))
        truth[f"{number}.png"] = {name for name, *_ in named if name.startswith("true")}
    return rows, truth


def sighted(place, true, rng):
    """Two parts that see what is there, each with errors of its own; another image's objects look absent."""
    return {part: (2 * true + rng.normal(), rng.normal(), rng.normal()) for part in ("clip", "consistency")}


def blind(place, true, rng):
    """CLIP scores a word, whatever the image."""
    return {"clip": (1.0, 1.0, 1.0), "consistency": sighted(place, true, rng)["consistency"]}


def placed(place, true, rng):
    """Both parts know nothing but the place in the answer, and that an image is not its own."""
    return {part: (1 - place + 1e-3 * rng.normal(), -place - 9, -9.0) for part in ("clip", "consistency")}


def guessing(place, true, rng):
    """CLIP tells its own image from others, but not whether an object is there."""
    return {"clip": (rng.normal(), -5.0, -5.0), "consistency": sighted(place, true, rng)["consistency"]}
