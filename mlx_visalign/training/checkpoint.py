"""Atomic training checkpoints, one folder per saved step.

`FOLDER/step-0000050/` is complete or absent; the last two are kept. It has one safetensors file per tree of arrays, and
`state.json` with the step, the source's position, the settings the result depends on, and digests of every file and itself.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_visalign.utils.console import say
from mlx_visalign.utils.files import building, remove, replacing, write_atomically
from mlx_visalign.utils.provenance import require_same

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    `arrays[tree][dotted name]`; `source` is the position of the source of batches after `step` updates.
    """

    step: int
    arrays: dict[str, dict[str, mx.array]]
    source: dict[str, Any]


def save_checkpoint(folder: Path, step: int, trees: dict[str, Any], source: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint, then delete all but the last two.

    UserError if it cannot be written; older checkpoints then stay as they are.
    """
    target = folder / f"step-{step:07d}"
    remove(target)  # exists only if damaged: a readable one would have been resumed from
    with building(target) as unfinished:
        digests = {name: _save_tree(unfinished / f"{name}.safetensors", tree) for name, tree in trees.items()}
        state = {"step": step, "source": source, "settings": settings, "digests": digests}
        write_atomically(unfinished / "state.json", json.dumps(state | {"digest": _digest_of(state)}, indent=1))
    kept = [path for path in _newest_first(folder) if path <= target][:KEPT]  # later ones were damaged and skipped
    for old in set(_newest_first(folder)) - set(kept):
        remove(old)


def load_checkpoint(folder: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """The newest readable checkpoint, or None.

    Damaged ones are skipped with a note. UserError if it was saved with other `settings`: resuming would mix two trainings.
    """
    for path in _newest_first(folder):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if state.pop("digest") != _digest_of(state):
                raise ValueError("state.json was changed since it was written")
            if any(name != Path(name).name for name in state["digests"]):
                raise ValueError("state.json names files in other folders")
            arrays = {name: _load_tree(path / f"{name}.safetensors", digest) for name, digest in state["digests"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            say(f"The checkpoint {path} is damaged ({error}); falling back to the previous one.")
            continue
        require_same(state["settings"], settings, path / "state.json")
        return Checkpoint(state["step"], arrays, state["source"])
    return None


def _save_tree(file: Path, tree: Any) -> str:
    flat = dict(tree_flatten(tree))
    with replacing(file) as unfinished:
        mx.save_safetensors(unfinished, {name: flat[name] for name in sorted(flat)})  # so that equal trees are equal files
    return _digest(file)


def _load_tree(file: Path, digest: str) -> dict[str, mx.array]:
    if _digest(file) != digest:
        raise ValueError(f"{file.name} was changed since it was written")
    arrays = cast(dict[str, mx.array], mx.load(str(file)))
    mx.eval(arrays)  # read now: the file is deleted two checkpoints later
    return arrays


def _digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*[0-9]"), reverse=True)
