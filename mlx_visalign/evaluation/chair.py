"""CHAIR: hallucinated objects in descriptions.

Source: Rohrbach et al. 2018, arXiv 1809.02156. The paper's two metrics fall when a model just says less, so recall, F1, length,
objects and duplicates are always reported with them. Results are comparable with published ones only if vocabulary, images,
prompt and length limit are the same.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mlx_visalign.data.object_vocabulary import Vocabulary
from mlx_visalign.evaluation.bootstrap import Counts, Sums, f1, ratio
from mlx_visalign.evaluation.object_labels import Annotations
from mlx_visalign.utils.errors import UserError


def count(texts: Mapping[str, str], annotations: Annotations, vocabulary: Vocabulary) -> Counts:
    """Count the objects that each image's description names.

    Raises UserError if an image has no annotation, or one with an object that is not in the vocabulary (it could never be
    found, and recall would be too low).
    """
    rows = [_count(text, _truth(image, annotations, vocabulary), vocabulary) for image, text in texts.items()]
    names = rows[0] if rows else ()
    return Counts(tuple(texts), {name: np.array([row[name] for row in rows]) for name in names})


def metrics(sums: Sums) -> dict[str, Float[np.ndarray, "d"]]:
    """CHAIR's metrics from summed counts.

    A ratio with denominator 0 is 0.

    chair_i     mentions of absent objects / mentions; a repeated mention counts again
    chair_s     descriptions with any such mention / descriptions
    recall      present objects that are named / present objects, over all images together
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
        raise UserError(f"The image {image} has no annotation: expected a list of the objects in it.")
    strange = set(annotations[image]) - set(vocabulary.objects)
    if strange:
        raise UserError(f"The annotation of image {image} has objects that are not in the vocabulary: {sorted(strange)}.")
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
