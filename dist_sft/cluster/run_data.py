"""The data side of a run, and all that its config.json says: what can be known before weights are read.

RunConfig -> encoder, rows, steps, what identifies the run
"""

from dataclasses import dataclass
from typing import Any

from dist_sft.chat.encode import Encoder
from dist_sft.cluster import run_folder
from dist_sft.config.sections import RunConfig
from dist_sft.data.encoding import Rows
from dist_sft.data.order import Steps
from dist_sft.data.packing import Dealer
from dist_sft.model.cost import ModelCost, model_cost
from dist_sft.model.load import load_config
from dist_sft.model.supported import refuse_unsupported
from dist_sft.model.tokenizer import load_vocabulary
from dist_sft.model.weights import check_weights, model_fingerprint


@dataclass(frozen=True)
class RunData:
    """The data side of a run: needs no GPU and no process group.

    held_out  rows of eval.source
    model_id  what identifies the weights that the run starts from
    """

    encoder: Encoder
    rows: Rows
    held_out: Rows | None
    steps: Steps
    cost: ModelCost
    model_id: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunData":
        """Raises every error that data, template, tokenizer or architecture can give before training."""
        settings = config.model
        architecture = load_config(settings)
        refuse_unsupported(architecture, config.data.context_length, config.train.packing, settings.path)
        check_weights(settings)
        encoder = make_encoder(config)
        rows = Rows(config.data.sources, config.data, encoder)
        held_out = Rows([config.eval.source], config.data, encoder) if config.eval.source else None
        steps = Steps.of(
            rows.lengths, config.run.seed, config.train.samples_per_step, config.train.steps, config.train.epochs
        )
        cost = model_cost(architecture, trains_weights=settings.tuning.kind == "full")
        return cls(encoder, rows, held_out, steps, cost, model_fingerprint(settings.path, architecture))

    def facts(self, config: RunConfig) -> dict[str, Any]:
        """What the run folder keeps. Held-out rows must stay as they are only where they can end the run."""
        fingerprints = {
            "sources": self.rows.fingerprints,
            "encoder": self.encoder.fingerprint,
            "model": self.model_id,
            **({"held_out": self.held_out.fingerprints} if self.held_out and config.eval.patience is not None else {}),
        }
        return run_folder.facts(config, fingerprints, list(self.encoder.stop_ids))

    def dealer(self, config: RunConfig, world: int) -> Dealer:
        settings = config.train
        return Dealer(world, settings.tokens_per_pack, settings.packing, settings.micro_steps, self.cost.quadratic)


def make_encoder(config: RunConfig) -> Encoder:
    """The tokenizer and template of a run, with its loss weights."""
    load_config(config.model)  # first, for it says more clearly that there is no model
    data = config.data
    vocabulary = load_vocabulary(config.model.path, config.model.revision)
    return Encoder(vocabulary, data.template, data.loss, data.context_length, data.overlong)
