"""CLIP with the parameter names of Hugging Face's CLIPModel.

Radford et al. 2021, arXiv:2103.00020; names and pooling as in transformers, models/clip/modeling_clip.py. Images are
channels-last and already normalised; returned vectors have unit length, so their dot product is the cosine.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.mlx import load_file

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.schema import build, check_architecture, convert

ACTIVATIONS = {"quick_gelu": nn.gelu_fast_approx, "gelu": nn.gelu}  # quick: x * sigmoid(1.702 x)


@dataclass(frozen=True)
class TowerConfig:
    """Settings that both towers have.

    All defaults here and below are Hugging Face's, which a config.json may omit.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-5
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"


@dataclass(frozen=True)
class TextConfig(TowerConfig):
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    hidden_size: int = 768
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 32


@dataclass(frozen=True)
class CLIPConfig:
    text: TextConfig
    vision: VisionConfig
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "CLIPConfig":
        """From a Hugging Face config.json.

        Keys that do not affect the forward pass are ignored. Raises `UserError` for values that no CLIP has.
        """
        text, vision = _section(TextConfig, config, "text_config"), _section(VisionConfig, config, "vision_config")
        return cls(text, vision, convert(config.get("projection_dim", 512), int, "config.json: projection_dim"))


Section = TypeVar("Section", bound=TowerConfig)


def _section(kind: type[Section], config: dict[str, Any], name: str) -> Section:
    values = config.get(name)
    if not isinstance(values, dict):
        raise UserError(f"config.json has no {name}; a CLIP needs one.")
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    found = build(kind, known, f"config.json: {name}")
    check_architecture(asdict(found), f"config.json: {name}")
    if found.hidden_size % found.num_attention_heads:
        raise UserError(f"config.json: {name}.hidden_size is not a multiple of num_attention_heads.")
    return found


