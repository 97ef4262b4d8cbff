"""A training small enough to be run, stopped and killed many times. `python toy_training.py FOLDER` runs it to the end."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_visalign.training.config import TrainSettings
from mlx_visalign.training.trainer import fit

SETTINGS = TrainSettings(iters=12, learning_rate=0.01, save_every=4, grad_accumulation_steps=2)
LONG = TrainSettings(iters=120, learning_rate=0.01, save_every=3)


class Batch:
    def __init__(self, index: int):
        self.ids = (f"record-{index}",)
        self.x = mx.random.normal((4, 6), key=mx.random.key(index))
        self.y = mx.roll(self.x, 1, axis=1)


class CountingSource:
    """Batch i is a function of i alone."""

    def __init__(self):
        self.index = 0
        self.observed = []

    def next(self):
        self.index += 1
        return Batch(self.index)

    def observe(self, metrics):
        self.observed.append(metrics["iteration"])

    def state(self):
        return {"index": self.index}

    def restore(self, state):
        self.index = state["index"]


def make_groups():
    """Two groups; in the first only the last layer learns, as with LoRA on some layers."""
    mx.random.seed(3)
    policy = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    policy.layers[0].freeze()
    return {"policy": policy, "value": nn.Linear(6, 6)}


def loss_of(groups):
    def loss(batch):
        error = groups["value"](mx.tanh(groups["policy"](batch.x))) - batch.y
        return mx.mean(error**2), {"accuracy": mx.mean(error < 1), "tokens": mx.array(batch.x.size)}

    return loss


def train(folder: Path, settings: TrainSettings = SETTINGS, *, groups=None, loss=None, source=None, **options):
    """Run or resume the training in `folder`; returns every weight by name."""
    groups = groups or make_groups()
    fit(groups, loss or loss_of(groups), source or CountingSource(), settings, folder, **options)
    return weights_of(groups)


def weights_of(groups) -> dict[str, list]:
    return {
        f"{group}.{name}": weight.tolist()
        for group, module in groups.items()
        for name, weight in tree_flatten(module.parameters())
    }


if __name__ == "__main__":
    train(Path(sys.argv[1]), LONG)
