"""What the layers must know of the pack that runs through them.

Attention, noise and dropout sit deep inside a model that somebody else wrote. They read the pack from one object that
is attached to their modules, so that no argument has to travel through the model's own code. The pack stays in place
until the next forward pass, so that activations which are recomputed in the backward pass see the same one.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dist_sft.core import seeds
from dist_sft.data.pack import Pack
from dist_sft.model.sequence_parallel import SequenceParallelGroup


@dataclass(frozen=True, slots=True)
class Asked:
    """What the head shall answer.

    at       int64[P], positions of this rank's part of the pack
    targets  int64[P], the tokens that follow them: scores are wanted; None: logits
    mean     whether scores shall hold the mean logit
    """

    at: Tensor
    targets: Tensor | None = None
    mean: bool = False


@dataclass
class PackContext:
    """The pack of the current forward pass.

    Axes: T tokens of the pack, S of them on this rank (all, where a rank has no neighbours), K samples.

    ends         [0, ..., T], where samples begin and end, as Python integers
    cu_seqlens   int32[K+1], the same on the device
    longest      tokens of the longest sample
    part         where this rank's tokens stand in the pack
    positions    int64[S], restart at 0 with each sample
    lengths      int64[S], tokens of the sample that a token belongs to
    windows      the window of each attention layer that has run since the pack was entered; None: no window
    padding      bool[S], tokens of no sample
    answers      bool[S], tokens that are learned: those with a loss weight above 0
    keys         int64[S], randomness of the sample that a token belongs to; None in evaluation: no noise, no dropout
    sample_keys  the same of each of the K samples, as Python integers; [] in evaluation
    step         number of the update, from 0; None in evaluation
    branches     what a block's sublayers shall add to the residual stream, each, in place of what they compute; None:
                 what they compute. For `check_residual_dropout`
    asked        what the head shall answer
    kept         what attention has computed for this pack, by name

    The same for all packs of a run:

    steps              updates of the whole run
    group              ranks that work on one pack together
    attention_dropout  share of the attention weights that is dropped
    """

    ends: list[int] = field(default_factory=lambda: [0])
    cu_seqlens: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    longest: int = 0
    part: slice = field(default_factory=lambda: slice(0, 0))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    windows: list[int | None] = field(default_factory=list)
    padding: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    answers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    keys: Tensor | None = None
    step: int | None = None
    steps: int = 1
    branches: tuple[float, float] | None = None
    asked: Asked = field(default_factory=lambda: Asked(torch.zeros(0, dtype=torch.int64)))
    sample_keys: list[int] = field(default_factory=list)
    kept: dict[str, object] = field(default_factory=dict)
    group: SequenceParallelGroup = field(default_factory=SequenceParallelGroup)
    attention_dropout: float = 0.0

    def enter(self, pack: Pack, device: torch.device, seed: int, step: int | None) -> None:
        """Make `pack` the current one. step None: evaluation."""
        lengths = np.diff(pack.cu_seqlens).astype(np.int64)
        self.ends = pack.cu_seqlens.tolist()
        self.cu_seqlens = torch.from_numpy(pack.cu_seqlens).to(device)
        self.longest = int(lengths.max())
        self.windows, self.kept = [], {}
        self.part = self.group.part(self.ends[-1])
        self.positions = torch.from_numpy(pack.positions[self.part].astype(np.int64)).to(device)
        self.lengths = torch.from_numpy(np.repeat(lengths, lengths)[self.part]).to(device)
        self.padding = torch.from_numpy(np.arange(self.ends[-1])[self.part] >= pack.real_tokens).to(device)
        self.answers = torch.from_numpy(pack.weights[self.part] > 0).to(device)
        self.step, self.keys, self.sample_keys = step, None, []
        if step is not None:
            keys = [seeds.key(seed, "sample", step, sample.position) for sample in pack.samples]
            keys += [0] * (len(lengths) - len(keys))  # padding
            signed = np.array(keys, np.uint64).view(np.int64)
            self.sample_keys = signed.tolist()
            self.keys = torch.from_numpy(np.repeat(signed, lengths)[self.part]).to(device)

    def attach(self, model: nn.Module) -> None:
        """Let every module of a model find this context as `module.pack_context`."""
        for module in model.modules():
            object.__setattr__(module, "pack_context", self)
