"""The public names: there, lazy, and nothing else."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sample_photos import write_photos

import mlx_visalign
from mlx_visalign.data.records import write_jsonl
from mlx_visalign.inference.policy import Policy, load
from mlx_visalign.training.dpo import with_reference
from mlx_visalign.utils.errors import UserError


def test_the_public_names():
    assert (mlx_visalign.load, mlx_visalign.Policy) == (load, Policy)
    assert callable(mlx_visalign.align)
    with pytest.raises(AttributeError, match="no attribute 'alignn'"):
        _ = mlx_visalign.alignn


def test_the_names_are_listed():
    assert {"Pair", "Policy", "align", "dpo_train", "load", "__version__", "__doc__"} <= set(dir(mlx_visalign))
    assert not {name for name in dir(mlx_visalign) if not name.startswith("_")} - set(mlx_visalign.__all__)


# Where an argument is wrong, what the one sentence says. `p` is a loaded policy, `im` an image, `out` a folder.
WRONG = {
    "load(5)": "Give a model as a folder's path or a name on the hub, got 5.",
    "load(None)": "Give a model as a folder's path or a name on the hub, got nothing (null).",
    "load('nowhere')": "The model nowhere is neither a local folder nor a name on the hub (owner/name).",
    "load('tiny', adapter_path=['a'])": "Give an adapter as a folder's path or a name on the hub, got ['a'].",
    "load('tiny', 'a', adapter='b')": "Give one adapter: adapter= is an alias of adapter_path=.",
    "load('tiny', template='vicuna')": "template must be one of vicuna_v1, hf, onevision, got the text 'vicuna'.",
    "load('tiny', dtype='float16')": "dtype must be one of MLX's, such as mx.float16, got the text 'float16'.",
    "p.load_adapter(3)": "Give an adapter as a folder's path or a name on the hub, got 3.",
    "p.load_adapter('nowhere')": "nowhere/adapter_config.json is missing: is nowhere the right folder?",
    "p.answer(im, 3)": "The question must be text, got 3.",
    "p.answer(im, 'Q?', max_tokens='x')": "answer: max_tokens must be a whole number, got the text 'x'.",
    "p.answer(im, 'Q?', max_tokens=0)": "answer: max_tokens is 0; it must be 1 or more.",
    "p.answer(im, 'Q?', temprature=1)": "answer: unknown name 'temprature'. Did you mean 'temperature'?",
    "p.answer(im, 'Q?', {'max_tokens': 5})": "Give either max_tokens=, temperature= and top_p=, or one Sampling",
    "p.logps([im], ['What?'], [])": "Give as many images as questions and answers, got 1, 1 and 0.",
    "dpo_train(5, [], output=out)": "The argument policy= must be a loaded policy, got 5.",
    "dpo_train(p, 5, output=out)": "The argument pairs= must be a file of pairs, or a list of Pair, got 5.",
    "dpo_train(p, [{}], output=out)": "pairs[0] must be a Pair, got ",
    "align('sevva', output=out)": "There is no recipe 'sevva', neither a file nor a built-in one. Did you mean 'seva'?",
    "align(3, output=out)": "The argument recipe= must be a method's name or a recipe file, got 3.",
    "align(output=3, images=out)": "The argument output= must be a folder's path, got 3.",
    "align(output=out, images=out)": "Which model? Name a LLaVA folder or one on the Hub: --model MODEL (model= in Python",
    "align(output=out, images=out, model=None)": "The argument model= must be text, got nothing (null).",
    "align(output=out, images=out, model='tiny', max_images='ten')": "The argument max_images= must be a whole number, got",
    "align(output=out, images=out, model='tiny', max_images=0)": "The argument max_images= is 0; it must be 1 or more.",
    "align(output=out, imags=out, model='tiny')": "The argument imags=: unknown name 'imags'. Did you mean 'images'?",
    "align(output=out, images=out, model='tiny', view='crop')": "unknown name 'view'. Did you mean 'settings.view'?",
    "align(output=out, images=out, model='tiny', settings=[1])": "The argument settings= must be named values, such as",
    "align(output=out, images=out, model='tiny', settings={'beta': 1})": "The setting beta: unknown name 'beta'. Did you mean "
    "'train.beta'?",
    "align(output=out, images=out, model='tiny', settings={'view': None})": "The setting view must be text, got nothing",
    "align(output=out, images=out, model='tiny', settings={'train': {'lora': {'rank': 0}}})": "train.lora.rank is 0; it must",
    "align(output=out, images=out, model='tiny', settings={'max_images': 1})": "max_images is not a setting of the method; ",
    "align(output=out, images=out, model='tiny', scorer=len)": "The argument scorer=: the method seva uses no scorer.",
    "align(output=out, images=out, model='tiny', on_metrics=5)": "on_metrics must be a function that takes a dict, got 5.",
    "align(output=out, images=out, model='tiny', preset='lapdog')": "Did you mean 'laptop'?",
}


def test_what_is_wrong_is_one_sentence(tmp_path):
    """In a process of its own, where nothing checks types but the package itself."""
    script = f"""
