"""A run, opened once: all that its file says, and what the files say that it names.

run.yaml, or a mapping ─ config.load ─> RunConfig ─┐
ds_configs/x.json ─ config.deepspeed ─> Document  ─┴─> OpenedRun ─> commands, planner, runner, ranks
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.deepspeed import Device, deepspeed_config, deepspeed_document
from dist_sft.config.document import Document
from dist_sft.config.kept import RunFile
from dist_sft.config.load import Source, load_run
from dist_sft.config.run_config import RunConfig
from dist_sft.model.architecture import Architecture
from dist_sft.model.pretrained import Pretrained


@dataclass(frozen=True)
class OpenedRun:
    """What a run is. A file that changes after this was made changes nothing here.

    config     checked settings
    deepspeed  content of the DeepSpeed JSON, and the line of each key
    model      what the model is without its weights, loaded on first use and kept
    file       the run file; None where the settings are from nowhere else
    """

    config: RunConfig
    deepspeed: Document
    model: Pretrained
    file: RunFile | None = None

    @property
    def folder(self) -> Path:
        """run.dir as an absolute path; `run.folder.locate` says whether it can be used."""
        return Path(self.config.run.dir).absolute()

    @property
    def architecture(self) -> Architecture:
        """config.json, and what follows from it. Raises ModelError."""
        return self.model.architecture

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer. Raises ModelError."""
        return self.model.vocabulary

    @property
    def device(self) -> Device:
        """What its workers compute on."""
        return "cuda" if self.config.cluster.gpus_per_worker else "cpu"

    @cached_property
    def resolved_deepspeed(self) -> dict[str, Any]:
        """What `deepspeed.initialize` gets where all workers are there. Raises ConfigError."""
        return self.deepspeed_for(self.config.cluster.most, self.device)

    def deepspeed_for(self, world: int, device: Device) -> dict[str, Any]:
        """The same for another number of ranks, or another device. Raises ConfigError."""
        return deepspeed_config(self.config, self.deepspeed, world, device)

    def changed(self, deepspeed: dict[str, Any] | None = None, **sections: Any) -> "OpenedRun":
        """The run with other sections, or with another content of its DeepSpeed JSON. Raises ConfigError."""
        document = self.deepspeed if deepspeed is None else Document(deepspeed, {(): "deepspeed"})
        config = self.config.model_copy(update=sections)
        same = (config.model.path, config.model.revision) == (self.model.settings.path, self.model.settings.revision)
        return replace(
            self,
            config=config,
            deepspeed=document,
            model=self.model if same else _pretrained(config),
        )

    @property
    def portable(self) -> RunConfig:
        """The settings with the content of the DeepSpeed JSON among them: what other nodes open."""
        return self.config.model_copy(update={"deepspeed": self.deepspeed.value})


def open_run(run: Source | RunConfig, overrides: Sequence[str] = ()) -> OpenedRun:
    """Open a run file, a mapping of settings, or settings that were checked.

    Raises:
        ConfigError: with every problem of the file; of the DeepSpeed JSON where it cannot be read.
    """
    config, file = (run, None) if isinstance(run, RunConfig) else load_run(run, overrides)
    return OpenedRun(config, deepspeed_document(config), _pretrained(config), file)


def _pretrained(config: RunConfig) -> Pretrained:
    return Pretrained(config.model, config.data.cache_folder)
