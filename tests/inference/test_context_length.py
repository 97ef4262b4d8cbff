"""What is longer than the model's positions is told, with its row, and no library's warning reaches the terminal."""

import json
from copy import copy

import pytest
from PIL import Image

from mlx_visalign.cli.main import main
from mlx_visalign.data.pair_formats import PlacedPair
from mlx_visalign.data.records import Pair, Prompt
from mlx_visalign.inference.context_length import answer_length, pairs_that_fit, require_prompts_fit, too_long
from mlx_visalign.inference.policy import load
from mlx_visalign.utils.errors import UserError

SHORT = {"image": "a.png", "prompt": "Is there a red circle in the image?", "chosen": "Yes.", "rejected": "No."}
LONG = {**SHORT, "prompt": "Describe. " * 400}
TALKATIVE = {**SHORT, "rejected": "There is a circle. " * 150}


@pytest.fixture(scope="module")
def policy():
    return load("tiny")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48)).save("a.png")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (SHORT, LONG, SHORT, TALKATIVE)))
    return tmp_path


def run(command, capsys):
    code = main(command.split())
    said = capsys.readouterr()
    assert "indexing errors" not in said.err + said.out and "Token indices" not in said.err
    return code, said.out, " ".join(said.err.split())


def test_check_says_which_rows_and_how_long_they_are(folder, capsys):
    code, out, err = run("check --model tiny --data pairs.jsonl --json", capsys)
    told = json.loads(out)
    assert code == 0 and told["pairs"] == 4 and told["positions"] == 512 and told["longest_row"] > 1200
    assert told["image_tokens"] == 36
    assert "2 of the 4 pairs cannot be trained:" in err and "pairs.jsonl:4: " in err and "512 positions" in err
    assert "pairs.jsonl:2: 1,24" in err


def test_check_leaves_them_out_if_that_is_wanted(folder, capsys):
    code, out, err = run("check --model tiny --data pairs.jsonl --json --skip-bad", capsys)
    told = json.loads(out)
    assert code == 0 and told["pairs"] == 2 and told["longest_row"] < 512 and "Left out 2 of the 4 pairs" in err


def test_training_refuses_them_with_their_rows_or_leaves_them_out(folder, capsys):
    command = "train --model tiny --data pairs.jsonl --adapter-path out --dry-run --json"
    code, _, err = run(command, capsys)
    assert code == 2 and "2 of the 4 pairs cannot be used: pairs.jsonl:2: " in err and "--skip-bad" in err
    code, out, _ = run(f"{command} --skip-bad", capsys)
    assert code == 0 and json.loads(out)["pairs"] == 2


def test_an_answer_gets_what_is_left(folder, capsys, policy):
    command = f"generate --model tiny --image a.png --json --max-tokens 600 --prompt {'Describe.' * 30}"
    left = 512 - len(policy.prompt_ids("Describe." * 30))
    code, _, err = run(command, capsys)
    assert code == 0 and f"Answers are limited to {left} tokens instead of 600" in err
    code, _, err = run(f"generate --model tiny --image a.png --prompt {'Describe.' * 400}", capsys)
    assert code == 2 and "No answer fits: the prompt takes" in err


def test_the_edge_is_the_last_position(policy):
    pair = Pair("p", ("a.png",), SHORT["prompt"], "Yes.", "No.")
    tokens = len(policy.prompt_ids(pair.prompt)) + len(policy.response_ids(pair.chosen))
    placed = PlacedPair(pair, "data:1")
    for positions, fault in ((tokens, False), (tokens - 1, True), (None, False)):
        limited = limited_to(policy, positions)
        assert bool(too_long(limited, placed)) is fault
        if fault:
            with pytest.raises(UserError, match=f"^data:1: {tokens} tokens .* {positions} positions"):
                pairs_that_fit(limited, [placed], skip_bad=False)
    prompt = len(policy.prompt_ids(pair.prompt))
    assert answer_length(limited_to(policy, prompt + 5), pair.prompt, 9) == 5
    assert answer_length(limited_to(policy, None), pair.prompt, 9) == 9
    with pytest.raises(UserError, match="No answer fits"):
        answer_length(limited_to(policy, prompt), pair.prompt, 9)


def limited_to(policy, positions):
    """The policy with other positions."""
    other = copy(policy)
    other.positions = positions
    return other


def test_a_run_says_what_its_answers_may_lack_and_refuses_prompts_without_room(policy, capsys):
    prompts = [Prompt(f"q{number}", "a.png", "Describe. " * number) for number in (1, 400, 2, 500)]
    with pytest.raises(
        UserError, match=r"2 prompts too long for the model's 512 positions: q400 .*; q500 .* Shorten or remove them"
    ):
        require_prompts_fit(policy, prompts, 64)
    require_prompts_fit(policy, prompts[:1], 64)
    assert capsys.readouterr().err == ""
    require_prompts_fit(policy, prompts[:1], 500)
    assert "warning: an answer may have 500 tokens, but the longest prompt leaves" in capsys.readouterr().err
    require_prompts_fit(limited_to(policy, None), prompts, 64)


def test_a_run_with_a_prompt_that_is_too_long_stops_before_its_first_answer(folder, capsys):
    rows = [{"id": name, "image": "a.png", "prompt": text} for name, text in (("a", "What?"), ("b", "Describe. " * 400))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run("run seva --model tiny --prompts prompts.jsonl --output out --iters 1", capsys)
    assert code == 2 and "1 prompt too long for the model's 512 positions: b has 1,2" in err
    assert not list((folder / "out").glob("responses*"))


def test_what_is_asked_loses_a_template_and_says_so(folder, capsys, policy):
    plain = policy.answer("a.png", "Describe this image in detail.")
    templated = "<|im_start|>user\n<image>\nDescribe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
    assert policy.answer("a.png", templated) == plain
    assert "1 prompt contained a ChatML template" in capsys.readouterr().err
    assert main(["generate", "--model", "tiny", "--image", "a.png", "--prompt", templated, "--json"]) == 0
    said = capsys.readouterr()
    assert plain in said.out and said.err.count("contained a ChatML template") == 1
    assert main(["compare", "tiny", "tiny", "--images", ".", "--prompt", "USER: a ASSISTANT: b", "--output", "c.html"]) == 2
    assert "more than one turn of a Vicuna template" in capsys.readouterr().err
