"""One rank of TRL, or Unsloth's CPU path, for train_throughput. Runs in Unsloth's own environment too.

python -m tools.benchmarks.train_peers SPEC.json     (with RANK and WORLD_SIZE where there are several)
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tools.benchmarks.probe import Probe, of_this_rank

RATE = 1e-4


def main(spec: dict[str, Any]) -> None:
    probe = of_this_rank(spec["out"])
    (unsloth if spec["system"] == "unsloth" else trl)(spec, probe)
    probe.write()


def trl(spec: dict[str, Any], probe: Probe) -> None:
    """SFTTrainer on rows that are tokens and labels already, in the order of the file."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if "WORLD_SIZE" in os.environ:
        import deepspeed  # noqa: F401  (before memory is looked at)
    probe.imported()
    layout = spec["layout"]
    half = spec["dtype"] == "bfloat16"
    settings = arguments(
        trl.SFTConfig,
        spec,
        bf16=half and not spec["half_weights"],  # autocast over float32 weights: TRL's own way
        gradient_checkpointing=spec["checkpointing"],
        per_device_train_batch_size=1 if layout == "packed" else spec["samples"] // 2,
        gradient_accumulation_steps=2 // int(os.environ.get("WORLD_SIZE", "1")),
        packing=layout == "packed",
        padding_free=layout == "padding-free",
        max_length=spec["pack"] if layout == "packed" else None,
        dataset_kwargs={"skip_prepare_dataset": layout == "packed"},
        **({"deepspeed": {"zero_optimization": {"stage": 3}, **SIZES}} if "WORLD_SIZE" in os.environ else {}),
    )
    dtype = "bfloat16" if half and spec["half_weights"] else "float32"
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
    rows = datasets.Dataset.from_parquet(spec["packed" if layout == "packed" else "rows"])
    trainer = timed(trl.SFTTrainer, probe, spec["loss"])(
        model, settings, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(spec["model"])
    )
    train(trainer, probe)
    probe.more |= {"trl": trl.__version__, "engine": engine(trainer)}


SIZES = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
}


def unsloth(spec: dict[str, Any], probe: Probe) -> None:
    """FastLanguageModel and its SFTTrainer on CPU, all weights trained, one row at a time: it refuses to pack."""
    os.environ["UNSLOTH_FORCE_CPU"] = "1"
    import unsloth  # isort: skip  (it patches what is imported after it)
    import datasets
    import torch
    import transformers
    import trl

    probe.imported()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        spec["model"],
        max_seq_length=spec["pack"],
        dtype=getattr(torch, spec["dtype"]),
        load_in_4bit=False,
        full_finetuning=True,
        use_gradient_checkpointing=False,
    )
    settings = arguments(
        trl.SFTConfig,
        spec,
        bf16=spec["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=spec["samples"],
        max_length=None,
    )
    trainer = timed(trl.SFTTrainer, probe, "own")(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_parquet(spec["rows"]),
        processing_class=tokenizer,
    )
    train(trainer, probe)
    probe.more |= {
        "unsloth": unsloth.__version__,
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "autocast": bool(settings.bf16),
        "weights": str(next(model.parameters()).dtype),
        "optimizer": str(settings.optim),
    }


def arguments(kind: Any, spec: dict[str, Any], **more: Any) -> Any:
    """Training arguments that are the same for all: AdamW, a constant rate, clipping at 1, nothing logged or saved."""
    return kind(
        output_dir=f"{spec['out']}/trainer",
        max_steps=spec["steps"],
        train_sampling_strategy="sequential",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


def timed(base: Any, probe: Probe, loss: str) -> Any:
    """The trainer, telling its losses. loss: "own", or "transformers" for that of Trainer, on all logits."""
    from transformers import Trainer

    class Timed(base):
        loss_of_step = 0.0

        def training_step(self, *rest: Any, **more: Any) -> Any:
            part = super().training_step(*rest, **more)
            self.loss_of_step += float(part)
            return part

    class WithTransformersLoss(Timed):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inputs["use_cache"] = False  # as TRL's own does
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    return Timed if loss == "own" else WithTransformersLoss


def train(trainer: Any, probe: Probe) -> None:
    from transformers import TrainerCallback

    class Marks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            probe.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            probe.step(trainer.loss_of_step)
            trainer.loss_of_step = 0.0

    trainer.add_callback(Marks())
    trainer.train()


def engine(trainer: Any) -> str:
    """What really ran: a DeepSpeed engine and its stage, DDP, or a plain module."""
    model = trainer.model_wrapped
    stage = getattr(model, "zero_optimization_stage", None)
    return f"{type(model).__name__}{f', ZeRO-{stage()}' if stage else ''}"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
