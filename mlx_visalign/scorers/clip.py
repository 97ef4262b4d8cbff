"""CLIP scorer: 100 * cosine of image and text embeddings.

Images and texts are encoded one at a time: in a batch the last bits of a row depend on its position, and a score must not
depend on what else is scored with it, nor change when a run is resumed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from jaxtyping import Float
from mlx.utils import tree_flatten

from mlx_visalign.data.images import Aspect, Preprocessing, image_digest
from mlx_visalign.data.prompt_template import plain_ids
from mlx_visalign.inference.policy import TINY, FeatureCache, Policy, read_tokenizer
from mlx_visalign.models.adapter_files import fingerprint
from mlx_visalign.models.clip import CLIP, load_clip
from mlx_visalign.models.hub import find_model
from mlx_visalign.utils.console import say
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

CACHE_GB = 0.25
TINY_CLIP = TINY.parent / "clip"
WHICH = (
    "Which CLIP model should score? Set it with --set clip=CLIP (visalign judge: --clip CLIP), a folder or a Hub name; "
    "LLaVA-1.5 uses openai/clip-vit-large-patch14-336 as its vision tower."
)


class CLIPScorer:
    """A CLIP model with its tokenizer and image preprocessing.

    policy  the model whose vision tower's output it reuses, if any
    name    identifies it where settings are compared
    cut     number of texts that were truncated to CLIP's context length
    """

    def __init__(self, clip: CLIP, tokenizer: Any, preprocessing: Preprocessing, name: str, policy: Policy | None = None):
        self.clip, self.tokenizer, self.preprocessing, self.name, self.policy = clip, tokenizer, preprocessing, name, policy
        self.cut = 0
        self._vectors = FeatureCache(CACHE_GB)

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """100 * cos(image, text) per pair, in [-100, 100]."""
        by_image = {image: self.image_vector(image) for image in dict.fromkeys(images)}
        products = [by_image[image] * self.text_vector(text) for image, text in zip(images, texts, strict=True)]
        return [100 * float(np.array(product).sum()) for product in products]

    def image_vector(self, image: Path) -> Float[mx.array, " p"]:
        """An image's unit vector, cached by the image's content."""
        return self._cached(f"image {image_digest(image)}", lambda: self._see(image))

    def text_vector(self, text: str) -> Float[mx.array, " p"]:
        """A text's unit vector."""
        return self._cached(f"text {text}", lambda: self.clip.encode_text(mx.array([self._ids(text)]))[0])

    def _cached(self, name: str, read: Callable[[], mx.array]) -> mx.array:
        vector = self._vectors.get(name)
        if vector is None:
            vector = read()
            mx.eval(vector)
            self._vectors.put(name, vector)
        return vector

    def _see(self, image: Path) -> Float[mx.array, " p"]:
        if self.policy is not None:
            return self.clip.encode_states(self.policy.image_states(image)[None].astype(mx.float32))[0]
        return self.clip.encode_image(self.preprocessing(image)[None])[0]

    def _ids(self, text: str) -> list[int]:
        """The text's ids; a text that is too long is truncated before the end token, whose vector is the text's."""
        ids = [self.tokenizer.bos_token_id, *plain_ids(self.tokenizer, text), self.tokenizer.eos_token_id]
        if len(ids) <= self._longest:
            return ids
        if not self.cut:
            say(f"warning: CLIP reads at most {self._longest} tokens; longer texts are truncated.")
        self.cut += 1
        return [*ids[: self._longest - 1], ids[-1]]

    @property
    def _longest(self) -> int:
        return self.clip.config.text.max_position_embeddings


def clip_scorer(folder: str | None, view: Aspect, policy: Policy) -> CLIPScorer:
    """CLIP scorer from a Hugging Face folder or the Hub.

    `folder` None means the tiny CLIP, for the tiny model only. `view`: pad images to a square, or crop them as CLIP's own
    preprocessing does. If the policy has the same preprocessing and vision tower, the tower runs once for both.
    """
    if folder is None and policy.base != fingerprint(TINY):
        raise UserError(WHICH)
    path = TINY_CLIP if folder is None else find_model(folder)
    clip = load_clip(path)
    preprocessing = Preprocessing.from_config(read_json(path / "preprocessor_config.json"), view)
    alike = preprocessing == policy.preprocessing and not policy.family.varies
    shared = alike and _begins_as(clip, policy.family.tower_weights(policy.model))
    return CLIPScorer(clip, read_tokenizer(path), preprocessing, f"{fingerprint(path)[:16]} {view}", policy if shared else None)


def require_named_clip(model: Path) -> None:
    """UserError if this model needs a CLIP to be named.

    Called when none is named: only the tiny model has its own.
    """
    sizes = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (model, TINY)]
    if sizes[0] != sizes[1] or fingerprint(model) != fingerprint(TINY):
        raise UserError(WHICH)


def _begins_as(clip: CLIP, tower: dict[str, mx.array]) -> bool:
    """Whether LLaVA's vision tower equals this CLIP's (in float16); if so, drop the CLIP's copy of those layers.

    A quantised tower has other weights under other names.
    """
    own = dict(tree_flatten(clip.vision_model.parameters()))
    if not all(name in own and _equal(own[name], weight) for name, weight in tower.items()):
        return False
    done = {name.split(".")[2] for name in tower if name.startswith("encoder.layers.")}
    clip.vision_model.encoder.layers = clip.vision_model.encoder.layers[len(done) :]
    return True


def _equal(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.array_equal(one.astype(mx.float16), other.astype(mx.float16)))
