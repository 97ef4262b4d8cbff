"""TRL's DPOTrainer on the pair, with peft's LoRA on the same layers, in float32 and without gradient checkpointing."""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

import torch
from datasets import Dataset
from meter import Meter, report
from peft import LoraConfig
from PIL import Image
from shape import BETA, LEARNING_RATE, RANK, SCALE, Given, given
from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainerCallback
from trl import DPOConfig, DPOTrainer

LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Watch(TrainerCallback):
    def __init__(self, device: str) -> None:
        self.device = device

    def on_train_begin(self, *args: object, **named: object) -> None:
        self.meter = meter_of(self.device)

    def on_step_end(self, *args: object, **named: object) -> None:
        self.meter.mark()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pairs", type=int, default=1, help="of one update, in one batch")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    if options.device == "gpu" and not torch.cuda.is_available():
        sys.exit("no GPU found")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = LlavaForConditionalGeneration.from_pretrained(options.folder, dtype=torch.float32)
    for weights in model.parameters():
        weights.data = weights.data.clone()  # in memory now, not read from the file in the first step
    watch = Watch(options.device)
    with TemporaryDirectory() as folder:
        trainer = make_trainer(model, options, Path(folder), watch)
        require_same_ids(trainer, given(options.folder))
        trainer.train()
    first = trainer.state.log_history[0]
    figures = {"loss": float(first["loss"]), "logps": [float(first["logps/chosen"]), float(first["logps/rejected"])]}
    report(("torch", "transformers", "peft", "trl"), **watch.meter.steps(), memory=watch.meter.memory(), **figures)


def make_trainer(model: object, options: argparse.Namespace, output: Path, watch: Watch) -> DPOTrainer:
    pair = given(options.folder)
    processor = AutoProcessor.from_pretrained(options.folder)
    chosen, rejected = (text + processor.tokenizer.eos_token for text in pair.answers)
    row = {"images": [Image.open(pair.image)], "prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
    settings = DPOConfig(
        output_dir=str(output),
        max_steps=options.steps + 1,
        per_device_train_batch_size=options.pairs,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=BETA,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=options.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, lora_dropout=0.0, target_modules=LINEARS)
    data = Dataset.from_list([row] * options.pairs)
    return DPOTrainer(model, args=settings, train_dataset=data, processing_class=processor, peft_config=lora, callbacks=[watch])


def meter_of(device: str) -> Meter:
    if device == "cpu":
        return Meter()
    torch.cuda.reset_peak_memory_stats()
    return Meter(torch.cuda.max_memory_allocated, torch.cuda.memory_allocated())


def require_same_ids(trainer: DPOTrainer, pair: Given) -> None:
    """The sequences must be ours to the token."""
    batch = trainer.data_collator([trainer.train_dataset[0]])
    for row, mask, answer in zip(batch["input_ids"], batch["attention_mask"], pair.answer_ids, strict=True):
        if row[mask.bool()].tolist() != pair.prompt_ids + answer:
            raise ValueError("TRL reads other tokens than we do")


if __name__ == "__main__":
    main()
