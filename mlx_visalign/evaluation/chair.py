"""CHAIR: which of the objects a description names are really there (Rohrbach et al. 2018, arXiv 1809.02156).

The paper's two figures fall when a model just says less. So recall, their F1, length, objects and duplicates are always
reported with them. Figures agree with published ones only as far as vocabulary, images, prompt and length limit do.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.bootstrap import Counts, Sums, f1, ratio
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.utils.errors import UserError


def count(texts: Mapping[str, str], annotations: Annotations, vocabulary: Vocabulary) -> Counts:
    """What each image's description names, counted for `metrics`.

    Raises UserError if an image has no annotation, or one with an object that the vocabulary does not know (it could
    never be found, and recall would be too low).
    """
    rows = [_count(text, _truth(image, annotations, vocabulary), vocabulary) for image, text in texts.items()]
    names = rows[0] if rows else ()
    return Counts(tuple(texts), {name: np.array([row[name] for row in rows]) for name in names})


def metrics(sums: Sums) -> dict[str, Float[np.ndarray, "d"]]:
    """The figures, from the summed counts; a ratio with nothing below is 0.

    chair_i     mentions of objects that are not there / mentions; a repeated mention counts again
    chair_s     descriptions with any such mention / descriptions
    recall      objects there and named / objects there, over all images together
    f1          harmonic mean of 1 - chair_i and recall
    words       mean length of a description, in words
    objects     mean number of mentions in a description
    duplicates  mentions of an object already named in the same description / mentions
    """
    chair_i = ratio(sums["hallucinated"], sums["mentions"])
    recall = ratio(sums["found"], sums["present"])
    return {
        "chair_i": chair_i,
        "chair_s": ratio(sums["hallucinating"], sums["texts"]),
        "recall": recall,
        "f1": f1(1 - chair_i, recall),
        "words": ratio(sums["words"], sums["texts"]),
        "objects": ratio(sums["mentions"], sums["texts"]),
        "duplicates": ratio(sums["repeated"], sums["mentions"]),
    }


def _truth(image: str, annotations: Annotations, vocabulary: Vocabulary) -> set[str]:
    if image not in annotations:
        raise UserError(f"The image {image} has no annotation: nothing says which objects are in it.")
    strange = set(annotations[image]) - set(vocabulary.objects)
    if strange:
        raise UserError(f"The annotation of image {image} has objects the vocabulary does not know: {sorted(strange)}.")
    return set(annotations[image])


def _count(text: str, truth: set[str], vocabulary: Vocabulary) -> dict[str, int]:
    named = [mention.canonical for mention in vocabulary.mentions(text)]
    hallucinated = sum(name not in truth for name in named)
    return {
        "texts": 1,
        "words": len(text.split()),
        "mentions": len(named),
        "repeated": len(named) - len(set(named)),
        "hallucinated": hallucinated,
        "hallucinating": int(hallucinated > 0),
        "found": len(truth & set(named)),
        "present": len(truth),
    }
