"""Does a method do what it says, in the tiny world? Seeds with their own unlabelled images, and controls.

    python tests/benchmarks/tiny_proof.py --recipe seva --preset tiny --split held-out --output runs/proof

For every seed: the recipe's method; the same pairs with the preferred side drawn by a coin (`random`), and with the
shorter answer preferred (`shorter`); the same pairs, or the same answers and rewards, learned from with the image blanked
(`blind`); the untrained model's best of eight sampled answers by the method's own measure (`best`); and the untrained model
with another threshold for saying yes (`sham`). For the first seed, if asked for, SeVa with a view that should teach little:
`flip` mirrors the image, `autocontrast` changes nothing that a caption speaks of. Settings are fixed in the recipe, chosen
on validation scenes; the held-out scenes are for one run of this script. Everything resumes. Leaves SPLIT.json, and
report.html and report.json with the means over the seeds.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import mlx.core as mx
from noisy_judges import WeakJudges
from proof_report import write_proof
from sham import sham

from mlx_visalign import load, methods
from mlx_visalign.data.augment.views import AUGMENTATIONS
from mlx_visalign.data.questions import make_prompts
from mlx_visalign.evaluation.runner import Evaluation, Protocol, changes
from mlx_visalign.methods.job import Job
from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.pipeline.controls import CONTROLS, controls_of, measure_control
from mlx_visalign.pipeline.evaluations import measure
from mlx_visalign.runs.recipe import Plan, find_recipe, make_plan
from mlx_visalign.runs.run import Run
from mlx_visalign.tiny_world.benchmark import world_benchmark
from mlx_visalign.tiny_world.source import world_mix, world_photos

PARTS = ("clip", "consistency", "self_check")
COLUMNS = {
    "CHAIR_i": ("chair", "chair_i"),
    "CHAIR_s": ("chair", "chair_s"),
    "recall": ("chair", "recall"),
    "F1": ("chair", "f1"),
    "objects": ("chair", "objects"),
    "duplicates": ("chair", "duplicates"),
    "tokens": ("length", "tokens"),
    "POPE adv": ("pope_adversarial", "accuracy"),
    "TPR": ("pope_adversarial", "recall"),
    "yes": ("pope_adversarial", "yes_rate"),
    "POPE rnd": ("pope_random", "accuracy"),
    "POPE pop": ("pope_popular", "accuracy"),
    "capability": ("capability", "accuracy"),
    "colour": ("capability", "colour"),
    "count": ("capability", "count"),
    "count_colour": ("capability", "count_colour"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="seva")
    parser.add_argument("--preset", default="tiny", help="of the recipe")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="validation", choices=["validation", "held-out"])
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arms = ["method", *CONTROLS, "sham", *AUGMENTATIONS]
    parser.add_argument("--arms", nargs="+", choices=arms, help="default: the method and its controls")
    parser.add_argument("--output", type=Path, required=True)
    for part in PARTS:
        parser.add_argument(f"--{part}-auc", type=float, help=f"make the judge's part {part} this bad (noisy_judges.py)")
    parser.add_argument("--reuse", type=Path, help="the output of another proof, whose stages are copied where they agree")
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings, as settings.view=moco")
    args = parser.parse_args()
    overrides = dict(item.split("=", 1) for item in args.set)
    overrides = {name: json_or_text(value) for name, value in overrides.items()}
    plan = make_plan(find_recipe(args.recipe), methods.find, args.preset, {"images": "tiny-world", **overrides})
    args.arms = args.arms or ["method", *controls_of(plan.settings)]
    args.weak = None
    aucs = {part: wanted for part in PARTS if (wanted := getattr(args, f"{part}_auc")) is not None}
    if aucs:
        args.weak = WeakJudges(fresh(args), plan.settings.clip, args.output / "noise", aucs)
        args.weak.apply()
    benchmark = world_benchmark(args.split, args.scenes)
    moment, protocol = f"{args.split}-{args.scenes}", Protocol(max_tokens=plan.settings.max_tokens)
    with Run(args.output / "base", reuse=args.reuse and args.reuse / "base") as run:
        base = measure(Job(run, fresh(args), [], 0), benchmark, moment, {}, protocol)
    found: dict[str, dict[int, Evaluation]] = {}
    table = {"base": row(base)}
    print_row("base", table["base"])
    for seed in args.seeds:
        for arm in args.arms:
            if arm in AUGMENTATIONS and seed != args.seeds[0]:
                continue
            if arm == "sham":
                one = sham(fresh(args), base, found["method"][seed], args.output / "sham")
            else:
                one, *rounds = measured(args, plan, arm, seed, base, moment)
                for number, after in enumerate(reversed(rounds), 1):
                    table[f"{arm} {seed}, round {number}"] = shown(f"{arm} {seed}, {number}", base, after)
            found.setdefault(arm, {})[seed] = one
            table[f"{arm} {seed}"] = shown(f"{arm} {seed}", base, one)
    summary(table, args.arms, args.seeds)
    (args.output / f"{args.split}.json").write_text(json.dumps(table, indent=1))
    if "method" in found:
        write_proof(args.output, plan, base, found, COLUMNS)


def json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def fresh(args: argparse.Namespace):
    return load(args.model, dtype=mx.float32)


def method_job(args: argparse.Namespace, plan: Plan, seed: int, arm: str = "method") -> Job:
    """The method's run of a seed, whose images are drawn into its folder."""
    folder, count = args.output / f"{arm}-{seed}", plan.recipe.max_images
    photos = world_photos(folder, "unlabelled", count, start=seed * count)
    prompts = make_prompts(photos, world_mix(plan.recipe.questions_per_image), seed)
    weak = {} if args.weak is None else {"score": args.weak.score(), "score_name": args.weak.name}
    earlier = None if args.reuse is None else args.reuse / f"{arm}-{seed}"
    return Job(Run(folder, reuse=earlier), fresh(args), prompts, seed, vocabulary=world_mix(0).vocabulary, **weak)


