"""The doctor finds a sound model sound, in every precision, and names whatever is broken on purpose."""

import json
import re

import mlx.core as mx
import pytest
import random_onevision
from random_policy import random_policy
from small_runs import write_recipe

from mlx_visalign import methods
from mlx_visalign.cli import doctor as command
from mlx_visalign.cli.main import main
from mlx_visalign.cli.parser import build_parser
from mlx_visalign.data import prompt_template as template
from mlx_visalign.data.images import Preprocessing
from mlx_visalign.inference import prefix_cache
from mlx_visalign.inference.policy import load
from mlx_visalign.models import lora
from mlx_visalign.models.decoder import decoder_of
from mlx_visalign.models.loading import quantize_language_model
from mlx_visalign.models.lora import LoRASettings, RoundsLoRALinear, adapters
from mlx_visalign.preflight import model_probe as probe
from mlx_visalign.preflight.checks import CHECKS
from mlx_visalign.preflight.doctor import Finding, examine, examine_adapter, require_sound, summarize
from mlx_visalign.utils import tolerances as precision
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.tolerances import precision_of, rounding, tolerance


def broken(policy, quick=False):
    return {finding.check for finding in examine(policy, quick) if not finding.ok}


def tiny(dtype, bits):
    policy = load("tiny")
    if bits is not None:
        assert quantize_language_model(policy.model, bits, 64) == 3 * 7 + 2
    policy.model.set_dtype(dtype)
    return policy


@pytest.mark.parametrize(("dtype", "bits"), [(mx.float32, None), (mx.bfloat16, None), (mx.float32, 4), (mx.bfloat16, 4)])
def test_the_tiny_model_passes(dtype, bits):
    policy = tiny(dtype, bits)
    assert broken(policy, quick=bits is not None and dtype == mx.bfloat16) == set()  # that one takes a CPU a minute


def test_a_onevision_passes_and_its_broken_mask_is_found(monkeypatch):
    assert broken(random_onevision.random_policy()) == set()
    let_all_see_all(monkeypatch)
    assert {"causality", "prefix cache = plain"} <= broken(random_onevision.random_policy())


def test_it_leaves_the_policy_as_it_was():
    policy = random_policy()
    layers = dict(policy.model.named_modules())
    examine(policy)
    after = dict(policy.model.named_modules())
    assert layers.keys() == after.keys() and all(layers[name] is after[name] for name in layers)


def test_it_leaves_an_adapter_and_its_rounds_as_they_were():
    policy = random_policy()
    for seed in (0, 1):
        policy.attach(LoRASettings(rank=2), seed)
        for layer in adapters(policy.model).values():
            layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(seed))
    before = adapters(policy.model)
    assert broken(policy) == set()
    assert all(adapters(policy.model)[name] is layer for name, layer in before.items())


# -- each thing broken on purpose -----------------------------------------------------------------------------------------


def let_all_see_all(monkeypatch):
    """Tokens of a prompt, and new tokens, see those after them."""
    attend = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(prefix_cache, "causal_attention", lambda scale, q, k, v: attend(q, k, v, scale=scale))
    monkeypatch.setattr(prefix_cache, "_causal_mask", lambda length: None)


def test_a_bidirectional_mask_in_the_fold(monkeypatch):
    let_all_see_all(monkeypatch)
    assert {"causality", "prefix cache = plain", "cached = uncached"} <= broken(random_policy())


def test_a_bidirectional_mask_in_the_model(monkeypatch):
    """What mlx-vlm does to a LLaVA whose mask is given: it takes the place of the causal one."""

    def all_see_all(model, ids, embeds):
        return model.language_model(ids, inputs_embeds=embeds, mask=mx.zeros((ids.shape[1], ids.shape[1]))).logits

    monkeypatch.setattr(probe, "plain_logits", all_see_all)
    assert {"causality", "prefix cache = plain"} <= broken(random_policy())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_mask_that_shows_the_padding(monkeypatch, dtype):
    """A shorter prompt's padding is seen by its answers: nothing changes where prompts are alone."""
    monkeypatch.setattr(prefix_cache, "_past_mask", lambda real: None)
    policy = random_policy()
    policy.model.set_dtype(dtype)
    found = broken(policy)
    assert "batch = single" in found and "cached = uncached" not in found


