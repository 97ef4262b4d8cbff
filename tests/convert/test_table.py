"""Tables of names: every tensor goes somewhere on purpose, every parameter is filled, and the way back is exact."""

import numpy as np
import pytest

from mlx_visalign.convert.io.tensors import Tensor
from mlx_visalign.convert.layouts.table import CHANNELS_LAST, Rule, Table, Transpose, dropped, plan, same, under
from mlx_visalign.utils.errors import UserError

TABLE = Table(
    [
        dropped("*.position_ids", "a buffer"),
        *under("model.tower.", "vision.", [Rule("patch.weight", "patch.weight", CHANNELS_LAST), *same("layers.*")]),
        Rule("layers.*.norm_*.weight", "blocks.*.norms.*.scale"),
    ]
)
SOURCE = {
    "model.tower.patch.weight": (8, 3, 2, 2),
    "model.tower.layers.0.q.weight": (8, 8),
    "model.tower.layers.position_ids": (1, 5),
    "layers.11.norm_2.weight": (8,),
}
TARGET = {"vision.patch.weight": (8, 2, 2, 3), "vision.layers.0.q.weight": (8, 8), "blocks.11.norms.2.scale": (8,)}


def tensors(shapes):
    return {name: Tensor(name, "F16", shape) for name, shape in shapes.items()}


def test_a_plan_names_every_way():
    found = plan(tensors(SOURCE), TABLE, TARGET, "here")
    ways = {move.source.name: (move.target.name, move.target.shape) for move in found.moves}
    assert ways == {
        "model.tower.patch.weight": ("vision.patch.weight", (8, 2, 2, 3)),
        "model.tower.layers.0.q.weight": ("vision.layers.0.q.weight", (8, 8)),
        "layers.11.norm_2.weight": ("blocks.11.norms.2.scale", (8,)),
    }
    assert [move.target.name for move in found.moves] == sorted(TARGET)
    assert [(tensor.name, rule.why) for tensor, rule in found.dropped] == [("model.tower.layers.position_ids", "a buffer")]


def test_backwards_it_is_the_way_back():
    assert TABLE.through(SOURCE) == TARGET
    assert TABLE.inverse.through(TARGET) == {name: shape for name, shape in SOURCE.items() if "position_ids" not in name}
    assert plan(tensors(TARGET), TABLE.inverse, TABLE.inverse.through(TARGET), "here").dropped == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.nrom_2.weight": (8,)}, r"unknown tensors: layers\.1\.nrom_2\.weight"),
        ({"model.tower.layers.9.q.weight": (8, 8)}, r"unknown tensors: model\.tower\.layers\.9\.q\.weight"),
        ({"layers.11.norm_2.weight": None}, r"missing tensors: layers\.11\.norm_2\.weight"),
        (
            {"layers.11.norm_2.weight": None, "layers.11.norm2.weight": (8,)},
            r"norm2\.weight \(nearest: layers\.11\.norm_2\.weight\)",
        ),
        ({"model.tower.patch.weight": (8, 2, 2, 3)}, r"has the shape 8x2x2x3, but config\.json requires 8x3x2x2"),
        ({"model.tower.layers.0.q.weight": (8, 4)}, r"has the shape 8x4, but config\.json requires 8x8"),
    ],
)
def test_what_does_not_fit_is_listed(change, message):
    shapes = {name: shape for name, shape in (SOURCE | change).items() if shape is not None}
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        plan(tensors(shapes), TABLE, TARGET, "here")


def test_only_the_first_names_are_listed():
    unknown = {f"odd.{number}": (8,) for number in range(24)}
    with pytest.raises(UserError, match=r"unknown tensors:\n  odd\.0\n  odd\.1\n  odd\.10\n(  .*\n){17}  and 4 more$"):
        plan(tensors(SOURCE | unknown), TABLE, TARGET, "here")


def test_two_tensors_for_one_parameter_are_refused():
    table = Table([*TABLE.rules, Rule("old_norm", "blocks.11.norms.2.scale")])
    with pytest.raises(UserError, match=r"two tensors would fill: blocks\.11\.norms\.2\.scale \(from .* and old_norm\)"):
        plan(tensors(SOURCE | {"old_norm": (8,)}), table, TARGET, "here")


def test_two_rules_for_one_tensor_are_a_mistake_in_the_table():
    with pytest.raises(ValueError, match=r"a\.b matches a\.\* and \*\.b"):
        Table(same("a.*", "*.b")).find("a.b")


def test_a_star_stands_for_at_least_one_character():
    assert Table(same("a.*")).find("a.") is None


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (3, 0, 1, 2), (1, 0)])
def test_transposing_is_undone(axes):
    array = np.arange(120).reshape((2, 3, 4, 5)[: len(axes)] if len(axes) == 4 else (10, 12))
    change = Transpose(axes)
    there = change.apply(array, change.shape(array.shape, ()))
    assert there.shape == change.shape(array.shape, ()) != array.shape
    np.testing.assert_array_equal(change.inverse.apply(there, array.shape), array)
