"""The options of every command, as argparse declares them. Nothing is imported here that `--help` would wait for.

An option that sets a recipe's value has the value's dotted name, behind "recipe.", as its destination and no default:
what is not given on the command line is the recipe's to say.
"""

import argparse
import json
from typing import Any

EXAMPLES = """
  visalign demo                                       a small LLaVA learns to see better, in minutes
  visalign run seva --model MODEL --images PHOTOS     align a model on a folder of unlabelled images
  visalign convert llava --hf-path HF --mlx-path M    a Hugging Face LLaVA as a folder that MLX loads
  visalign generate --model MODEL --adapter-path runs/seva/adapter --image cat.jpg --prompt "What is this?"
  visalign COMMAND --help                             a command's options, with examples
"""

DESCRIBE = "Describe this image in detail."
SPLITS = ("pretraining", "unlabelled", "validation", "held-out")


def build_parser(version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visalign",
        description="Self-alignment for LLaVA models: from unlabelled images to an adapter that hallucinates less.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"visalign {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _demo,
        _run,
        _train,
        _check,
        _generate,
        _compare,
        _eval,
        _doctor,
        _world,
        _convert,
        _fuse,
        _upload,
        _methods,
        _recipes,
    ):
        add(commands)
    return parser


def recipe_values(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says in place of a recipe: dotted names and values, None where it says nothing."""
    values = {name.removeprefix("recipe."): value for name, value in vars(options).items() if name.startswith("recipe.")}
    return values | dict(options.set or ())


def _demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "align the embedded tiny LLaVA with SeVa and show what changed",
        "visalign demo",
        "visalign demo --seed 1 --output runs/demo-1",
    )
    _run_options(parser)
    parser.set_defaults(config="tiny", method=None, preset=None, output="runs/demo")


def _run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        "align a model on unlabelled images with a method",
        "visalign run seva --model MODEL --images PHOTOS --output runs/photos",
        "visalign run seva --model MODEL --images PHOTOS --preset paper --dry-run",
        "visalign run -c my-recipe.yaml --set view=crop --set train.lora.rank=32",
    )
    parser.add_argument("method", nargs="?", help="a method (see `visalign methods`); its recipe gives the settings")
    parser.add_argument("-c", "--config", metavar="RECIPE", help="a recipe file instead, or one of `visalign recipes`")
    parser.add_argument("--preset", help="which of the recipe's presets: laptop or paper")
    parser.add_argument("--model", dest="recipe.model", help='a LLaVA folder, or "tiny", the embedded one')
    parser.add_argument("--images", dest="recipe.images", metavar="FOLDER", help="unlabelled images, those in subfolders too")
    parser.add_argument(
        "--prompts", dest="recipe.prompts", metavar="FILE", help="your own prompts.jsonl; --images: where they are"
    )
    parser.add_argument("--vocabulary", dest="recipe.vocabulary", metavar="FILE", help="objects to ask about beside COCO's 80")
    parser.add_argument(
        "--skip-bad",
        dest="recipe.skip_bad",
        action="store_const",
        const=True,
        help="leave out images that do not open, and bad rows of --prompts",
    )
    _run_options(parser)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FOLDER", help="where everything goes; the same command again goes on from there")
    parser.add_argument("--reuse", metavar="RUN", help="take over what another run did, where its settings are the same")
    parser.add_argument("--count", dest="recipe.count", type=int, help="at most so many images")
    parser.add_argument(
        "--controls",
        dest="recipe.controls",
        action="store_const",
        const=True,
        help="then train the controls too (tiny world only)",
    )
    parser.add_argument("--cache-gb", dest="recipe.cache_gb", type=float, help="memory for image features, in GB")
    parser.add_argument("--max-tokens", dest="recipe.settings.max_tokens", type=int, help="longest answer")
    _training_options(parser, "recipe.settings.train.")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", type=_method_setting, help="any setting of the method")
    parser.add_argument("--seed", dest="recipe.seed", type=int, help="everything random depends on it")


def _train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        "DPO on a file of preference pairs",
        "visalign train --data pairs.jsonl --model MODEL --adapter-path OUT",
        "visalign train --data csr.json --images coco/train2014 --model MODEL --adapter-path OUT --iters 500 --dry-run",
    )
    _data_options(parser)
    parser.add_argument("--adapter-path", metavar="OUT", required=True, help="where the adapter and the training's log go")
    parser.add_argument("-c", "--config", metavar="RECIPE", default="dpo", help="a recipe of training settings")
    parser.add_argument("--preset", help="which of the recipe's presets")
    _training_options(parser, "recipe.")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", type=_setting, help="any training setting")
    parser.add_argument("--seed", type=int, default=0, help="everything random depends on it; %(default)s")


def _training_options(parser: argparse.ArgumentParser, section: str) -> None:
    parser.add_argument("--iters", dest=f"{section}iters", type=int, help="updates")
    parser.add_argument("--batch-size", dest=f"{section}batch_size", type=int, help="pairs in one forward")
    parser.add_argument("--learning-rate", dest=f"{section}learning_rate", type=float, help="the schedule's peak")
    parser.add_argument("--beta", dest=f"{section}beta", type=float, help="strength of DPO's pull to the reference")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be done: rows, updates, memory; nothing is written"
    )


def _check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        "show a pairs file as it will be trained: format, lengths, which tokens count",
        "visalign check --data pairs.jsonl --model MODEL",
    )
    _data_options(parser)


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="pairs: TRL's, LLaVA's, SeVa's, CSR's or RLAIF-V's columns"
    )
    parser.add_argument("--images", metavar="FOLDER", help="what image paths in it are relative to; its own folder")
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be used, and count them")
    parser.add_argument("--model", default="tiny", help='a LLaVA folder, or "tiny", the embedded one')


def _generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "answer a question about images",
        'visalign generate --image photo.jpg --model MODEL --prompt "Is there a dog in the image?"',
        "visalign generate --image a.jpg b.jpg --model MODEL --adapter-path runs/seva/adapter --temp 0.7 --seed 1",
    )
    _model_options(parser)
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help="each is asked about alone")
    _sampling_options(parser)


def _compare(commands: Any) -> None:
    parser = _command(
        commands,
        "compare",
        "write a web page with two models' answers about the same images",
        "visalign compare tiny runs/demo/adapter --images tiny-world",
        "visalign compare runs/csr/adapter@1 runs/csr/adapter@2 --model MODEL --images PHOTOS --output rounds.html",
    )
    parser.add_argument("first", metavar="A", help="a model, an adapter, or ADAPTER@2: only its first two rounds")
    parser.add_argument("second", metavar="B", help="the other one")
    parser.add_argument("--model", default="tiny", help="what adapters are for: a LLaVA folder; %(default)s, the embedded one")
    parser.add_argument("--images", required=True, metavar="FOLDER", help='"tiny-world" takes scenes whose content is known')
    parser.add_argument("--count", type=_positive, default=24, help="at most so many images; %(default)s")
    parser.add_argument("--output", metavar="FILE.html", default="compare.html", help="%(default)s")
    _sampling_options(parser)


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default=DESCRIBE, help="%(default)s")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer; %(default)s")
    parser.add_argument("--temp", "--temperature", type=float, default=0.0, help="0 is greedy, the default")
    parser.add_argument("--top-p", type=float, default=1.0, help="%(default)s: all tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, where there are any; %(default)s")


def _eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        "measure hallucination, CHAIR and POPE, and what a training may have cost elsewhere",
        "visalign eval --model tiny --adapter-path runs/demo/adapter",
        "visalign eval --model tiny --benchmark pope --split held-out --count 500 --json",
        'visalign eval --model MODEL --annotations truth.json --images PHOTOS   # {"cat.jpg": ["cat", "sofa"], ...}',
    )
    _model_options(parser)
    parser.add_argument("--benchmark", default="chair,pope,capability", help="what to measure; %(default)s")
    parser.add_argument("--split", default="validation", choices=SPLITS[2:], help="scenes of the tiny world; %(default)s")
    parser.add_argument("--count", type=_positive, default=500, help="how many scenes; %(default)s")
    parser.add_argument("--annotations", metavar="FILE", help="images of your own instead: a JSON list of what is in each")
    parser.add_argument("--images", metavar="FOLDER", help="where those images are; the file's own folder")
    parser.add_argument("--vocabulary", metavar="FILE", help="objects to look for beside COCO's 80")
    parser.add_argument("--prompt", default=DESCRIBE, help="asks for the description; %(default)s")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest description; %(default)s")


def _doctor(commands: Any) -> None:
    parser = _command(
        commands,
        "doctor",
        "check a model: masks, cache, batches, template, images, adapter, memory; exit code 2 if something is broken",
        "visalign doctor --model MODEL",
        "visalign doctor --model MODEL --adapter-path runs/seva/adapter --json",
    )
    _model_options(parser)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help='a LLaVA folder, or "tiny", the embedded one')
    parser.add_argument("--adapter-path", metavar="FOLDER", help="an adapter on top of it")


def _world(commands: Any) -> None:
    parser = commands.add_parser("world", help="the tiny world: draw its scenes, train its models again", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    draw = _command(actions, "draw", "draw scenes with what is in them", "visalign world draw --output scenes.png")
    draw.add_argument("--output", metavar="FILE.png", required=True)
    draw.add_argument("--split", default="unlabelled", choices=SPLITS, help="%(default)s")
    draw.add_argument("--count", type=_positive, default=12, help="how many; %(default)s")
    train = _command(
        actions,
        "train",
        "train the tiny CLIP and the tiny LLaVA from nothing, in about half an hour",
        "visalign world train --output my-world --seed 7",
    )
    train.add_argument("--output", metavar="FOLDER", required=True)
    train.add_argument("--seed", type=int, default=0, help="everything random depends on it; %(default)s")


def _convert(commands: Any) -> None:
    """Only to be listed: cli hands the command over to `convert.cli`, where its options are."""
    commands.add_parser("convert", help="convert models and adapters to MLX and back", add_help=False)


def _fuse(commands: Any) -> None:
    parser = _command(
        commands,
        "fuse",
        "merge an adapter into its model, tensor by tensor",
        "visalign fuse --model MODEL --adapter-path runs/seva/adapter --mlx-path llava-seva",
        "visalign fuse --model llava-4bit --adapter-path runs/seva/adapter --mlx-path llava-seva --dequantize",
    )
    parser.add_argument("--model", required=True, help='a folder that MLX loads, or "tiny"; only read')
    parser.add_argument(
        "--adapter-path", metavar="FOLDER", required=True, help="ours, PEFT's, or a LoRA folder of LLaVA's authors"
    )
    parser.add_argument("--mlx-path", metavar="OUT", required=True, help="the new folder")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="%(default)s; bfloat16 is coarse"
    )
    parser.add_argument("--dequantize", action="store_true", help="from a quantised model make an unquantised one")
    parser.add_argument("--no-probe", action="store_true", help="do not compare logits, for which both models are loaded")


def _upload(commands: Any) -> None:
    parser = _command(
        commands,
        "upload",
        "upload an adapter or a model to the Hugging Face Hub, with a model card",
        "visalign upload --path runs/seva/adapter --upload-repo me/llava-seva --run runs/seva",
        "visalign upload --path llava-seva --upload-repo me/llava-seva-mlx --base-model llava-hf/llava-1.5-7b-hf --private",
    )
    parser.add_argument("--path", metavar="FOLDER", required=True, help="an adapter, ours or PEFT's, or a model")
    parser.add_argument("--upload-repo", metavar="NAME", required=True, help="the repository; it is made if need be")
    parser.add_argument("--run", metavar="RUN", help="the run it comes from, whose report fills the card")
    parser.add_argument("--base-model", metavar="NAME", help="on the Hub, for the card: the model it was made from")
    parser.add_argument("--private", action="store_true", help="a new repository is for you alone")


def _methods(commands: Any) -> None:
    _command(commands, "methods", "list the methods", "visalign methods")


def _recipes(commands: Any) -> None:
    _command(commands, "recipes", "list the recipes that come along", "visalign recipes")


def _command(commands: Any, name: str, about: str, *examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog="\n  ".join(("examples:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON; all else goes to stderr")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _setting(text: str) -> tuple[str, Any]:
    """("train.iters", 5) for "train.iters=5"; a value that is not JSON (numbers, true, null, lists) is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _method_setting(text: str) -> tuple[str, Any]:
    name, value = _setting(text)
    return f"settings.{name}", value
