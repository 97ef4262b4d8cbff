from dataclasses import dataclass, field
from typing import Literal

import pytest

from mlx_visalign.errors import UserError
from mlx_visalign.fields import build


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
        ({"name": "x", "count": True}, "count must be a whole number, got True"),
        ({"name": "x", "count": 1.0}, "count must be a whole number, got 1.0"),
        ({"name": "x", "on": 1}, "on must be true or false, got 1"),
        ({"name": "x", "limit": "1e-7"}, "limit must be a number, got the text '1e-7'"),
        ({"name": "x", "limit": float("nan")}, "limit must be a number, got nan"),
        ({"name": "x", "limit": 10**400}, "limit must be a number, got 1000"),
        ({"name": "x", "mode": "c"}, "mode must be one of a, b, got the text 'c'"),
        ({"name": "x", "span": [1, 2, 3]}, "span must hold 2 values, got 3"),
        ({"name": "x", "names": "p"}, "names must be a list, got the text 'p'"),
        ({"name": "x", "names": ["p", None]}, r"names\[1\] must be text, got None"),
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


def test_an_unsupported_field_type_is_a_programmers_mistake():
    @dataclass
    class Odd:
        value: bytes

    with pytest.raises(TypeError, match="bytes"):
        build(Odd, {"value": 1}, "file")
