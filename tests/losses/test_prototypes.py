"""The loss over prototypes and its gradients against a materialised one in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dino_x.losses import (
    fused_cross_entropy,
    memory,
    prototype_cross_entropy,
    prototypes,
)

TEMPERATURES = {"student_temperature": 0.4, "teacher_temperature": 0.2}
SHAPES = [(1, 1, 1, 1), (1, 1, 7, 3), (5, 3, 1, 4), (37, 23, 101, 13), (90, 60, 507, 123)]


@dataclass
class Case:
    """Arguments of one call: random rows and prototypes; some pairs come twice, some rows never."""

    student_RD: Tensor
    student_KD: Tensor
    teacher_TD: Tensor
    teacher_KD: Tensor
    bias_K: Tensor
    pairs_P2: Tensor
    weights_P: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.student_RD,
            self.student_KD,
            self.teacher_TD,
            self.teacher_KD,
            self.bias_K,
            self.pairs_P2,
            self.weights_P,
        )


def random_case(
    students: int, teachers: int, prototypes: int, dim: int, dtype: torch.dtype = torch.float64
) -> Case:
    generator = torch.Generator().manual_seed(students + prototypes + dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pairs = 1 if students == 1 else 2 * students
    return Case(
        (normal(students, dim) / dim**0.5).requires_grad_(),
        normal(prototypes, dim).requires_grad_(),
        normal(teachers, dim) / dim**0.5,
        normal(prototypes, dim),
        normal(prototypes),
        torch.stack(
            [torch.randint(high, (pairs,), generator=generator) for high in (students, teachers)],
            dim=1,
        ),
        torch.rand(pairs, generator=generator, dtype=torch.float64).to(dtype),
    )


def oracle(
    case: Case, student_temperature: float, teacher_temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients as the definition says, one [P, K] matrix after the other."""
    student_RD = case.student_RD.detach().double().requires_grad_()
    student_KD = case.student_KD.detach().double().requires_grad_()
    student_P, teacher_P = case.pairs_P2.unbind(1)
    teacher_PK = (case.teacher_TD.double() @ case.teacher_KD.double().T)[teacher_P]
    target_PK = (teacher_PK / teacher_temperature + case.bias_K.double()).softmax(1)
    student_PK = (student_RD @ student_KD.T / student_temperature)[student_P]
    entropy_P = torch.nn.functional.cross_entropy(student_PK, target_PK, reduction="none")
    loss = case.weights_P.double() @ entropy_P
    return loss.detach(), *torch.autograd.grad(loss, (student_RD, student_KD))


