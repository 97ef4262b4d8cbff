"""Model families, one object per `model_type`.

This is the only access to mlx-vlm. Additional families are added from a file (`add_file`) or registered (`register`), or an
installed package offers them as entry points of the group `mlx_visalign.families`, each named after its model_type.

mlx-vlm's classes have the weights; loading, merging images into prompts and the forward pass are ours. What we do ourselves,
and why (mlx-vlm 0.7.10; each has a test against transformers in tests/models):

- config: it ignores transformers 5's `rope_parameters` and silently uses its own default theta (`Family.build`).
- loading: `mlx_vlm.load` runs Python from a model folder (`model_file`); its LLaVA processor fails with
  transformers 5. We read JSON and safetensors only (`models/loading`).
- merge: its merge assumes one row; with two, every row gets the last row's image (`models/decoder`).
- mask: its LLaVA uses any given mask instead of the causal one. We never pass a padding mask to the model's own
  forward: the prefix cache (`inference/prefix_cache`) has complete masks of its own.
- blocks: its blocks keep much for the backward pass, and copy the prefix for each row (`models/decoder_block`).
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
SHARED = ("__init__", "family", "parts")  # modules here that are not families
BUILT_IN = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SHARED)

_registered: dict[str, Family] = {}


def names() -> list[str]:
    """All supported values of `model_type`."""
    return [*BUILT_IN, *sorted({*_installed(), *_registered} - {*BUILT_IN})]


def register(family: Family) -> None:
    """Add a family for the lifetime of this process.

    Raises `UserError` if its name is taken.
    """
    if family.model_type in BUILT_IN:
        raise UserError(f"There is a family called {family.model_type!r} already. Give yours another model_type.")
    _registered[family.model_type] = family


def add_file(path: str | Path) -> str:
    """Register the `FAMILY` of a Python file.

    The file is run. Returns the family's `model_type`.
    Raises `UserError` for a file that is missing, fails or has none, and for a name that is taken.
    """
    family = vars(import_file(Path(path))).get("FAMILY")
    if not isinstance(family, Family):
        raise UserError(f"{path} should have a Family called FAMILY, got {shown(family)}.")
    register(family)
    return family.model_type


def find(model_type: object) -> Family:
    """The family of a `model_type`.

    Raises `UserError` if there is none.
    """
    if isinstance(model_type, str):
        if model_type in BUILT_IN:
            return importlib.import_module(f"{__name__}.{model_type}").FAMILY
        if model_type in _registered:
            return _registered[model_type]
        if model_type in (installed := _installed()):
            return _loaded(installed[model_type])
    known = " or ".join(map(repr, names()))
    raise UserError(f"Expected model_type {known}, got {model_type!r}: no other models are supported.")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _loaded(point: EntryPoint) -> Family:
    found = run_own(f"The installed family {point.name}", point.load)
    if not isinstance(found, Family):
        raise UserError(f"The installed family {point.name} is invalid: {point.value} should be a Family, got {shown(found)}.")
    return found


def of(model: Any) -> Family:
    """The family of a model that `build_model` made."""
    return find(model.config.model_type)


def parameters(config: dict[str, Any]) -> dict[str, Shape]:
    """Shapes of all parameters of a complete config.json.

    The keys are the names in mlx-vlm.
    """
    return find(config["model_type"]).parameters(config)


def others(model_type: object = None) -> list[str]:
    """Names of tensors outside language model and vision tower.

    See `Family.others`: those of `model_type`, of all families in this package and of the registered ones. The code of an
    installed family is imported only for its own model_type.
    """
    known = [*map(find, BUILT_IN), *_registered.values()]
    if isinstance(model_type, str) and model_type in _installed():
        known.append(find(model_type))
    return sorted({name for family in known for name in family.others})


def build_model(config: dict[str, Any]) -> Any:
    """A model with random weights from a Hugging Face config.

    Raises `UserError` for settings that would be computed wrong.
    """
    return find(config.get("model_type")).build(config)
