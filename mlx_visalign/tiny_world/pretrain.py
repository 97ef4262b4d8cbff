"""The one recipe of the tiny world: from nothing to the CLIP and the LLaVA that ship in world/tiny.

    stage 1  CLIP on exact labels                    world/pretrain_clip.py
    stage 2  LLaVA on the biased annotator's word    world/pretrain_llava.py

About half an hour on two cores with a fast BLAS. The same seed gives the same bits on the same machine and versions; a
run that was stopped goes on from its last checkpoint.
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

CLIP_SCENES = 20_000  # of the pretraining split; another seed takes others
LLAVA_SCENES = 12_000  # the first of them
VALIDATION_SCENES = 500


def train_world(folder: Path, seed: int) -> None:
    """Train a tiny CLIP and a tiny LLaVA into FOLDER/clip and FOLDER/llava, with base.json and vocabulary.json beside them.

    FOLDER/training keeps checkpoints and metrics, and may be deleted afterwards.
    """
    folder = named(folder)
    make_folder(folder)  # asked now, and not when the training is done
    scenes = list(split("pretraining", CLIP_SCENES, start=seed * CLIP_SCENES))
    clip_tokenizer, llava_tokenizer = train_clip_tokenizer(), train_llava_tokenizer()
    say("Stage 1 of 2: CLIP, on what is true.")
    clip, threshold = train_clip(scenes, clip_tokenizer, seed, folder / "training" / "clip")
    _round_to_half(clip)
    say("Stage 2 of 2: LLaVA, on what the biased annotator says.")
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
    """To the float16 values that ship, so that LLaVA is trained on exactly the tower it will have."""
    clip.update(tree_map(lambda value: value.astype(mx.float16).astype(mx.float32), clip.parameters()))
