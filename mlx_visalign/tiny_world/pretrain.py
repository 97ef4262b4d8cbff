"""Pretrains the tiny CLIP and LLaVA from scratch.

    stage 1  CLIP on exact labels                      pretrain_clip.py
    stage 2  LLaVA on the biased annotator's captions  pretrain_llava.py

Takes about half an hour on two cores with a fast BLAS. The same seed gives bit-identical weights on the same machine and
versions; an interrupted run resumes from its last checkpoint.
"""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.models.clip import CLIP
from mlx_visalign.tiny_world.export import export_clip, export_llava, write_json
from mlx_visalign.tiny_world.language import vocabulary
from mlx_visalign.tiny_world.pretrain_clip import phrase_auc, train_clip
from mlx_visalign.tiny_world.pretrain_llava import train_llava
from mlx_visalign.tiny_world.scenes import split
from mlx_visalign.tiny_world.tokenizer import train_clip_tokenizer, train_llava_tokenizer
from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import make_folder
from mlx_visalign.utils.links import named

CLIP_SCENES = 20_000  # of the pretraining split; each seed uses its own
LLAVA_SCENES = 12_000  # the first of them
VALIDATION_SCENES = 500


def train_world(folder: Path, seed: int) -> None:
    """Train a tiny CLIP and a tiny LLaVA.

    Writes FOLDER/clip, FOLDER/llava, base.json and vocabulary.json. FOLDER/training has checkpoints and metrics, and may be
    deleted afterwards.
    """
    folder = named(folder)
    make_folder(folder)  # fails now rather than after training
    scenes = list(split("pretraining", CLIP_SCENES, start=seed * CLIP_SCENES))
    clip_tokenizer, llava_tokenizer = train_clip_tokenizer(), train_llava_tokenizer()
    say("Stage 1 of 2: CLIP, on exact labels.")
    clip, threshold = train_clip(scenes, clip_tokenizer, seed, folder / "training" / "clip")
    _round_to_half(clip)
    say("Stage 2 of 2: LLaVA, on the biased annotator's captions and answers.")
    llava = train_llava(clip, scenes[:LLAVA_SCENES], llava_tokenizer, seed, folder / "training" / "llava")
    export_clip(clip, clip_tokenizer, threshold, folder / "clip")
    export_llava(llava, llava_tokenizer, folder / "llava")
    write_json(folder / "vocabulary.json", vocabulary())
    auc = phrase_auc(clip, clip_tokenizer, list(split("validation", VALIDATION_SCENES)))
    base = {
        "seed": seed,
        "clip": {"fingerprint": fingerprint(folder / "clip"), "phrase_auc": round(auc, 4)},
        "llava": {"fingerprint": fingerprint(folder / "llava")},
    }
    write_json(folder / "base.json", base)


def _round_to_half(clip: CLIP) -> None:
    """Round to float16 as exported, so that LLaVA is trained on exactly the tower it will have."""
    clip.update(tree_map(lambda value: value.astype(mx.float16).astype(mx.float32), clip.parameters()))
