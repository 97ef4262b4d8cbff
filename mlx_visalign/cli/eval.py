"""Measure hallucination (CHAIR, POPE) and other abilities."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_visalign.cli.output import Result, plain
from mlx_visalign.runs.recipe import named_model
from mlx_visalign.runs.run import Run
from mlx_visalign.utils.arguments import DESCRIBE, SPLITS, OneFolder, model_options, positive, require_there
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.schema import unknown

if TYPE_CHECKING:
    from mlx_visalign.evaluation.benchmark import Benchmark

EXAMPLES = (
    "--model tiny --adapter-path runs/demo/adapter",
    "--model tiny --benchmark pope --split held-out --count 500 --json",
    "--model MODEL --output evals/base   # keeps answers.jsonl and figures.json",
    '--model MODEL --annotations truth.json --images PHOTOS   # {"cat.jpg": ["cat", "sofa"], ...}',
)

WORLD = "tiny-world"  # the benchmark without --annotations
MEASURED = ("chair", "pope", "capability")  # the choices of --benchmark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    parser.add_argument("--benchmark", metavar="NAMES", default="chair,pope,capability", help="what to measure; %(default)s")
    parser.add_argument("--split", default="validation", choices=SPLITS[2:], help="scenes of the tiny world; %(default)s")
    parser.add_argument("--count", type=positive, metavar="N", default=500, help="number of scenes; %(default)s")
    parser.add_argument("--annotations", metavar="FILE", help="use your own images: a JSON file of the objects in each")
    parser.add_argument("--images", action=OneFolder, help="folder of those images; default: the file's own folder")
    parser.add_argument("--vocabulary", metavar="FILE", help="objects to look for, in addition to COCO's 80")
    parser.add_argument("--prompt", metavar="TEXT", default=DESCRIBE, help="prompt for the description; %(default)s")
    parser.add_argument("--max-tokens", type=positive, metavar="N", default=256, help="longest description; %(default)s")
    parser.add_argument(
        "--output", metavar="FOLDER", help="keep answers and figures here; the same command again resumes there"
    )


def run(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from mlx_visalign.data.template_marks import asked
    from mlx_visalign.evaluation.runner import Protocol, evaluate
    from mlx_visalign.inference.context_length import answer_length
    from mlx_visalign.inference.policy import load
    from mlx_visalign.methods.job import Job
    from mlx_visalign.models.adapter_files import fingerprint
    from mlx_visalign.models.hub import find_model
    from mlx_visalign.pipeline.evaluations import contents, measure
    from mlx_visalign.reporting.summary import as_rows, show_figures
    from mlx_visalign.runs.worlds import WORLDS

    wanted = options.benchmark.split(",")
    for name in wanted:
        if name not in MEASURED:
            raise UserError(f"--benchmark: {unknown(name, MEASURED)}")
    model = named_model(options.model, default=WORLDS[WORLD].model if options.annotations is None else None)
    require_there(options, "annotations", "images", "vocabulary")
    benchmark = _benchmark(options)
    if "chair" not in wanted:
        benchmark = replace(benchmark, annotations={})
    if "pope" not in wanted:
        benchmark = replace(benchmark, questions={})
    if "capability" not in wanted:
        benchmark = replace(benchmark, exercises=[])
    question = asked(options.prompt)
    policy = load(model, options.adapter_path)
    protocol = Protocol(question, answer_length(policy, question, options.max_tokens))
    if options.output is None:
        figures = evaluate(policy, benchmark, protocol).figures
        kept = "Nothing was saved. With --output FOLDER, answers are saved and a stopped evaluation can resume."
    else:
        adapter = {} if options.adapter_path is None else {"adapter": fingerprint(find_model(options.adapter_path))}
        with Run(options.output, command=options.again) as run:
            job = Job(run, policy, [], seed=0)
            figures = measure(job, benchmark, "answers", {**adapter, **contents(benchmark)}, protocol).figures
            write_atomically(run.folder / "figures.json", json.dumps(as_rows(figures), indent=1))
        kept = f"Saved in {options.output}: answers.jsonl, figures.json."
    return Result(as_rows(figures), Group(show_figures(benchmark.name, figures), "", benchmark.limits, "", plain(kept)))


def _benchmark(options: argparse.Namespace) -> "Benchmark":
    from mlx_visalign.data.object_vocabulary import find_vocabulary
    from mlx_visalign.evaluation.benchmark import listed_benchmark
    from mlx_visalign.runs.worlds import WORLDS

    if options.annotations is None:
        return WORLDS[WORLD].benchmark(options.split, options.count)
    file = Path(options.annotations)
    return listed_benchmark(file, options.images or file.parent, find_vocabulary(options.vocabulary))
