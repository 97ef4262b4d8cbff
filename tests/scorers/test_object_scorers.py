"""Scores of objects and of sentences: word debiasing, scales, sentences without objects, shares of answers, yes over no."""

from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.data.object_vocabulary import Entry, Vocabulary, question
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.scorers.consistency import Consistency, shares_of
from mlx_visalign.scorers.objects import Combined, Part, PhraseScorer, SentenceScorer
from mlx_visalign.scorers.self_check import SelfCheck, yes_over_no
from mlx_visalign.tiny_world.drawing import draw
from mlx_visalign.tiny_world.scenes import scene

A, B = Path("1.png"), Path("2.png")
WORDS = Vocabulary((Entry("cat", ("cat", "kitten")), Entry("dog", ("dog",)), Entry("dining table", ("dining table", "table"))))


def lengths(images, texts):
    """A made-up scorer: longer texts, and images of higher numbers, score higher."""
    return [float(len(text) + int(image.stem)) for image, text in zip(images, texts, strict=True)]


# -- objects ----------------------------------------------------------------------------------------------------------


def test_debiasing_takes_off_a_phrases_own_level_once():
    calls = []

    def score(images, texts):
        calls.append((len(images), texts[0]))
        return lengths(images, texts)

    scorer = PhraseScorer(score, "a {}", tuple(Path(f"{n}.png") for n in (1, 2, 3)))
    assert scorer([Path("5.png"), Path("6.png")], ["cat", "zebra"]) == [5 - 2, 6 - 2]
    assert scorer([Path("7.png")], ["cat"]) == [7 - 2]
    assert calls == [(2, "a cat"), (3, "a cat"), (3, "a zebra"), (1, "a cat")]
    assert PhraseScorer(lengths, "{}, a {}")([A], ["cat"]) == [1 + len("cat, a cat")]


def test_parts_are_weighed_on_their_scales():
    one, other = Part(lengths, 5.0, 2.0), Part(lambda images, texts: [3.0] * len(texts), 1.0, 0.5, weight=3.0)
    assert one([A, B], ["abcd", "ab"]) == [0.0, -0.5]
    assert Combined((one, other))([A, B], ["abcd", "ab"]) == [pytest.approx((0 + 3 * 4) / 4), pytest.approx((-0.5 + 12) / 4)]
    assert Combined((one,))([], []) == []


# -- sentences --------------------------------------------------------------------------------------------------------


def by_name(images, names):
    return [
        {"cat": 1.0, "dog": -1.0, "dining table": 4.0}[name] + 10 * (image == B)
        for image, name in zip(images, names, strict=True)
    ]


def nine(images, sentences):
    return [9.0] * len(sentences)


def never(images, sentences):
    raise AssertionError("no whole sentence was needed")


def test_a_sentence_has_the_mean_of_its_distinct_objects():
    scorer = SentenceScorer(by_name, never, WORDS)
    said = ["A cat, a kitten and a cat beside a dog.", "A dog.", "Two cats."]
    assert scorer([A, B, A], said) == [0.0, 9.0, 1.0]
    assert scorer([], []) == []


def test_a_sentence_without_objects_has_its_own_score():
    scorer = SentenceScorer(by_name, nine, WORDS)
    assert scorer([A, A, A], ["It is sunny.", "A table.", ""]) == [9.0, 4.0, 9.0]


def test_whole_sentences_weigh_in():
    asked = []

    def noted(images, sentences):
        asked.extend(zip(images, sentences, strict=True))
        return nine(images, sentences)

    scorer = SentenceScorer(by_name, noted, WORDS, whole_weight=0.5)
    assert scorer([A, B], ["A dog.", "So quiet."]) == [(-1 + 9) / 2, 9.0]
    assert asked == [(A, "A dog."), (B, "So quiet.")]


def test_a_mean_of_zero_is_a_score():
    assert SentenceScorer(lambda images, names: [0.0] * len(names), never, WORDS)([A], ["A cat."]) == [0.0]


# -- consistency ------------------------------------------------------------------------------------------------------


def test_shares_count_answers_not_mentions():
    said = ["A cat and a cat.", "A kitten on a table.", "A dog.", "Nothing."]
    assert shares_of(said, WORDS) == {"cat": 0.5, "dining table": 0.25, "dog": 0.25}
    assert shares_of(["Nothing."], WORDS) == {}


def test_an_unknown_image_is_sampled_once():
    drawn = []

    def draw_for(image):
        drawn.append(image)
        return {"dog": 0.5}

    scorer = Consistency({A: {"cat": 0.75}}, draw_for, WORDS)
    assert scorer([A, A, A, B, B], ["cat", "kittens", "dog", "dog", "cat"]) == [0.75, 0.75, 0.0, 0.5, 0.0]
    assert drawn == [B]


# -- yes or no --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for n, file in enumerate(files):
        Image.fromarray(draw(scene(n))).save(file)
    return files


def test_yes_over_no_is_that_of_the_whole_prompt(scenes):
    """Against each prompt read by itself, with its image, up to the first token of the answer."""
    policy, names = random_policy(), ["red circle", "blue star", "red circle"]
    images = [scenes[0], scenes[0], scenes[1]]
    words = [policy.response_ids(word)[0] for word in ("Yes", "No")]
    meant = []
    for image, name in zip(images, names, strict=True):
        [logits] = policy.first_logits(question(name), image)
        meant.append(float(logits[words[0]] - logits[words[1]]))
    assert SelfCheck(policy)(images, names) == pytest.approx(meant, abs=1e-4)
    assert len(set(meant)) == 3 and SelfCheck(policy)([], []) == []


def test_the_untrained_model_is_asked(scenes):
    policy = random_policy()
    before = SelfCheck(policy)(scenes[:1], ["red circle"])
    policy.attach(LoRASettings(rank=2), 0)
    for _, module in policy.model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.ones_like(module.lora_b)
    assert SelfCheck(policy)(scenes[:1], ["red circle"]) == pytest.approx(before)
    assert yes_over_no(policy, scenes[0], [question("red circle")]) != pytest.approx(before)
