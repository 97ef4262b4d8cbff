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

FORM = "the form"
NEVER_STOPS = ("train.min_share=0.0",)  # a form that makes answers short is measured too
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "seva": {
        "view: noise that keeps lengths": ("view=diffusion-auto", "exists_view=null"),
        "view: crop": ("view=crop",),
        "exists_view none": ("exists_view=null",),
        "max_length_gap none": ("max_length_gap=null",),
        "min_yes_margin none": ("min_yes_margin=null",),
        "rpo_alpha 0": ("train.rpo_alpha=0.0",),
        "rpo_alpha 0.1": ("train.rpo_alpha=0.1",),
        "epochs 1": ("train.epochs=1.0",),
        "epochs 3": ("train.epochs=3.0",),
        "schedule cosine": ("train.schedule=cosine",),
        "loss_type mdpo": ("train.loss_type=mdpo",),
    },
    "csr": {
        "rpo_alpha 0": ("train.rpo_alpha=0.0",),
        "rpo_alpha 1": ("train.rpo_alpha=1.0",),
        "epochs 1": ("train.epochs=1.0",),
        "epochs 2": ("train.epochs=2.0",),
        "schedule cosine": ("train.schedule=cosine",),
        "max_length_gap none": ("max_length_gap=null",),
        "margin_quantile 0.5": ("margin_quantile=0.5",),
        "loss: robust, a tenth flipped": ("train.loss_type=robust", "train.noise=0.1"),
        "pairs: step": ("pairs=step",),
        "pairs: step, wider half": ("pairs=step", "margin_quantile=0.5"),
        "judge: CLIP alone, sentences": ("judge.kind=clip", "judge.debias_images=0"),
        "judge: CLIP alone, objects": ("judge.kind=nouns",),
        "judge: consistency alone": ("judge.kind=consistency",),
        "judge: weights by agreement": ("judge.weights=agreement",),
        "judge without word debiasing": ("judge.debias_images=0",),
        "reward: ranks, mean": ("reward.kind=rank", "reward.over=mean"),
        "reward: calibrated, sum": ("reward.kind=calibrated",),
        "reward: mean": ("reward.over=mean",),
        "image_weight 1": ("reward.image_weight=1.0",),
        "language: penalised mean": ("reward.language=penalised_mean",),
        "prune: language": ("prune=language",),
        "diversity_penalty 1": ("diversity_penalty=1.0",),
        "num_beam_groups 3": ("num_beam_groups=3",),
        "pairs: greedy": ("pairs=greedy", "keep_greedy=true"),
        "whole sampled answers": ("form=response", "reward.kind=calibrated", "samples=8"),
    },
    "fisao": {
        "reward: band": ("reward.shape=band",),
        "judge: weights by agreement": ("judge.weights=agreement",),
        "judge: CLIP alone": ("judge.kind=clip",),
        "judge: consistency alone": ("judge.kind=consistency",),
        "judge without word debiasing": ("judge.debias_images=0",),
        "praise 1.5": ("reward.praise=1.5",),
        "kl_coef 0.05": ("train.kl_coef=0.05",),
        "kl_coef 0.01": ("train.kl_coef=0.01",),
        "gamma 1": ("train.gamma=1.0",),
        "critic none": ("train.critic=none", "train.lam=1.0"),
        "num_ppo_epochs 4": ("train.num_ppo_epochs=4",),
        "epochs 3": ("train.epochs=3.0",),
        "schedule constant": ("train.schedule=constant",),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=VARIANTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="some of the rows")
    args, further = parser.parse_known_args()  # further ones are for tiny_proof.py
    kept = args.output / "ablation.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name, changed in {FORM: (), **VARIANTS[args.method]}.items():
        if args.only and name not in (FORM, *args.only):
            continue
        folder = args.output / name.replace(" ", "-").replace(":", "")
        reused = [] if name == FORM else ["--reuse", str(args.output / FORM.replace(" ", "-"))]
        rows[name] = measured(args.method, folder, (*changed, *NEVER_STOPS), [*further, *reused])
        print(line(name, rows[name]), flush=True)
        kept.write_text(json.dumps(rows, indent=1))


def measured(method: str, folder: Path, changed: Sequence[str], further: Sequence[str]) -> dict:
    """The figures of a method with `changed` settings; a proof that fails leaves its last line as the reason."""
    script = Path(__file__).with_name("tiny_proof.py")
    command = [sys.executable, str(script), "--recipe", method, "--arms", "method", "--output", str(folder), *further]
    command += ["--set", *(f"settings.{one}" for one in changed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"changed": changed, "stopped": done.stderr.strip().splitlines()[-1]}
    report = json.loads((folder / "report.json").read_text())
    figures = ("chair/chair_i", "chair/recall", "chair/f1", "chair/duplicates", "length/tokens")
    places = [figure.split("/") for figure in figures]

    def chosen(rows: dict) -> dict:
        return {name: rows[group][name] for group, name in places}

    seeds = {seed: chosen(row) for seed, row in report["seeds"]["the training"].items()}
    return {"changed": changed, "seeds": seeds} | {name: chosen(report[name]) for name in ("before", "after", "change")}


def line(name: str, row: dict) -> str:
    """A row of the table in Markdown, in per cent; the change of F1 with its interval."""
    if "stopped" in row:
        return f"| {name} | stopped: {row['stopped']} |"
    after = {figure: row["after"][figure]["value"] for figure in row["after"]}
    change = [100 * row["change"]["f1"][end] for end in ("value", "low", "high")]
    shares = " | ".join(f"{100 * after[figure]:.1f}" for figure in ("chair_i", "recall", "f1", "duplicates"))
    seeds = ", ".join(f"{100 * seed['f1']['value']:+.1f}" for seed in row["seeds"].values())
    return f"| {name} | {shares} | {change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}] | {seeds} |"


if __name__ == "__main__":
    main()
