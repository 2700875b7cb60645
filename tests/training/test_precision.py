"""The precision of training: what a machine takes, remembers, and never changes for it."""

import pytest
import torch

from consistentee.training import precision
from consistentee.training.precision import Speed, measure_speed, onednn_products, precision_used, remembered_speed

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Let the machine be measured anew, and return the folder where that is remembered."""
    monkeypatch.setenv("CONSISTENTEE_CACHE", str(tmp_path))
    remembered_speed.cache_clear()
    yield tmp_path / "precision"
    remembered_speed.cache_clear()


@pytest.mark.parametrize(("speed", "faster"), [(Speed(100, 300), "bfloat16"), (Speed(100, 1), "float32")])
def test_auto_is_the_faster_one_on_this_machine_which_is_measured_once(cache, monkeypatch, speed, faster):
    monkeypatch.setattr(precision, "measure_speed", lambda device: speed)
    assert precision_used("auto", CPU) == faster
    assert [precision_used(fixed, CPU) for fixed in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    remembered_speed.cache_clear()  # as in the next process
    monkeypatch.setattr(precision, "measure_speed", lambda device: pytest.fail("it was not remembered"))
    assert remembered_speed(CPU) == speed


@pytest.mark.parametrize("damaged", ["{", '{"float64": 1}'])
def test_a_damaged_memory_is_measured_anew(cache, monkeypatch, damaged):
    cache.mkdir()
    (cache / f"{precision.machine_name(CPU)}.json").write_text(damaged)
    monkeypatch.setattr(precision, "measure_speed", lambda device: Speed(1, 2))
    assert remembered_speed(CPU) == Speed(1, 2)


def test_measuring_leaves_the_generator_and_the_precision_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    speed = measure_speed(CPU)
    assert torch.equal(torch.rand(3), expected)
    assert min(speed.float32, speed.bfloat16) > 0
    assert torch.get_float32_matmul_precision() == "highest"


class TestOneDnn:
    def test_products_stay_in_float32_forward_and_backward(self):
        left, right = torch.rand(70, 300, requires_grad=True), torch.rand(300, 50, requires_grad=True)

        def product_and_gradients() -> list[torch.Tensor]:
            product = left @ right
            return [product.detach(), *torch.autograd.grad(product.square().sum(), (left, right))]

        plain = product_and_gradients()
        with onednn_products(CPU):
            for ours, theirs in zip(product_and_gradients(), plain, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)

    def test_it_is_asked_only_where_it_keeps_float32(self, monkeypatch):
        monkeypatch.setattr(precision, "onednn_keeps_float32", lambda: False)
        with onednn_products(CPU):
            assert torch.get_float32_matmul_precision() == "highest"

    def test_a_setting_of_the_users_is_kept_and_errors_restore_it(self):
        torch.set_float32_matmul_precision("high")
        try:
            with onednn_products(CPU):
                assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")
        with pytest.raises(RuntimeError, match="inside"), onednn_products(CPU):
            raise RuntimeError("inside")
        assert torch.get_float32_matmul_precision() == "highest"
