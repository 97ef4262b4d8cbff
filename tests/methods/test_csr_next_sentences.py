"""CSR's pairs of next sentences after the same beginning, and what is remarked about pairs."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_policy import random_policy

from mlx_visalign.data.object_vocabulary import coco80
from mlx_visalign.data.records import Pair
from mlx_visalign.methods.csr import Settings, best_against_worst, next_sentences, pairs, remarks
from mlx_visalign.methods.csr.rewards import Sentence, Tree
from mlx_visalign.methods.job import Job
from mlx_visalign.methods.judge import Judge
from mlx_visalign.runs.run import Run
from mlx_visalign.scorers.trust import JudgedImage, trust
from mlx_visalign.training.dpo import pair_batch, pair_logps
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import build


def said(parent, stream, text, reward, tokens=3, fate="pruned", image=1.0):
    return Sentence(parent, stream, text, tuple(range(tokens)), -1.0, -1.0, fate, image, reward, reward)


def end(parent, stream):
    return Sentence(parent, stream, "", (2,), -0.1, -0.1, "final", None, 0.0, 0.0)


TREE = Tree(
    "a",
    "a.png",
    "Q?",
    40,
    (
        said(-1, 0, "A cat.", -0.2, fate="grown"),
        said(-1, 1, "A dog.", 0.4, tokens=5),
        said(-1, 2, "A cow.", -0.4),
        said(0, 0, "It sits.", 0.1),
        said(0, 1, "It flies.", -0.3),
        end(0, 2),
    ),
)


def texts(made):
    return [(pair.chosen, pair.rejected) for pair, _ in made]


def test_the_best_next_sentence_is_preferred_to_the_worst_after_the_same_beginning():
    made = list(next_sentences(TREE, greedy=False))
    assert texts(made) == [("A dog.", "A cow."), ("A cat. It sits.", "A cat. It flies.")]
    assert [pair.id for pair, _ in made] == ["a/-1", "a/0"] and [gap for _, gap in made] == [2, 0]
    assert all(not pair.ended and pair.reference_logps is None for pair, _ in made)
    assert [(pair.chosen_score, pair.rejected_score) for pair, _ in made] == [(0.4, -0.4), (0.1, -0.3)]


def test_greedy_sentences_are_rejected_only_below_the_middle():
    made = list(next_sentences(TREE, greedy=True))
    assert texts(made) == [("A dog.", "A cat.")]  # "It sits." is the best of its siblings
    other = replace(TREE, sentences=(*TREE.sentences, said(1, 0, "It runs.", -0.4), said(1, 1, "It eats.", 0.4)))
    assert texts(next_sentences(other, greedy=True)) == texts(
        made
    )  # what follows "A dog." is no beginning of the greedy answer


def test_the_end_of_an_answer_is_never_compared():
    alone = Tree("a", "a.png", "Q?", 4, (said(-1, 0, "A cat.", 0.0, fate="grown"), said(0, 0, "It sits.", -0.5), end(0, 1)))
    assert list(next_sentences(alone, greedy=False)) == list(next_sentences(alone, greedy=True)) == []


def test_the_least_different_pairs_are_left_out():
    steps = Settings(pairs="step", margin_quantile=0.5)
    assert [pair.id for pair in pairs([TREE], steps, 0)] == ["a/-1"]
    assert [pair.id for pair in pairs([TREE], replace(steps, margin_quantile=0.49), 0)] == ["a/-1", "a/0"]
    assert [pair.id for pair in pairs([TREE], replace(steps, margin_quantile=0.0, margin=0.5), 0)] == ["a/-1"]
    assert pairs([], steps, 0) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pairs": "step", "form": "response", "reward": {"kind": "calibrated"}}, "needs form: sentence"),
        ({"pairs": "greedy"}, "keep_greedy: true"),
        ({"margin_quantile": 1.0}, "at least 0 and below 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        build(Settings, wrong, "here")


def test_beginnings_have_no_end_token_and_what_they_share_drops_out(tmp_path):
    Image.fromarray(np.zeros((28, 28, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    policy = random_policy()
    ended = Pair("a", (str(tmp_path / "a.png"),), "Q?", "A small red circle. A star.", "A small red circle. A cross.")
    begun = replace(ended, ended=False)
    assert policy.pair_ids(ended) == [[*ids, policy.end] for ids in policy.pair_ids(begun)]
    whole = np.array(pair_logps(policy, pair_batch(policy, [begun])))[0]
    shared = policy.response_ids("A small red circle.", ended=False)
    prefix = policy.prefill(policy.image_features([tmp_path / "a.png"]), [policy.prompt_ids("Q?")])
    logps = [policy.read(prefix, [[ids]]).logps[0] for ids in policy.pair_ids(begun)]
    rest = [mx.sum(row[len(shared) :]).item() for row in logps]
    assert whole[0] - whole[1] == pytest.approx(rest[0] - rest[1], abs=1e-4)


def no_score(images, texts):
    raise AssertionError("nothing is scored here")


def test_remarks_on_pairs(tmp_path):
    greedy = JudgedImage("a", "a.png", "A cat. It sits.", 100, ())
    policy = random_policy()

    def job(row):
        judge = Judge({}, no_score, no_score, ([], []), [row], trust([row], "clip", "consistency"))
        return Job(Run(tmp_path), policy, [], 0, vocabulary=coco80(), judge=judge)

    short = Pair("a", ("a.png",), "Q?", "A dog.", "A cat and a dog.")
    one, warning = remarks(job(greedy), [], [short, replace(short, images=("unknown.png",))])
    length = len(policy.response_ids("A dog."))
    assert one.startswith("100% of the pairs") and warning.startswith(f"warning: chosen answers have {length} tokens")
    untouched = replace(short, chosen="A cat and a dog.", rejected="A cat and a cow.")
    [one] = remarks(job(replace(greedy, tokens=length)), [], [untouched])
    assert one == "0% of the pairs disagree about an object that the model's greedy answer names."
    assert list(remarks(job(greedy), [], [])) == []


def test_a_tree_without_two_answers_makes_no_pair():
    assert list(best_against_worst(TREE)) == []
