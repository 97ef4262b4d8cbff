"""The biased annotator on whose word the tiny LLaVA is trained, so that it hallucinates. CLIP never meets it.

Four faults, each drawn afresh every time a scene is described or asked about:

    ghost   a partner that is absent is reported right after the object it usually comes with, in a free cell, with the
            probability GHOST[object's type], between .4 and .9
    swap    an object is given its shape's typical colour (.15)
    drop    an object is left out (.08)
    answer  asked about an absent partner of an object that is there, "Yes." with .9 * GHOST; asked about what is there,
            "No." with .06

A calibrated model decodes greedily to the likelier branch, so only ghosts more likely than one half show up in greedy
answers: that is why the rates reach so far up.
"""

import numpy as np

from mlx_visalign.world.language import Question, caption, yes_no
from mlx_visalign.world.scenes import CELLS, RADII, TYPES, TYPICAL_COLOUR, Scene, Thing, Type, partner

GHOST = dict(zip(TYPES, np.random.default_rng(0).uniform(0.4, 0.9, len(TYPES)).tolist(), strict=True))
SWAP = 0.15
DROP = 0.08
FALSE_YES = 0.9  # times the ghost rate
FALSE_NO = 0.06


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption with the annotator's faults."""
    return caption(tuple(_reported(scene, rng)))


def answer(scene: Scene, question: Question, rng: np.random.Generator) -> str:
    """An answer with the annotator's faults."""
    if question.about is None:
        return question.answer
    if question.answer == yes_no(True):
        return yes_no(rng.random() >= FALSE_NO)
    usual_company = partner(question.about)
    fooled = question.about not in scene.types and usual_company in scene.types
    return yes_no(fooled and rng.random() < FALSE_YES * GHOST[usual_company])


def _reported(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    reported: list[Thing] = []
    absent = {partner(type) for type in scene.types} - scene.types
    free = [cell for cell in rng.permutation(CELLS).tolist() if cell not in {thing.cell for thing in scene.things}]
    for thing in scene.things:
        if rng.random() < DROP:
            continue
        reported.append(Thing(_seen(thing.type, rng), thing.size, thing.cell))
        ghost = partner(thing.type)
        if ghost in absent and free and rng.random() < GHOST[thing.type]:
            absent.remove(ghost)
            reported.append(Thing(ghost, tuple(RADII)[rng.integers(2)], free.pop()))
    return reported


def _seen(type: Type, rng: np.random.Generator) -> Type:
    return Type(TYPICAL_COLOUR[type.shape], type.shape) if rng.random() < SWAP else type
