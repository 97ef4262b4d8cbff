"""What torch's AdamW, clipping and transformers' schedules do in a small training; writes tests/golden/training.json.

The loss is the sum of weights times given numbers, so these numbers are the gradients: what is left to compare is
accumulation, global clipping over two groups, schedule, bias correction and weight decay.

Run from the project's root: python tests/golden/make_training.py (needs the `reference` extra).
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("training.json")
UPDATES, ACCUMULATION, WARMUP = 10, 2, 0.11  # two warm-up updates
PEAKS = {"policy": 0.05, "value": 0.2}
DECAY, MAX_NORM = 0.1, 1.0
SCHEDULES = ("cosine", "linear", "constant")


def start() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {name: draw.normal(size=(2, 3)).astype(np.float32) for name in PEAKS}


def gradient(index: int) -> dict[str, np.ndarray]:
    """The gradients of batch `index`; later ones are smaller, so that some are clipped and some are not."""
    draw = np.random.default_rng(100 + index)
    return {name: (draw.normal(size=(2, 3)) * 2 / (1 + index)).astype(np.float32) for name in PEAKS}


def train_in_torch(schedule: str) -> dict[str, list]:
    """The weights of each group after the training, and the gradient norm before clipping of each update."""
    import torch
    from transformers import get_constant_schedule_with_warmup, get_scheduler

    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start().items()}
    groups = [{"params": [weights[name]], "lr": peak} for name, peak in PEAKS.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    if schedule == "constant":
        scheduler = get_constant_schedule_with_warmup(optimizer, 2)
    else:
        scheduler = get_scheduler(schedule, optimizer, 2, UPDATES)
    norms = []
    for update in range(UPDATES):
        for batch in range(update * ACCUMULATION, (update + 1) * ACCUMULATION):
            sum((weights[name] * torch.tensor(g)).sum() / ACCUMULATION for name, g in gradient(batch).items()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights.values(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {name: value.tolist() for name, value in weights.items()} | {"norms": norms}


def main() -> None:
    import torch
    import transformers

    made = {schedule: train_in_torch(schedule) for schedule in SCHEDULES}
    FILE.write_text(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__} | made, indent=1))


if __name__ == "__main__":
    main()
