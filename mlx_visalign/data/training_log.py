"""Training metrics, one row per update, and early warnings."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import appending, write_atomically

Row = dict[str, Any]

METRICS = "metrics.jsonl"  # in a training's folder
WINDOW = 50  # updates that warnings average over
SHORTER = 0.9  # of the base's length: shorter answers are warned of


def read_metrics(path: Path) -> list[Row]:
    """Valid rows of a metrics file.

    Empty if the file is missing. Reading stops at the first line that is cut off by a kill or is not a metrics row.
    """
    rows: list[Row] = []
    if not path.exists():
        return rows
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            numbers = isinstance(row, dict) and all(type(value) in (int, float) for value in row.values())
            if not numbers or type(row.get("iteration")) is not int or (rows and rows[0].keys() != row.keys()):
                break
            rows.append(row)
    return rows


def cut_back(path: Path, iteration: int, *, finished: bool) -> None:
    """Drop the rows after `iteration`, unless `finished`.

    A resumed training repeats those updates.
    """
    rows = [row for row in read_metrics(path) if row["iteration"] <= iteration]
    if len(rows) < iteration:
        say(f"{path} is damaged: only {len(rows)} of its {iteration} rows can be read; plots and metrics lack the others.")
    if not finished:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def seconds(rows: Iterable[Row]) -> float:
    """Total time of these updates in seconds."""
    return sum(1 / row["iterations_per_second"] for row in rows if row.get("iterations_per_second", 0) > 0)


def append_row(path: Path, row: Row) -> None:
    """Append one row, flushed so that it survives a kill."""
    with appending(path) as file:
        file.write(f"{json.dumps(row)}\n".encode())


def warning_signs(rows: list[Row]) -> dict[str, str]:
    """Warnings about a preference training so far, by short name.

    Reads dpo_loss, accuracy, chosen_reward, chosen_length, rejected_length and answer_length; rows without them give no
    warnings. Rows of a loss that does not start at ln 2 have loss_at_start. The thresholds are our own rules of thumb.
    """
    if not rows or not {"dpo_loss", "accuracy", "chosen_reward"} <= rows[0].keys():
        return {}
    last = rows[-WINDOW:]
    signs = {}
    start = rows[0].get("loss_at_start", math.log(2))
    if rows[0]["iteration"] == 1 and abs(rows[0]["dpo_loss"] - start) > 0.02 * max(1, start / math.log(2)):
        expected = "ln 2 = 0.693" if start == math.log(2) else f"{start:.3f}"
        signs["start"] = (
            f"The first loss is {rows[0]['dpo_loss']:.3f}, not {expected}: reference and policy disagree before any "
            "update. Were the reference log-probabilities made with this model, adapter, template and image aspect?"
        )
    if len(rows) >= WINDOW and fmean(row["chosen_reward"] for row in last) < -1:
        signs["chosen"] = (
            "The chosen answers are becoming less likely than under the reference (mean chosen reward "
            f"{fmean(row['chosen_reward'] for row in last):.2f}). Try a smaller learning rate or a larger beta."
        )
    if len(rows) >= WINDOW and abs(fmean(row["accuracy"] for row in last) - 0.5) < 0.03:
        signs["accuracy"] = (
            f"Reward accuracy over the last {WINDOW} updates is at chance. The learning rate may be too small, or the "
            "pairs may differ in nothing that can be learned."
        )
    if {"chosen_length", "rejected_length"} <= rows[0].keys():
        ratio = fmean(row["chosen_length"] for row in last) / max(fmean(row["rejected_length"] for row in last), 1)
        if not 2 / 3 < ratio < 3 / 2:
            signs["length"] = (
                f"Chosen answers have {ratio:.2f} times the tokens of rejected ones. The model may learn length instead "
                "of what the image shows; look at some pairs."
            )
    if (share := rows[-1].get("answer_length", 1.0)) < SHORTER:
        signs["shorter"] = (
            f"Descriptions have become {share:.2f} times as long as the base's. That is fine if only things that are not there "
            "have gone. Read some; if what is there has gone too, balance the pairs' lengths (max_length_gap) or lower the "
            "learning rate."
        )
    return signs
