"""config.json of LLaVA-1.5 in the authors' layout (llava_llama, with mm_* fields) to and from Hugging Face's.

Meaning of the fields: haotian-liu/LLaVA v1.2.2, llava/model/{llava_arch,builder}.py, llava/mm_utils.py process_images and
llava/model/multimodal_encoder/clip_encoder.py.
"""

from typing import Any

from mlx_visalign.convert.llava_config import check_unquantised, complete
from mlx_visalign.models.families.parts import LLAMA
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import shown

SETTINGS = (*LLAMA.defaults, "num_key_value_heads", "rope_theta", "rope_scaling", "bos_token_id", "eos_token_id")
MULTIPLE = 64  # Hugging Face's vocabulary is padded to a multiple of it
ASPECTS = {"pad": "pad", "square": "crop", None: "crop"}
FEATURES = {"patch": "default", None: "default", "cls_patch": "full"}
# What LLaVA-1.5 has; anything else is another model.
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
        raise UserError("config.json: a LLaVA of the authors says mm_vision_tower; is this the language model alone?")
    check_unquantised(config)
    for name, known in ONLY.items():
        if (value := config.get(name)) not in known:
            raise UserError(f"config.json: {name} is {shown(value)}, LLaVA-1.5 has {known[0]!r}: this model is not supported.")


def hugging_face(config: dict[str, Any], vision: dict[str, Any], added: int | None = None) -> dict[str, Any]:
    """The complete Hugging Face config of an authors' config and its tower's.

    <image> and <pad> come behind the words; then rows up to a multiple of 64, unless it is known how many were `added`.
    """
    words = vocabulary(config)
    rows = words + added if added else -(-(words + 2) // MULTIPLE) * MULTIPLE
    text = {name: config[name] for name in SETTINGS if name in config} | {"model_type": "llama", "vocab_size": rows}
    found = complete(
        {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": words,
            "pad_token_id": words + 1,
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
    """How many words the language model was trained with."""
    words = config.get("vocab_size", LLAMA.defaults["vocab_size"])
    if type(words) is not int or words < 1:
        raise UserError(f"config.json: vocab_size should be a whole number above 0, not {shown(words)}.")
    return words


def authors(config: dict[str, Any], aspect: str) -> dict[str, Any]:
    """The way back, of a complete Hugging Face config. The tower lies in the weights, its own config in our section.

    Raises `UserError` if <image> is not the first token behind the words, where the authors' vocabulary ends.
    """
    text, vision, words = config["text_config"], config["vision_config"], config["image_token_index"]
    if config["model_type"] != "llava" or not 2 <= text["vocab_size"] - words < 2 + MULTIPLE:
        raise UserError("Only a LLaVA-1.5 whose <image> comes right behind the words can be given the authors' layout.")
    ratios = {ours: theirs for theirs, ours in ASPECTS.items() if theirs}
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **{name: text[name] for name in SETTINGS if name in text},
        "vocab_size": words,
        "pad_token_id": 0,
        "image_aspect_ratio": ratios[aspect],
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config["vision_feature_layer"],
        "mm_vision_tower": TOWERS.get(vision["image_size"], "clip"),
        "unfreeze_mm_vision_tower": True,  # so that the authors' code reads the tower out of these weights
        "use_mm_proj": True,
        "torch_dtype": config.get("torch_dtype", "float16"),
        OURS: {"vision_config": vision},
    }
