"""Captions and questions about scenes, with true answers.

A caption has one sentence per object in reading order: "A small red circle at the top left. A large blue star at the
centre." The order is fixed, so that two captions of the same image differ in content, not in order.

Captions answer `DESCRIBE`, the toolkit's default prompt: the tiny LLaVA was pretrained on exactly this wording and knows no
other, so changing the default requires pretraining it again.
"""

from dataclasses import dataclass

import numpy as np

from mlx_visalign.tiny_world.scenes import COLOURS, RADII, SHAPES, TYPES, Scene, Thing, Type, partner

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five")

QUESTION_KINDS = ("exists", "check", "count", "count_colour", "colour")
QUESTION_RATES = (0.60, 0.16, 0.08, 0.08, 0.08)


@dataclass(frozen=True)
class Question:
    """A question with its true answer.

    `about` is the type of object that a yes/no question is about.
    """

    kind: str
    prompt: str
    answer: str
    about: Type | None = None


def sentence(thing: Thing) -> str:
    return f"A {thing.size} {thing.type} at the {PLACES[thing.cell]}."


def caption(things: tuple[Thing, ...]) -> str:
    return " ".join(map(sentence, things))


def vocabulary() -> list[dict]:
    """The 40 object names, in the format of vocabulary files."""
    return [{"canonical": str(type), "phrases": [str(type)]} for type in TYPES]


def yes_no(truth: bool) -> str:
    return "Yes." if truth else "No."


def exists(scene: Scene, type: Type) -> Question:
    return Question("exists", f"Is there a {type} in the image?", yes_no(type in scene.types), type)


def check(scene: Scene, thing: Thing) -> Question:
    """A caption's sentence as a yes/no question, for critics."""
    prompt = f"Is there {sentence(thing)[:-1].replace('A', 'a', 1)}?"
    return Question("check", prompt, yes_no(thing in scene.things), thing.type)


def count(scene: Scene) -> Question:
    return Question("count", "How many objects are in the image?", f"{NUMBERS[len(scene.things)]}.")


def count_colour(scene: Scene, colour: str) -> Question:
    number = sum(thing.type.colour == colour for thing in scene.things)
    return Question("count_colour", f"How many {colour} objects are in the image?", f"{NUMBERS[number]}.")


def colour(scene: Scene, shape: str) -> Question:
    """A question about the colour of the only such shape."""
    [only] = [thing for thing in scene.things if thing.type.shape == shape]
    return Question("colour", f"What colour is the {shape}?", f"{only.type.colour.capitalize()}.")


def random_question(scene: Scene, rng: np.random.Generator) -> Question:
    """A question of the training mix, with its true answer."""
    kind = rng.choice(QUESTION_KINDS, p=QUESTION_RATES)
    if kind == "check":
        return check(scene, random_claim(scene, rng))
    if kind == "count":
        return count(scene)
    if kind == "count_colour":
        return count_colour(scene, _pick(rng, tuple(COLOURS)))
    unique = unique_shapes(scene)
    if kind == "colour" and unique:
        return colour(scene, _pick(rng, unique))
    return exists(scene, random_type(scene, rng))


def exercises(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Three questions about counts and colours.

    Their answers are short and checkable, and they are neither about existence nor descriptions: how many objects there are,
    how many of one colour, and the colour of a shape that occurs once; if no shape does, how many of another colour. One of the
    two colours is present, the other is not.
    """
    there = {thing.type.colour for thing in scene.things}
    sides = [[name for name in COLOURS if (name in there) == shown] for shown in (True, False)]
    one, other = (_pick(rng, sides[side]) for side in rng.permutation(2))
    unique = unique_shapes(scene)
    last = colour(scene, _pick(rng, unique)) if unique else count_colour(scene, other)
    return [count(scene), count_colour(scene, one), last]


def unique_shapes(scene: Scene) -> list[str]:
    """The shapes that occur exactly once."""
    shapes = [thing.type.shape for thing in scene.things]
    return [shape for shape in SHAPES if shapes.count(shape) == 1]


def random_type(scene: Scene, rng: np.random.Generator) -> Type:
    """A random type to ask about.

    Probability 1/4: a present object's type; 1/2: its partner, which is present about half of the time; 1/4: any type.
    """
    there = _pick(rng, scene.things).type
    return _pick(rng, (there, partner(there), partner(there), _pick(rng, TYPES)))


def random_claim(scene: Scene, rng: np.random.Generator) -> Thing:
    """A present object, or one with a single change.

    With probability 1/2 a thing in the scene, otherwise one whose type, size or place is changed.
    """
    thing = _pick(rng, scene.things)
    draw = rng.random()
    if draw < 0.5:
        return thing
    if draw < 0.8:
        return Thing(_pick(rng, (partner(thing.type), _pick(rng, TYPES))), thing.size, thing.cell)
    if draw < 0.9:
        return Thing(thing.type, _pick(rng, tuple(RADII)), thing.cell)
    return Thing(thing.type, thing.size, int(rng.integers(len(PLACES))))


def _pick(rng: np.random.Generator, items):
    return items[rng.integers(len(items))]