def measured(args: argparse.Namespace, plan: Plan, arm: str, seed: int, base: Evaluation, moment: str) -> list[Evaluation]:
    """What one arm comes to: a training of the method's, or a control of it. After it its earlier rounds, the last first."""
    if arm in CONTROLS:
        made = method_job(args, plan, seed)
        with made.run:
            return [measure_control(arm, made, args.output / f"{arm}-{seed}", plan.method, plan.settings, base, moment)]
    job, rounds = method_job(args, plan, seed, arm), list[Evaluation]()

    def measure_now(at: str = moment) -> Evaluation:
        return measure(job, base.benchmark, at, {"adapter": fingerprint(job.run.adapter)}, base.protocol)

    def after_round() -> None:
        rounds.append(measure_now(f"{moment}-round-{len(rounds) + 1}"))

    with job.run:
        view = {"view": arm, "exists_view": arm} if arm in AUGMENTATIONS else {}
        several = getattr(plan.settings, "rounds", 1) > 1
        plan.method.train(replace(job, after_round=after_round if several else None), replace(plan.settings, **view))
        return rounds[::-1] or [measure_now()]


def shown(name: str, base: Evaluation, found: Evaluation) -> dict:
    """The figures of one evaluation and its changes from the base, also printed."""
    figures = row(found)
    print_row(name, figures)
    return figures | {"change": row_of_changes(base, found)}


def row(found: Evaluation) -> dict:
    figures = found.figures
    return {name: [*vars(figures[group][key]).values()] for name, (group, key) in COLUMNS.items()}


def row_of_changes(base: Evaluation, found: Evaluation) -> dict:
    figures = changes(base, found)
    return {name: [*vars(figures[group][key]).values()] for name, (group, key) in COLUMNS.items()}


def print_row(name: str, figures: dict) -> None:
    cells = " ".join(f"{column} {figures[column][0]:.3f}" for column in COLUMNS)
    print(f"{name:12} {cells}", flush=True)


def summary(table: dict, arms: list[str], seeds: list[int]) -> None:
    """Means over seeds, and whether every seed's F1 beats the base and the controls."""
    for arm in arms:
        rows = [table[f"{arm} {seed}"] for seed in seeds if f"{arm} {seed}" in table]
        print_row(f"mean {arm}", {column: [mean(r[column][0] for r in rows)] for column in COLUMNS})
    for seed in seeds:
        found = {arm: table.get(arm if arm == "base" else f"{arm} {seed}") for arm in ("base", *arms)}
        print(f"seed {seed}: F1", ", ".join(f"{arm} {row['F1'][0]:.3f}" for arm, row in found.items() if row))


if __name__ == "__main__":
    main()
