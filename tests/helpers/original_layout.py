"""Writes a LLaVA in its authors' layout: with and without its tower, LoRA folders, and a tokenizer like LLaMA's."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hf_layouts import hf_tensors
from hostile_pickles import number, state_dict, storage, tensor, text, tuple_of, write_torch_file
from random_llava import CONFIG, random_llava
from safetensors.numpy import save_file
from sentencepiece_like import TEXTS

WORDS, ROWS = 400, 448
TEXT, VISION = CONFIG["text_config"], CONFIG["vision_config"] | {"num_attention_heads": 1}  # heads of 64, as OpenAI's
AUTHORS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    **{name: value for name, value in TEXT.items() if name not in ("model_type", "rope_parameters")},
    "vocab_size": WORDS,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "pad_token_id": 0,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": VISION["hidden_size"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "auto_map": {"AutoModel": "evil.py"},
}
HUGGING_FACE = CONFIG | {
    "image_token_index": WORDS,
    "text_config": TEXT | {"vocab_size": ROWS},
    "vision_config": VISION,
}
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}
TOWER = "model.vision_tower.vision_tower.vision_model."
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def authors_model(seed: int = 0) -> Any:
    """A model with Hugging Face's rows, those behind the words the mean of the words'."""
    model = random_llava(seed, HUGGING_FACE)
    language = model.language_model
    for matrix in (language.model.embed_tokens, language.lm_head):
        words = np.array(matrix.weight)[:WORDS]
        mean = words.astype(np.float64).mean(axis=0).astype(np.float32)
        matrix.weight = type(matrix.weight)(np.concatenate([words, np.tile(mean, (ROWS - WORDS, 1))]))
    return model


def authors_tensors(model: Any, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """The model's parameters as its authors would save them, the words' rows alone."""
    tensors = {authors_name(name): array for name, array in hf_tensors(model, "classic", dtype).items()}
    return {name: np.ascontiguousarray(array[:WORDS]) if name in VOCABULARY else array for name, array in tensors.items()}


def authors_name(name: str) -> str:
    """The authors' name of a tensor in Hugging Face's classic layout."""
    for theirs, ours in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.vision_model.", TOWER),
    ):
        if name.startswith(theirs):
            return name.replace(theirs, ours)
    raise ValueError(name)


def split_tower(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors without the tower, and the tower's by their names in a CLIP."""
    rest = {name: array for name, array in tensors.items() if not name.startswith(TOWER)}
    tower = {f"vision_model.{name[len(TOWER) :]}": array for name, array in tensors.items() if name.startswith(TOWER)}
    return rest, tower


def write_folder(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    """model.safetensors and config.json (the authors', if no other is given)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or AUTHORS))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_torch(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """A .bin file as torch writes it, but without torch."""
    items: list[bytes] = []
    for key, (name, array) in enumerate(tensors.items()):
        stored = storage(STORAGES[array.dtype.name], str(key), array.size)
        strides = [step // array.itemsize for step in array.strides]
        items += [text(name), tensor(stored, number(0), *(tuple_of(*map(number, sizes)) for sizes in (array.shape, strides)))]
    write_torch_file(file, state_dict(*items), {str(key): array.tobytes() for key, array in enumerate(tensors.values())})


def write_tower(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A CLIP of the sizes that LLaVA's config does not say, with parts that LLaVA has no use for."""
    others = {"text_model.final_layer_norm.weight": np.ones(8, np.float32), "logit_scale": np.array(2.0, np.float32)}
    return write_folder(folder, tensors | others, {"model_type": "clip", "vision_config": VISION})


def write_tokenizer(folder: Path) -> None:
    """As Vicuna's: SentencePiece's own file, <unk> for padding, no tokenizer.json."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | config | {"model_max_length": 2048}))


def write_lora(
    folder: Path, layers: dict[str, tuple[int, int]], seed: int = 0, rank: int = 2, alpha: int = 4
) -> dict[str, np.ndarray]:
    """A LoRA for `layers` (path: (out, in)) as PEFT saves it; returns what it adds to each layer's weight."""
    draw, tensors, added = np.random.default_rng(seed), {}, {}
    for path, (out, wide) in layers.items():
        a, b = (draw.standard_normal(shape).astype(np.float32) * 0.1 for shape in ((rank, wide), (out, rank)))
        tensors |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
        added[f"{path}.weight"] = alpha / rank * b @ a
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({path.rsplit(".", 1)[1] for path in layers})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_torch(folder / "adapter_model.bin", tensors)
    return added


@cache
def sentencepiece_model() -> bytes:
    """A BPE with bytes to fall back on, of `WORDS` pieces, <unk>, <s> and </s> first."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=out,
        model_type="bpe",
        vocab_size=WORDS,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()
