import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.schema import build, require, shown


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 0
    on: bool = False
    mode: Literal["a", "b"] = "a"
    limit: float | None = None
    span: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    inner: Inner = Inner()
    table: dict[str, int] = field(default_factory=dict)


def test_values_of_the_right_type_are_taken_and_numbers_and_lists_converted():
    built = build(
        Outer,
        {"name": "x", "limit": 2, "span": [1, 2], "names": ["p"], "inner": {"rate": 3}, "table": {"k": 4}},
        "file",
    )
    assert built == Outer("x", limit=2.0, span=(1.0, 2.0), names=("p",), inner=Inner(3.0), table={"k": 4})
    assert isinstance(built.limit, float) and isinstance(built.span[0], float)
    assert build(Outer, {"name": "x", "limit": None}, "file").limit is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "file: the field 'name' is missing"),
        ({"name": 3}, "file: name must be text, got 3"),
        ({"name": "x", "count": True}, "count must be a whole number, got true"),
        ({"name": "x", "count": 1.0}, "count must be a whole number, got 1.0"),
        ({"name": "x", "on": 1}, "on must be true or false, got 1"),
        ({"name": "x", "limit": "1e-7"}, "limit must be a number, got the text '1e-7'"),
        ({"name": "x", "limit": float("nan")}, "limit must be a number, got nan"),
        ({"name": "x", "limit": 10**400}, "limit must be a number, got 1000"),
        ({"name": "x", "mode": "c"}, "mode must be one of a, b, got the text 'c'"),
        ({"name": "x", "span": [1, 2, 3]}, "span must hold 2 values, got 3"),
        ({"name": "x", "names": "p"}, "names must be a list, got the text 'p'"),
        ({"name": "x", "names": ["p", None]}, r"names\[1\] must be text, got nothing"),
        ({"name": "x", "inner": {"rats": 1}}, "file: inner: unknown name 'rats'. Did you mean 'rate'?"),
        ({"name": "x", "zzz": 1}, "unknown name 'zzz'. Known names: count, inner"),
        ({"name": "x", "table": {"k": "v"}}, "table: k must be a whole number"),
        ({"name": "\ud83d"}, "name is broken text"),
        ([], r"file: expected named values, got \[\]"),
    ],
)
def test_anything_else_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        build(Outer, values, "file")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rat", "Did you mean 'inner.rate'?"),
        ("RATE", "Did you mean 'inner.rate'?"),
        ("inner.rats", "Did you mean 'inner.rate'?"),
        ("Name", "Did you mean 'name'?"),
        ("names_", "Did you mean 'names'?"),
        ("zzz", "Known names: count, inner, limit, mode, name, names, on, span, table, inner.rate."),
    ],
)
def test_the_nearest_name_may_lie_in_a_section(name, hint):
    with pytest.raises(UserError, match=re.escape(f"file: unknown name '{name}'. {hint}")):
        build(Outer, {"name": "x", name: 1}, "file")


def test_a_range_is_told_with_its_setting_and_its_place():
    @dataclass(frozen=True)
    class Rate:
        rate: float = 1.0
        steps: int = 1

        def __post_init__(self):
            require(self, rate=(self.rate > 0, "above 0"), steps=(self.steps >= 1, "1 or more"))

    with pytest.raises(UserError) as error:
        build(Rate, {"rate": 0, "steps": -1}, "my.yaml")
    assert error.value.each == ("my.yaml: rate is 0.0; it must be above 0.", "my.yaml: steps is -1; it must be 1 or more.")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing (null)"),
        ((True, None, 0.5), "[true, null, 0.5]"),
        ({"a": False}, "{'a': false}"),
        (len, "a function"),
        (object(), "an object of type object"),
        ("x" * 500, "the text '"),
    ],
)
def test_a_value_is_shown_as_files_have_it(value, words):
    assert shown(value).startswith(words) and len(shown(value)) < 80


def test_an_unsupported_field_type_is_a_programmers_mistake():
    @dataclass
    class Odd:
        value: bytes

    with pytest.raises(TypeError, match="bytes"):
        build(Odd, {"value": 1}, "file")
