"""The page of a proof: a report as any run's, of the means over the seeds, and every seed beside it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_visalign.evaluation.runner import Evaluation, changes, mean_changes, mean_figures
from mlx_visalign.reporting.controls_text import NAMES
from mlx_visalign.reporting.html import Html, facts, page, paragraphs, section, table, tag
from mlx_visalign.reporting.metrics_table import figures_table, group_row, tiles
from mlx_visalign.reporting.run_page import flat
from mlx_visalign.reporting.summary import ONE_TRAINING, TABLE, as_rows, sentences
from mlx_visalign.runs.recipe import Plan
from mlx_visalign.runs.run import installed_versions
from mlx_visalign.utils.files import write_atomically
from mlx_visalign.utils.formatting import with_minus

Found = Mapping[str, Mapping[int, Evaluation]]
"""By arm and seed."""
ARMS = {"method": "the training", "sham": "untrained, saying yes as often"} | NAMES
Columns = Mapping[str, tuple[str, str]]


def write_proof(folder: Path, plan: Plan, base: Evaluation, found: Found, columns: Columns) -> None:
    """FOLDER/report.json and report.html."""
    report = proof(plan, base, found)
    write_atomically(folder / "report.html", proof_page(report, plan, columns))
    write_atomically(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))


def proof(plan: Plan, base: Evaluation, found: Found) -> dict[str, Any]:
    """As `summary.make_report`, with intervals around means over the seeds, `controls`, and every `seeds`' changes by arm."""
    seeds = [*found["method"]]
    several = (
        f"Means over {len(seeds)} trainings, each from a seed and images of its own ({', '.join(map(str, seeds))}). The "
        "intervals (95 %, bootstrap) are over the images of the benchmark; how much trainings differ is told seed by seed."
    )
    methods = [*found["method"].values()]
    return {
        "benchmark": {"name": base.benchmark.name, "images": len(base.benchmark.pictures), **vars(base.protocol)},
        "before": as_rows(base.figures),
        "after": as_rows(mean_figures(methods)),
        "change": as_rows(mean_changes(base, methods)),
        "controls": {
            NAMES[arm]: {"change": as_rows(mean_changes(base, [*found[arm].values()]))} for arm in NAMES if arm in found
        },
        "seeds": {
            ARMS.get(arm, arm): {str(seed): as_rows(changes(base, one)) for seed, one in of_arm.items()}
            for arm, of_arm in found.items()
        },
        "held_out_pairs": None,
        "warnings": [],
        "limits": [base.benchmark.limits, several if len(seeds) > 1 else ONE_TRAINING],
        "versions": installed_versions(),
        "settings": plan.config,
    }


def proof_page(report: Mapping[str, Any], plan: Plan, columns: Columns) -> str:
    about = str(plan.method.__doc__).partition("\n")[0]
    title = f"{about.partition(':')[0]} and its controls: {report['benchmark']['name']}"
    return page(
        title,
        tag("h1", title),
        tag("p", about, cls="lead"),
        tiles(report),
        section("Before and after", paragraphs(sentences(report)), figures_table(report)),
        section("Seed by seed: the change", table(["", *columns], seed_rows(report, columns))),
        section("What ran", facts(flat(report["settings"])), facts(report["versions"].items(), "With")),
    )


def seed_rows(report: Mapping[str, Any], columns: Columns) -> Iterator[Html]:
    for arm, seeds in report["seeds"].items():
        yield group_row(arm, len(columns) + 1)
        for seed, change in seeds.items():
            cells = [TABLE[group][1][name].format(change[group][name]["value"], sign="+") for group, name in columns.values()]
            yield tag("tr", tag("th", f"seed {seed}", scope="row"), *(tag("td", with_minus(cell)) for cell in cells))
