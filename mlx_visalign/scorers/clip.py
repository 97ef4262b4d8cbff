"""How well a text fits an image, by CLIP: score(images, texts) -> 100 * cosine of each image with its text.

Any function of the same form may stand in its place. Images and texts are read one at a time: in a batch the last bits of
a row depend on its place, and a score must be the same whatever else is scored with it, before or after a restart.
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
    "Which CLIP is to judge? Name it with --set clip=CLIP, a folder or a name on the Hub; the one that LLaVA-1.5 sees through "
    "is openai/clip-vit-large-patch14-336."
)


class CLIPScorer:
    """A CLIP with its tokenizer and one way to see images. `policy`: the model whose tower's forward it shares, if any.

    name  tells it from others, where settings are compared
    cut   how many texts were longer than CLIP reads, so that their beginning was scored
    """

    def __init__(self, clip: CLIP, tokenizer: Any, preprocessing: Preprocessing, name: str, policy: Policy | None = None):
        self.clip, self.tokenizer, self.preprocessing, self.name, self.policy = clip, tokenizer, preprocessing, name, policy
        self.cut = 0
        self._vectors = FeatureCache(CACHE_GB)

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """100 * cos(image, text) for every image with the text in its place; in [-100, 100]."""
        by_image = {image: self.image_vector(image) for image in dict.fromkeys(images)}
        products = [by_image[image] * self.text_vector(text) for image, text in zip(images, texts, strict=True)]
        return [100 * float(np.array(product).sum()) for product in products]

    def image_vector(self, image: Path) -> Float[mx.array, " p"]:
        """An image's unit vector, known by the image's bytes: the preprocessing is this scorer's one."""
        return self._once(f"image {image_digest(image)}", lambda: self._see(image))

    def text_vector(self, text: str) -> Float[mx.array, " p"]:
        """A text's unit vector."""
        return self._once(f"text {text}", lambda: self.clip.encode_text(mx.array([self._ids(text)]))[0])

    def _once(self, name: str, read: Callable[[], mx.array]) -> mx.array:
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
        """The text's ids; of a text that is too long the beginning and the end token, whose vector is the text's."""
        ids = [self.tokenizer.bos_token_id, *plain_ids(self.tokenizer, text), self.tokenizer.eos_token_id]
        if len(ids) <= self._longest:
            return ids
        if not self.cut:
            say(f"warning: CLIP reads {self._longest} tokens; of longer texts the beginning is scored.")
        self.cut += 1
        return [*ids[: self._longest - 1], ids[-1]]

    @property
    def _longest(self) -> int:
        return self.clip.config.text.max_position_embeddings


def clip_scorer(folder: str | None, view: Aspect, policy: Policy) -> CLIPScorer:
    """The CLIP in a Hugging Face folder or on the hub; where none is named the tiny one, if the policy is the tiny model.

    `view`: whether images are padded to a square or cropped, as CLIP's own preprocessing does. Where the policy sees
    images in the same way and through the same tower, that is run once for both.
    """
    if folder is None and policy.base != fingerprint(TINY):
        raise UserError(WHICH)
    path = TINY_CLIP if folder is None else find_model(folder)
    clip = load_clip(path)
    preprocessing = Preprocessing.from_config(read_json(path / "preprocessor_config.json"), view)
    alike = preprocessing == policy.preprocessing and not policy.family.varies
    shared = alike and _begins_as(clip, policy.family.tower_weights(policy.model))
    return CLIPScorer(clip, read_tokenizer(path), preprocessing, f"{fingerprint(path)[:16]} {view}", policy if shared else None)


def require_judge(model: Path) -> None:
    """UserError where no CLIP is named and the model in this folder is not the tiny one, which has its own."""
    sizes = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (model, TINY)]
    if sizes[0] != sizes[1] or fingerprint(model) != fingerprint(TINY):
        raise UserError(WHICH)


def _begins_as(clip: CLIP, tower: dict[str, mx.array]) -> bool:
    """Whether the tower that made LLaVA's features is this CLIP's, equal in float16. If so the CLIP lets go of its own.

    A quantised tower has other weights, by other names.
    """
    own = dict(tree_flatten(clip.vision_model.parameters()))
    if not all(name in own and _equal(own[name], weight) for name, weight in tower.items()):
        return False
    done = {name.split(".")[2] for name in tower if name.startswith("encoder.layers.")}
    clip.vision_model.encoder.layers = clip.vision_model.encoder.layers[len(done) :]
    return True


def _equal(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.array_equal(one.astype(mx.float16), other.astype(mx.float16)))
