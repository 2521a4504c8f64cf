"""TRL's way from a file of chats to tokens and masks: what SFTTrainer's constructor does before its first step."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.benchmarks.measure import WORK, Took, took
from tools.registry import tokenizer_folder


def prepare(file: Path, processes: int) -> tuple[Took, Took, int, int]:
    """Time of the preparation alone, and of all from the file on; rows; tokens.

    Assistant masks need a template with {% generation %}; TRL has one for Qwen3.
    """
    import datasets
    import trl
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    times: list[Took] = []

    class Timed(trl.SFTTrainer):  # type: ignore[misc,name-defined]
        def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
            time, self.prepared = took(lambda: trl.SFTTrainer._prepare_dataset(self, dataset, *rest, **more))
            times.append(time)
            return self.prepared

    def construct(folder: str) -> Any:
        data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=folder)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("qwen3"))
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_training.jinja").read_text()
        settings = trl.SFTConfig(
            output_dir=folder,
            assistant_only_loss=True,
            dataset_num_proc=processes,
            max_length=None,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        return Timed(tiny_model(), settings, train_dataset=data, processing_class=tokenizer).prepared

    with TemporaryDirectory(dir=WORK) as folder:
        whole, prepared = took(lambda: construct(folder))
        return times[0], whole, len(prepared), sum(map(len, prepared["input_ids"]))


def tiny_model() -> Any:
    """A Qwen3 that costs nothing."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=152_000,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
