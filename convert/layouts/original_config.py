"""LLaVA-1.5's original config.json to and from Hugging Face's.

The authors' layout is llava_llama, with mm_* fields. Meaning of the fields: haotian-liu/LLaVA v1.2.2,
llava/model/{llava_arch,builder}.py, llava/mm_utils.py process_images and llava/model/multimodal_encoder/clip_encoder.py.
"""

from typing import Any

from mlx_visalign.convert.layouts.llava_config import check_unquantised, complete
from mlx_visalign.models.families.parts import LLAMA
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import shown

SETTINGS = (*LLAMA.defaults, "num_key_value_heads", "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id")
MULTIPLE = 64  # Hugging Face's vocabulary is padded to a multiple of it
ASPECTS = {"pad": "pad", "square": "crop", None: "crop"}
FEATURES = {"patch": "default", None: "default", "cls_patch": "full"}
# The values of LLaVA-1.5; any other value is another model.
ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llava_llama", "llava"),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": (None,),
    "mm_patch_merge_type": (None, "flat"),
    "mm_use_im_start_end": (None, False),
    "mm_use_im_patch_token": (None, False),
    "s2": (None, False),
    "mm_vision_select_feature": tuple(FEATURES),
    "image_aspect_ratio": tuple(ASPECTS),
}
TOWERS = {336: "openai/clip-vit-large-patch14-336", 224: "openai/clip-vit-large-patch14"}
OURS = "visalign"


def check_original(config: dict[str, Any]) -> None:
    """Refuse what is not LLaVA-1.5 as its authors save it."""
    if "text_config" in config:
        raise UserError(
            "config.json: this is Hugging Face's layout. Use `visalign convert llava`, and `visalign fuse` for its adapters."
        )
    if "mm_vision_tower" not in config:
        raise UserError("config.json: mm_vision_tower is missing. Is this the language model alone?")
    check_unquantised(config)
    for name, known in ONLY.items():
        if (value := config.get(name)) not in known:
            raise UserError(f"config.json: {name} is {shown(value)}, LLaVA-1.5 has {known[0]!r}: this model is not supported.")


def hugging_face(config: dict[str, Any], vision: dict[str, Any], added: int | None = None) -> dict[str, Any]:
    """Hugging Face's complete config for an authors' config.

    `vision` is the tower's config. <image> and <pad> follow the original vocabulary, then padding to a multiple of 64,
    unless the number of `added` rows is known.
    """
    vocab_size = vocabulary(config)
    rows = vocab_size + added if added else -(-(vocab_size + 2) // MULTIPLE) * MULTIPLE
    text = {name: config[name] for name in SETTINGS if name in config} | {"model_type": "llama", "vocab_size": rows}
    found = complete(
        {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": vocab_size,
            "pad_token_id": vocab_size + 1,
            "vision_feature_layer": config.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": FEATURES[config.get("mm_vision_select_feature")],
            "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
            "text_config": text,
            "vision_config": vision,
        }
    )
    side = found["vision_config"]["image_size"] // found["vision_config"]["patch_size"]
    return found | {"image_seq_length": side * side, OURS: {"aspect": ASPECTS[config.get("image_aspect_ratio")]}}


def vocabulary(config: dict[str, Any]) -> int:
    """Vocabulary size that the language model was trained with."""
    vocab_size = config.get("vocab_size", LLAMA.defaults["vocab_size"])
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f"config.json: vocab_size should be a whole number above 0, not {shown(vocab_size)}.")
    return vocab_size


def authors(config: dict[str, Any], aspect: str) -> dict[str, Any]:
    """The authors' config for a complete Hugging Face config.

    The inverse of `hugging_face`: the tower stays in the weights, its config goes into our section. Raises `UserError` if
    <image> is not the first token after the authors' vocabulary.
    """
    text, vision, vocab_size = config["text_config"], config["vision_config"], config["image_token_index"]
    if config["model_type"] != "llava" or not 2 <= text["vocab_size"] - vocab_size < 2 + MULTIPLE:
        raise UserError(
            "Only a LLaVA-1.5 whose <image> directly follows the original vocabulary can be exported to the authors' layout."
        )
    ratios = {ours: theirs for theirs, ours in ASPECTS.items() if theirs}
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **{name: text[name] for name in SETTINGS if name in text},
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "image_aspect_ratio": ratios[aspect],
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config["vision_feature_layer"],
        "mm_vision_tower": TOWERS.get(vision["image_size"], "clip"),
        "unfreeze_mm_vision_tower": True,  # makes the authors' code load the tower from these weights
        "use_mm_proj": True,
        "torch_dtype": config.get("torch_dtype", "float16"),
        OURS: {"vision_config": vision},
    }
