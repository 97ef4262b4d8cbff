"""What TRL's DPOTrainer makes of given log-probabilities; writes tests/golden/losses.json.

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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

FILE = Path(__file__).with_name("losses.json")
# Rows of policy_chosen, policy_rejected, reference_chosen, reference_rejected.
LOGPS = [[-12.5, -15.0, -13.0, -14.0], [-30.0, -28.0, -31.0, -27.0], [-7.0, -7.0, -7.0, -7.0], [-50.0, -40.0, -45.0, -44.0]]
CASES = [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.0}, {"beta": 0.1, "label_smoothing": 0.2}]


def trainer() -> DPOTrainer:
    """The smallest DPOTrainer there is: its model is never asked, only its loss."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    policy, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=2, pad_token_id=0, **sizes)) for _ in range(2))
    rows = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}])
    settings = DPOConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], gradient_checkpointing=False)
    return DPOTrainer(policy, reference, settings, train_dataset=rows, processing_class=tokenizer)


def trl_loss(dpo: DPOTrainer, rows: list[list[float]], beta: float, label_smoothing: float) -> dict:
    """TRL's loss, its gradient and its reward metrics for pairs whose answers are one token long."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = torch.tensor(rows).T
    logps = torch.cat([policy_chosen, policy_rejected])[:, None].requires_grad_()
    ones = torch.ones(2 * len(rows), 1)
    dpo.beta, dpo.label_smoothing, dpo.precompute_ref_logps = beta, label_smoothing, True
    # TRL has no conservative DPO under its own name, but of a single pair `aot_unpaired` is just that.
    dpo.loss_types = ["aot_unpaired" if label_smoothing else "sigmoid"]
    dpo._metrics["train"].clear()
    inputs = {
        "input_ids": torch.ones(2 * len(rows), 2, dtype=torch.long),
        "attention_mask": torch.ones(2 * len(rows), 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * 2 * len(rows)),
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    outputs = SimpleNamespace(log_probs=logps, mean_logits=ones, is_top1=ones.bool(), entropy=ones)
    loss = dpo._compute_loss(lambda **_: outputs, inputs, return_outputs=False)
    loss.backward()
    metrics = {name: dpo._metrics["train"][f"rewards/{name}"][0] for name in ("chosen", "rejected", "accuracies", "margins")}
    return {"loss": loss.item(), "gradient": logps.grad.flatten().tolist(), **metrics}


def cases() -> list[dict]:
    dpo = trainer()
    dpo.model.train()
    found = []
    for case in CASES:
        batches = [[row] for row in LOGPS] if case["label_smoothing"] else [LOGPS]
        found += [{**case, "logps": rows, "trl": trl_loss(dpo, rows, **case)} for rows in batches]
    return found


if __name__ == "__main__":
    versions = {name: version(name) for name in ("trl", "torch")}
    FILE.write_text(json.dumps({"versions": versions, "cases": cases()}, indent=1) + "\n")
