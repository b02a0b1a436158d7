"""Products of float32 are faster where that is known to change nothing, and nowhere else."""

import pytest
import torch

from dino_x.machine import products
from dino_x.machine.device import loss_products
from dino_x.machine.products import are_fast, fast_products, tensor_cores

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def better(monkeypatch):
    monkeypatch.setattr(products, "_as_exact_and_faster", lambda: True)


@pytest.fixture
def worse(monkeypatch):
    monkeypatch.setattr(products, "_as_exact_and_faster", lambda: False)


def chosen():
    return torch.get_float32_matmul_precision()


def test_the_setting_is_that_of_the_context_alone(better):
    with fast_products(CPU):
        assert chosen() == "medium"
        assert are_fast()
        with fast_products(CPU):
            assert chosen() == "medium"
        assert chosen() == "medium"
    assert chosen() == "highest"
    assert not are_fast()


def test_it_is_taken_back_after_an_error(better):
    with pytest.raises(ZeroDivisionError), fast_products(CPU):
        1 / 0  # noqa: B018
    assert chosen() == "highest"


def test_nothing_is_set_where_it_would_gain_nothing_or_lose_digits(worse):
    with fast_products(CPU):
        assert chosen() == "highest"
        assert not are_fast()


def test_nothing_is_set_for_a_gpu(better):
    with fast_products(GPU):
        assert chosen() == "highest"


def test_what_the_user_has_chosen_stays(better):
    torch.set_float32_matmul_precision("high")
    try:
        with fast_products(CPU), tensor_cores(GPU):
            assert chosen() == "high"
        assert chosen() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_choice_by_the_newer_settings_stays(better):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with fast_products(CPU):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
            assert not are_fast()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [(GPU, "bf16", "high"), (GPU, "fp32", "highest"), (CPU, "bf16", "highest")],
)
def test_prototypes_use_tensor_cores_with_bf16_alone(device, precision, expected):
    with loss_products(precision, device)():
        assert chosen() == expected
    assert chosen() == "highest"


def test_it_is_as_exact_here_as_it_was():
    """Whatever this machine takes: the products that a step has, against float64."""
    drawn = torch.Generator().manual_seed(1)
    for rows, inside, columns in ((1, 3, 5), (257, 384, 1536), (1000, 64, 33), (33, 4096, 7)):
        a = torch.randn(rows, inside, generator=drawn)
        b = torch.randn(inside, columns, generator=drawn)
        with fast_products(CPU):
            found = a @ b
        exact = a.double() @ b.double()
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_library_that_rounds_is_not_taken(monkeypatch):
    """As oneDNN does on processors with units for bfloat16."""
    monkeypatch.setattr(products, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    plain = products._as_exact_and_faster.__wrapped__
    drawn = torch.randn

    def rounded(*shape, generator):
        return drawn(*shape, generator=generator).bfloat16()  # its product has 8 digits

    monkeypatch.setattr(torch, "randn", rounded)
    assert plain() is False


def test_it_is_not_taken_where_the_address_space_ends(monkeypatch):
    monkeypatch.setattr(products, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "LEAST_DIGITS", 1.0)
    plain = products._as_exact_and_faster.__wrapped__
    for limit, expected in ((2.0**30, False), (float("inf"), True)):
        monkeypatch.setattr(products, "address_space_limit", lambda limit=limit: limit)
        assert plain() is expected


def test_the_maker_of_the_processor(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    assert products._vendor(info) == "AuthenticAMD"
    info.write_text("processor\t: 0\n")
    assert products._vendor(info) == ""
    assert products._vendor(tmp_path / "none") in ("", "AuthenticAMD")
