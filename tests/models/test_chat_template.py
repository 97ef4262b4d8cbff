"""The template of a model is the one its folder states: every file that may state it, every family, and hostile Jinja."""

import json
import os
import re
import resource
import shutil

import pytest
from hf_layouts import TINY, write_talking
from random_onevision import CONFIG as ONEVISION
from safetensors.numpy import load_file

from mlx_visalign.convert.cli import main as convert
from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.inference.policy import load
from mlx_visalign.models import chat_template
from mlx_visalign.models.chat_template import as_jinja, choose, family_of, stated_by
from mlx_visalign.preflight.doctor import stated_by as doctor_on
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json

LLAVA, CLIP_ONE = {"model_type": "llava"}, {"model_type": "llava_onevision"}
TURN = "{% for m in messages %}"
LLAMA_3 = (
    f"{{{{ bos_token }}}}{TURN}<|start_header_id|>{{{{ m.role }}}}<|end_header_id|>\n\n{{{{ m.content | trim }}}}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PARTS = "{% for p in m.content %}{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}"
CHATML = f"{TURN}<|im_start|>{{{{ m.role }}}}\n{PARTS}<|im_end|>\n{{% endfor %}}<|im_start|>assistant\n"
MISTRAL = f"{TURN}{{% if m.role == 'user' %}}[INST] {PARTS} [/INST]{{% else %}} {PARTS}</s>{{% endif %}}{{% endfor %}}"
GEMMA = f"{TURN}<start_of_turn>{{{{ m.role }}}}\n{PARTS}<end_of_turn>\n{{% endfor %}}<start_of_turn>model\n"
PHI_3 = f"{TURN}<|{{{{ m.role }}}}|>\n{PARTS}<|end|>\n{{% endfor %}}<|assistant|>\n"
OLD_VICUNA = f"{TURN}### Human: {PARTS}\n{{% endfor %}}### Assistant:"
NOBODYS = f"{TURN}Q {PARTS}\n{{% endfor %}}A"
# As llava-hf's: images first, text behind it, a block that only transformers knows.
HF = (
    f"{TURN}{{{{ m.role.upper() + ': ' }}}}{{% for p in m.content | selectattr('type', 'equalto', 'image') %}}"
    "{{ '<image>\n' }}{% endfor %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ p.text + ' ' }}{% endgeneration %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
OTHERS = {"Llama 3": LLAMA_3, "ChatML": CHATML, "Mistral": MISTRAL, "Gemma": GEMMA, "Phi": PHI_3, "Vicuna 0": OLD_VICUNA}


def stating(folder, jinja, where="chat_template.jinja"):
    """A folder that states a template in one of the places where it may."""
    folder.mkdir(exist_ok=True)
    kinds = {
        "chat_template.jinja": jinja,
        "chat_template.json": json.dumps({"chat_template": jinja}),
        "processor_config.json": json.dumps({"chat_template": jinja}),
        "tokenizer_config.json": json.dumps({"chat_template": jinja, "eos_token": {"content": "</s>"}}),
    }
    (folder / where).write_text(kinds[where])
    return folder


def unsettled(folder):
    """The embedded model as Hugging Face has it: nobody has settled its template."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["visalign"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# -- whose words they are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_our_own_jinja_makes_our_prompts(tmp_path, template):
    found = stated_by(stating(tmp_path, as_jinja(template, "</s>")), LLAVA)
    assert (found.exact, found.family, found.end) == (template, chat_template.FAMILY[template], "</s>")


@pytest.mark.parametrize("where", chat_template.FILES)
def test_it_is_found_in_every_file_that_may_state_it(tmp_path, where):
    found = stated_by(stating(tmp_path, LLAMA_3, where), LLAVA)
    assert found.where == where and found.family.startswith("Llama 3") and found.end.startswith("<|eot_id|>")


@pytest.mark.parametrize(
    "several",
    [
        [{"name": "rag", "template": "none"}, {"name": "default", "template": CHATML}],
        [{"name": "only", "template": CHATML}],
        {"default": CHATML, "tool_use": "none"},
    ],
)
def test_of_several_named_ones_the_default_counts(tmp_path, several):
    assert stated_by(stating(tmp_path, several, "tokenizer_config.json"), LLAVA).family.startswith("ChatML")


def test_the_processors_file_goes_before_the_tokenizers(tmp_path):
    stating(stating(tmp_path, HF, "chat_template.json"), LLAMA_3, "tokenizer_config.json")
    assert stated_by(tmp_path, LLAVA).where == "chat_template.json"


def test_hugging_faces_llava_keeps_the_template_it_was_trained_with(tmp_path):
    choice = choose(stating(tmp_path, HF), LLAVA)
    assert choice.template == "vicuna_v1" and "states hf" in choice.note and "--template hf" in choice.note
    assert choose(tmp_path, LLAVA, "hf").note == "as stated in chat_template.jinja"


def test_a_system_message_of_its_own_is_of_the_family_and_said(tmp_path):
    choice = choose(stating(tmp_path, "You see X-rays. " + HF), LLAVA)
    assert choice.template == "vicuna_v1" and "a variant of the same chat format, 'You see X-rays. USER: <image>" in choice.note


def test_onevisions_own_and_qwens_are_of_one_family(tmp_path):
    assert choose(stating(tmp_path, as_jinja("onevision", "<|im_end|>")), CLIP_ONE).note == "as stated in chat_template.jinja"
    assert choose(stating(tmp_path, CHATML), CLIP_ONE).template == "onevision"
    with pytest.raises(UserError, match="chat format of Vicuna"):
        choose(stating(tmp_path, HF), CLIP_ONE)


@pytest.mark.parametrize("name", OTHERS)
def test_another_familys_words_are_refused_unless_asked_for(tmp_path, name):
    states = f"chat_template.jinja states the chat format of {name}"
    stating(tmp_path, OTHERS[name])
    with pytest.raises(UserError, match=rf"{re.escape(states)}.*a lighthouse.*vicuna_v1.*Do this\."):
        choose(tmp_path, LLAVA, cure="Do this.")
    with pytest.raises(UserError, match=re.escape(states)):
        choose(tmp_path, LLAVA, ours="hf")
    choice = choose(tmp_path, LLAVA, "hf")
    assert choice.template == "hf" and choice.note.startswith(f"as requested, although {states}")


def test_words_of_no_family_are_refused_too(tmp_path):
    with pytest.raises(UserError, match=r"states 'Q <image> Is there a lighthouse\?A'"):
        choose(stating(tmp_path, NOBODYS), LLAVA)


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({"conv_version": "llava_llama_3"}, "Llama 3"),
        ({"conv_mode": "mistral_instruct"}, "Mistral"),
        ({"conv_template": "chatml_direct"}, "ChatML"),
        ({"conv_version": "v0"}, "Vicuna 0"),
        ({"_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct"}, "Llama 3"),
        ({"_name_or_path": "liuhaotian/llava-llama-2-13b-chat-lightning-preview"}, "Mistral and Llama 2"),
        ({"text_config": {"_name_or_path": "google/gemma-2b-it"}}, "Gemma"),
    ],
)
def test_without_a_chat_template_a_name_in_the_config_tells(tmp_path, settings, family):
    with pytest.raises(UserError, match=rf"config\.json \(\w+\) states the chat format of {family}"):
        choose(tmp_path, LLAVA | settings)


def test_names_of_the_family_and_of_none_change_nothing(tmp_path):
    for name in ("lmsys/vicuna-7b-v1.5", "./checkpoints/llava-v1.5-7b", "/data/qwen-photos/my-model/", "", 5):
        assert choose(tmp_path, LLAVA | {"_name_or_path": name}).template == "vicuna_v1"
    assert family_of("llava-v1.6-34b").startswith("ChatML") and family_of("a model") is None


def test_without_either_the_tokenizers_tokens_tell(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 5, "content": "<|start_header_id|>"}]}))
    with pytest.raises(UserError, match=r"tokenizer\.json states the chat format of Llama 3.* token <\|start_header_id\|>"):
        choose(tmp_path, LLAVA)


# -- a stranger's Jinja -----------------------------------------------------------------------------------------------

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "endless": (ENDLESS, "rendering does not finish"),
    "huge": ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
    "deep": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    "broken": ("{% for m in messages %}", "TemplateSyntaxError"),
    "raising": ("{{ raise_exception('no images') }}", "no images"),
    "reaching out": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "including": ("{% include '/etc/hostname' %}", "no loader"),
    "silent": ("nothing", "the question is missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_cannot_be_rendered_is_refused_within_bounds(tmp_path, name):
    jinja, reason = HOSTILE[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(UserError, match=f"cannot be rendered .*{reason}"):
        choose(stating(tmp_path, jinja), LLAVA)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # of arithmetic, whoever else is busy
    assert choose(tmp_path, LLAVA, "hf").template == "hf"


def test_a_module_of_the_same_name_in_the_working_folder_is_never_run(tmp_path, monkeypatch):
    for name in ("json", "transformers", "jinja2", "contextlib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert stated_by(stating(tmp_path, GEMMA), LLAVA).family.startswith("Gemma")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [5, ["text"], {"default": 7}])
def test_a_chat_template_of_another_kind_is_named(tmp_path, content):
    with pytest.raises(UserError, match=r"chat_template\.json: chat_template should be text"):
        choose(stating(tmp_path, content, "chat_template.json"), LLAVA)


def test_a_file_that_is_too_long_or_no_text_is_named(tmp_path):
    file = stating(tmp_path, "x") / "chat_template.jinja"
    os.truncate(file, chat_template.LONGEST + 1)
    with pytest.raises(UserError, match="larger than any chat template"):
        choose(tmp_path, LLAVA)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as a chat template"):
        choose(tmp_path, LLAVA)


# -- where it is asked ------------------------------------------------------------------------------------------------


def test_a_conversion_refuses_another_family_and_leaves_nothing(tmp_path, capsys):
    source = stating(write_talking(tmp_path / "hf"), LLAMA_3)
    asked = ["llava", "--hf-path", str(source), "--mlx-path", str(tmp_path / "mlx"), "--json"]
    assert convert(asked) == 2 and "--template" in capsys.readouterr().err
    assert convert([*asked, "--dry-run"]) == 2 and os.listdir(tmp_path) == ["hf"]
    capsys.readouterr()
    assert convert([*asked, "--template", "hf"]) == 0
    said = json.loads(capsys.readouterr().out)["template"]
    assert said.startswith("hf (as requested, although") and "ends an answer with '<|eot_id|>" in said and "'</s>'" in said
    assert read_json(tmp_path / "mlx/config.json")["visalign"]["template"] == "hf"


def test_a_model_that_nobody_converted_is_asked_too(tmp_path, capsys):
    folder = stating(unsettled(tmp_path / "hf"), HF)
    assert load(folder).template == "vicuna_v1" and "states hf" in capsys.readouterr().err
    stating(folder, LLAMA_3)
    with pytest.raises(UserError, match=r"Llama 3.*visalign convert llava --template NAME"):
        load(folder)
    assert load(folder, template="hf").template == "hf" and "as requested, although" in capsys.readouterr().err
    found = doctor_on(folder)
    assert not found.ok and "Llama 3" in found.wrong


def test_a_settled_template_is_not_rendered_again(monkeypatch):
    monkeypatch.setattr(chat_template, "_render", lambda *_: pytest.fail("rendered"))
    assert load("tiny").template == "vicuna_v1"


def test_where_an_answer_ends_is_compared(tmp_path, capsys):
    folder = stating(unsettled(tmp_path / "hf"), HF.replace("{% endgeneration %}", "<|eot|>{% endgeneration %}"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    load(folder)
    said = capsys.readouterr().err
    assert "generation_config.json ends an answer at 5 or 6, but answers stop at the tokenizer's end token, 2 (</s>)" in said
    assert "<|eot|>" in doctor_on(folder).found


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
def test_an_exported_model_states_the_template_it_was_trained_with(tmp_path, capsys, template):
    source = stating(write_talking(tmp_path / "hf"), CHATML, "tokenizer_config.json")
    stating(source, CHATML, "chat_template.json")
    into, back = str(tmp_path / "mlx"), tmp_path / "back"
    assert convert(["llava", "--hf-path", str(source), "--mlx-path", into, "--template", template]) == 0
    assert convert(["export", "--mlx-path", into, "--hf-path", str(back), "--layout", "classic"]) == 0
    assert f"{template}, which the model was trained with" in capsys.readouterr().out
    config = read_json(back / "config.json")
    assert stated_by(back, config).exact == template
    assert not (back / "chat_template.json").exists() and "chat_template" not in read_json(back / "tokenizer_config.json")
    assert load_file(back / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert choose(back, config, ours=template).note == "as stated in chat_template.jinja"


def test_onevision_has_a_default_of_its_own(tmp_path):
    assert choose(tmp_path, ONEVISION).template == "onevision"
