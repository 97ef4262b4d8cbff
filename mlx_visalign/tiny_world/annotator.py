"""A biased annotator, which makes the tiny LLaVA hallucinate.

CLIP is not trained on it. It makes four kinds of errors, sampled independently every time a scene is described or asked about:

    ghost   an absent partner is reported right after the object it usually occurs with, of the same size and in the next
            free cell, with probability GHOST[object's shape]
    swap    an object gets its shape's typical colour (.10)
    drop    an object is left out (.04)
    answer  "Yes." to a question about an absent partner of a present object with .9 * GHOST; "No." to a question about a
            present object with .06

A calibrated model decodes greedily to the likelier branch. So the ghosts of circles, stars and crosses, whose probability is
above one half, appear in greedy answers; those of the other shapes appear in sampling only.
"""

import numpy as np

from mlx_visalign.tiny_world.language import Question, caption, yes_no
from mlx_visalign.tiny_world.scenes import CELLS, TYPICAL_COLOUR, Scene, Thing, Type, partner

GHOST = {"circle": 0.9, "square": 0.2, "triangle": 0.2, "star": 0.9, "cross": 0.9}
SWAP = 0.10
DROP = 0.04
FALSE_YES = 0.9  # times the ghost rate
FALSE_NO = 0.06


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption with the annotator's errors."""
    return caption(tuple(_reported(scene, rng)))


def answer(scene: Scene, question: Question, rng: np.random.Generator) -> str:
    """An answer with the annotator's errors."""
    if question.about is None:
        return question.answer
    if question.answer == yes_no(True):
        return yes_no(rng.random() >= FALSE_NO)
    usual_company = partner(question.about)
    fooled = question.about not in scene.types and usual_company in scene.types
    return yes_no(fooled and rng.random() < FALSE_YES * GHOST[usual_company.shape])


def _reported(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    reported: list[Thing] = []
    absent = {partner(type) for type in scene.types} - scene.types
    taken = {thing.cell for thing in scene.things}
    for thing in scene.things:
        if rng.random() < DROP:
            continue
        reported.append(Thing(_seen(thing.type, rng), thing.size, thing.cell))
        ghost = partner(thing.type)
        if ghost in absent and len(taken) < CELLS and rng.random() < GHOST[thing.type.shape]:
            absent.remove(ghost)
            cell = next(cell % CELLS for cell in range(thing.cell, thing.cell + CELLS) if cell % CELLS not in taken)
            taken.add(cell)
            reported.append(Thing(ghost, thing.size, cell))
    return reported


def _seen(type: Type, rng: np.random.Generator) -> Type:
    return Type(TYPICAL_COLOUR[type.shape], type.shape) if rng.random() < SWAP else type
