"""The command line: instant help, one sentence for a user's mistake, and every command on the tiny model."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from PIL import Image
from sample_photos import write_photos

from mlx_visalign import methods
from mlx_visalign.cli import world
from mlx_visalign.cli.main import main
from mlx_visalign.data.records import Pair, read_rows, write_jsonl
from mlx_visalign.evaluation import runner as evaluate
from mlx_visalign.inference.policy import TINY, load
from mlx_visalign.models.lora import LoRASettings
from mlx_visalign.pipeline.prompts_stage import ask
from mlx_visalign.runs.recipe import Recipe, find_recipe, list_recipes, make_plan
from mlx_visalign.runs.run import Run

SMALL_RUN = ["--max-tokens", "64", "--set", "exists_max_tokens=4", "--set", "train.lora.rank=4", "--iters", "2"]
SMALL_RUN += ["--set", "train.grad_accumulation_steps=1"]


@pytest.fixture(scope="module")
def model():
    return "tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of pairs about images beside it."""
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos", 3)
    pairs = [
        Pair(f"p{index}", (f"photos/{index}.png",), "What is there?", "A red circle.", f"A blue star and {index} crosses.")
        for index in range(3)
    ]
    write_jsonl(photos.parent / "pairs.jsonl", pairs)
    return photos.parent / "pairs.jsonl"


@pytest.fixture
def visalign(capsys):
    """Run a command; returns its exit code, stdout and stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["methods"], ["recipes", "--json"]])
def test_help_and_lists_wait_for_no_heavy_import(arguments):
    script = f"""
import sys
from mlx_visalign.cli.main import main
try:
    main({arguments})
except SystemExit:
    pass
