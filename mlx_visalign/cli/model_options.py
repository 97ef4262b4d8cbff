"""The options of the commands that use a model, look at it or hand it on."""

from pathlib import Path
from typing import Any

from mlx_visalign.utils.arguments import (
    DESCRIBE,
    MODEL,
    SPLITS,
    Images,
    OneFolder,
    command,
    link_option,
    model_options,
    positive,
    sampling_options,
)


def generate(commands: Any) -> None:
    parser = command(
        commands,
        "generate",
        "answer a question about images",
        'visalign generate --image photo.jpg --model MODEL --prompt "Is there a dog in the image?"',
        "visalign generate --image a.jpg b.jpg --model MODEL --adapter-path runs/seva/adapter --temp 0.7 --seed 1",
    )
    model_options(parser, required=True)
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help="each is asked about alone")
    sampling_options(parser)


def compare(commands: Any) -> None:
    parser = command(
        commands,
        "compare",
        "write a web page with two models' answers about the same images",
        "visalign compare tiny runs/demo/adapter --images tiny-world",
        "visalign compare MODEL runs/seva/adapter --model MODEL --images PHOTOS",
        "visalign compare runs/csr/adapter@1 runs/csr/adapter@2 --model MODEL --images PHOTOS --output rounds.html",
    )
    parser.add_argument("first", metavar="A", nargs="?", help="a model, an adapter, or ADAPTER@2: only its first two rounds")
    parser.add_argument("second", metavar="B", nargs="?", help="the other one")
    parser.add_argument("--model", help="the model that adapters are for; with --images tiny-world it may be left out: tiny")
    parser.add_argument("--images", required=True, action=Images, help='"tiny-world" takes scenes whose content is known')
    parser.add_argument("--count", type=positive, metavar="N", default=24, help="at most so many images; %(default)s")
    parser.add_argument("--output", metavar="FILE.html", default="compare.html", help="%(default)s")
    link_option(parser)
    sampling_options(parser)


def evaluate(commands: Any) -> None:
    parser = command(
        commands,
        "eval",
        "measure hallucination, CHAIR and POPE, and what a training may have cost elsewhere",
        "visalign eval --model tiny --adapter-path runs/demo/adapter",
        "visalign eval --model tiny --benchmark pope --split held-out --count 500 --json",
        "visalign eval --model MODEL --output evals/base   # keeps answers.jsonl and figures.json",
        'visalign eval --model MODEL --annotations truth.json --images PHOTOS   # {"cat.jpg": ["cat", "sofa"], ...}',
    )
    model_options(parser)
    parser.add_argument("--benchmark", metavar="NAMES", default="chair,pope,capability", help="what to measure; %(default)s")
    parser.add_argument("--split", default="validation", choices=SPLITS[2:], help="scenes of the tiny world; %(default)s")
    parser.add_argument("--count", type=positive, metavar="N", default=500, help="how many scenes; %(default)s")
    parser.add_argument("--annotations", metavar="FILE", help="images of your own instead: a JSON list of what is in each")
    parser.add_argument("--images", action=OneFolder, help="where those images are; the file's own folder")
    parser.add_argument("--vocabulary", metavar="FILE", help="objects to look for beside COCO's 80")
    parser.add_argument("--prompt", metavar="TEXT", default=DESCRIBE, help="asks for the description; %(default)s")
    parser.add_argument("--max-tokens", type=positive, metavar="N", default=256, help="longest description; %(default)s")
    parser.add_argument(
        "--output", metavar="FOLDER", help="keep answers and figures here; the same command again resumes there"
    )


def doctor(commands: Any) -> None:
    parser = command(
        commands,
        "doctor",
        "check a model: masks, cache, batches, template, images, adapter, memory; exit code 2 if something is broken",
        "visalign doctor --model MODEL",
        "visalign doctor --model MODEL --adapter-path runs/seva/adapter --json",
    )
    model_options(parser)


def fuse(commands: Any) -> None:
    parser = command(
        commands,
        "fuse",
        "merge an adapter into its model, tensor by tensor",
        "visalign fuse --model MODEL --adapter-path runs/seva/adapter --mlx-path llava-seva",
        "visalign fuse --model llava-4bit --adapter-path runs/seva/adapter --mlx-path llava-seva --dequantize",
    )
    parser.add_argument("--model", required=True, help=f"{MODEL}; only read")
    parser.add_argument(
        "--adapter-path", metavar="FOLDER", required=True, help="ours, PEFT's, or a LoRA folder of LLaVA's authors"
    )
    parser.add_argument("--mlx-path", metavar="OUT", required=True, help="the new folder")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="%(default)s; bfloat16 is coarse"
    )
    parser.add_argument("--dequantize", action="store_true", help="from a quantised model make an unquantised one")
    parser.add_argument(
        "--allow-rounding", action="store_true", help="merge even where rounding loses over 10 %% of the adapter's change"
    )
    parser.add_argument(
        "--base-projector", action="store_true", help="take the base's projector where the trained one is not in a LoRA folder"
    )
    parser.add_argument("--no-probe", action="store_true", help="do not compare logits, for which both models are loaded")
    link_option(parser)


def upload(commands: Any) -> None:
    parser = command(
        commands,
        "upload",
        "upload an adapter or a model to the Hugging Face Hub, with a model card",
        "visalign upload --path runs/seva/adapter --upload-repo me/llava-seva --run runs/seva",
        "visalign upload --path llava-seva --upload-repo me/llava-seva-mlx --base-model llava-hf/llava-1.5-7b-hf --private",
    )
    parser.add_argument("--path", metavar="FOLDER", required=True, help="an adapter, ours or PEFT's, or a model")
    parser.add_argument("--upload-repo", metavar="NAME", required=True, help="the repository; it is made if need be")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run it comes from, whose report fills the card")
    parser.add_argument("--base-model", metavar="NAME", help="on the Hub, for the card: the model it was made from")
    parser.add_argument("--private", action="store_true", help="a new repository is for you alone")
    parser.add_argument("--dry-run", action="store_true", help="show the card and the files; nothing is written or sent")
    link_option(parser)
