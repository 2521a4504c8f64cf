"""DeepSpeed settings that do not do what they say here: refused, with the reason. Measured on 0.19.8, see FACTS."""

from collections.abc import Iterator
from typing import Any

from dist_sft.config.problems import Problem, show

_OWNED = {
    "optimizer": "train.optimizer and train.learning_rate of the run file decide it",
    "scheduler": "train.schedule and train.warmup of the run file decide it",
    "wandb": "tracking.wandb of the run file decides it, and hides secrets",
    "comet": "tracking of the run file decides where figures go",
    "weight_quantization": "it changes the weights that are trained",
    "pipeline": "the ranks are data-parallel",
}
_SWITCHES = {
    "torch_autocast": "model.dtype of the run file decides the precision",
    "data_efficiency": "data of the run file decides what a step holds",
    "hybrid_engine": "it generates text while training, which this does not",
    "expert_parallel": "the ranks are data-parallel",
}


def refusals(given: dict[str, Any], dtype: str, device: str, optimizer: str = "adamw") -> Iterator[Problem]:
    """All settings of a DeepSpeed JSON that cannot be used with this dtype ("bfloat16", "float32"), device and
    train.optimizer.name."""
    yield from _blocks(given)
    yield from _checkpoint(given)
    yield from _parallel(given)
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        stage = zero.get("stage") if isinstance(zero, dict) else zero
        yield Problem(("zero_optimization", "stage"), f"the ZeRO stage is {show(stage)}", "use 0, 1, 2 or 3")
        return
    yield from _zero(zero, device)
    yield from _optimizer(zero, optimizer)
    yield from _quantised_gradients(given, zero, device)
    yield from _precision(given, zero.get("stage", 0), dtype)
    if _on(given.get("compile"), "deepcompile"):
        yield Problem(
            ("compile", "deepcompile"),
            "compile.deepcompile compiles an engine as a whole, with graphs that know nothing of packs",
            "remove it; model.compile=true compiles what each block does between its matrix products",
        )


def _on(block: Any, key: str = "enabled") -> bool:
    return isinstance(block, dict) and bool(block.get(key))


def _blocks(given: dict[str, Any]) -> Iterator[Problem]:
    for key, why in _OWNED.items():
        if key in given:
            yield Problem((key,), f"{key} stands in the DeepSpeed JSON: {why}", f"remove {key}")
    for key, why in _SWITCHES.items():
        if _on(given.get(key)):
            yield Problem((key, "enabled"), f"{key} is enabled: {why}", f"remove {key}")


def _checkpoint(given: dict[str, Any]) -> Iterator[Problem]:
    checkpoint = given.get("checkpoint", {})
    for key in ("writer", "checkpoint_writer", "use_node_local_storage"):
        if isinstance(checkpoint, dict) and checkpoint.get(key):
            yield Problem(
                ("checkpoint", key), f"checkpoint.{key} writes checkpoints that this cannot verify or load", "remove it"
            )


def _parallel(given: dict[str, Any]) -> Iterator[Problem]:
    tensor = given.get("tensor_parallel")
    for path, value in (
        (("sequence_parallel_size",), given.get("sequence_parallel_size", 1)),
        (("tensor_parallel", "autotp_size"), tensor.get("autotp_size", 1) if isinstance(tensor, dict) else 1),
    ):
        if value not in (0, 1):
            yield Problem(path, f"{'.'.join(path)} is {show(value)}, and the ranks are data-parallel", "remove it")


def _zero(zero: dict[str, Any], device: str) -> Iterator[Problem]:
    stage = zero.get("stage", 0)
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"):
        if zero.get(key) and device == "cpu":
            yield _refuse(key, "ZeRO++ quantisation does not work on CPU", "remove it, or train on GPUs")
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        target = zero[key].get("device", "none") if isinstance(zero.get(key), dict) else "none"
        if target != "none" and stage < lowest:
            yield _refuse(key, f"{key} needs ZeRO stage {lowest}, and the stage is {stage}: it would be ignored",
                          f"remove it, or set the stage to {max(lowest, 1)}")  # fmt: skip
        if target == "nvme" and device == "cpu":
            yield _refuse(f"{key}.device", "NVMe offload does not work on CPU", "use cpu, or none")
    for key in ("cpu_offload", "cpu_offload_param"):
        if key in zero:
            new = "offload_optimizer" if key == "cpu_offload" else "offload_param"
            yield _refuse(key, f"{key} is an old name", f'write "{new}": {{"device": "cpu"}}')
    if stage == 3 and zero.get("elastic_checkpoint"):
        yield _refuse("elastic_checkpoint", "elastic checkpoints do not work with ZeRO-3", "remove it")


def _optimizer(zero: dict[str, Any], name: str) -> Iterator[Problem]:
    """bitsandbytes computes where the states are, and has kernels for GPUs only."""
    target = (
        zero["offload_optimizer"].get("device", "none") if isinstance(zero.get("offload_optimizer"), dict) else "none"
    )
    if name == "adamw8bit" and target != "none":
        yield _refuse(
            "offload_optimizer",
            f"offload_optimizer keeps the optimizer's states on the {target}, and train.optimizer.name is adamw8bit, "
            "which computes on GPUs",
            "remove it: 8-bit states take a quarter of the memory; or set train.optimizer.name=adamw",
        )


def _quantised_gradients(given: dict[str, Any], zero: dict[str, Any], device: str) -> Iterator[Problem]:
    """qgZ's kernel takes what it is given for fp16 (`ds_swizzle_quant` in quantization/pt_binding.cpp)."""
    if device == "cuda" and zero.get("zero_quantized_gradients") and given.get("communication_data_type") != "fp16":
        yield _refuse(
            "zero_quantized_gradients",
            "DeepSpeed's kernel reads gradients as fp16 whatever they are: between nodes they would become noise",
            'add "communication_data_type": "fp16", in which gradients under 6e-8 are lost, or remove it',
        )


def _precision(given: dict[str, Any], stage: int, dtype: str) -> Iterator[Problem]:
    types = given.get("data_types", {})
    accumulate = types.get("grad_accum_dtype") if isinstance(types, dict) else None
    if dtype == "bfloat16" and stage == 0:
        yield Problem(
            ("zero_optimization", "stage"),
            "with bfloat16 at ZeRO stage 0 DeepSpeed makes an optimizer step of its own before the first one",
            "use stage 1, which costs no more, or set model.dtype: float32",
        )
    if dtype == "float32" and accumulate in ("bf16", "bfloat16"):
        yield Problem(
            ("data_types", "grad_accum_dtype"),
            f"gradients would be accumulated as {accumulate}, and model.dtype is float32",
            "remove it",
        )


def _refuse(key: str, what: str, fix: str) -> Problem:
    return Problem(("zero_optimization", *key.split(".")), what, fix)