@pytest.fixture(params=["one chunk", "small chunks", "two rows a chunk", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference, and the fused loss with memory for all rows, some rows, and two rows."""
    budgets = {"small chunks": 40_000, "two rows a chunk": 1}
    if request.param in budgets:
        monkeypatch.setattr(memory, "CPU_BYTES", budgets[request.param])
        monkeypatch.setattr(fused_cross_entropy, "LEAST_ROWS", 2)
    return "reference" if request.param == "reference" else "fused"


def relative_error(found: Tensor, expected: Tensor, floor: float = 1e-30) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(floor))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize(("students", "teachers", "prototypes", "dim"), SHAPES)
def test_loss_and_gradients_match_the_definition(
    implementation: str,
    students: int,
    teachers: int,
    prototypes: int,
    dim: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    case = random_case(students, teachers, prototypes, dim, dtype)
    loss = prototype_cross_entropy(*case.tensors(), **TEMPERATURES, implementation=implementation)
    (3 * loss).backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected_loss, expected_RD, expected_KD = oracle(case, **TEMPERATURES)
    # With one prototype everything is 0: compared with 1 then, not with itself.
    floor = 1.0 if prototypes == 1 else 1e-30
    assert relative_error(loss.detach(), expected_loss, floor) < min(tolerance, 1e-5)
    for tensor, expected in ((case.student_RD, expected_RD), (case.student_KD, expected_KD)):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
        assert relative_error(tensor.grad, 3 * expected, floor) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_logits_of_a_thousand_stay_exact(
    implementation: str, dtype: torch.dtype, tolerance: float
) -> None:
    # float32 holds a logit of 1,000 to 3e-5, which is then the error of its exponential.
    case = random_case(37, 23, 101, 13, dtype)
    largest = [
        float((rows @ prototypes.T).detach().abs().max()) / 1_000
        for rows, prototypes in (
            (case.student_RD, case.student_KD),
            (case.teacher_TD, case.teacher_KD),
        )
    ]
    loss = prototype_cross_entropy(
        *case.tensors(),
        student_temperature=largest[0],
        teacher_temperature=largest[1],
        implementation=implementation,
    )
    loss.backward()
    expected_loss, expected_RD, expected_KD = oracle(case, *largest)
    assert relative_error(loss.detach(), expected_loss) < tolerance
    assert relative_error(case.student_RD.grad, expected_RD) < tolerance
    assert relative_error(case.student_KD.grad, expected_KD) < tolerance


def test_one_float64_argument_makes_the_loss_float64(implementation: str) -> None:
    case = random_case(12, 12, 31, 5, torch.float32)
    case.bias_K = case.bias_K.double()
    loss = prototype_cross_entropy(*case.tensors(), **TEMPERATURES, implementation=implementation)
    loss.backward()
    expected_loss, expected_RD, _ = oracle(case, **TEMPERATURES)
    assert relative_error(loss.detach(), expected_loss) < 1e-12
    assert case.student_RD.grad is not None
    assert relative_error(case.student_RD.grad, expected_RD) < 1e-6


def test_weights_default_to_the_mean_over_pairs(implementation: str) -> None:
    case = random_case(12, 12, 31, 5)
    *arguments, weights_P = case.tensors()
    found = prototype_cross_entropy(*arguments, **TEMPERATURES, implementation=implementation)
    mean_P = torch.full_like(weights_P, 1 / 24)
    expected = prototype_cross_entropy(
        *arguments, mean_P, **TEMPERATURES, implementation=implementation
    )
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)


def test_micro_batches_add_up_to_the_gradient_of_the_whole(implementation: str) -> None:
    case = random_case(40, 40, 53, 8)
    half = len(case.pairs_P2) // 2
    *arguments, pairs_P2, weights_P = case.tensors()
    for part in (slice(0, half), slice(half, None)):
        prototype_cross_entropy(
            *arguments,
            pairs_P2[part],
            weights_P[part],
            **TEMPERATURES,
            implementation=implementation,
        ).backward()
    _, expected_RD, expected_KD = oracle(case, **TEMPERATURES)
    assert relative_error(case.student_RD.grad, expected_RD) < 1e-12
    assert relative_error(case.student_KD.grad, expected_KD) < 1e-12


def recorded_gradients(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the fused loss is asked to compute, from now on."""
    asked = []
    compute = fused_cross_entropy.loss_and_gradients

    def record(problem: object, gradients: fused_cross_entropy.Gradients) -> Tensor:
        asked.append((gradients.student_RD is not None, gradients.prototypes_KD is not None))
        return compute(problem, gradients)

    for module in (fused_cross_entropy, prototypes):
        monkeypatch.setattr(module, "loss_and_gradients", record)
    return asked


@pytest.mark.parametrize("frozen", ["student_RD", "student_KD"])
def test_frozen_input_costs_nothing_and_leaves_the_other_gradient(
    implementation: str, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recorded_gradients(monkeypatch)
    case = random_case(37, 23, 101, 13)
    getattr(case, frozen).requires_grad_(False)
    prototype_cross_entropy(
        *case.tensors(), **TEMPERATURES, implementation=implementation
    ).backward()
    _, expected_RD, expected_KD = oracle(case, **TEMPERATURES)
    if frozen == "student_KD":
        assert case.student_KD.grad is None
        assert relative_error(case.student_RD.grad, expected_RD) < 1e-10
    else:
        assert case.student_RD.grad is None
        assert relative_error(case.student_KD.grad, expected_KD) < 1e-10
    if implementation == "fused":
        assert asked == [(frozen != "student_RD", frozen != "student_KD")]


def test_without_gradients_only_the_loss_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recorded_gradients(monkeypatch)
    case = random_case(37, 23, 101, 13)
    with torch.no_grad():
        loss = prototype_cross_entropy(*case.tensors(), **TEMPERATURES)
    assert asked == [(False, False)]
    torch.testing.assert_close(loss, oracle(case, **TEMPERATURES)[0], rtol=1e-12, atol=0.0)


def test_teacher_bias_and_weights_get_no_gradient(implementation: str) -> None:
    case = random_case(12, 12, 31, 5)
    for tensor in (case.teacher_TD, case.teacher_KD, case.bias_K, case.weights_P):
        tensor.requires_grad_()
    prototype_cross_entropy(
        *case.tensors(), **TEMPERATURES, implementation=implementation
    ).backward()
    for tensor in (case.teacher_TD, case.teacher_KD, case.bias_K, case.weights_P):
        assert tensor.grad is None


def loss_and_gradients_of(case: Case, call: object = None, **options: object) -> list[Tensor]:
    case.student_RD.grad = case.student_KD.grad = None
    loss = (call or prototype_cross_entropy)(*case.tensors(), **TEMPERATURES, **options)
    loss.backward()
    return [loss.detach(), case.student_RD.grad, case.student_KD.grad]


def test_autocast_changes_nothing(implementation: str) -> None:
    case = random_case(37, 23, 101, 13, torch.float32)
    plain = loss_and_gradients_of(case, implementation=implementation)

    def call(*arguments: Tensor, **options: object) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return prototype_cross_entropy(*arguments, **options)

    cast = loss_and_gradients_of(case, call, implementation=implementation)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def test_autocast_bottlenecks_of_a_linear_layer_meet_full_precision_prototypes(
    implementation: str,
) -> None:
    case = random_case(12, 12, 31, 5, torch.float32)
    layer = torch.nn.Linear(5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        student_RD = layer(case.student_RD)
        assert student_RD.dtype == torch.bfloat16
        _, *others = case.tensors()
        loss = prototype_cross_entropy(
            student_RD, *others, **TEMPERATURES, implementation=implementation
        )
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
    assert float(layer.weight.grad.norm()) > 0


def test_compiled_caller_gives_the_same_bits(implementation: str) -> None:
    case = random_case(37, 23, 101, 13)

    def call(student_RD: Tensor, *others: Tensor, **options: object) -> Tensor:
        return 2 * prototype_cross_entropy(student_RD * 1, *others, **options)

    plain = loss_and_gradients_of(case, call, implementation=implementation)
    compiled = torch.compile(call, backend="aot_eager")
    found = loss_and_gradients_of(case, compiled, implementation=implementation)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_same_input_gives_the_same_bits(implementation: str) -> None:
    case = random_case(90, 60, 507, 123, torch.float32)
    first = loss_and_gradients_of(case, implementation=implementation)
    second = loss_and_gradients_of(case, implementation=implementation)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_training_gives_the_loss_curve_of_the_reference() -> None:
    curves = []
    for implementation in ("fused", "reference"):
        case = random_case(24, 12, 41, 6)
        optimizer = torch.optim.AdamW([case.student_RD, case.student_KD], lr=0.05)
        curve = []
        for _ in range(30):
            loss = prototype_cross_entropy(
                *case.tensors(), **TEMPERATURES, implementation=implementation
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    assert float(curves[0][-1]) < 0.8 * float(curves[0][0])
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-9, atol=0.0)


def test_fused_loss_says_that_it_is_differentiated_once() -> None:
    loss = prototype_cross_entropy(*random_case(5, 5, 7, 3).tensors(), **TEMPERATURES)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice; add the losses up"):
        loss.backward()


ROWS, PROTOTYPES = torch.ones(4, 2), torch.ones(3, 2)
NAN_ROWS = torch.tensor([[1.0, torch.inf]] * 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_bottlenecks_RD": ROWS[:0]}, r"student_bottlenecks_RD has shape \(0, 2\)"),
        (
            {"student_bottlenecks_RD": ROWS[:, :1]},
            "student_bottlenecks_RD has 1 columns; expected 2",
        ),
        ({"student_bottlenecks_RD": NAN_ROWS}, "student_bottlenecks_RD is not finite at 4 of 4"),
        ({"teacher_bottlenecks_TD": ROWS[:0]}, r"teacher_bottlenecks_TD has shape \(0, 2\)"),
        ({"teacher_bottlenecks_TD": NAN_ROWS}, "teacher_bottlenecks_TD is not finite at 4 of 4"),
        ({"student_prototypes_KD": PROTOTYPES[:0]}, r"student_prototypes_KD has shape \(0, 2\)"),
        ({"teacher_prototypes_KD": PROTOTYPES[:2]}, "teacher_prototypes_KD has 2 .* expected 3"),
        ({"bias_K": torch.zeros(4)}, r"bias_K has shape \(4,\); expected \(3,\)"),
        ({"bias_K": torch.tensor([0, torch.nan, 0])}, "bias_K is not finite at 1 of 3"),
        ({"pairs_P2": torch.tensor([[4, 0]])}, "pairs_P2 names student row 4; expected 0 to 3"),
        ({"pairs_P2": torch.tensor([[0, -1]])}, "pairs_P2 names teacher row -1; expected 0 to 3"),
        ({"pairs_P2": torch.ones(2, 2)}, "pairs_P2 is torch.float32 .* expected int64"),
        ({"pairs_P2": torch.ones(0, 2).long()}, "pairs_P2 has no rows"),
        ({"weights_P": torch.ones(2)}, r"weights_P has shape \(2,\); expected \(1,\)"),
        ({"student_temperature": -0.1}, "student_temperature is -0.1; expected a finite number"),
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0; expected a finite number"),
        ({"implementation": "quick"}, "implementation is 'quick'; expected one of 'fused'"),
    ],
)
def test_bad_input_is_refused_by_name_before_any_work(
    changes: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recorded_gradients(monkeypatch)
    arguments = {
        "student_bottlenecks_RD": ROWS,
        "student_prototypes_KD": PROTOTYPES,
        "teacher_bottlenecks_TD": ROWS,
        "teacher_prototypes_KD": PROTOTYPES,
        "bias_K": torch.zeros(3),
        "pairs_P2": torch.zeros(1, 2).long(),
    }
    with pytest.raises(ValueError, match=message):
        prototype_cross_entropy(**(arguments | TEMPERATURES | changes))
    assert asked == []
