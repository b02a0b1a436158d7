"""Attention of many heads at once equals the plain formula, forward and backward."""

import pytest
import torch

from dino_x.machine import products
from dino_x.machine.products import fast_products
from dino_x.model import attention as room
from dino_x.model.attention import ManyHeads, attention

SHAPES = [(1, 1, 1, 1), (3, 2, 5, 7), (70, 6, 17, 8), (5, 3, 50, 64), (3, 2, 257, 16)]


def plain(q, k, v, scaling):
    return ((q @ k.mT) * scaling).softmax(dim=-1) @ v


def drawn(rows, heads, tokens, features, dtype=torch.float32):
    """Queries, keys and values as a block has them: views of one product; and a gradient."""
    generator = torch.Generator().manual_seed(rows)
    qkv = torch.randn(rows, tokens, 3, heads, features, generator=generator).to(dtype)
    upstream = torch.randn(rows, heads, tokens, features, generator=generator).to(dtype)
    return qkv.requires_grad_(), upstream


def with_gradient(how, qkv, upstream, scaling=0.3):
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    out = how(q, k, v, scaling)
    (gradient,) = torch.autograd.grad(out, qkv, upstream)
    return out, gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("logit_bytes", [1, 10_000, 2**22])
def test_it_equals_the_formula(shape, logit_bytes, monkeypatch):
    monkeypatch.setattr(room, "LOGIT_BYTES", logit_bytes)
    qkv, upstream = drawn(*shape)
    exact = with_gradient(plain, qkv.detach().double().requires_grad_(), upstream.double())
    for found, expected in zip(with_gradient(ManyHeads.apply, qkv, upstream), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_no_further_from_it_than_pytorchs(shape):
    qkv, upstream = drawn(*shape, torch.bfloat16)
    exact = with_gradient(plain, qkv.detach().double().requires_grad_(), upstream.double())

    def theirs(q, k, v, scaling):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)

    both = (with_gradient(how, qkv, upstream) for how in (ManyHeads.apply, theirs))
    for ours, other, expected in zip(*both, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        least = 1e-3 * expected.abs().max()  # of a single number, both round as they like
        assert (ours - expected).norm() <= 1.5 * (other - expected).norm() + least


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_used_where_it_is_faster(better, dtype, monkeypatch):
    monkeypatch.setattr(products, "_as_exact_and_faster", lambda: better)
    qkv, _ = drawn(2, 2, 5, 8, dtype)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    with fast_products(torch.device("cpu")):
        out = attention(q, k, v, 0.3)
    name = type(out.grad_fn).__name__
    assert ("ManyHeads" in name) == (better and dtype != torch.float64)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out, plain(q, k, v, 0.3), rtol=tolerance, atol=tolerance)
