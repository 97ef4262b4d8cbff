"""The families of models: one object for each `model_type`, found by its name. The one door to mlx-vlm.

A family of one's own is added from its file (`add_file`), or an installed package offers it as an entry point of the group
`mlx_visalign.families` that is called after the model_type and leads to the object.

mlx-vlm's classes hold the weights; loading, the merge of images into prompts and the forward pass are ours. What we do
ourselves, and why (mlx-vlm 0.7.10; each has a test against transformers in tests/models):

- config: it ignores transformers 5's `rope_parameters` and silently uses its own default theta (`Family.build`).
- loading: `mlx_vlm.load` runs Python that a model folder brings (`model_file`); its LLaVA processor fails with
  transformers 5. We read JSON and safetensors only (`models/loading`).
- merge: its merge assumes one row; with two, every row gets the last row's image (`models/decoder`).
- mask: its LLaVA uses any given mask instead of the causal one. We never pass a padding mask to the model's own
  forward: the prefix cache (`inference/prefix_cache`) has complete masks.
- blocks: theirs keep much for the backward pass, and each row's attention a copy of the prefix (`models/decoder_block`).
"""

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mlx_visalign.models.families.family import Family
from mlx_visalign.models.families.parts import Shape
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.own_code import import_file, run_own
from mlx_visalign.utils.schema import shown

GROUP = "mlx_visalign.families"
SHARED = ("__init__", "family", "parts")  # the files here that are no family
BUILT_IN = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SHARED)

_registered: dict[str, Family] = {}


def names() -> list[str]:
    """Every `model_type` that loads."""
    return [*BUILT_IN, *sorted({*_installed(), *_registered} - {*BUILT_IN})]


def register(family: Family) -> None:
    """Add a family of one's own, for as long as this process lives. Raises `UserError` where its name is taken."""
    if family.model_type in BUILT_IN:
        raise UserError(f"There is a family called {family.model_type!r} already. Give yours another model_type.")
    _registered[family.model_type] = family


def add_file(path: str | Path) -> str:
    """Register the `FAMILY` of a Python file, which is run, and return its `model_type`.

    Raises `UserError` for a file that is missing, fails or has none, and for a name that is taken.
    """
    family = vars(import_file(Path(path))).get("FAMILY")
    if not isinstance(family, Family):
        raise UserError(f"{path} should have a Family called FAMILY, got {shown(family)}.")
    register(family)
    return family.model_type


def find(model_type: object) -> Family:
    """The family of a config.json's `model_type`. Raises `UserError` where there is none."""
    if isinstance(model_type, str):
        if model_type in BUILT_IN:
            return importlib.import_module(f"{__name__}.{model_type}").FAMILY
        if model_type in _registered:
            return _registered[model_type]
        if model_type in (installed := _installed()):
            return _loaded(installed[model_type])
    known = " or ".join(map(repr, names()))
    raise UserError(f"Expected model_type {known}, got {model_type!r}: other folders do not load.")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _loaded(point: EntryPoint) -> Family:
    found = run_own(f"The installed family {point.name}", point.load)
    if not isinstance(found, Family):
        raise UserError(f"The installed family {point.name} is none: {point.value} should be a Family, got {shown(found)}.")
    return found


def of(model: Any) -> Family:
    """The family of a model that `build_model` made."""
    return find(model.config.model_type)


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """Every parameter of the model that a complete config.json describes, by its name in mlx-vlm."""
    return find(config["model_type"]).parameters(config)


def others(model_type: object = None) -> list[str]:
    """What tensors outside of language model and tower are called, see `Family`: of a family, and of all of this package.

    Somebody else's code is imported for a model of theirs alone.
    """
    known = [*map(find, BUILT_IN), *_registered.values()]
    if isinstance(model_type, str) and model_type in _installed():
        known.append(find(model_type))
    return sorted({name for family in known for name in family.others})


def build_model(config: dict[str, Any]) -> Any:
    """A model with random weights from a Hugging Face config. Raises `UserError` for what would be computed wrong."""
    return find(config.get("model_type")).build(config)
