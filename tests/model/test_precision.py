"""On a CPU without bfloat16 arithmetic, products are computed in float32 and rounded once."""

import copy

import pytest
import torch
from torch import nn

from dist_sft.model import precision
from dist_sft.model.precision import matmul_dtype, multiply_without_emulation

CPU = torch.device("cpu")
REAL = precision.cpu_has_bfloat16


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)


def test_only_bfloat16_on_a_cpu_without_it_is_computed_otherwise(monkeypatch):
    assert matmul_dtype(CPU, torch.bfloat16) == torch.float32
    assert matmul_dtype(CPU, torch.float32) == torch.float32
    assert matmul_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert matmul_dtype(CPU, torch.bfloat16) == torch.bfloat16
    assert multiply_without_emulation(nn.Linear(2, 2).bfloat16(), CPU) == 0


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("", True), ("ALL", True), ("AVX512_CORE_BF16", True), ("avx512_core_amx", True), ("AVX10_1_512", True),
        ("AVX512_CORE", False), ("AVX512_CORE_VNNI", False), ("AVX2", False), ("AVX2_VNNI_2", False), ("SSE41", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_what_onednn_may_not_use_is_not_there(name, limit, left, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for each in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):  # one of them may be set for the whole run
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, limit)
    assert REAL.__wrapped__() == left
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not REAL.__wrapped__()


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_gradients_are_those_of_float64_rounded_once(bias):
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).bfloat16()
    exact = copy.deepcopy(layer).double()
    values = torch.randn(2, 7, 48).bfloat16().requires_grad_()
    assert multiply_without_emulation(layer, CPU) == 1
    upstream = torch.randn(2, 7, 32).bfloat16()
    gradients = []
    for module, given in ((layer, values), (exact, values.detach().double().requires_grad_())):
        result = module(given)
        wanted = [given, *module.parameters()]
        gradients.append([result, *torch.autograd.grad(result, wanted, upstream.to(result.dtype))])
    for found, expected in zip(*gradients, strict=True):
        assert found.dtype == torch.bfloat16 and found.shape == expected.shape
        assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all()


def test_a_frozen_layer_gets_no_gradient():
    layer = nn.Linear(8, 8).bfloat16().requires_grad_(False)
    multiply_without_emulation(layer, CPU)
    values = torch.randn(3, 8).bfloat16().requires_grad_()
    layer(values).sum().backward()
    assert layer.weight.grad is None and values.grad is not None
