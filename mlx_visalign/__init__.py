"""Self-alignment for LLaVA-style models in MLX.

    import mlx_visalign

    policy = mlx_visalign.load("path/to/llava")  # or load("tiny"), the embedded one
    policy.answer("cat.jpg", "What is on the table?")

    report = mlx_visalign.align("seva", model="path/to/llava", images="photos", output="runs/photos", on_metrics=print)

What is named here is loaded when it is first used: `import mlx_visalign` itself needs no MLX.
"""

from typing import Any

__all__ = ["Pair", "Policy", "align", "dpo_train", "following_links", "load"]


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mlx-visalign")
    if name in ("align", "dpo_train"):
        from mlx_visalign.pipeline import api

        return getattr(api, name)
    if name == "Pair":
        from mlx_visalign.data.records import Pair

        return Pair
    if name == "following_links":
        from mlx_visalign.utils.links import following_links

        return following_links
    if name in ("load", "Policy"):
        from mlx_visalign.inference import policy

        return getattr(policy, name)
    raise AttributeError(f"module 'mlx_visalign' has no attribute '{name}'")
