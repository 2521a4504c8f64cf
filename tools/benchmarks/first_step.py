"""How long until the first step is served, from a file that nobody has seen before: the data service against TRL.

Ray is up on both sides of the comparison's clock for us, imports are done for both. Our time is from the run file to
the first rank's share of step 1; a second start finds the line index and the first samples in the cache. TRL prepares
all rows before its first step; to spare an hour it gets a part of them, and the rest is taken to cost as much.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.benchmarks.chats import write_chats
from tools.benchmarks.measure import WORK, heading
from tools.registry import tokenizer_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--trl-rows", type=int, default=5_000)
    asked = parser.parse_args()
    heading()
    file = write_chats(WORK / f"chats-{asked.rows}.jsonl", asked.rows)
    model = model_folder(WORK / "qwen3_tiny")
    print(f"{asked.rows:,} rows, {file.stat().st_size / 1e9:.2f} GB")
    ours(file, model)
    theirs(file, asked.rows, asked.trl_rows)


def model_folder(folder: Path) -> Path:
    """A very small model with Qwen3's tokenizer."""
    if not folder.exists():
        from transformers import AutoTokenizer

        tiny_model().save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_folder("qwen3")).save_pretrained(folder)
    return folder


def tiny_model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=152_000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    )  # fmt: skip


def ours(file: Path, model: Path) -> None:
    import ray

    from dist_sft.cluster.runner import data_service
    from dist_sft.cluster.session import connect as join
    from dist_sft.cluster.supply import connect
    from dist_sft.config.sections import RunConfig
    from dist_sft.data.ledger import Ledger

    with TemporaryDirectory(dir=WORK) as folder:
        config = RunConfig.model_validate(
            {"run": {"dir": f"{folder}/run"}, "model": {"path": str(model)}, "train": {"samples_per_step": 64, "steps": 100},
             "data": {"sources": [{"path": str(file)}], "cache": f"{folder}/cache"}, "cluster": {"gpus_per_worker": 0}}
        )  # fmt: skip
        join(config)
        for name in ("cold", "second start"):
            begin = time.monotonic()
            with data_service(config) as offer:
                started = time.monotonic()
                supply = connect(offer, config, world=1, rank=0, session=1)
                share = next(supply.training(Ledger(), lambda step, text: None).shares(0))
                served = time.monotonic()
            print(
                f"dist-sft, {name}: first step ({share.totals.samples} samples) after {served - begin:.1f} s, "
                f"of these {started - begin:.1f} s for index, fingerprint and the look at the first 256 rows"
            )
        ray.shutdown()


def theirs(file: Path, rows: int, part: int) -> None:
    import datasets
    import trl
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    with TemporaryDirectory(dir=WORK) as folder:
        head = Path(folder) / "head.jsonl"
        with file.open("rb") as lines:
            head.write_bytes(b"".join(next(lines) for _ in range(part)))
        begin = time.monotonic()
        data = datasets.load_dataset("json", data_files=str(head), split="train", cache_dir=folder)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("qwen3"))
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_training.jinja").read_text()
        settings = SFTConfig(
            output_dir=folder, assistant_only_loss=True, dataset_num_proc=2, max_length=None, report_to="none",
            use_cpu=True, bf16=False,
        )  # fmt: skip
        SFTTrainer(tiny_model(), settings, train_dataset=data, processing_class=tokenizer)
        took = time.monotonic() - begin
    print(f"TRL {trl.__version__}, 2 processes: {took:.0f} s to prepare {part:,} rows -> {took * rows / part:,.0f} s for all")


if __name__ == "__main__":
    main()