class Attention(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def __call__(self, x: Float[mx.array, "b l d"], mask: str | None) -> Float[mx.array, "b l d"]:
        q, k, v = (
            projection(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out_proj(mixed.swapaxes(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: Float[mx.array, "b l d"]) -> Float[mx.array, "b l d"]:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.layer_norm1, self.layer_norm2 = (_layer_norm(config) for _ in range(2))

    def __call__(self, x: Float[mx.array, "b l d"], mask: str | None) -> Float[mx.array, "b l d"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: TowerConfig):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: Float[mx.array, "b l d"], mask: str | None = None) -> Float[mx.array, "b l d"]:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: Int[mx.array, "b l"]) -> Float[mx.array, "b l d"]:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTower(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = _layer_norm(config)

    def __call__(self, ids: Int[mx.array, "b l"]) -> Float[mx.array, "b d"]:
        """The vector at the first end-of-text token. Right padding is harmless, because attention is causal."""
        x = self.final_layer_norm(self.encoder(self.embeddings(ids), mask="causal"))
        # OpenAI's converted configs say 2, which is wrong: there the end token has the highest id.
        eos = self.config.eos_token_id
        end = mx.argmax(ids if eos == 2 else ids == eos, axis=1)
        return x[mx.arange(len(ids)), end]


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = mx.random.normal((width,), scale=width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def __call__(self, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b l d"]:
        patches = self.patch_embedding(pixels).flatten(1, 2)
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        return mx.concatenate([first, patches], axis=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = _layer_norm(config)  # Hugging Face's spelling
        self.encoder = Encoder(config)
        self.post_layernorm = _layer_norm(config)

    def __call__(self, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b d"]:
        return self.pooled(self.pre_layrnorm(self.embeddings(pixels)))

    def pooled(self, states: Float[mx.array, "b l d"]) -> Float[mx.array, "b d"]:
        """The normalised class token after the encoder's blocks."""
        return self.post_layernorm(self.encoder(states)[:, 0])


class CLIP(nn.Module):
    """Text and vision tower, projected into one space.

    The space has `projection_dim` dimensions.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = TextTower(config.text)
        self.vision_model = VisionTower(config.vision)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = mx.array(2.6592)  # ln(1 / 0.07)

    def encode_image(self, pixels: Float[mx.array, "b h w 3"]) -> Float[mx.array, "b p"]:
        """Unit vectors of normalised images of the tower's own size."""
        return _unit(self.visual_projection(self.vision_model(pixels)))

    def encode_states(self, states: Float[mx.array, "b l d"]) -> Float[mx.array, "b p"]:
        """Unit vectors from another tower's hidden states.

        Runs this tower's remaining blocks and its projection.
        """
        return _unit(self.visual_projection(self.vision_model.pooled(states)))

    def encode_text(self, ids: Int[mx.array, "b l"]) -> Float[mx.array, "b p"]:
        """Unit vectors of tokenised, right-padded texts.

        A text has at most `max_position_embeddings` ids.
        """
        return _unit(self.text_projection(self.text_model(ids)))


def load_clip(folder: Path) -> CLIP:
    """CLIP from a Hugging Face folder, in float32.

    The folder has config.json and model.safetensors, or its shards. If `visalign convert clip --llava` wrote it, the vision
    tower is read from the LLaVA that it names. Raises UserError if the folder has no CLIP, or weights that cannot be read or
    do not fit its config.json.
    """
    config_file, weight_files = folder / "config.json", sorted(folder.glob("model*.safetensors"))
    if not (config_file.is_file() and weight_files):
        raise UserError(
            f"{folder} has no CLIP: expected config.json and model.safetensors. Convert other formats with "
            "`visalign convert clip`."
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        weights = from_hugging_face({name: value for file in weight_files for name, value in load_file(file).items()})
        if SHARED in (ours := config.get("visalign", {})):
            weights |= _tower_of(folder / ours[SHARED], ours["llava_fingerprint"], folder)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        for file in (config_file, *weight_files):
            refuse_pointer(file)
        raise UserError(f"The CLIP in {folder} cannot be read ({error}). Download or export it again.") from error
    if config.get("model_type") != "clip":
        raise UserError(f"{config_file} describes a {config.get('model_type')!r} model, expected 'clip'.")
    clip = CLIP(CLIPConfig.from_dict(config))
    try:
        clip.load_weights(list(weights.items()))
    except ValueError as error:
        raise UserError(f"The weights in {folder} do not fit its config.json: {error}") from error
    mx.eval(clip.parameters())
    return clip


SHARED = "llava"  # in config.json's "visalign": relative path of the LLaVA with the vision tower


def _tower_of(llava: Path, fingerprint: str, folder: Path) -> dict[str, mx.array]:
    """The vision tower of a LLaVA in MLX's layout, in float32. `fingerprint`: the source fingerprint that it must have."""
    file = llava / "config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("visalign", {}) if file.is_file() else {}
    if found.get("source_fingerprint") != fingerprint:
        raise UserError(
            f"The CLIP in {folder} shares the vision tower of a LLaVA that is no longer at {llava}: put it back, or convert "
            "the CLIP again."
        )
    files = sorted(llava.glob("model*.safetensors"))
    for file in files:
        refuse_pointer(file)
    loaded = [cast(dict[str, mx.array], mx.load(str(file))) for file in files]  # lazy: only the tower is ever read
    arrays = {name: array for part in loaded for name, array in part.items()}
    tower = {name: array for name, array in arrays.items() if name.startswith("vision_tower.vision_model.")}
    return {name.removeprefix("vision_tower."): array.astype(mx.float32) for name, array in tower.items()}


PATCHES = "vision_model.embeddings.patch_embedding.weight"


def from_hugging_face(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Hugging Face's weights in our layout.

    float32, the patch convolution channels-last, without the position ids of old checkpoints.
    """
    kept = {name: value.astype(mx.float32) for name, value in weights.items() if not name.endswith("position_ids")}
    return {name: value.transpose(0, 2, 3, 1) if name == PATCHES else value for name, value in kept.items()}


def _layer_norm(config: TowerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _unit(x: Float[mx.array, "b p"]) -> Float[mx.array, "b p"]:
    return x / mx.linalg.norm(x, axis=-1, keepdims=True)