import json, pathlib
import mlx_visalign
from PIL import Image
from mlx_visalign.utils.errors import UserError
load, align, dpo_train = mlx_visalign.load, mlx_visalign.align, mlx_visalign.dpo_train
out, im = pathlib.Path({str(tmp_path)!r}), Image.new("RGB", (48, 48))
p, said = load("tiny"), {{}}
for call in {list(WRONG)}:
    try:
        eval(call)
        said[call] = "nothing was wrong"
    except UserError as error:
        said[call] = str(error)
    except Exception as error:
        said[call] = repr(error)
said["right"] = p.answer(im, "Is there a red circle in the image?", max_tokens=3, temperature=0.5)
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("right")
    assert {call: told for call, told in said.items() if WRONG[call] not in told} == {}
    assert not list(tmp_path.iterdir())


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert mlx_visalign.__version__ == project["version"]


def test_importing_the_package_loads_no_mlx():
    script = "import sys, mlx_visalign; print('mlx.core' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


PAIRS = [("Describe this image in detail.", "There is a red circle.", "There is a blue star and a green square.")] * 4


@pytest.fixture
def own_pairs(tmp_path):
    write_photos(tmp_path / "photos", 4)
    return [
        mlx_visalign.Pair(f"p{number}", (str(tmp_path / f"photos/{number}.png"),), *pair) for number, pair in enumerate(PAIRS)
    ]


def test_logps_are_those_that_training_sees(own_pairs):
    policy = load("tiny")
    images, questions = [pair.images[0] for pair in own_pairs], [pair.prompt for pair in own_pairs]
    found = policy.logps(images, questions, [pair.chosen for pair in own_pairs])
    expected = [pair.reference_logps["chosen"] for pair in with_reference(policy, own_pairs)]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    opened = [Image.open(image) for image in images]
    assert policy.logps(opened, questions, [pair.chosen for pair in own_pairs]).tolist() == found.tolist()
    with pytest.raises(UserError, match="Give as many images as questions and answers, got 4, 1 and 4"):
        policy.logps(images, ["What?"], ["One."] * 4)
    with pytest.raises(UserError, match="got 0, 0 and 0"):
        policy.logps([], [], [])


def test_dpo_trains_on_pairs_of_ones_own(own_pairs, tmp_path, monkeypatch):
    policy, rows = load("tiny"), []
    monkeypatch.chdir(tmp_path)  # as in any script, a relative path is relative to the working folder
    relative = [replace(pair, images=(os.path.relpath(pair.images[0]),)) for pair in own_pairs]
    before = policy.logps([own_pairs[0].images[0]], [PAIRS[0][0]], [PAIRS[0][2]])
    settings = {"iters": 8, "batch_size": 2, "learning_rate": 1e-3, "lora": {"rank": 2}}
    adapter = mlx_visalign.dpo_train(policy, relative, output=tmp_path / "out", on_metrics=rows.append, **settings)
    after = policy.logps([own_pairs[0].images[0]], [PAIRS[0][0]], [PAIRS[0][2]])
    assert len(rows) == 8 and after.item() < before.item() - 1  # the rejected answer has become less likely
    with policy.adapter_off():
        assert policy.logps([own_pairs[0].images[0]], [PAIRS[0][0]], [PAIRS[0][2]]).item() == before.item()
    again = load("tiny", adapter_path=adapter)
    assert again.logps([own_pairs[0].images[0]], [PAIRS[0][0]], [PAIRS[0][2]]).item() == pytest.approx(after.item(), abs=1e-4)
    with pytest.raises(UserError, match="Load the model again"):
        mlx_visalign.dpo_train(policy, own_pairs, output=tmp_path / "two", **settings)
    write_jsonl(tmp_path / "pairs.jsonl", own_pairs)
    same = mlx_visalign.dpo_train(load("tiny"), tmp_path / "pairs.jsonl", output=tmp_path / "three", **settings)
    assert len({(folder / "adapters.safetensors").read_bytes() for folder in (adapter, same)}) == 1


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        ([mlx_visalign.Pair("a", ("gone.png",), "Q?", "A.", "B.")], {}, "gone.png"),
        ([], {"bta": 1}, "dpo_train: unknown name 'bta'. Did you mean 'beta'"),
        ([], {}, "no pairs to train on"),
    ],
)
def test_dpo_refuses_in_a_sentence(pairs, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        mlx_visalign.dpo_train(load("tiny"), pairs, output=tmp_path / "out", **settings)


def test_a_run_shows_itself_in_a_notebook(tmp_path):
    settings = {"max_tokens": 48, "train": {"iters": 2, "batch_size": 2, "grad_accumulation_steps": 1}}
    more = {"settings": settings, "max_images": 4, "questions_per_image": 1, "eval_images": 1}
    made = mlx_visalign.align("seva", model="tiny", images="tiny-world", output=tmp_path / "run", **more)
    assert made == json.loads((tmp_path / "run/report.json").read_text()) and made.page.exists()
    assert load("tiny", made.adapter).answer(Image.new("RGB", (48, 48)), "What?") is not None
    assert made._repr_html_().startswith("<iframe") and "&lt;h1&gt;SeVa on tiny" in made._repr_html_()
