"""What each family of models has: its config, its parameters, and the way from pixels to word embeddings.

The methods here are LLaVA-1.5's, of mlx-vlm's classes with a `vision_tower`, a `multi_modal_projector` and a Llama-like
`language_model`. A family that differs is a subclass with other methods (llava_onevision.py).
"""

import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import mlx.core as mx
import numpy as np
from jaxtyping import Bool, Float, Integer
from mlx.utils import tree_flatten

from mlx_visalign.data.images import Aspect, Picture, Preprocessing
from mlx_visalign.data.prompt_template import Template
from mlx_visalign.models.decoder import Decoder, Images, Positions, decoder_of
from mlx_visalign.models.families.parts import Part, Shape, linear
from mlx_visalign.utils.errors import UserError, plainly
from mlx_visalign.utils.schema import MAX_SIZE, TYPE_NAMES, check_architecture, convert, shown

Features = Float[mx.array, "n ... d"] | list[Float[mx.array, "... d"]]
"""The patch features of n images, a list where their numbers differ. The axes before the last are for the family to say."""


@dataclass(frozen=True, eq=False)
class Family:
    """A `model_type`.

    title     what people call it
    classes   the module of mlx_vlm.models that has its classes, and `peer` transformers' class
    text      its language model, and `vision` its tower: the sections of config.json
    defaults  transformers', of the whole config, as far as they shape the model
    only      the one value of a setting that mlx-vlm's classes compute, whatever a config says
    template  the words around a question that it was trained with
    varies    whether the number of an image's tokens depends on its size
    aspects   how an image may become a square; `why_aspects` says why not otherwise
    blocks    the path of the language model's blocks, `tower` that of the vision tower's modules
    others    the names, with `*` for any, of its tensors outside of the language model and the tower
    tiny      a config of a few thousand weights, for the tests
    """

    model_type: str
    title: str
    classes: str
    peer: str
    text: Part
    vision: Part
    defaults: Mapping[str, Any]
    only: Mapping[str, Any]
    template: Template
    tiny: dict[str, Any]
    varies: bool = False
    aspects: tuple[Aspect, ...] = get_args(Aspect)
    why_aspects: str = ""
    blocks: str = "language_model.model.layers."
    tower: str = "vision_tower.vision_model."
    others: tuple[str, ...] = ("multi_modal_projector.*",)

    # -- the config -----------------------------------------------------------------------------------------------------

    def check_only(self, config: Mapping[str, Any]) -> None:
        """Refuse every other value of a setting than the one that mlx-vlm's classes compute. What is not said passes."""
        kinds: dict[str, Family | Part] = {"": self, "text_config.": self.text, "vision_config.": self.vision}
        for prefix, kind in kinds.items():
            section = config[prefix[:-1]] if prefix else config
            for name, only in kind.only.items():
                if (found := section.get(name, only)) != only:
                    raise UserError(
                        f"config.json: {prefix}{name} {found!r} is not supported for {kind.model_type}, only {only!r} is. "
                        f"MLX would compute {only!r} without a word."
                    )

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse what mlx-vlm's classes would compute wrong, with the reason."""
        self.check_only(config)

    def check_aspect(self, aspect: Aspect, where: object) -> None:
        """Refuse an aspect that the family never saw. `where` begins the error."""
        if aspect not in self.aspects:
            raise UserError(
                f"{where}: {self.title} takes aspect {' or '.join(map(repr, self.aspects))} only. {self.why_aspects}"
            )

    def build(self, config: dict[str, Any]) -> Any:
        """A model of mlx-vlm's classes with random weights. Raises `UserError` for what they would compute wrong."""
        for part in ("text_config", "vision_config"):
            if not isinstance(config.get(part), dict):
                raise UserError(f"The model's config.json has no {part}; a LLaVA folder has one.")
        module = importlib.import_module(f"mlx_vlm.models.{self.classes}")
        fields = {name: config[name] for name in config.keys() & {"image_token_index", "vision_feature_layer"}}
        try:
            self.check(config)
            _check_numbers(config)
            for part, cls in (("text_config", module.TextConfig), ("vision_config", module.VisionConfig)):
                _check_types(config[part], cls, f"The model's config.json: {part}")
            text = module.TextConfig.from_dict(self.text_settings(config))
            vision = module.VisionConfig.from_dict(config["vision_config"])
            _check_layer(config.get("vision_feature_layer", -2), vision.num_hidden_layers)
            whole = module.ModelConfig(model_type=self.model_type, text_config=text, vision_config=vision, **fields)
            return module.Model(whole)
        except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"The model's config.json cannot be understood: {plainly(error)}.") from None

    def text_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """text_config with what transformers reads in other places than mlx-vlm does."""
        text = config["text_config"]
        rope = text.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise UserError(f"The model's config.json: text_config.rope_parameters must be named values, got {shown(rope)}.")
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"config.json: rope_type {rope['rope_type']!r} is not supported, only 'default' is.")
        theta = convert(
            rope.get("rope_theta", text.get("rope_theta", 10000.0)), float, "The model's config.json: text_config.rope_theta"
        )
        check_architecture({"rope_theta": theta}, "The model's config.json: text_config")
        return text | {"rope_theta": theta}

    def parameters(self, config: Mapping[str, Any]) -> dict[str, Shape]:
        """Every parameter that a complete config.json describes: its name in mlx-vlm, and its shape."""
        wide, hidden = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
        shapes = {f"language_model.{name}": shape for name, shape in self.text.parameters(config["text_config"])}
        shapes |= {f"{self.tower}{name}": shape for name, shape in self.vision.parameters(config["vision_config"])}
        projector = [*linear("linear_1", wide, hidden), *linear("linear_2", hidden, hidden)]
        return shapes | {f"multi_modal_projector.{name}": shape for name, shape in projector}

    # -- transformers' own classes ---------------------------------------------------------------------------------------

    def processor(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What processor_config.json must say for transformers' own processor."""
        return {}

    def peer_inputs(self, pixels: Float[np.ndarray, "b h w 3"]) -> dict[str, np.ndarray]:
        """What the class `peer` takes for images of the tower's own size, beside the ids of their prompts."""
        return {"pixel_values": pixels.transpose(0, 3, 1, 2)}

    # -- from pixels to word embeddings ----------------------------------------------------------------------------------

    def pixels(self, preprocessing: Preprocessing, picture: Picture) -> Float[mx.array, "h w 3"]:
        """A picture as `states` takes it: a square, or where the family varies a shape that tells how it was cut."""
        return preprocessing(picture)

    def states(self, model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b ... d"]:
        """The frozen vision tower's hidden state `vision_feature_layer`, CLIP's class token first. SigLIP has none.

        MLX is lazy, so the blocks above that layer are never computed.
        """
        *_, hidden = model.vision_tower(pixels, output_hidden_states=True)
        return hidden[model.config.vision_feature_layer]

    def patches(self, model: Any, states: Float[mx.array, "... d"]) -> Float[mx.array, "... d"]:
        """The states that are an image's features: those of its patches."""
        return states if model.config.vision_feature_select_strategy == "full" else states[..., 1:, :]

    def features(self, model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b ... d"]:
        """The frozen vision tower's patch features, before the projector."""
        return self.patches(model, self.states(model, pixels))

    def tower_weights(self, model: Any) -> dict[str, mx.array]:
        """The weights that `states` depends on, by the names of Hugging Face's vision models."""
        vision = model.config.vision_config
        blocks = range(vision.num_hidden_layers + 1)[model.config.vision_feature_layer]
        used = ("embeddings.", "pre_layrnorm.", *(f"encoder.layers.{block}." for block in range(blocks)))
        names = tuple(self.tower + name for name in used)
        arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        return {name.removeprefix(self.tower): array for name, array in arrays.items() if name.startswith(names)}

    def image_tokens(self, model: Any) -> int:
        """How many places an image takes in a prompt, at most."""
        vision = model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def image_tokens_of(self, model: Any, height: int, width: int) -> int:
        """How many places an image of this size takes, in pixels before any preprocessing."""
        return self.image_tokens(model)

    def embeds(self, model: Any, features: Features) -> Images:
        """Images as they stand in prompts. Where their numbers differ, each is projected by itself."""
        if isinstance(features, list):
            return [self.project(model, one[None])[0] for one in features]
        return self.project(model, features)

    def project(self, model: Any, features: Float[mx.array, "b ... d"]) -> Float[mx.array, "b s e"]:
        """The word embeddings that stand for images, from as many patch features each."""
        dtype = model.multi_modal_projector.linear_1.bias.dtype
        return model.multi_modal_projector(features.astype(dtype))

    # -- the language model ----------------------------------------------------------------------------------------------

    def decoder(self, model: Any) -> Decoder:
        """The language model in its parts."""
        return decoder_of(model)

    def positions(
        self, model: Any, ids: Integer[mx.array, "b p"], mask: Bool[np.ndarray, "b p"], features: Features
    ) -> Positions | None:
        """Where the tokens of right-padded prompts stand, the images' among them; None: at 0, 1, 2, ..."""
        return None


def _check_numbers(config: dict[str, Any]) -> None:
    if type(token := config.get("image_token_index", 0)) is not int or not 0 <= token < MAX_SIZE:
        raise UserError(f"config.json: image_token_index should be a token's number, got {shown(token)}.")
    if type(config.get("vision_feature_layer", -2)) is not int:
        raise UserError("Only one vision_feature_layer is supported, such as -2.")


def _check_types(values: dict[str, Any], cls: type, where: str) -> None:
    """mlx-vlm takes any value of any type, and fails when it computes with it."""
    kinds = {name: kind for name, kind in typing.get_type_hints(cls).items() if kind in TYPE_NAMES}
    given = {name: kind for name, kind in kinds.items() if values.get(name) is not None}
    check_architecture({name: convert(values[name], kind, f"{where}.{name}") for name, kind in given.items()}, where)


def _check_layer(layer: int, blocks: int) -> None:
    """The tower's states are those before its first block and after each."""
    if not -blocks - 1 <= layer <= blocks:
        raise UserError(f"config.json: there is no vision_feature_layer {layer} in a tower of {blocks} blocks.")
