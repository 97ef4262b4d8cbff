"""What TRL's DPOTrainer, and torch for mDPO, make of given log-probabilities; writes tests/golden/losses.json.

Run from the project's root: python tests/golden/make_losses.py (needs the `reference` extra).
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

FILE = Path(__file__).with_name("losses.json")
# Rows of policy_chosen, policy_rejected, reference_chosen, reference_rejected.
LOGPS = [[-12.5, -15.0, -13.0, -14.0], [-30.0, -28.0, -31.0, -27.0], [-7.0, -7.0, -7.0, -7.0], [-50.0, -40.0, -45.0, -44.0]]
LENGTHS = [[3, 5], [8, 7], [2, 2], [11, 9]]  # tokens of chosen and rejected
CASES = [
    {"loss_type": "sigmoid", "beta": 0.1, "rate": 0.0},
    {"loss_type": "sigmoid", "beta": 0.5, "rate": 0.0},
    {"loss_type": "sigmoid", "beta": 0.1, "rate": 0.2},
    {"loss_type": "hinge", "beta": 0.1, "rate": 0.0},
    {"loss_type": "hinge", "beta": 0.5, "rate": 0.0},
    {"loss_type": "robust", "beta": 0.1, "rate": 0.2},
    {"loss_type": "ipo", "beta": 0.1, "rate": 0.0},
    {"loss_type": "ipo", "beta": 0.5, "rate": 0.0},
]  # rate: of wrong preferences, TRL's label_smoothing
# mDPO, which TRL does not have: rows of d of chosen, rejected and chosen about the damaged image.
MDPO = {"beta": 0.1, "changes": [[0.5, -1.0, -3.0], [1.0, -1.0, 2.5], [0.0, 0.0, 0.0], [-5.0, 4.0, -20.0]]}


def trainer() -> DPOTrainer:
    """The smallest DPOTrainer there is: its model is never asked, only its loss."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    policy, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=2, pad_token_id=0, **sizes)) for _ in range(2))
    rows = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}])
    settings = DPOConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], gradient_checkpointing=False)
    return DPOTrainer(policy, reference, settings, train_dataset=rows, processing_class=tokenizer)


def trl_loss(dpo: DPOTrainer, logps: list, lengths: list, loss_type: str, beta: float, rate: float) -> dict:
    """TRL's loss, its gradient and its reward metrics for pairs, whose tokens share each answer's log-probability evenly."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = torch.tensor(logps).T
    summed = torch.cat([policy_chosen, policy_rejected]).requires_grad_()
    tokens = torch.tensor(lengths).T.flatten()
    mask = (torch.arange(int(tokens.max()))[None] < tokens[:, None]).long()
    by_token = mask * (summed / tokens)[:, None]
    prompt = torch.ones(len(tokens), 1, dtype=torch.long)
    dpo.beta, dpo.label_smoothing, dpo.precompute_ref_logps = beta, rate, True
    # TRL has no conservative DPO under its own name, but of a single pair `aot_unpaired` is just that.
    dpo.loss_types = ["aot_unpaired" if loss_type == "sigmoid" and rate else loss_type]
    dpo._metrics["train"].clear()
    inputs = {
        "input_ids": torch.cat([prompt, mask], dim=1),
        "attention_mask": torch.cat([prompt, mask], dim=1),
        "completion_mask": torch.cat([0 * prompt, mask], dim=1),
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    ones = torch.ones_like(by_token)
    outputs = SimpleNamespace(log_probs=by_token, mean_logits=ones, is_top1=ones.bool(), entropy=ones)
    loss = dpo._compute_loss(lambda **_: outputs, inputs, return_outputs=False)
    loss.backward()
    metrics = {name: dpo._metrics["train"][f"rewards/{name}"][0] for name in ("chosen", "rejected", "accuracies", "margins")}
    return {"loss": loss.item(), "gradient": summed.grad.tolist(), **metrics}


def torch_mdpo(beta: float, changes: list[list[float]]) -> dict:
    """mDPO's loss and gradient, in float64, from its formula."""
    given = torch.tensor(changes, dtype=torch.float64, requires_grad=True)
    chosen, rejected, damaged = beta * given.T
    loss = -sum(logsigmoid(term) for term in (chosen - rejected, chosen - damaged, chosen)).mean()
    loss.backward()
    return {"loss": loss.item(), "gradient": given.grad.T.flatten().tolist()}


def cases() -> list[dict]:
    dpo = trainer()
    dpo.model.train()
    found = []
    for case in CASES:
        alone = case["loss_type"] == "sigmoid" and case["rate"]
        batches = [([row], [two]) for row, two in zip(LOGPS, LENGTHS, strict=True)] if alone else [(LOGPS, LENGTHS)]
        for logps, lengths in batches:
            given = {**case, "logps": logps, "lengths": lengths}
            found.append({**given, "trl": trl_loss(dpo, **given)})
    return found


def made() -> dict:
    return {"cases": cases(), "mdpo": {**MDPO, "torch": torch_mdpo(**MDPO)}}


if __name__ == "__main__":
    versions = {name: version(name) for name in ("trl", "torch")}
    FILE.write_text(json.dumps({"versions": versions, **made()}, indent=1) + "\n")
