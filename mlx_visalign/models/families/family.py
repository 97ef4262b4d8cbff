"""Base class of model families.

A family defines config, parameters and the path from pixels to image embeddings. The methods here are LLaVA-1.5's, for
mlx-vlm's classes with a `vision_tower`, a `multi_modal_projector` and a Llama-like `language_model`. A family that differs is
a subclass that overrides methods (llava_onevision.py).
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
"""Patch features of n images; a list if their shapes differ. The family defines the axes before the last."""


@dataclass(frozen=True, eq=False)
class Family:
    """A model family, one `model_type`.

    title     its common name
    classes   the module of mlx_vlm.models with its classes; `peer` is transformers' class
    text      its language model, and `vision` its vision tower: the sections of config.json
    defaults  transformers' defaults of the top-level config, as far as they affect the model
    only      settings of which mlx-vlm's classes compute only this value, whatever a config says
    template  the prompt template that it was trained with
    varies    whether the number of image tokens depends on the image's size
    aspects   the supported ways to make an image square; `why_aspects` explains why others are not
    blocks    the path of the language model's blocks; `tower` is that of the vision tower's modules
    others    the names, with `*` as a wildcard, of its tensors outside language model and vision tower
    tiny      a config of a few thousand weights, for tests
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
        """Refuse settings that mlx-vlm's classes would ignore.

        A missing setting passes.
        """
        kinds: dict[str, Family | Part] = {"": self, "text_config.": self.text, "vision_config.": self.vision}
        for prefix, kind in kinds.items():
            section = config[prefix[:-1]] if prefix else config
            for name, only in kind.only.items():
                if (found := section.get(name, only)) != only:
                    raise UserError(
                        f"config.json: {prefix}{name} {found!r} is not supported for {kind.model_type}, only {only!r} is. "
                        f"mlx-vlm would silently compute {only!r}."
                    )

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse configs that mlx-vlm's classes would compute wrong."""
        self.check_only(config)

    def check_aspect(self, aspect: Aspect, where: object) -> None:
        """Refuse an aspect that the family was not trained with.

        `where` begins the error message.
        """
        if aspect not in self.aspects:
            raise UserError(
                f"{where}: {self.title} takes aspect {' or '.join(map(repr, self.aspects))} only. {self.why_aspects}"
            )

    def build(self, config: dict[str, Any]) -> Any:
        """A model of mlx-vlm's classes with random weights.

        Raises `UserError` for settings that they would compute wrong.
        """
        for part in ("text_config", "vision_config"):
            if not isinstance(config.get(part), dict):
                raise UserError(f"The model's config.json has no {part}; a LLaVA needs one.")
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
        """text_config, with settings where mlx-vlm expects them.

        transformers also reads some of them elsewhere in the config.
        """
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
        """Shapes of all parameters of a complete config.json.

        The keys are the names in mlx-vlm.
        """
        wide, hidden = config["vision_config"]["hidden_size"], config["text_config"]["hidden_size"]
        shapes = {f"language_model.{name}": shape for name, shape in self.text.parameters(config["text_config"])}
        shapes |= {f"{self.tower}{name}": shape for name, shape in self.vision.parameters(config["vision_config"])}
        projector = [*linear("linear_1", wide, hidden), *linear("linear_2", hidden, hidden)]
        return shapes | {f"multi_modal_projector.{name}": shape for name, shape in projector}

    # -- transformers' own classes ---------------------------------------------------------------------------------------

    def processor(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """processor_config.json as transformers' own processor requires it."""
        return {}

    def peer_inputs(self, pixels: Float[np.ndarray, "b h w 3"]) -> dict[str, np.ndarray]:
        """Image inputs of transformers' class `peer`.

        For images of the tower's own size; the prompts' ids are passed separately.
        """
        return {"pixel_values": pixels.transpose(0, 3, 1, 2)}

    # -- from pixels to image embeddings ---------------------------------------------------------------------------------

    def pixels(self, preprocessing: Preprocessing, picture: Picture) -> Float[mx.array, "h w 3"]:
        """A preprocessed image, as `states` expects it.

        A square, or if the family `varies`, a shape that encodes how the image was tiled.
        """
        return preprocessing(picture)

    def states(self, model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b ... d"]:
        """The frozen vision tower's hidden state `vision_feature_layer`.

        CLIP's class token comes first; SigLIP has none. MLX is lazy, so the blocks above that layer are never computed.
        """
        *_, hidden = model.vision_tower(pixels, output_hidden_states=True)
        return hidden[model.config.vision_feature_layer]

    def patches(self, model: Any, states: Float[mx.array, "... d"]) -> Float[mx.array, "... d"]:
        """An image's patch features, selected from its states."""
        return states if model.config.vision_feature_select_strategy == "full" else states[..., 1:, :]

    def features(self, model: Any, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b ... d"]:
        """The frozen vision tower's patch features, before the projector."""
        return self.patches(model, self.states(model, pixels))

    def tower_weights(self, model: Any) -> dict[str, mx.array]:
        """The weights that `states` depends on.

        The keys are the names in Hugging Face's vision models.
        """
        vision = model.config.vision_config
        blocks = range(vision.num_hidden_layers + 1)[model.config.vision_feature_layer]
        used = ("embeddings.", "pre_layrnorm.", *(f"encoder.layers.{block}." for block in range(blocks)))
        names = tuple(self.tower + name for name in used)
        arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        return {name.removeprefix(self.tower): array for name, array in arrays.items() if name.startswith(names)}

    def image_tokens(self, model: Any) -> int:
        """The maximum number of image tokens per image."""
        vision = model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def image_tokens_of(self, model: Any, height: int, width: int) -> int:
        """The number of image tokens for an image size.

        The size is in pixels, before any preprocessing.
        """
        return self.image_tokens(model)

    def embeds(self, model: Any, features: Features) -> Images:
        """Image embeddings for prompts.

        If the shapes of the features differ, each image is projected on its own.
        """
        if isinstance(features, list):
            return [self.project(model, one[None])[0] for one in features]
        return self.project(model, features)

    def project(self, model: Any, features: Float[mx.array, "b ... d"]) -> Float[mx.array, "b s e"]:
        """Image embeddings from equally many patch features per image."""
        dtype = model.multi_modal_projector.linear_1.bias.dtype
        return model.multi_modal_projector(features.astype(dtype))

    # -- the language model ----------------------------------------------------------------------------------------------

    def decoder(self, model: Any) -> Decoder:
        """The parts of the language model."""
        return decoder_of(model)

    def positions(
        self, model: Any, ids: Integer[mx.array, "b p"], mask: Bool[np.ndarray, "b p"], features: Features
    ) -> Positions | None:
        """Token positions of right-padded prompts, images included.

        None: 0, 1, 2, ...
        """
        return None


def _check_numbers(config: dict[str, Any]) -> None:
    if type(token := config.get("image_token_index", 0)) is not int or not 0 <= token < MAX_SIZE:
        raise UserError(f"config.json: image_token_index should be a token's number, got {shown(token)}.")
    if type(config.get("vision_feature_layer", -2)) is not int:
        raise UserError("Only one vision_feature_layer is supported, such as -2.")


def _check_types(values: dict[str, Any], cls: type, where: str) -> None:
    """Refuse values of the wrong type, which mlx-vlm would accept and fail on later."""
    kinds = {name: kind for name, kind in typing.get_type_hints(cls).items() if kind in TYPE_NAMES}
    given = {name: kind for name, kind in kinds.items() if values.get(name) is not None}
    check_architecture({name: convert(values[name], kind, f"{where}.{name}") for name, kind in given.items()}, where)


def _check_layer(layer: int, blocks: int) -> None:
    """Refuse a layer that does not exist. A tower has one state before its first block and one after each block."""
    if not -blocks - 1 <= layer <= blocks:
        raise UserError(f"config.json: no vision_feature_layer {layer} exists in a tower of {blocks} blocks.")
