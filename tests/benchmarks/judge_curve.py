"""How good must a judge be? What CSR and FiSAO gain with judges of five qualities, on validation scenes.

    python tests/benchmarks/judge_curve.py --output runs/curve

Both parts of the judge, CLIP and the consistency of sampled answers, are made as bad as one AUC says (noisy_judges.py); the
model's own yes and no has AUC .85. The gate only warns here, and its verdict stands beside. Every point is a `tiny_proof.py`
of the method alone; everything resumes. Leaves judge_curve.json and judge_curve.png.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from ablation import line, measured
from matplotlib import rc_context
from matplotlib.figure import Figure

from mlx_visalign.data.records import read_jsonl
from mlx_visalign.evaluation.judge_figures import judge_figures
from mlx_visalign.reporting.training_plots import BLUE, GREY, RED, STYLE
from mlx_visalign.runs.run_folder import RunFolder
from mlx_visalign.scorers.trust import JudgedImage, Trust
from mlx_visalign.tiny_world.source import TinyWorld
from mlx_visalign.utils.files import read_json

QUALITIES = (0.55, 0.6, 0.65, 0.7, 0.8)
COLOURS = {"csr": ("CSR", BLUE), "fisao": ("FiSAO", RED)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=[*COLOURS], choices=COLOURS)
    parser.add_argument("--qualities", type=float, nargs="+", default=QUALITIES)
    args, further = parser.parse_known_args()  # further ones are for tiny_proof.py
    found: dict[str, list[dict]] = {}
    for quality in args.qualities:
        for method in args.methods:
            aucs = ["--clip-auc", f"{quality}", "--consistency-auc", f"{quality}", "--self_check-auc", "0.85"]
            folder = args.output / f"{method}-{quality}"
            row = measured(method, folder, ("judge.gate=warn",), [*aucs, *further])
            print(line(f"{method}, parts of AUC {quality}", row), flush=True)
            found.setdefault(method, []).append({"parts_auc": quality, **judges(folder), **row})
            (args.output / "judge_curve.json").write_text(json.dumps(found, indent=1))
    draw(found, args.output / "judge_curve.png")


def judges(folder: Path) -> dict:
    """The combined judge's AUC by seed, on what the base names in greedy answers, and the gate's verdicts."""
    made: dict[str, list] = {"judge_auc": [], "verdicts": []}
    for run in sorted(folder.glob("method-*")):
        files = RunFolder(run)
        if not files.judge.exists():
            continue
        rows, trust = read_jsonl(files.rows("judge"), JudgedImage), Trust.from_row(read_json(files.judge), str(files.judge))
        parts = judge_figures(rows, trust, TinyWorld().labels([row.image for row in rows])).parts
        made["judge_auc"] += [part.auc for part in parts if part.part == "combined"]
        made["verdicts"].append(trust.verdict)
    return made


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """The change of F1 over the judge's AUC: a dot for every seed, and a line through their means."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for method, rows in found.items():
            label, colour = COLOURS[method]
            dots = [
                (auc, 100 * seed["f1"]["value"])
                for row in rows
                for auc, seed in zip(row["judge_auc"], row.get("seeds", {}).values(), strict=False)
            ]
            means = [
                (fmean(row["judge_auc"]), 100 * fmean(seed["f1"]["value"] for seed in row["seeds"].values()))
                for row in rows
                if row.get("seeds")
            ]
            axes.plot(*zip(*dots, strict=True), "o", color=colour, alpha=0.45, markersize=5)
            axes.plot(*zip(*means, strict=True), "-", color=colour, linewidth=2, label=label)
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
        axes.set_title("What a judge is worth")
        axes.set_xlabel("the judge's AUC on what the untrained model names")
        axes.set_ylabel("change of F1, points")
        axes.legend(loc="upper left")
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
