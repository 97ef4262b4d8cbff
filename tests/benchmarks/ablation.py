"""What each setting of a method's form brings: the form, and the form with one setting changed, on validation scenes.

    python tests/benchmarks/ablation.py csr --output runs/ablation-csr --clip-auc .72

Every row is a `tiny_proof.py` of the method alone, with the same seeds and images; stages that agree are copied from the
form's. Everything resumes. Leaves ablation.json, with the rows of earlier calls too, and prints the table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FORM: tuple[str, ...] = ()
FIGURES = {
    "chair_i": ("chair", "chair_i"),
    "recall": ("chair", "recall"),
    "f1": ("chair", "f1"),
    "duplicates": ("chair", "duplicates"),
    "tokens": ("length", "tokens"),
    "pope": ("pope_adversarial", "accuracy"),
}
NEVER_STOPS = ("train.min_share=0.0",)  # a form that makes answers short is measured too
VARIANTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "seva": (
        ("view=diffusion-auto", "exists_view=null"),
        ("view=crop",),
        ("exists_view=null",),
        ("max_length_gap=null",),
        ("min_yes_margin=null",),
        ("train.rpo_alpha=0.0",),
        ("train.rpo_alpha=0.1",),
        ("train.epochs=1.0",),
        ("train.epochs=3.0",),
        ("train.schedule=cosine",),
        ("train.loss_type=mdpo",),
    ),
    "csr": (
        ("train.rpo_alpha=0.0",),
        ("train.rpo_alpha=1.0",),
        ("train.epochs=1.0",),
        ("train.epochs=2.0",),
        ("train.schedule=cosine",),
        ("train.loss_type=robust", "train.noise=0.1"),
        ("max_length_gap=null",),
        ("margin_quantile=0.5",),
        ("pairs=step",),
        ("pairs=step", "margin_quantile=0.5"),
        ("pairs=greedy", "keep_greedy=true"),
        ("judge.kind=clip", "judge.debias_images=0"),
        ("judge.kind=nouns",),
        ("judge.kind=consistency",),
        ("judge.weights=agreement",),
        ("judge.debias_images=0",),
        ("reward.kind=rank", "reward.over=mean"),
        ("reward.kind=calibrated",),
        ("reward.over=mean",),
        ("reward.image_weight=1.0",),
        ("reward.language=penalised_mean",),
        ("prune=language",),
        ("diversity_penalty=1.0",),
        ("num_beam_groups=3",),
        ("form=response", "reward.kind=calibrated", "samples=8"),
    ),
    "fisao": (
        ("reward.shape=band",),
        ("judge.kind=clip",),
        ("judge.kind=consistency",),
        ("judge.weights=agreement",),
        ("judge.debias_images=0",),
        ("train.kl_coef=0.02",),
        ("train.kl_coef=0.1",),
        ("train.gamma=1.0",),
        ("train.critic=none", "train.lam=1.0"),
        ("train.num_ppo_epochs=4",),
        ("train.epochs=3.0",),
        ("train.schedule=constant",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=VARIANTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="rows that change one of these settings")
    args, further = parser.parse_known_args()  # further ones are for tiny_proof.py
    kept, form = args.output / "ablation.json", args.output / "form"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for changed in (FORM, *VARIANTS[args.method]):
        if args.only and changed and not any(name in one for name in args.only for one in changed):
            continue
        folder = args.output / "_".join(changed) if changed else form
        reused = ["--reuse", str(form)] if changed else []
        name = ", ".join(changed)
        rows[name] = measured(args.method, folder, changed, [*further, *reused])
        print(line(name, rows[name]), flush=True)
        kept.write_text(json.dumps(rows, indent=1))


def measured(method: str, folder: Path, changed: Sequence[str], further: Sequence[str]) -> dict:
    """The figures of a method with `changed` settings; a proof that fails leaves its last line as the reason."""
    script = Path(__file__).with_name("tiny_proof.py")
    command = [sys.executable, str(script), "--recipe", method, "--arms", "method", "--output", str(folder), *further]
    command += ["--set", *(f"settings.{one}" for one in (*changed, *NEVER_STOPS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"changed": changed, "stopped": done.stderr.strip().splitlines()[-1]}
    report = json.loads((folder / "report.json").read_text())

    def chosen(rows: dict) -> dict:
        return {name: rows[group][figure] for name, (group, figure) in FIGURES.items()}

    seeds = {seed: chosen(row) for seed, row in report["seeds"]["the training"].items()}
    return {"changed": changed, "seeds": seeds} | {name: chosen(report[name]) for name in ("before", "after", "change")}


def line(name: str, row: dict) -> str:
    """A row of recipes/README.md, in per cent: F1, its change from the base with interval and by seed, and other figures."""
    if "stopped" in row:
        return f"| `{name}` | stopped: {row['stopped']} |"
    after, change = row["after"], [100 * row["change"]["f1"][end] for end in ("value", "low", "high")]
    seeds = ", ".join(f"{100 * seed['f1']['value']:+.1f}" for seed in row["seeds"].values())
    others = " | ".join(f"{100 * after[figure]['value']:.1f}" for figure in ("chair_i", "recall", "pope"))
    cells = f"{100 * after['f1']['value']:.1f} | {change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}] | {seeds} | {others}"
    return f"| `{name or 'nothing'}` | {cells} |"


if __name__ == "__main__":
    main()