print([name for name in ("mlx.core", "mlx_vlm", "transformers", "matplotlib", "PIL") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "seva" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "run",
        "train",
        "check",
        "generate",
        "compare",
        "eval",
        "judge",
        "world draw",
        "world train",
        "fuse",
        "upload",
        "methods",
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    told = capsys.readouterr().out
    assert f"visalign {command}" in told.partition("examples:")[2]
    assert not re.search(
        r"--\S+ \S*[._][A-Z]", told.partition("examples:")[0]
    )  # a value is called N or FOLDER, not by its place


def test_help_names_every_preset(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    told = " ".join(capsys.readouterr().out.split()).partition("--preset NAME which of ")[2].partition(" --model")[0]
    for name in list_recipes():
        for preset in yaml.safe_load(find_recipe(name).read_text()).get("presets", {}):
            assert preset in told and (preset != "tiny" or name in told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "Name a method"),
        ("run sevva", "Did you mean 'seva'"),
        ("run seva", "Name either a folder of images"),
        ("run seva --images .", "Which model? Name a LLaVA folder or one on the Hub: --model"),
        ("run seva --model tiny --images nowhere", "--images: there is no file or folder nowhere"),
        ("run seva --images nowhere --preset lapdog", "Did you mean 'laptop'"),
        (
            "run seva --model tiny --images . --set train.epoch=2",
            "--set train.epoch: unknown name 'epoch'. Did you mean 'epochs'",
        ),
        ("run SEVA --images .", "There is no method 'SEVA'. Did you mean 'seva'?"),
        ("run dpo --images .", "visalign train --data PAIRS"),
        ("run own", "own is a recipe, not a method. Use `visalign run -c own`"),
        ("run -c sevaa", "There is no recipe 'sevaa', neither a file nor a built-in one. Did you mean 'seva'?"),
        ("run seva --model tiny --images . --set beta=0.2", "--set beta: unknown name 'beta'. Did you mean 'train.beta'?"),
        ("run fisao --model tiny --images . --set rank=2", "Did you mean 'train.lora.rank'?"),
        ("run seva --model tiny --images . --set help", "Known names: batch, exists_max_tokens"),
        (
            "run seva --model tiny --images . --set max_tokens=null",
            "--set max_tokens must be a whole number, got nothing (null)",
        ),
        ("run seva --model tiny --images . --set train=null", "--set train: expected named values, got nothing (null)"),
        ("run seva --model tiny --images . --set batch=true", "--set batch must be a whole number, got true"),
        ("run seva --model tiny --images . --max-images 0", "--max-images is 0; it must be 1 or more"),
        ("run csr --model tiny --images . --set reward.width=0", "--set reward.width is 0.0; it must be above 0"),
        ("run seva --model tiny --images . --learning-rate 0", "--learning-rate is 0.0; it must be above 0"),
        ("train --model tiny --data x --adapter-path out --beta 0", "--beta is 0.0; it must be above 0"),
        (
            "train --model tiny --data x --adapter-path out --set rank=2",
            "--set rank: unknown name 'rank'. Did you mean 'lora.rank'?",
        ),
        ("eval --annotations truth.json", "Which model?"),
        ("doctor --adapter-path out", "Which model?"),
        ("run seva --images . --set eval_images=5", "beside its `settings`, in a recipe file (-c FILE)"),
        ("run seva --images . --set cache_gb=5", "use --cache-gb"),
        ("run seva --images . --model nowhere", "--model: there is no file or folder nowhere"),
        ("train --model tiny --data nowhere.jsonl --adapter-path out", "--data: there is no file or folder nowhere.jsonl"),
        ("check --model tiny --data nowhere.jsonl --images none", "nowhere.jsonl; --images: there is no file or folder none"),
        ("generate --image a.jpg b.jpg --model nowhere", "a.jpg: no such image; b.jpg: no such image"),
        ("doctor --model nowhere", "The model nowhere is neither a local folder nor a name on the hub (owner/name)"),
        ("eval --benchmark clair", "Did you mean 'chair'"),
        ("compare tiny tiny --images nowhere", "no file or folder nowhere"),
        ("compare tiny tiny --images . --output page.txt", "ends in .html"),
        ("world draw --output scenes.txt", "ends in .png"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(visalign, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = visalign(*arguments.split())
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing was written


def test_what_argparse_refuses_is_exit_code_2(capsys):
    for arguments in (["run", "seva", "--set", "view"], ["run", "--iters", "many"], ["fly"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


@pytest.mark.parametrize(
    ("arguments", "usage", "hint"),
    [
        ("eval --spilt held-out", "visalign eval", "Did you mean --split?"),
        ("generate --image a.png --temprature 1", "visalign generate", "Did you mean --temperature?"),
        ("run seva --epochs 3", "visalign run", "--set NAME=VALUE"),
        ("run seva --batch_size 3", "visalign run", "Did you mean --batch-size?"),
        ("recipes seva", "visalign recipes", "unrecognized arguments: seva"),
        ("world drw", "visalign world", "Did you mean 'draw'?"),
        ("trian", "visalign", "Did you mean 'train'?"),
        ("convert llava --hf-paht x", "visalign convert llava", "Did you mean --hf-path?"),
        ("generate --image a.png", "visalign generate", "the following arguments are required: --model"),
        ("check --data a.jsonl", "visalign check", "the following arguments are required: --model"),
        ("train --data a.jsonl --adapter-path out", "visalign train", "the following arguments are required: --model"),
        ("generate --model tiny --image a.png --top-p 2", "visalign generate", "expected a number, above 0 and at most 1"),
    ],
)
def test_what_a_command_does_not_know_gets_its_usage_and_a_hint(arguments, usage, hint, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())
    told = capsys.readouterr().err
    assert told.startswith(f"usage: {usage} [") and hint in told


def test_a_bare_command_helps_and_says_how_to_begin(visalign):
    code, out, err = visalign()
    assert (code, err) == (0, "")
    assert out.startswith("usage: visalign") and out.partition("To begin with:")[2].count("\n  visalign ") == 3


def test_ctrl_c_is_exit_code_130(visalign, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(world, "run", stop)
    assert visalign("world", "draw", "--output", "x.png")[0] == 130


def test_run_and_run_again(visalign, model, tmp_path):
    photos = write_photos(tmp_path / "photos", 4)
    command = ["run", "seva", "--model", model, "--images", photos, "--output", tmp_path / "run", *SMALL_RUN, "--json"]
    code, out, _ = visalign(*command)
    report = json.loads(out)
    assert code == 0 and report["training"]["updates"] == 2
    assert (tmp_path / "run/adapter/adapters.safetensors").exists()
    code, again, err = visalign(*command)
    assert code == 0 and json.loads(again) == report and "nothing is left to do" in err
    code, out, _ = visalign(*command[:-1])
    assert code == 0 and "4 images that were trained on" in out and "report.json" in out


def test_ctrl_c_tells_the_command_that_goes_on(visalign, model, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_visalign.methods.preference_rounds.train", stop)
    photos = write_photos(tmp_path / "my photos", 1)
    command = ["run", "seva", "--model", model, "--images", photos, "--output", tmp_path / "run"]
    code, _, err = visalign(*command)
    assert code == 130
    assert f"to resume, run:\n  visalign run seva --model {model} --images '{photos}' --output {tmp_path / 'run'}" in err


def test_a_dry_run_of_the_demo_writes_nothing(visalign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = visalign("demo", "--max-images", 20, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["prompts"] == {"describe": 18, "exists": 16 * 18}
    assert not list(tmp_path.iterdir())


def test_train_check_and_generate_with_the_adapter(visalign, model, data, tmp_path):
    train = ["train", "--data", data, "--model", model, "--adapter-path", tmp_path / "out", "--iters", 2]
    train += ["--set", "grad_accumulation_steps=1", "--json"]
    code, out, _ = visalign(*train, "--dry-run")
    assert code == 0 and json.loads(out)["updates"] == 2 and not (tmp_path / "out").exists()
    code, out, _ = visalign(*train)
    told = json.loads(out)
    assert code == 0 and told["format"] == "TRL conversations" and told["pairs"] == 3
    trained = (tmp_path / "out/adapters.safetensors").read_bytes()
    code, _, err = visalign(*train)
    assert code == 0 and "already done at update 2 of 2" in err
    assert (tmp_path / "out/adapters.safetensors").read_bytes() == trained
    code, _, err = visalign(*train, "--beta", 0.5)
    assert code == 2 and "beta is 0.5 now" in err and "beta: 0.1" in (tmp_path / "out/config.yaml").read_text()
    code, _, err = visalign(*train, "--loss-type", "kto")
    assert code == 2 and "--loss-type" in err and "one of sigmoid, ipo, hinge, robust, mdpo" in err
    plain, twice = (json.loads(visalign(*train, *more, "--dry-run")[1]) for more in ((), ("--loss-type", "mdpo")))
    assert twice["memory_gb"]["training"] > plain["memory_gb"]["training"]
    image = data.parent / "photos/0.png"
    before = image.read_bytes()
    image.write_bytes((data.parent / "photos/1.png").read_bytes())
    code, _, err = visalign(*train)
    assert code == 2 and "the images have changed since" in err
    image.write_bytes(before)
    first_row = (tmp_path / "out/metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first_row)["train_loss"] == pytest.approx(0.6931, abs=1e-3)  # the reference was this very model

    generate = ["generate", "--model", model, "--image", image, "--max-tokens", 5]
    code, out, _ = visalign(*generate, "--adapter-path", tmp_path / "out", "--json")
    assert code == 0 and [row["image"] for row in json.loads(out)] == [str(image)]
    code, out, _ = visalign(*generate, "--temp", 1, "--top-p", 0.9, "--seed", 3, "--image", image, image)
    assert code == 0 and out.count(f"{image}: ") == 2

    page = tmp_path / "page.html"
    compare = ["compare", model, tmp_path / "out@1", "--images", "tiny-world", "--count", 2, "--max-tokens", 5]
    code, out, _ = visalign(*compare, "--output", page, "--json")
    assert code == 0 and json.loads(out)["page"] == str(page) and "2 validation scenes" in page.read_text()


def test_check_shows_the_first_pair_as_it_is_trained(visalign, model, data):
    code, out, _ = visalign("check", "--data", data, "--model", model)
    assert code == 0 and "TRL conversations" in out
    assert "[36 image tokens, never cut]" in out and "USER: [36 image" in out
    assert "tokens, all trained:\nA| red| circle|.|</s>" in out.replace("\n ", "\n")
    code, out, _ = visalign("check", "--data", data, "--model", model, "--json")
    told = json.loads(out)
    assert told["pairs"] == told["images"] == 3 and told["same_answers"] == 0
    assert told["chosen_tokens"] == {"min": 5, "median": 5, "max": 5}


def test_a_runs_own_pairs_say_where_their_images_are(visalign, tmp_path):
    """A run is somebody's word too, so its images' folder is only read where the user names it."""
    photos = write_photos(tmp_path / "my photos", 2)
    with Run(tmp_path / "run") as run:
        ask(Recipe("seva", "tiny", str(photos)), run)
    write_jsonl(run.folder / "pairs.jsonl", [Pair("p", (str(photos / "0.png"),), "What?", "A dog.", "A cat.")])
    check = ["check", "--model", "tiny", "--data", run.folder / "pairs.jsonl"]
    code, _, err = visalign(*check)
    assert code == 2 and f"Add --images '{photos}', the folder of this run's images." in " ".join(err.split())
    assert visalign(*check, "--images", photos)[0] == 0


def test_eval_measures_what_is_asked_for(visalign, model):
    code, out, _ = visalign("eval", "--model", model, "--count", 2, "--max-tokens", 5, "--json")
    assert code == 0
    assert json.loads(out).keys() == {"length", "chair", "pope_random", "pope_popular", "pope_adversarial", "capability"}
    code, out, _ = visalign("eval", "--model", model, "--count", 2, "--max-tokens", 5, "--benchmark", "chair")
    assert code == 0 and "2 validation scenes of the tiny world" in out and "CHAIR_i" in out and "POPE," not in out


def test_eval_keeps_what_it_did_and_goes_on(visalign, model, tmp_path, monkeypatch):
    command = ["eval", "--model", model, "--count", 10, "--max-tokens", 5, "--output", tmp_path / "kept", "--json"]
    asked = []

    def stop(policy, protocol, pictures, *about):
        asked.append(len(pictures))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(policy, protocol, pictures, *about)

    answer = evaluate._ask
    monkeypatch.setattr(evaluate, "_ask", stop)
    code, _, err = visalign(*command)
    assert code == 130 and f"to resume, run:\n  visalign eval --model {model} --count 10" in err
    code, out, _ = visalign(*command)
    assert code == 0 and asked == [8, 2, 2]  # the first eight were not asked again
    assert json.loads((tmp_path / "kept/figures.json").read_text()) == json.loads(out)
    assert len({row["image"] for _, row in read_rows(tmp_path / "kept/answers.jsonl")}) == 10
    code, again, _ = visalign(*command)
    assert code == 0 and again == out and len(asked) == 3
    code, _, err = visalign(*command, "--max-tokens", 6)
    assert code == 2 and "protocol.max_tokens is 6 now" in err
    code, plain, _ = visalign("eval", "--model", model, "--count", 10, "--max-tokens", 5, "--json")
    assert code == 0 and plain == out  # kept or not, the figures are the same


def test_eval_on_images_of_ones_own(visalign, model, data, tmp_path):
    listed = tmp_path / "truth.json"
    listed.write_text(json.dumps({"0.png": ["dog"], "1.png": ["cat", "sofa"]}))
    command = ["eval", "--model", model, "--annotations", listed, "--max-tokens", 5, "--json"]
    code, out, _ = visalign(*command, "--images", data.parent / "photos")
    assert code == 0 and json.loads(out).keys() == {"length", "chair", "pope_random", "pope_popular", "pope_adversarial"}
    code, _, err = visalign(*command)
    assert code == 2 and f"there is no image {tmp_path / '0.png'}" in err


HUB = "models--me--{}/snapshots/0123456789abcdef0123456789abcdef01234567"


def test_a_name_of_the_hub_stands_wherever_a_folder_may(visalign, data, tmp_path, monkeypatch):
    """From the cache, nobody reachable: the model, the CLIP and the adapter, in every command that takes one."""
    for name, source in (("llava", TINY), ("clip", TINY.parent / "clip"), ("adapter", None)):
        snapshot = tmp_path / "hub" / HUB.format(name)
        (snapshot.parents[1] / "refs").mkdir(parents=True)
        (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
        if source is not None:
            shutil.copytree(source, snapshot)
        else:
            policy = load(TINY)
            policy.attach(LoRASettings(rank=2), seed=0)
            policy.save_adapter(snapshot, method="seva", round=1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    image, photos = data.parent / "photos/0.png", data.parent / "photos"
    adapter, few = ["--adapter-path", "me/adapter"], ["--max-tokens", 3]
    for command in (
        ["run", "seva", "--images", photos, "--dry-run"],
        ["run", "csr", "--images", photos, "--set", "clip=me/clip", "--dry-run"],
        ["train", "--data", data, "--adapter-path", "out", "--dry-run"],
        ["check", "--data", data],
        ["generate", "--image", image, *adapter, *few],
        ["compare", "me/llava", "me/adapter", "--images", photos, "--count", 1, *few],
        ["eval", "--count", 1, *adapter, *few, "--output", "kept"],
        ["doctor", *adapter],
        ["fuse", *adapter, "--mlx-path", "fused", "--dtype", "float32", "--no-probe"],
    ):
        code, out, err = visalign(*command, "--model", "me/llava", "--json")
        failed = command[0] == "doctor"  # as this adapter changes nothing, but it was found
        assert code == 2 * failed and (not failed or "adapter" in out), (command, err)
    config = make_plan(find_recipe("csr"), methods.find, None, {"images": str(photos), "model": "me/llava"}).config
    assert config["model"] == "me/llava"
    shutil.copytree(TINY, "me/llava")  # a folder that is there goes first
    (tmp_path / "me/llava/config.json").unlink()
    code, _, err = visalign("generate", "--model", "me/llava", "--image", image)
    assert code == 2 and "me/llava/config.json is missing" in err
    code, _, err = visalign("run", "seva", "--model", "me/nothing", "--images", photos)
    assert code == 2 and "me/nothing is not a local folder, the hub cannot be reached" in err


def test_the_terminal_holds_no_library_code(data, tmp_path):
    """What transformers, Pillow or matplotlib have to say to programmers is no help to others."""
    script = """
import os, sys, warnings
from mlx_visalign.cli import check
from mlx_visalign.cli import main as cli
def noisy(options):
    import transformers.utils.logging as logs
    from huggingface_hub.utils import logging as hub_logs
    logs.get_logger("transformers.models").warning("a piece of advice")
    hub_logs.get_logger("huggingface_hub.file_download").warning("another one")
    warnings.warn("a FutureWarning", FutureWarning)
    sys.exit(print("advisory", os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")))
check.run = noisy
cli.main(["check", "--model", "tiny", "--data", "x"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRANSFORMERS_", "HF_HUB_"))}
    for debug, said in (("", 0), ("1", 3)):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment | {"VISALIGN_DEBUG": debug}
        )
        assert sum(word in done.stderr for word in ("advice", "another one", "FutureWarning")) == said, done.stderr
        assert done.returncode == 0 and "Traceback" not in done.stderr
    command = [
        "-m",
        "mlx_visalign",
        "generate",
        "--model",
        "tiny",
        "--image",
        data.parent / "photos/0.png",
        "--max-tokens",
        "2",
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""


def test_scenes_are_drawn(visalign, tmp_path):
    code, out, _ = visalign("world", "draw", "--output", tmp_path / "scenes.png", "--count", 2, "--json")
    assert code == 0 and Image.open(json.loads(out)["sheet"]).width > 500


def test_methods_are_listed_with_a_line_each(visalign):
    code, out, _ = visalign("methods")
    assert code == 0 and "seva         SeVa: " in out


def test_images_may_be_files_before_or_after_what_else_is_named(visalign, tmp_path):
    """As a shell expands photos/*.png; a method or models that stand behind --images are not taken for images."""
    photos = [str(path) for path in sorted(write_photos(tmp_path / "photos", 3).iterdir())]
    for arguments in (["run", "seva", "--images", *photos], ["run", "--images", *photos, "seva"]):
        code, out, _ = visalign(*arguments, "--model", "tiny", "--dry-run", "--json")
        assert code == 0 and json.loads(out)["images"] == 3
    few = ["--output", tmp_path / "a.html", "--max-tokens", "4", "--json"]
    for arguments in (["tiny", "tiny", "--images", *photos[:2]], ["tiny", "--images", *photos[:2], "tiny"]):
        code, out, _ = visalign("compare", *arguments, *few)
        assert code == 0 and json.loads(out)["images"] == 2
    code, out, err = visalign("compare", "--images", photos[0], *few)
    assert (code, out) == (2, "") and "Name two models or adapters to compare" in err


def test_one_folder_is_where_a_file_has_its_images(capsys):
    for command in ("train --data a.jsonl --adapter-path o", "check --data a.jsonl", "eval --annotations a.json"):
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), "--images", "photos/1.jpg", "photos/2.jpg"])
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert (
            "--images takes one folder" in said and "got 2 values, photos/1.jpg to photos/2.jpg: give the folder only" in said
        )
