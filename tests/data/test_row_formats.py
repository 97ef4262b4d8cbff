"""Data files as people have them: whatever the name says, lists, lines, wrappers, several lines an object, marks and ends."""

import json

import pytest

from mlx_visalign.data.row_formats import read_data
from mlx_visalign.utils.errors import UserError

ROWS = [{"prompt": "What is it?", "n": 1, "turns": [{"role": "user"}]}, {"prompt": "照片 é?", "n": 2, "turns": []}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)

WRITTEN = {
    "lines": LINES,
    "lines without a last end": LINES.rstrip(),
    "empty lines": LINES.replace("\n", "\n\n  \n"),
    "lines of Windows": LINES.replace("\n", "\r\n"),
    "a list": json.dumps(ROWS),
    "a list over several lines": json.dumps(ROWS, indent=2),
    "objects over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects over several lines of Windows": "".join(json.dumps(row, indent=4) for row in ROWS).replace("\n", "\r\n"),
    "wrapped in data": json.dumps({"data": ROWS}),
    "wrapped in any one name": json.dumps({"my rows": ROWS}, indent=1),
    "wrapped beside a version": json.dumps({"version": "1.0", "train": ROWS, "info": {"by": "me"}}),
    "a byte order mark": "\ufeff" + LINES,
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le with its mark", "utf-16-be with its mark"])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("form", WRITTEN)
def test_the_rows_are_the_same_however_they_are_written(tmp_path, form, name, encoding):
    code, _, marked = encoding.partition(" ")
    text = WRITTEN[form].removeprefix("\ufeff") if code != "utf-8" else WRITTEN[form]
    (tmp_path / name).write_bytes(("\ufeff" * bool(marked) + text).encode(code))
    assert [row for _, row in read_data(tmp_path / name)] == ROWS


def places(tmp_path, text):
    (tmp_path / "d.json").write_text(text)
    return [where.removeprefix(f"{tmp_path}/") for where, _ in read_data(tmp_path / "d.json")]


def test_places_are_lines_or_rows(tmp_path):
    assert places(tmp_path, "\n" + LINES) == ["d.json:2", "d.json:3"]
    assert places(tmp_path, json.dumps(ROWS)) == ["d.json: row 1", "d.json: row 2"]
    assert places(tmp_path, json.dumps({"data": ROWS})) == ["d.json: row 1", "d.json: row 2"]
    assert places(tmp_path, "\n".join(json.dumps(row, indent=1) for row in ROWS)) == ["d.json:1", "d.json:10"]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human"}], "chosen": {"from": "gpt"}, "images": ["a.png"]},
        {"prompt": [{"role": "user"}], "chosen": [{"role": "assistant"}], "images": [{"path": "a.png"}]},
        {"data": []},
        {"data": ["a", "b"]},
    ],
)
def test_one_row_is_a_row_and_no_wrapper(tmp_path, row):
    (tmp_path / "d.json").write_text(json.dumps(row))
    assert [value for _, value in read_data(tmp_path / "d.json")] == [row]


def test_a_broken_line_is_one_broken_row(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": "p1", "ima\n' + LINES + "{\n")
    (first, broken), *good, (last, open_) = read_data(tmp_path / "d.jsonl")
    assert [row for _, row in good] == ROWS and (first[-2:], last[-2:]) == (":1", ":4")
    assert all(isinstance(value, UserError) and "not valid JSON" in str(value) for value in (broken, open_))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", r"d\.json: not valid JSON"),
        (json.dumps(ROWS[0], indent=1) + "\n" + json.dumps(ROWS[1], indent=1)[:-9], r"d\.json:10: not valid JSON"),
        (json.dumps({"train": ROWS, "test": ROWS}), r"d\.json holds several lists: train, test"),
        ("\ufeff".encode("utf-16-le") + b"a", r"not UTF-16 text .* Save it as UTF-8"),
        (b"\xff", r"not UTF-8 text .* Save it as UTF-8"),
    ],
)
def test_what_is_broken_as_a_whole_is_refused(tmp_path, text, message):
    (tmp_path / "d.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_data(tmp_path / "d.json")
