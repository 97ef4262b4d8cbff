"""A worse judge: the tiny CLIP with noise on its projections, until its phrase AUC is about .75, nearer to real photos.

    python tests/benchmarks/degraded_clip.py runs/degraded-clip

The embedded CLIP has seen exact labels and tells what is there almost without fault, which no CLIP does on photos. The
folder serves a recipe as `--set clip=runs/degraded-clip`.
"""

import argparse
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from mlx_visalign.inference.policy import TINY
from mlx_visalign.models.clip import load_clip
from mlx_visalign.tiny_world.pretrain_clip import phrase_auc
from mlx_visalign.tiny_world.scenes import split

CLIP = TINY.parent / "clip"
PROJECTIONS = ("text_projection.weight", "visual_projection.weight")
HALVINGS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--auc", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=300, help="validation scenes that the AUC is of")
    args = parser.parse_args()
    shutil.copytree(CLIP, args.output)
    scenes, tokenizer = list(split("validation", args.scenes)), AutoTokenizer.from_pretrained(CLIP)
    low, high = 0.0, 16.0  # noise, in standard deviations of the weights
    for _ in range(HALVINGS):
        noise = (low + high) / 2
        write(args.output, noise, args.seed)
        clip = load_clip(args.output)
        clip.set_dtype(mx.float32)
        auc = phrase_auc(clip, tokenizer, scenes)
        low, high = (noise, high) if auc > args.auc else (low, noise)
    print(f"{args.output}: phrase AUC {auc:.3f} with noise of {noise:.2f} standard deviations")


def write(folder: Path, noise: float, seed: int) -> None:
    """The CLIP's tensors, each projection with `noise` standard deviations of Gaussian noise on it."""
    tensors, rng = load_file(CLIP / "model.safetensors"), np.random.default_rng(seed)
    for name in PROJECTIONS:
        weight = tensors[name].astype(np.float32)
        tensors[name] = (weight + noise * weight.std() * rng.standard_normal(weight.shape)).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
