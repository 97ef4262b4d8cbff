"""A method's module, with defaults for its optional parts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from mlx_visalign.methods import preference_rounds
from mlx_visalign.methods.job import Job, Rank, rank_by_likelihood
from mlx_visalign.methods.preference_rounds import PairMethod
from mlx_visalign.utils.own_code import version_of


@dataclass(frozen=True)
class Method:
    """A method's parts (the contract of its module: methods/__init__.py).

    `code` identifies a method that does not come with this package; it changes with its file.
    """

    name: str
    description: str
    Settings: type
    train: Callable[[Job, Any], None]
    ranking: Callable[[Job, Any], Rank]
    picture: Callable[[Job, Any], None]
    code: str = ""

    @classmethod
    def of(cls, name: str, description: str, module: ModuleType) -> "Method":
        train = getattr(module, "train", None) or partial(preference_rounds.train, PairMethod.of(name, module))
        ranking = getattr(module, "ranking", rank_by_likelihood)
        picture = getattr(module, "picture", lambda job, settings: None)
        code = "" if module.__name__.startswith("mlx_visalign.") else version_of(module.__file__)
        return cls(name, description, module.Settings, train, ranking, picture, code)
