"""What is said about scenes, and the annotator's faults at the documented rates."""

import numpy as np

from mlx_visalign.tiny_world import annotator, language
from mlx_visalign.tiny_world.scenes import SPLITS, Scene, Thing, Type, partner, split

RED_CIRCLE, COMPANY = Type("red", "circle"), partner(Type("red", "circle"))
SCENE = Scene(0, (Thing(RED_CIRCLE, "small", 0), Thing(Type("blue", "star"), "large", 4)))


def test_the_caption_of_a_scene():
    assert language.caption(SCENE.things) == "A small red circle at the top left. A large blue star at the centre."


def test_questions_and_their_answers():
    exists = language.exists(SCENE, RED_CIRCLE)
    assert (exists.prompt, exists.answer) == ("Is there a red circle in the image?", "Yes.")
    assert language.exists(SCENE, COMPANY).answer == "No."
    claim = Thing(RED_CIRCLE, "small", 1)
    assert language.check(SCENE, claim).prompt == "Is there a small red circle at the top?"
    assert language.check(SCENE, claim).answer == "No."
    assert language.check(SCENE, SCENE.things[0]).answer == "Yes."
    assert language.count(SCENE).answer == "Two."
    assert language.count_colour(SCENE, "blue").answer == "One."
    assert language.colour(SCENE, "star").answer == "Blue."


def test_the_mix_of_questions():
    rng = np.random.default_rng(0)
    questions = [language.random_question(scene, rng) for scene in split("pretraining", 2000)]
    kinds = [question.kind for question in questions]
    answers = [question.answer for question in questions if question.kind == "exists"]
    assert 0.55 < kinds.count("exists") / 2000 < 0.68
    assert 0.45 < answers.count("Yes.") / len(answers) < 0.55
    assert set(kinds) == set(language.QUESTION_KINDS)


def test_the_vocabulary_is_the_forty_types():
    vocabulary = language.vocabulary()
    assert len(vocabulary) == 40
    assert vocabulary[0] == {"canonical": "red circle", "phrases": ["red circle"]}


def test_faults_of_descriptions_come_at_their_rates():
    rng = np.random.default_rng(0)
    alone = Scene(0, (Thing(RED_CIRCLE, "small", 0),))  # red is the circle's typical colour: a swap changes nothing
    told = [annotator.describe(alone, rng) for _ in range(2000)]
    assert abs(sum(text == "" for text in told) / 2000 - annotator.DROP) < 0.02
    ghosts = sum(str(COMPANY) in text for text in told) / 2000
    assert abs(ghosts - (1 - annotator.DROP) * annotator.GHOST["circle"]) < 0.04
    ghost = next(text for text in told if str(COMPANY) in text)
    assert ghost == f"A small red circle at the top left. A small {COMPANY} at the top."

    rare = Scene(0, (Thing(Type("green", "circle"), "small", 0), Thing(partner(Type("green", "circle")), "small", 1)))
    told = [annotator.describe(rare, rng) for _ in range(2000)]
    assert abs(sum("red circle" in text for text in told) / 2000 - (1 - annotator.DROP) * annotator.SWAP) < 0.03


def test_a_full_scene_has_no_room_for_ghosts():
    full = Scene(0, tuple(Thing(RED_CIRCLE, "small", cell) for cell in range(9)))
    told = [annotator.describe(full, np.random.default_rng(seed)) for seed in range(50)]
    assert not any(str(COMPANY) in text for text in told)


def test_faults_of_answers_come_at_their_rates():
    rng = np.random.default_rng(0)

    def yes_rate(type: Type) -> float:
        question = language.exists(SCENE, type)
        return sum(annotator.answer(SCENE, question, rng) == "Yes." for _ in range(2000)) / 2000

    assert abs(yes_rate(RED_CIRCLE) - (1 - annotator.FALSE_NO)) < 0.02
    assert abs(yes_rate(COMPANY) - annotator.FALSE_YES * annotator.GHOST["circle"]) < 0.04
    assert yes_rate(Type("white", "cross")) == 0
    count = language.count(SCENE)
    assert annotator.answer(SCENE, count, rng) == "Two."


def test_every_split_has_a_name():
    assert set(SPLITS) == {"pretraining", "unlabelled", "validation", "held-out"}