def test_positions_that_count_the_padding(monkeypatch):
    """RoPE offsets of the padded length for every row."""
    right = prefix_cache._run_layer

    def padded(layer, x, offset, *rest):
        longest = offset if isinstance(offset, int) else mx.broadcast_to(offset.max(), offset.shape)
        return right(layer, x, longest, *rest)

    monkeypatch.setattr(prefix_cache, "_run_layer", padded)
    assert "batch = single" in broken(random_policy())


def test_a_cache_that_forgets(monkeypatch):
    """Steps over the cache lose the answer's own first tokens; reading at once is right."""
    right = prefix_cache._joined
    monkeypatch.setattr(prefix_cache, "_joined", lambda own, k, v: right([(0 * a, 0 * b) for a, b in own], k, v))
    assert broken(random_policy()) == {"cached = uncached"}


def test_an_offset_that_stands_still(monkeypatch):
    right = prefix_cache._run_layer

    def still(layer, x, offset, *rest):
        return right(layer, x, 0, *rest)

    monkeypatch.setattr(prefix_cache, "_run_layer", still)
    assert {"cached = uncached", "prefix cache = plain"} <= broken(random_policy())


def test_a_wrong_number_of_image_tokens():
    policy = random_policy()
    policy.image_tokens += 1
    assert "image tokens" in broken(policy) and "image tokens" in broken(policy, quick=True)


def test_an_adapter_that_does_not_go_off(monkeypatch):
    def leaking(self, x):
        y = self.linear(x)
        for a, b in self.rounds():
            y = y + ((x @ a) @ b).astype(y.dtype)
        return y

    monkeypatch.setattr(RoundsLoRALinear, "__call__", leaking)
    assert broken(random_policy()) == {"adapter off = base"}


def test_an_adapter_without_effect(monkeypatch):
    monkeypatch.setattr(RoundsLoRALinear, "__call__", lambda self, x: self.linear(x))
    assert broken(random_policy()) == {"adapter off = base"}


def test_a_fresh_adapter_that_is_not_nothing(monkeypatch):
    """B not zero at the start: policy and reference differ before the first update."""
    right = RoundsLoRALinear.__init__

    def eager(self, *args):
        right(self, *args)
        self.lora_b = 0.1 * mx.random.normal(self.lora_b.shape, key=mx.random.key(0))

    monkeypatch.setattr(lora.RoundsLoRALinear, "__init__", eager)
    assert broken(random_policy()) == {"first DPO loss = ln 2"}


@pytest.mark.parametrize("wrong", ["two starts", "a word lost"])
def test_a_template_that_is_tokenised_wrong(monkeypatch, wrong):
    right = template.prompt_ids

    def ids(tokenizer, *rest):
        found = right(tokenizer, *rest)
        return [found[0], *found] if wrong == "two starts" else [*found[:9], *found[10:]]

    monkeypatch.setattr(template, "prompt_ids", ids)
    assert broken(random_policy()) == {"template"}


def test_another_familys_template():
    policy = random_policy()
    policy.template = "onevision"
    assert "template" in broken(policy, quick=True)


def test_the_other_aspect():
    policy = random_policy()
    cropping = Preprocessing(28, policy.preprocessing.mean, policy.preprocessing.std, "crop")
    vars(policy.preprocessing)["_processor"] = cropping._processor
    assert broken(policy) == {"aspect"}


def test_weights_that_are_not_finite():
    policy = random_policy()
    norm = decoder_of(policy.model).norm
    norm.weight = norm.weight * float("nan")
    assert {"causality", "batch = single", "prefix cache = plain"} <= broken(policy)


