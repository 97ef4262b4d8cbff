"""Functions of one's own in scorers', augmentations' and rewards' places: found by file or module, their results checked."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from small_runs import SETTINGS, TRUE_REWARD

import mlx_visalign
from mlx_visalign.cli.main import main
from mlx_visalign.data.augment import parse_view
from mlx_visalign.data.records import Pair, read_jsonl
from mlx_visalign.methods import own_reward, seva
from mlx_visalign.methods.own_reward import RatedResponse
from mlx_visalign.scorers import find_reward, find_scorer
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.own_code import versioned

IMAGE, KEY = mx.zeros((4, 6, 3), dtype=mx.uint8), mx.random.key(0)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a Python file into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return name

    return write


def test_an_augmentation_of_ones_own_is_a_view(file):
    file("def brighter(image, key, size):\n    return image + size")
    view = parse_view("mine.py:brighter")
    assert view.of_image(IMAGE, KEY, 7).tolist() == (IMAGE + 7).tolist() and view.label == "mine.py:brighter"


@pytest.mark.parametrize(("body", "what"), [("image[0]", r"uint8 \[6, 3\]"), ("image / 2", "float32"), ("5", "int")])
def test_what_is_no_image_is_refused(file, body, what):
    file(f"def bad(image, key, size):\n    return {body}", f"bad_{len(body)}.py")
    with pytest.raises(UserError, match=f"should return an MLX array, uint8 .h, w, 3.; it returned {what}"):
        parse_view(f"bad_{len(body)}.py:bad").of_image(IMAGE, KEY, 7)


@pytest.mark.parametrize(("find", "whose"), [(find_scorer, "scorer"), (find_reward, "reward"), (parse_view, "augmentation")])
def test_what_is_no_function_is_refused(find, whose, file):
    file("f = 5", "no_function.py")
    file("1 / 0", "fails.py")
    with pytest.raises(UserError, match=f"The {whose} 'no_function.py:f': no_function.py has no function 'f'"):
        find("no_function.py:f")
    with pytest.raises(UserError, match=r"fails.py cannot be imported .ZeroDivisionError"):
        find("fails.py:f")
    with pytest.raises(UserError, match=r"There is no Python file .*gone.py"):
        find("gone.py:f")
    with pytest.raises(UserError, match=f"The {whose} 'no_such_module:f' cannot be imported"):
        find("no_such_module:f")


@pytest.mark.parametrize("given", ["[1.0]", "None", "[float('nan')] * 2", "['a', 'b']"])
def test_a_reward_that_is_no_number_for_every_answer_is_refused(file, given):
    name = file(f"def reward(images, prompts, answers):\n    return {given}", f"reward_{len(given)}.py")
    with pytest.raises(UserError, match="should return 2 finite numbers, one for each answer; it returned"):
        find_reward(name)([Path("a")] * 2, ["?"] * 2, ["a", "b"])


def test_edited_code_counts_as_another(file, monkeypatch):
    """Found by its file or as a module; nothing is imported, and a name without a file has no version."""
    file("def f(image, key, size):\n    return image", "my_code_once_edited.py")
    names = ("my_code_once_edited.py:f", "my_code_once_edited.py", "my_code_once_edited:f")
    monkeypatch.syspath_prepend(".")
    before = [versioned(name) for name in names]
    assert all(one.startswith(f"{name}, version ") for one, name in zip(before, names, strict=True))
    assert len({one.rpartition(" ")[2] for one in before}) == 1
    views = replace(seva.Settings(), view="my_code_once_edited.py:f")
    seen = views.own_views
    file("def f(image, key, size):\n    return image + 1", "my_code_once_edited.py")
    assert not set(before) & {versioned(name) for name in names} and len(seen) == 1 and views.own_views != seen
    assert (versioned(None), versioned("gone.py:f"), versioned("no_such_module:f")) == (
        "",
        "gone.py:f, version unknown",
        "no_such_module:f",
    )
    assert seva.Settings().own_views == []


def rated(id, *rewards, **more):
    one = {"image": "a.png", "prompt": "?", "kind": "describe", "view": "clean", "finished": True, "tokens": 5}
    return [RatedResponse(**one | {"id": id, "text": f"{id}{r}", "reward": r} | more) for r in rewards]


def test_the_best_and_the_worst_finished_answer_make_a_pair():
    settings = own_reward.Settings(margin=1.0)
    rows = [*rated("a", 2.0, 9.0, 5.0), *rated("b", 1.0, 2.0), *rated("c", 3.0, 9.0, text="Same."), *rated("d", 0.0)]
    rows += [*rated("e", 1.0, 5.0), *rated("e", 99.0, finished=False)]
    assert [(pair.id, pair.chosen, pair.rejected) for pair in own_reward.pairs(rows, settings, 0)] == [
        ("a", "a9.0", "a2.0"),
        ("e", "e5.0", "e1.0"),
    ]
    assert own_reward.summary(rows, []) == "5 prompts gave 0 pairs (1 of 11 answers cut off)."


def test_a_run_with_a_reward_of_ones_own(tmp_path):
    """The chosen answers are those that the reward likes, in a run from Python, with the function itself."""
    liked = []

    def reward(images, prompts, answers):
        liked.extend(images)
        return [float(answer.count("large")) for answer in answers]

    where = {"images": "tiny-world", "max_images": 10, "questions_per_image": 0, "eval_images": 1}
    settings = SETTINGS["own_reward"] | {"samples": 2} | {"train": SETTINGS["own_reward"]["train"] | {"iters": 2}}
    mlx_visalign.align("own_reward", output=tmp_path / "run", reward_function=reward, settings=settings, **where)
    pairs = read_jsonl(tmp_path / "run/pairs.jsonl", Pair)
    assert pairs and all(pair.chosen.count("large") > pair.rejected.count("large") for pair in pairs)
    assert all(path.is_file() for path in liked)
    with pytest.raises(UserError, match=r"The setting reward is .*true_reward.py, version \w+ now"):  # not taken from others
        again = {"reward_function": str(TRUE_REWARD), "settings": settings, **where}
        mlx_visalign.align("own_reward", output=tmp_path / "run", **again)


def test_without_a_reward_it_is_named(capsys):
    command = ["run", "own_reward", "--images", "tiny-world", "--max-images", "9", "--dry-run"]
    assert main(command) == 2
    assert "own_reward needs a reward of your own: --reward-file FILE.py" in capsys.readouterr().err
    assert main([*command, "--reward-file", str(TRUE_REWARD), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer_tokens_at_most"] == 9 * 4 * 256
    assert main(["run", "seva", "--images", "tiny-world", "--max-images", "9", "--reward-file", "x.py"]) == 2
    assert "the method seva takes no reward of your own" in capsys.readouterr().err
