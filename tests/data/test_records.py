import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mlx_visalign.data.records import Pair, Prompt, Response, read_jsonl, write_jsonl
from mlx_visalign.utils.errors import UserError

PROMPT = Prompt("p1", "images/a.png", "Is there a dog?", "exists")
RESPONSE = Response("p1", "images/a.png", "Is there a dog?", "exists", "diffusion-500", "Non, c'est un café.\n“x”", True, 7)
LOGPS = {"chosen": -3.5, "rejected": -4.25, "corrupted_chosen": -9.0}
PAIR = Pair("p1", ("images/a.png",), "Describe.", "A dog.", "A cat.", "seva", 2, 0.5, -1.0, 0.1, 7, LOGPS)


@pytest.mark.parametrize("record", [PROMPT, RESPONSE, PAIR, Pair("p2", ("a.png",), "Q", "A", "B")])
def test_records_survive_the_disk(tmp_path, record):
    write_jsonl(tmp_path / "file.jsonl", [record, record])
    assert read_jsonl(tmp_path / "file.jsonl", type(record)) == [record, record]
    assert [path.name for path in tmp_path.iterdir()] == ["file.jsonl"]


def test_a_pair_row_has_trls_columns_and_flat_extras():
    row = PAIR.to_row()
    assert row["images"] == ["images/a.png"]
    assert row["prompt"] == [{"role": "user", "content": "Describe."}]
    assert row["chosen"] == [{"role": "assistant", "content": "A dog."}]
    assert row["rejected"] == [{"role": "assistant", "content": "A cat."}]
    assert (row["method"], row["round"], row["reference_logps"]) == ("seva", 2, LOGPS)


def test_a_list_of_two_is_the_reference_of_older_files():
    older = Pair.from_row({**PAIR.to_row(), "reference_logps": [-3.5, -4.25]})
    assert older == replace(PAIR, reference_logps={"chosen": -3.5, "rejected": -4.25})


def test_a_pair_reads_trls_content_parts():
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Describe."}]
    assert Pair.from_row({**PAIR.to_row(), "prompt": [{"role": "user", "content": parts}], "more": 1}) == PAIR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "Describe."}, "row: prompt must be one turn of the role 'user'"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "prompt must be one turn of the role 'user'"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "audio"}]}]}, "neither text nor an image"),
        ({"images": "a.png"}, "images must be a list"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"reference_logps": [1.0]}, "reference_logps must hold 2 values"),
        ({"reference_logps": {"chosen": "-1"}}, "reference_logps: chosen must be a number"),
        ({"reference_logps": -1.0}, "reference_logps must be named values"),
    ],
)
def test_a_bad_pair_is_refused_by_field(change, message):
    with pytest.raises(UserError, match=message):
        Pair.from_row({**PAIR.to_row(), **change})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "p", "image": "a.png", "prompt": 3}', "file.jsonl:3: prompt must be text, got 3"),
        (b'{"id": "p", "image": "a.png"}', "file.jsonl:3: the field 'prompt' is missing"),
        (b'{"id": "p", ', "file.jsonl:3: not valid JSON"),
        (b"[" * 100_000, "file.jsonl:3: not valid JSON"),
        (b"[]", "file.jsonl:3: expected a JSON object"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_bad_line_is_refused_by_number(tmp_path, line, message):
    good = json.dumps(PROMPT.to_row()).encode()
    (tmp_path / "file.jsonl").write_bytes(good + b"\n\n" + line + b"\n")
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "file.jsonl", Prompt)


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read: No such file"):
        read_jsonl(tmp_path / "none.jsonl", Prompt)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_jsonl(tmp_path / "file.jsonl", [PROMPT])
    with pytest.raises(ValueError):
        write_jsonl(tmp_path / "file.jsonl", [Pair("p", ("a",), "q", "c", "r", chosen_score=float("nan"))])
    assert read_jsonl(tmp_path / "file.jsonl", Prompt) == [PROMPT]


def test_reading_records_needs_neither_mlx_nor_mlx_vlm():
    check = "import sys, mlx_visalign.data.pair_formats; sys.exit('mlx' in sys.modules or 'mlx_vlm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
