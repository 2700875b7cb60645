"""The precision of training: what a machine takes, and products of float32 by oneDNN."""

from contextlib import suppress

import pytest
import torch

from consistentee.training import loop
from consistentee.training.loop import onednn_products, precision_used

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        ({"cpu_name": "AMD EPYC 9555", "avx512_bf16": True}, "bfloat16"),
        ({"cpu_name": "AMD EPYC 7763", "avx512_bf16": False}, "float32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
    ids=str,
)
def test_auto_is_bfloat16_where_processors_are_fast_in_it(monkeypatch, found, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert precision_used("auto", CPU) == precision
    assert [precision_used(fixed, CPU) for fixed in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("keeps", "before", "inside"), [(True, "highest", "medium"), (False, "highest", "highest"), (True, "high", "high")]
)
def test_onednn_is_used_where_it_keeps_float32_and_a_users_setting_is_restored(monkeypatch, keeps, before, inside):
    monkeypatch.setattr(loop, "onednn_keeps_float32", lambda: keeps)
    torch.set_float32_matmul_precision(before)
    try:
        with suppress(KeyError), onednn_products(CPU):
            assert torch.get_float32_matmul_precision() == inside
            raise KeyError
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
