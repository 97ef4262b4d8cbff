"""Does a method do what it says, in the tiny world? Seeds with their own unlabelled images, two controls.

    python tests/benchmarks/tiny_proof.py --recipe tiny --split held-out --output runs/proof

For every seed: the recipe's method; the same pairs with the preferred side drawn by a coin (`random`), and with the
shorter answer preferred (`shorter`). For the first seed, if asked for, SeVa with a view that should teach little: `flip`
mirrors the image, `autocontrast` changes nothing that a caption speaks of. Settings are fixed in the recipe, chosen on
validation scenes; the held-out scenes are for one run of this script. Everything resumes.
"""

import argparse
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean

import mlx.core as mx
import numpy as np

from mlx_visalign import load
from mlx_visalign.alignment import Alignment
from mlx_visalign.augment.views import AUGMENTATIONS
from mlx_visalign.evals.benchmark import world_benchmark
from mlx_visalign.evaluate import Evaluation, Protocol, changes, evaluate
from mlx_visalign.keys import number_for
from mlx_visalign.preference import train_on_pairs
from mlx_visalign.prompts import make_prompts, world_mix, world_photos
from mlx_visalign.recipe import find_recipe, make_plan
from mlx_visalign.records import Pair, read_jsonl
from mlx_visalign.run import Run

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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--preset", help="of the recipe")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="validation", choices=["validation", "held-out"])
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["method", "random", "shorter"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], help="recipe settings, as settings.view=moco")
    args = parser.parse_args()
    overrides = dict(item.split("=", 1) for item in args.set)
    overrides = {name: json_or_text(value) for name, value in overrides.items()}
    plan = make_plan(find_recipe(args.recipe), method, args.preset, {"images": "tiny-world", **overrides})
    benchmark = world_benchmark(args.split, args.scenes)
    protocol = Protocol(max_tokens=plan.settings.max_tokens)
    base = evaluate(load(args.model, dtype=mx.float32), benchmark, protocol, batch=32, title="base")
    table = {"base": row(base)}
    print_row("base", table["base"])
    for seed in args.seeds:
        for arm in args.arms:
            if arm in AUGMENTATIONS and seed != args.seeds[0]:
                continue
            found = evaluate(aligned(args, plan, arm, seed), benchmark, protocol, batch=32, title=f"{arm} {seed}")
            table[f"{arm} {seed}"] = row(found) | {"change": row_of_changes(base, found)}
            print_row(f"{arm} {seed}", table[f"{arm} {seed}"])
    summary(table, args.seeds)
    (args.output / f"{args.split}.json").write_text(json.dumps(table, indent=1))


def method(name: str):
    return import_module(f"mlx_visalign.methods.{name}")


def json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def aligned(args: argparse.Namespace, plan, arm: str, seed: int):
    """The policy after one arm's training."""
    folder = args.output / f"{arm}-{seed}"
    settings = plan.settings
    if arm in AUGMENTATIONS:
        settings = replace(settings, view=arm, exists_view=arm)
    policy = load(args.model, dtype=mx.float32)
    if arm in ("random", "shorter"):
        pairs = controlled(args.output / f"method-{seed}", arm, seed)
        train_on_pairs(policy, pairs, settings.train, folder, seed)
        return policy
    with Run(folder) as run:
        count = plan.recipe.count
        photos = world_photos(folder, "unlabelled", count, start=seed * count)
        prompts = make_prompts(photos, world_mix(plan.recipe.questions), seed)
        plan.method.train(Alignment(run, policy, prompts, seed, vocabulary=world_mix(0).vocabulary), settings)
    return policy


def controlled(folder: Path, arm: str, seed: int) -> list[Pair]:
    """The method's own pairs with the preferred side chosen by a coin, or by length (equally long ones are left out)."""
    pairs = [replace(p, images=tuple(str(folder / i) for i in p.images)) for p in read_jsonl(folder / "pairs.jsonl", Pair)]
    if arm == "random":
        coins = np.random.default_rng(number_for(seed, "control")).random(len(pairs)) < 0.5
        return [swapped(pair) if coin else pair for pair, coin in zip(pairs, coins, strict=True)]
    words = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    return [swapped(p) if c > r else p for p, (c, r) in zip(pairs, words, strict=True) if c != r]


def swapped(pair: Pair) -> Pair:
    logps = pair.reference_logps
    assert logps is not None
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, reference_logps=(logps[1], logps[0]))


def row(found: Evaluation) -> dict:
    figures = found.figures
    return {name: [*vars(figures[group][key]).values()] for name, (group, key) in COLUMNS.items()}


def row_of_changes(base: Evaluation, found: Evaluation) -> dict:
    figures = changes(base, found)
    return {name: [*vars(figures[group][key]).values()] for name, (group, key) in COLUMNS.items()}


def print_row(name: str, figures: dict) -> None:
    cells = " ".join(f"{column} {figures[column][0]:.3f}" for column in COLUMNS)
    print(f"{name:12} {cells}", flush=True)


def summary(table: dict, seeds: list[int]) -> None:
    """Means over seeds, and whether every seed's F1 beats the base and both controls."""
    for arm in ("method", "random", "shorter"):
        rows = [table[f"{arm} {seed}"] for seed in seeds if f"{arm} {seed}" in table]
        if rows:
            print_row(f"mean {arm}", {column: [mean(r[column][0] for r in rows)] for column in COLUMNS})
    for seed in seeds:
        arms = ("method", "base", "random", "shorter")
        found = {arm: table.get(arm if arm == "base" else f"{arm} {seed}") for arm in arms}
        print(f"seed {seed}: F1", ", ".join(f"{arm} {row['F1'][0]:.3f}" for arm, row in found.items() if row))


if __name__ == "__main__":
    main()
