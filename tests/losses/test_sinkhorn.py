"""The bias of Sinkhorn-Knopp against the published algorithm, which scales a matrix in place."""

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dino_x.losses import memory, sinkhorn_bias, sinkhorn_sweeps

SHAPES = [(1, 1, 1), (1, 7, 3), (5, 1, 2), (37, 101, 13), (252, 507, 123)]
PATHS = ["kept", "swept", "small tiles", "a prototype a tile", "reference"]


@pytest.fixture(params=PATHS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way in which the bias is computed."""
    tile_bytes = {"swept": memory.CPU_BYTES, "small tiles": 10_000, "a prototype a tile": 1}
    if request.param in tile_bytes:
        monkeypatch.setattr(sinkhorn_sweeps, "KEEP_FACTOR", 0)
        monkeypatch.setattr(memory, "CPU_BYTES", tile_bytes[request.param])
    return "reference" if request.param == "reference" else "streaming"


def random_problem(
    rows: int, prototypes: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + prototypes + dim)
    rows_ND = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    prototypes_KD = torch.randn(prototypes, dim, generator=generator, dtype=torch.float64)
    return functional.normalize(rows_ND, dim=1).to(dtype), prototypes_KD.to(dtype)


def published_targets(
    rows_ND: Tensor, prototypes_KD: Tensor, temperature: float, iterations: int
) -> Tensor:
    """Caron et al. 2020, appendix A: exponentials, then rows and columns scaled in turn."""
    scores_NK = rows_ND.double() @ prototypes_KD.double().T
    matrix_KN = (scores_NK / temperature).exp().T
    matrix_KN /= matrix_KN.sum()
    prototypes, rows = matrix_KN.shape
    for _ in range(iterations):
        matrix_KN /= matrix_KN.sum(dim=1, keepdim=True) * prototypes
        matrix_KN /= matrix_KN.sum(dim=0, keepdim=True) * rows
    return (matrix_KN * rows).T


def relaxed_targets(
    rows_ND: Tensor, prototypes_KD: Tensor, temperature: float, iterations: int, relaxation: float
) -> Tensor:
    """Chizat et al. 2018: the prototypes' scaling to the power of 1 - relaxation."""
    kernel_NK = (rows_ND.double() @ prototypes_KD.double().T / temperature).exp()
    row_scale_N = torch.ones(len(kernel_NK), dtype=torch.float64)
    for _ in range(iterations):
        column_scale_K = (1 / (row_scale_N @ kernel_NK)) ** (1 - relaxation)
        row_scale_N = 1 / (kernel_NK @ column_scale_K)
    return row_scale_N[:, None] * kernel_NK * column_scale_K


def targets(rows_ND: Tensor, prototypes_KD: Tensor, temperature: float, bias_K: Tensor) -> Tensor:
    scores_NK = rows_ND.double() @ prototypes_KD.double().T
    return (scores_NK / temperature + bias_K).softmax(dim=1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)],
)
@pytest.mark.parametrize(("rows", "prototypes", "dim"), SHAPES)
def test_targets_are_those_of_the_published_algorithm(
    implementation: str,
    rows: int,
    prototypes: int,
    dim: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    rows_ND, prototypes_KD = random_problem(rows, prototypes, dim, dtype)
    bias_K = sinkhorn_bias(rows_ND, prototypes_KD, 1.0, implementation=implementation)
    assert bias_K.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected_NK = published_targets(rows_ND, prototypes_KD, 1.0, 3)
    found_NK = targets(rows_ND, prototypes_KD, 1.0, bias_K)
    torch.testing.assert_close(found_NK, expected_NK, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_every_number_of_iterations_is_that_of_the_published_algorithm(
    implementation: str, iterations: int
) -> None:
    rows_ND, prototypes_KD = random_problem(20, 33, 8, torch.float64)
    bias_K = sinkhorn_bias(rows_ND, prototypes_KD, 0.3, iterations, implementation=implementation)
    expected_NK = published_targets(rows_ND, prototypes_KD, 0.3, iterations)
    found_NK = targets(rows_ND, prototypes_KD, 0.3, bias_K)
    torch.testing.assert_close(found_NK, expected_NK, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("relaxation", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("rows", "prototypes", "dim"), SHAPES)
def test_relaxed_targets_are_those_of_unbalanced_transport(
    implementation: str,
    rows: int,
    prototypes: int,
    dim: int,
    dtype: torch.dtype,
    tolerance: float,
    relaxation: float,
) -> None:
    rows_ND, prototypes_KD = random_problem(rows, prototypes, dim, dtype)
    bias_K = sinkhorn_bias(
        rows_ND, prototypes_KD, 0.7, relaxation=relaxation, implementation=implementation
    )
    expected_NK = relaxed_targets(rows_ND, prototypes_KD, 0.7, 3, relaxation)
    found_NK = targets(rows_ND, prototypes_KD, 0.7, bias_K)
    torch.testing.assert_close(found_NK, expected_NK, rtol=tolerance, atol=0.0)


def test_relaxation_goes_from_sinkhorn_to_plain_softmax(implementation: str) -> None:
    rows_ND, prototypes_KD = random_problem(37, 101, 13, torch.float64)
    exact_K, *between, softmax_K = (
        sinkhorn_bias(
            rows_ND, prototypes_KD, 0.3, relaxation=relaxation, implementation=implementation
        )
        for relaxation in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    default_K = sinkhorn_bias(rows_ND, prototypes_KD, 0.3, implementation=implementation)
    assert torch.equal(exact_K, default_K)
    assert not softmax_K.any()
    unevenness = [
        float(targets(rows_ND, prototypes_KD, 0.3, bias_K).sum(dim=0).std())
        for bias_K in (exact_K, *between, softmax_K)
    ]
    assert unevenness == sorted(unevenness)


@pytest.mark.parametrize("relaxation", [0.0, 0.3])
@pytest.mark.parametrize("largest", [40.0, 150.0, 1_000.0])
@pytest.mark.parametrize(("rows", "prototypes"), [(9, 14), (30, 8)])  # 30: some are nowhere largest
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_of_a_thousand_give_the_bias_of_exact_arithmetic(
    implementation: str,
    rows: int,
    prototypes: int,
    largest: float,
    dtype: torch.dtype,
    tolerance: float,
    relaxation: float,
) -> None:
    rows_ND, prototypes_KD = random_problem(rows, prototypes, 4, dtype)
    scores_NK = rows_ND.double() @ prototypes_KD.double().T
    temperature = float(scores_NK.abs().max()) / largest
    bias_K = sinkhorn_bias(
        rows_ND, prototypes_KD, temperature, relaxation=relaxation, implementation=implementation
    )

    with mpmath.workdps(60):  # the exponentials of a thousand fit in these numbers
        kernel = [
            [mpmath.exp(mpmath.mpf(x) / temperature) for x in row] for row in scores_NK.tolist()
        ]
        row_scales = [mpmath.mpf(1)] * len(kernel)
        for _ in range(3):
            column_scales = [
                mpmath.fdot(row_scales, column) ** (relaxation - 1)
                for column in zip(*kernel, strict=True)
            ]
            row_scales = [1 / mpmath.fdot(column_scales, row) for row in kernel]
        expected_K = torch.tensor(
            [float(mpmath.log(c)) for c in column_scales], dtype=torch.float64
        )
    error = (bias_K.double() - expected_K).abs().max() / expected_K.abs().max()
    assert float(error) < tolerance


def test_kept_logits_hand_over_to_sweeps_before_digits_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    sweep = sinkhorn_sweeps._sweep
    monkeypatch.setattr(sinkhorn_sweeps, "_sweep", lambda *args: calls.append(1) or sweep(*args))
    rows_ND, prototypes_KD = random_problem(20, 33, 8, torch.float32)
    sinkhorn_bias(rows_ND, prototypes_KD, 0.1)
    assert calls == []
    sinkhorn_bias(rows_ND, prototypes_KD, 0.001)
    assert len(calls) == 3


def test_queued_rows_count_as_rows_of_the_batch(implementation: str) -> None:
    rows_ND, prototypes_KD = random_problem(30, 21, 5, torch.float64)
    together_K = sinkhorn_bias(rows_ND, prototypes_KD, 0.2, implementation=implementation)
    queued_K = sinkhorn_bias(
        rows_ND[:12],
        prototypes_KD,
        0.2,
        extra_bottlenecks_QD=rows_ND[12:],
        implementation=implementation,
    )
    batch_K = sinkhorn_bias(rows_ND[:12], prototypes_KD, 0.2, implementation=implementation)
    torch.testing.assert_close(queued_K, together_K, rtol=1e-12, atol=0.0)
    assert not torch.allclose(queued_K, batch_K, rtol=1e-3)
    empty_queue_K = sinkhorn_bias(
        rows_ND[:12],
        prototypes_KD,
        0.2,
        extra_bottlenecks_QD=rows_ND[:0],
        implementation=implementation,
    )
    torch.testing.assert_close(empty_queue_K, batch_K, rtol=0.0, atol=0.0)


def test_same_input_gives_the_same_bits_without_a_gradient(implementation: str) -> None:
    rows_ND, prototypes_KD = random_problem(40, 50, 6, torch.float32)
    first, second = (
        sinkhorn_bias(rows_ND.requires_grad_(), prototypes_KD, 0.1, implementation=implementation)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_autocast_and_compiled_callers_change_nothing(implementation: str) -> None:
    rows_ND, prototypes_KD = random_problem(40, 50, 6, torch.float32)

    def call(rows: Tensor) -> Tensor:
        return sinkhorn_bias(rows * 1, prototypes_KD, 0.1, implementation=implementation) + 0

    plain_K = call(rows_ND)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(rows_ND), plain_K)
    assert torch.equal(torch.compile(call, backend="aot_eager")(rows_ND), plain_K)


NAN_ROWS = torch.tensor([[1.0, 0.0], [0.0, torch.nan]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottlenecks_ND": torch.ones(0, 2)}, r"bottlenecks_ND has shape \(0, 2\)"),
        ({"bottlenecks_ND": torch.ones(4)}, r"bottlenecks_ND is .* of shape \(4,\); expected a"),
        ({"bottlenecks_ND": torch.ones(4, 3)}, "bottlenecks_ND has 3 columns; expected 2"),
        ({"bottlenecks_ND": NAN_ROWS}, "bottlenecks_ND is not finite at 1 of 2 .* 1; expected"),
        ({"extra_bottlenecks_QD": torch.ones(4, 3)}, "extra_bottlenecks_QD has 3 columns"),
        ({"extra_bottlenecks_QD": NAN_ROWS / 0}, "extra_bottlenecks_QD is not finite at 2 of 2"),
        ({"prototypes_KD": torch.ones(0, 2)}, r"prototypes_KD has shape \(0, 2\)"),
        ({"prototypes_KD": torch.ones(3, 2).long()}, "prototypes_KD is torch.int64"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"iterations": 0}, "iterations is 0; expected 1 or more"),
        ({"relaxation": 1.5}, "relaxation is 1.5; expected 0 to 1"),
        ({"relaxation": float("nan")}, "relaxation is nan; expected 0 to 1"),
        ({"implementation": "fast"}, "implementation is 'fast'; expected one of 'streaming'"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict, message: str) -> None:
    arguments = {
        "bottlenecks_ND": torch.ones(4, 2),
        "prototypes_KD": torch.ones(3, 2),
        "temperature": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        sinkhorn_bias(**(arguments | changes))