# -- before a training ----------------------------------------------------------------------------------------------------


def test_a_training_begins_with_the_quick_checks(tmp_path, monkeypatch, capsys):
    policy, file = random_policy(), tmp_path / "doctor.json"
    require_sound(policy, file)
    assert json.loads(file.read_text())["base_fingerprint"] == policy.base
    assert re.search(r"passes the quick checks \([\d.]+ seconds?\)", capsys.readouterr().err)
    let_all_see_all(monkeypatch)
    require_sound(policy, file)  # it has passed already
    with pytest.raises(UserError, match=r"causality: .*sees what comes after"):
        require_sound(random_policy(seed=1), file)  # another base


@pytest.mark.parametrize("method", methods.names())
def test_no_run_begins_with_a_broken_model(method, tmp_path, monkeypatch, capsys):
    let_all_see_all(monkeypatch)
    folder = tmp_path / "run"
    assert main(["run", "-c", str(write_recipe(method, tmp_path)), "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "causality" in said and "sees what comes after it" in said and "Install mlx-vlm" in said
    assert {file.name for file in folder.glob("*.jsonl")} == {"prompts.jsonl"}


def test_every_check_says_what_it_means_and_what_to_do():
    assert all(check.meaning and check.advice for check in CHECKS)


# -- the command ----------------------------------------------------------------------------------------------------------


def doctor(*arguments):
    return command.run(build_parser("").parse_args(["doctor", *arguments]))


def test_the_command_tells_and_passes(tmp_path):
    policy = load("tiny")
    policy.attach(LoRASettings(rank=2), seed=0)
    for layer in adapters(policy.model).values():
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(0))
    policy.save_adapter(tmp_path)
    result = doctor("--model", "tiny", "--adapter-path", str(tmp_path))
    assert result.ok and [row["ok"] for row in result.data["checks"]] == [True] * (len(CHECKS) + 2)
    shown = result.shown.renderables
    assert shown[-1].plain == f"tiny: All {len(CHECKS) + 2} checks passed."
    assert "fits               every Mac from 8 GB up: " in shown[-3].plain and "gflops" not in shown[-3].plain
    assert result.data["memory_gb"]["training"] > result.data["memory_gb"]["weights"]


def test_the_command_fails_where_something_is_broken(monkeypatch, capsys):
    let_all_see_all(monkeypatch)
    assert main(["doctor", "--json"]) == 2
    assert any("sees what comes after" in row["wrong"] for row in json.loads(capsys.readouterr().out)["checks"])


def test_the_summary_is_one_line():
    found = [Finding("template", True, ""), Finding("prefix cache = plain", False, ""), Finding("aspect", False, "")]
    assert summarize(found) == "2 of 3 checks failed: prefix cache = plain, aspect."
    assert summarize(2 * found[:1]) == "All 2 checks passed."


def test_an_adapter_that_changes_nothing_is_named(tmp_path):
    policy = random_policy()
    policy.attach(LoRASettings(rank=2), seed=0)
    policy.save_adapter(tmp_path)
    assert not examine_adapter(random_policy(), tmp_path).ok


# -- tolerances -----------------------------------------------------------------------------------------------------------


def test_rounding_is_the_dtypes_or_the_devices():
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        assert precision_of(dtype).epsilon <= rounding(dtype) <= 8 * precision_of(dtype).epsilon


def test_tolerances_follow_the_floor():
    assert tolerance(mx.float32, 0.0) == precision_of(mx.float32).least
    assert tolerance(mx.bfloat16, 0.1) == precision.FLOORS * 0.1


def test_the_floor_grows_with_coarser_numbers():
    floors = []
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        policy = random_policy()
        policy.model.set_dtype(dtype)
        floors.append(probe.ModelProbe(policy, pictures=True).allowed)
    assert floors == sorted(floors) and floors[-1] > 100 * floors[0]
