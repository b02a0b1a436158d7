"""Attention on a CPU in products of many heads at once, for processors where these are fast.

PyTorch's attention for CPUs goes through blocks of one head by itself. With oneDNN's products (see
machine/products.py) it is faster to multiply many heads at once, as long as their logits stay in
the cache. Logits are computed again in the backward, so that none are kept.

B: rows, H: heads, T: tokens, C: features of a head, G: heads of some rows that are done at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dino_x.machine.products import are_fast

LOGIT_BYTES = 4 * 2**20  # of the heads that are done at once; with 1 or 8 MiB it is slower


def attention(q_BHTC: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, scaling: float) -> Tensor:
    """``softmax(scaling q k') v``, [B, H, T, C], as PyTorch's ``scaled_dot_product_attention``."""
    if torch.compiler.is_compiling() or not many_heads_are_faster(q_BHTC):
        return functional.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, scale=scaling)
    return ManyHeads.apply(q_BHTC, k_BHTC, v_BHTC, scaling)


def many_heads_are_faster(tokens: Tensor) -> bool:
    """Whether many heads at once are faster than PyTorch's attention."""
    short = tokens.dtype in (torch.float32, torch.bfloat16)
    return tokens.device.type == "cpu" and short and are_fast()


class ManyHeads(torch.autograd.Function):
    """Attention of many heads at once; logits and softmax are float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Averaged values; their memory is ordered [B, T, H, C], as the next product reads them."""
        ctx.save_for_backward(q, k, v)
        ctx.scaling = scaling
        out = token_major(q)
        for rows, weights_GTT in weights(q, k, scaling):
            averaged_GTC = torch.bmm(weights_GTT.to(v.dtype), heads(v[rows]))
            out[rows] = averaged_GTC.view(out[rows].shape)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of queries, keys and values.

        With weights p and the gradient g of what they average: d v = p' g, and for d p = g v' the
        gradient of the logits is p (d p - sum of p d p over a token's weights).
        """
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = token_major(q), token_major(k), token_major(v)
        for rows, weights_GTT in weights(q, k, ctx.scaling):
            g_GTC, shape = heads(gradients[0][rows]), d_q[rows].shape
            d_v[rows] = torch.bmm(weights_GTT.to(v.dtype).mT, g_GTC).view(shape)
            d_weights_GTT = torch.bmm(g_GTC, heads(v[rows]).mT).float()
            d_logits_GTT = torch._softmax_backward_data(
                d_weights_GTT, weights_GTT, -1, torch.float32
            ).to(q.dtype)
            d_q[rows] = torch.bmm(d_logits_GTT, heads(k[rows])).mul_(ctx.scaling).view(shape)
            d_k[rows] = torch.bmm(d_logits_GTT.mT, heads(q[rows])).mul_(ctx.scaling).view(shape)
        return d_q, d_k, d_v, None


def weights(q: Tensor, k: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """The softmax of the logits of some rows at a time, float32 [G, T, T], in one place for all."""
    rows, head_count, tokens, _ = q.shape
    at_once = max(1, LOGIT_BYTES // (4 * head_count * tokens**2))
    space = q.new_empty(min(at_once, rows) * head_count, tokens, tokens, dtype=torch.float32)
    for start in range(0, rows, at_once):
        some = slice(start, min(start + at_once, rows))
        q_GTC, k_GTC = heads(q[some]).float(), heads(k[some]).float()
        logits_GTT = space[: len(q_GTC)]
        torch.baddbmm(logits_GTT, q_GTC, k_GTC.mT, beta=0, alpha=scaling, out=logits_GTT)
        torch.softmax(logits_GTT, dim=-1, out=logits_GTT)
        yield some, logits_GTT


def heads(part: Tensor) -> Tensor:
    """[b, H, T, C] as [b * H, T, C]."""
    return part.reshape(-1, *part.shape[2:])


def token_major(like_BHTC: Tensor) -> Tensor:
    """An empty [B, H, T, C] whose memory is ordered [B, T, H, C]."""
    rows, head_count, tokens, features = like_BHTC.shape
    return like_BHTC.new_empty(rows, tokens, head_count, features).transpose(1, 2)
