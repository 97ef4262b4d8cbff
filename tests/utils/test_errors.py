"""Of many faulty things all are told at once, up to twenty, and then how many more there are."""

from dataclasses import dataclass

import pytest

from mlx_visalign.runs.recipe import find_recipe, make_plan
from mlx_visalign.utils.console import sift
from mlx_visalign.utils.errors import UserError, collect, listed, refuse
from mlx_visalign.utils.schema import build, convert


def test_a_few_short_names_stand_in_a_row():
    assert listed("2 things are missing", ["a", "b"], "Fetch them.") == "2 things are missing: a; b. Fetch them."
    assert listed("Wrong", ["a.jpg is gone."]) == "Wrong: a.jpg is gone."


def test_many_or_long_ones_stand_each_on_a_line_of_its_own():
    many = [f"the file with the number {number} is gone." for number in range(1023)]
    head, *lines, more, advice = listed("1,023 files are gone", many, "Fetch them.").split("\n")
    assert (head, more, advice) == ("1,023 files are gone:", "  and 1,003 more", "Fetch them.")
    assert lines == [f"  {fault}" for fault in many[:20]]
    assert listed("x", many[:20]).count("\n") == 20 and "more" not in listed("x", many[:20])


def test_what_is_refused_together_is_told_once_however_deep_it_stood():
    def wrong(*faults):
        return lambda: refuse(faults)

    with pytest.raises(UserError) as told:
        collect([wrong("a"), lambda: 1, lambda: collect([wrong("b", "c"), wrong("d")])])
    assert told.value.each == ("a", "b", "c", "d") and str(told.value) == "4 things are wrong: a; b; c; d."
    assert collect([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(UserError, match=r"^only this$"):
        collect([lambda: 1, wrong("only this")])


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    inner: Inner
    words: tuple[str, ...] = ()
    table: dict[str, int] | None = None


def test_every_fault_of_named_values_is_told():
    values = {"count": "x", "inner": {"rats": 1}, "words": [1, "a", None], "table": {"k": "v", "l": 1, "m": []}, "nmae": "y"}
    with pytest.raises(UserError) as told:
        build(Outer, values, "file")
    assert told.value.each == (
        "file: unknown name 'nmae'. Did you mean 'name'?",
        "file: the field 'name' is missing.",
        "file: count must be a whole number, got the text 'x'.",
        "file: inner: unknown name 'rats'. Did you mean 'rate'?",
        "file: inner: the field 'rate' is missing.",
        "file: words[0] must be text, got 1.",
        "file: words[2] must be text, got nothing (null).",
        "file: table: k must be a whole number, got the text 'v'.",
        "file: table: m must be a whole number, got [].",
    )
    with pytest.raises(UserError, match=r"list\[1\].*list\[2\]"):
        convert([1, "a", "b"], list[int], "list")


def test_a_recipe_and_its_methods_settings_are_looked_at_together():
    from mlx_visalign import methods

    values = {"imagse": "photos", "seed": "x", "settings.stepz": 3, "settings.train.betta": 1}
    with pytest.raises(UserError) as told:
        make_plan(find_recipe("seva"), methods.find, overrides=values)
    assert [next(name for name in ("imagse", "seed", "stepz", "betta") if name in fault) for fault in told.value.each] == [
        "imagse",
        "seed",
        "stepz",
        "betta",
    ]


@pytest.mark.parametrize("named", [{"images": "no photos", "vocabulary": "no.json"}])
def test_every_path_of_a_recipe_that_is_not_there_is_told(named):
    from mlx_visalign import methods

    with pytest.raises(UserError) as told:
        make_plan(find_recipe("seva"), methods.find, overrides={"model": "tiny"} | named)
    assert len(told.value.each) == 2 and all(path in str(told.value) for path in named.values())


def read(number):
    refuse([f"row {number}: {fault}" for fault in ("odd", "too large")[: number % 2 * (1 + (number > 100))]])
    return number


def test_all_bad_rows_are_told_with_what_leaves_them_out():
    with pytest.raises(UserError) as told:
        sift(range(100), read, skip_bad=False, what="pairs")
    head, *rows, more, advice = str(told.value).split("\n")
    assert head == "50 of the 100 pairs cannot be used:" and len(rows) == 20 and rows[-1] == "  row 39: odd"
    assert more == "  and 30 more" and "--skip-bad" in advice
    with pytest.raises(UserError, match=r"^1 of the 2 pairs cannot be used: row 101: odd; row 101: too large\. .*--skip-bad"):
        sift([100, 101], read, skip_bad=False, what="pairs")


def test_bad_rows_that_are_left_out_are_told_too(capsys):
    assert sift(range(4), read, skip_bad=True, what="pairs") == [0, 2]
    assert capsys.readouterr().err == "Left out 2 of the 4 pairs, which cannot be used: row 1: odd; row 3: odd.\n"


@pytest.mark.parametrize("skip_bad", [True, False])
def test_where_no_row_is_good_nothing_can_be_left_out(skip_bad):
    with pytest.raises(UserError) as told:
        sift([1, 3], read, skip_bad, "pairs")
    assert str(told.value) == "None of the 2 pairs can be used: row 1: odd; row 3: odd."
    with pytest.raises(UserError, match=r"^row 1: odd$"):
        sift([1], read, skip_bad, "pairs")
