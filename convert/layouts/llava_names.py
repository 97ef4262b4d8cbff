"""LLaVA tensor names in every Hugging Face layout.

Ours is mlx-vlm's: language_model.model... and vision_tower.vision_model..., convolutions channels-last. The others differ
in two ways, in all combinations: the language model may be nested in `model.` (as transformers >= 5 has it in memory), and
the tower may lack its inner `vision_model.` (transformers >= 5.6). All other tensors are named by the families.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_visalign.convert.layouts.table import CHANNELS_LAST, Rule, Table, dropped, same, under
from mlx_visalign.models import families

TOWER = "vision_tower.vision_model."
TOWER_RULES = [
    *same("embeddings.class_embedding", "embeddings.position_embedding.weight", "embeddings.patch_embedding.bias"),
    Rule("embeddings.patch_embedding.weight", "embeddings.patch_embedding.weight", CHANNELS_LAST),
    *same("pre_layrnorm.*", "post_layernorm.*", "encoder.layers.*"),  # pre_layrnorm is Hugging Face's spelling
]
BUFFERS = [
    dropped("*.rotary_emb.inv_freq", "a buffer, computed from rope_theta"),
    dropped("*.position_ids", "a buffer: 0, 1, 2, ..."),
]
CLASSIC = same("language_model.model.*", "language_model.lm_head.weight")
NESTED = [
    Rule("model.language_model.*", "language_model.model.*"),
    Rule("lm_head.weight", "language_model.lm_head.weight"),
]


@dataclass(frozen=True)
class Layout:
    """A layout of tensor names.

    language  the language model's rules
    outer     the prefix of all other names
    tower     the further prefix of the vision tower's
    """

    language: list[Rule]
    outer: str
    tower: str

    def table(self, model_type: object = None) -> Table:
        """The table from this layout's names to ours.

        It covers this package's own families, and the family of `model_type`.
        """
        others = under(self.outer, "", same(*families.others(model_type)))
        return Table([*BUFFERS, *self.language, *others, *under(self.outer + self.tower, TOWER, TOWER_RULES)])


LAYOUTS = {
    "classic": Layout(CLASSIC, "", "vision_tower.vision_model."),
    "classic-flat": Layout(CLASSIC, "", "vision_tower."),
    "nested": Layout(NESTED, "model.", "vision_tower.vision_model."),
    "nested-flat": Layout(NESTED, "model.", "vision_tower."),
}


def find_layout(names: Iterable[str], model_type: object) -> str:
    """The layout that matches most of the names."""
    known = list(names)
    return max(LAYOUTS, key=lambda layout: LAYOUTS[layout].table(model_type).matches(known))
