"""Check whether a judge can be trusted.

A judge scores the objects that a model names: CLIP, or a scorer of one's own, with the model's own repeated answers. CSR and
FiSAO train on what it prefers. It is checked before any training, without labels, and measured where there are some.
"""

import argparse
from pathlib import Path

from mlx_visalign.cli.output import Result, plain
from mlx_visalign.runs.recipe import Recipe, named_model
from mlx_visalign.utils.arguments import MODEL, Images, link_option, positive, require_there

EXAMPLES = (
    "--model MODEL --images PHOTOS --clip CLIP",
    "--model tiny --images tiny-world --max-images 100",
    "--model MODEL --images PHOTOS --kind consistency --output runs/no-clip --reuse runs/judge",
    "--model MODEL --images PHOTOS --scorer my_scorer.py:fits --output runs/mine",
    '--model MODEL --images PHOTOS --clip CLIP --annotations truth.json   # {"cat.jpg": ["cat", "sofa"], ...}',
)

KINDS = ("combined", "clip", "nouns", "consistency", "self_check")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help=f"{MODEL}; with --images tiny-world it may be left out")
    parser.add_argument("--images", required=True, action=Images, help='your images, or "tiny-world": scenes with labels')
    parser.add_argument(
        "--clip", metavar="CLIP", help="the CLIP that scores, a folder or a Hub name; the tiny model has its own"
    )
    parser.add_argument("--scorer", metavar="FILE.py:FUNCTION", help="a scorer of your own, in place of CLIP")
    parser.add_argument("--kind", choices=KINDS, default="combined", help="what judges, as in judge.kind; %(default)s")
    parser.add_argument("--annotations", metavar="FILE", help="labels: a JSON file of the objects in some of the images")
    parser.add_argument("--vocabulary", metavar="FILE", help="objects to look for, in addition to COCO's 80")
    parser.add_argument("--max-images", type=positive, metavar="N", default=200, help="maximum number of images; %(default)s")
    parser.add_argument("--max-tokens", type=positive, metavar="N", default=128, help="longest description; %(default)s")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        default="runs/judge",
        help="answers and scores; the same command resumes there; %(default)s",
    )
    parser.add_argument("--reuse", metavar="RUN", help="copy the answers of another run where settings are the same")
    link_option(parser)


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.methods.judge import JudgeSettings
    from mlx_visalign.pipeline.judge_check import CheckSettings, check_recipe
    from mlx_visalign.reporting.judge_report import show_judge
    from mlx_visalign.runs.run import Run
    from mlx_visalign.runs.worlds import find_world

    require_there(options, "annotations", "vocabulary")
    world = find_world(options.images)
    recipe = Recipe(
        "judge",
        named_model(options.model, default=None if world is None else world.model),
        tuple(options.images) if isinstance(options.images, list) else options.images,
        max_images=options.max_images,
        questions_per_image=0,
        vocabulary=options.vocabulary,
        scorer=options.scorer,
    )
    judge = JudgeSettings(kind=options.kind, check_images=options.max_images, gate="warn")
    settings = CheckSettings(options.clip, judge=judge, max_tokens=options.max_tokens)
    output = Run(options.output, reuse=options.reuse, command=options.again)
    found = check_recipe(recipe, settings, output, None if options.annotations is None else Path(options.annotations))
    trust = found.figures.trust
    files = {"folder": str(output.folder), "figures": str(output.judge), "scores": str(output.rows("judge"))}
    kept = f"Saved in {output.folder}: samples.jsonl, judge.jsonl (the scores) and judge.json."
    said = f"{trust.in_short} {trust.advice}"
    table = Group(show_judge(found.figures), "", *found.notes, "") if found.figures.parts else ""
    shown = Group(said, "", table, plain(kept))
    return Result(found.to_row() | files, shown)
