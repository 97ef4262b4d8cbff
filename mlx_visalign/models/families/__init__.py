"""The families of models: one object for each `model_type`, found by its name. The one door to mlx-vlm.

Its classes hold the weights; loading, the merge of images into prompts and the forward pass are ours. What we do ourselves,
and why (mlx-vlm 0.7.10; each has a test against transformers in tests/test_vlm.py or tests/test_onevision.py):

- config: it ignores transformers 5's `rope_parameters` and silently uses its own default theta (`Family.build`).
- loading: `mlx_vlm.load` runs Python that a model folder brings (`model_file`); its LLaVA processor fails with
  transformers 5. We read JSON and safetensors only (`models/loading`).
- merge: its merge assumes one row; with two, every row gets the last row's image (`models/decoder`).
- mask: its LLaVA uses any given mask instead of the causal one. We never pass a padding mask to the model's own
  forward: the prefix cache (`inference/prefix_cache`) has complete masks.
- blocks: theirs keep much for the backward pass, and each row's attention a copy of the prefix (`models/decoder_block`).
"""

import importlib
from pathlib import Path
from typing import Any

from mlx_visalign.models.families.family import Family
from mlx_visalign.models.families.parts import Shape
from mlx_visalign.utils.errors import UserError

SHARED = ("__init__", "family", "parts")  # the files here that are no family
BUILT_IN = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SHARED)


def names() -> list[str]:
    """Every `model_type` that loads."""
    return BUILT_IN


def find(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises `UserError` where there is none."""
    if isinstance(model_type, str) and model_type in BUILT_IN:
        return importlib.import_module(f"{__name__}.{model_type}").FAMILY
    known = " or ".join(map(repr, names()))
    raise UserError(f"Expected model_type {known}, got {model_type!r}: other folders do not load.")


def of(model: Any) -> Family:
    """The family of a model that `build_model` made."""
    return find(model.config.model_type)


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """Every parameter of the model that a complete config.json describes, by its name in mlx-vlm."""
    return find(config["model_type"]).parameters(config)


def others() -> list[str]:
    """What any family's tensors outside of language model and tower are called, see `Family`."""
    return sorted({name for kind in names() for name in find(kind).others})


def build_model(config: dict[str, Any]) -> Any:
    """A model with random weights from a Hugging Face config. Raises `UserError` for what would be computed wrong."""
    return find(config.get("model_type")).build(config)
