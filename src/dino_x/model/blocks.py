"""A transformer block that computes what is used, with the weights and names of transformers' own.

- A branch that stochastic depth drops is not computed, row by row; the rows are given, not drawn.
- The last block computes only the tokens that someone looks at: CLS, and the patches asked for.
- LayerScale and the factor of stochastic depth are multiplied into the branch's last matrix, and
  queries, keys and values are one product.

The result is that of the plain block to rounding. B: rows of a forward (crops), T: tokens of a row,
N: patches of a row, F: features, H: heads, C: features of a head, W: tokens looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_x.losses.transfer import there
from dino_x.model.attention import attention

Rope = tuple[Tensor, Tensor]  # cosines and sines of each patch's angles, [N, C] each


@dataclass(frozen=True)
class NeededTokens:
    """The tokens of the last block that are looked at: which, and where branches add to them.

    Attributes:
        tokens_W: places in [B * T].
        attention: of the tokens whose rows keep the attention branch, places in [kept rows * T] and
            in [W]; None if all rows keep it.
        mlp: of the tokens whose rows keep the MLP branch, places in [W]; None if all rows do.
    """

    tokens_W: Tensor
    attention: tuple[Tensor, Tensor] | None = None
    mlp: Tensor | None = None

    @classmethod
    def at(
        cls, tokens_W: np.ndarray, keep_2B: np.ndarray | None, tokens: int, device: torch.device
    ) -> "NeededTokens":
        """The tokens of a block that keeps the branches of some rows or all; ``tokens`` is T."""
        attention, mlp = None, None
        if keep_2B is not None:
            row_W, place_W = np.divmod(tokens_W, tokens)
            attention_B, mlp_B = keep_2B
            if not attention_B.all():
                target = np.flatnonzero(attention_B[row_W])
                kept_row_B = np.cumsum(attention_B) - 1
                source = kept_row_B[row_W[target]] * tokens + place_W[target]
                attention = there(source, device), there(target, device)
            if not mlp_B.all():
                mlp = there(np.flatnonzero(mlp_B[row_W]), device)
        return cls(there(tokens_W, device), attention, mlp)


class Block(nn.Module):
    """A block of a ViT; it takes the place of transformers' and keeps the names of its parameters.

    Called as transformers calls it, it does what transformers' block does without stochastic depth.

    Attributes:
        backend: of torch.compile, which makes the two branches; None compiles nothing.
    """

    backend: str | Callable[..., Any] | None = None

    norm1: nn.LayerNorm
    attention: Any
    layer_scale1: Any
    norm2: nn.LayerNorm
    mlp: Any
    layer_scale2: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, part in layer.named_children():
            self.add_module(name, part)
        heads = "num_heads" if hasattr(self.attention, "num_heads") else "num_attention_heads"
        self.heads: int = getattr(self.attention, heads)

    def forward(
        self,
        tokens_BTF: Tensor,
        attention_mask: None = None,
        position_embeddings: Rope | None = None,
        attention_rows: Tensor | None = None,
        mlp_rows: Tensor | None = None,
        factor: float = 1.0,
        looked: NeededTokens | None = None,
        **_: Any,
    ) -> Tensor:
        """Tokens after the block, [B, T, F]; [W, F] if only some of them are looked at.

        Args:
            tokens_BTF: before it.
            attention_mask: none is known here.
            position_embeddings: RoPE, if the model has it; tokens before the patches have none.
            attention_rows, mlp_rows: the rows that keep each branch, rising; None if all do.
            factor: what a kept branch is multiplied by.
            looked: the tokens that are looked at; None if all are.
        """
        rope = position_embeddings
        if looked is not None:
            tokens_WF = self.add_attention_at(tokens_BTF, rope, attention_rows, factor, looked)
            return self.add_mlp(tokens_WF, looked.mlp, factor)
        after = self.add_attention(tokens_BTF, rope, attention_rows, factor)
        return self.add_mlp(after, mlp_rows, factor)

    def add_attention(
        self, tokens_BTF: Tensor, rope: Rope | None, rows: Tensor | None, factor: float
    ) -> Tensor:
        """Tokens after the attention branch, which some rows keep, or all if None."""
        if rows is None:
            return self.run(attention_to_all, tokens_BTF, rope, factor)
        if len(rows) == 0:
            return tokens_BTF
        return self.run(attention_to_rows, tokens_BTF, rows, rope, factor)

    def add_mlp(self, tokens: Tensor, rows: Tensor | None, factor: float) -> Tensor:
        """Tokens, [B, T, F] or [W, F], after the MLP branch, which some rows keep, or all."""
        if rows is None:
            return self.run(mlp_to_all, tokens, factor)
        if len(rows) == 0:
            return tokens
        return self.run(mlp_to_rows, tokens, rows, factor)

    def run(self, branch: Callable[..., Tensor], tokens: Tensor, *arguments: Any) -> Tensor:
        """One of the branches below, compiled or not.

        One row alone is not compiled: PyTorch would make code of its own for it.
        """
        rows = arguments[0] if isinstance(arguments[0], Tensor) else tokens
        if self.backend is None or min(len(tokens), len(rows)) < 2:
            return branch(self, tokens, *arguments)
        return compiled(branch, self.backend)(self, tokens, *arguments)

    def add_attention_at(
        self,
        tokens_BTF: Tensor,
        rope: Rope | None,
        rows: Tensor | None,
        factor: float,
        looked: NeededTokens,
    ) -> Tensor:
        """The tokens looked at, [W, F], after the attention branch: all attend, some are made."""
        tokens_WF = tokens_BTF.flatten(0, 1).index_select(0, looked.tokens_W)
        if rows is None or looked.attention is None:
            attended = self.attended(tokens_BTF, rope).flatten(0, 1)
            return tokens_WF + self.projected(attended.index_select(0, looked.tokens_W), factor)
        if len(rows) == 0:
            return tokens_WF
        attended = self.attended(tokens_BTF.index_select(0, rows), rope).flatten(0, 1)
        source, target = looked.attention
        added = self.projected(attended.index_select(0, source), factor)
        return AddRows.apply(tokens_WF, target, added)

    def attended(self, tokens_BTF: Tensor, rope: Rope | None) -> Tensor:
        """Values averaged by attention, [B, T, F], before the output projection."""
        tokens_BTF = self.norm1(tokens_BTF)
        layers = [self.attention.q_proj, self.attention.k_proj, self.attention.v_proj]
        weight = torch.cat([layer.weight for layer in layers])
        qkv = functional.linear(tokens_BTF, weight, joined_bias([layer.bias for layer in layers]))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, T, H, C] each
        if rope is not None:
            q, k = Rotate.apply(q, *rope), Rotate.apply(k, *rope)
        averaged = attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.attention.scaling
        )
        return averaged.transpose(1, 2).flatten(2)

    def projected(self, attended: Tensor, factor: float) -> Tensor:
        """The attention branch from what ``attended`` gives."""
        return scaled(self.attention.o_proj, self.layer_scale1, factor, attended)

    def mlp_branch(self, tokens: Tensor, factor: float) -> Tensor:
        """The MLP branch, gated or not."""
        tokens, mlp = self.norm2(tokens), self.mlp
        if hasattr(mlp, "gate_proj"):
            expanded = mlp.act_fn(mlp.gate_proj(tokens)) * mlp.up_proj(tokens)
        elif hasattr(mlp, "up_proj"):
            expanded = mlp.act_fn(mlp.up_proj(tokens))
        else:
            expanded = mlp.activation_fn(mlp.fc1(tokens))
        last = mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2
        return scaled(last, self.layer_scale2, factor, expanded)


def joined_bias(biases: list[Tensor | None]) -> Tensor | None:
    """One bias from those of several layers; zeros for a layer without, None if none has one."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    zeros = torch.zeros_like(given[0])  # DINOv3 has no bias for keys
    return torch.cat([zeros if bias is None else bias for bias in biases])


@cache
def compiled(branch: Callable[..., Tensor], backend: Any) -> Callable[..., Tensor]:
    """A branch as torch.compile makes it, for any number of rows; all blocks share it.

    Each branch is a function of its own, and what decides between them is not compiled. PyTorch
    compiles a function 8 times at most, once for each case that it tells apart (with gradients or
    without, some rows or all, the kind of tokens), and then no longer, without a word.
    """
    made: Callable[..., Tensor] = torch.compile(branch, dynamic=True, backend=backend)
    return made


def attention_to_all(block: Block, tokens_BTF: Tensor, rope: Rope | None, factor: float) -> Tensor:
    """Tokens with the attention branch added to all rows."""
    return tokens_BTF + block.projected(block.attended(tokens_BTF, rope), factor)


def attention_to_rows(
    block: Block, tokens_BTF: Tensor, rows: Tensor, rope: Rope | None, factor: float
) -> Tensor:
    """Tokens with the attention branch added to some rows, which attend to themselves alone."""
    attended = block.attended(tokens_BTF.index_select(0, rows), rope)
    return AddRows.apply(tokens_BTF, rows, block.projected(attended, factor))


def mlp_to_all(block: Block, tokens: Tensor, factor: float) -> Tensor:
    """Tokens with the MLP branch added to all rows."""
    return tokens + block.mlp_branch(tokens, factor)


def mlp_to_rows(block: Block, tokens: Tensor, rows: Tensor, factor: float) -> Tensor:
    """Tokens with the MLP branch added to some rows."""
    return AddRows.apply(tokens, rows, block.mlp_branch(tokens.index_select(0, rows), factor))


def scaled(linear: Any, layer_scale: Any, factor: float, tokens: Tensor) -> Tensor:
    """``factor * layer_scale(linear(tokens))`` with the scales in the matrix, not on each token."""
    scale_F = layer_scale.lambda1 * factor
    bias = None if linear.bias is None else linear.bias * scale_F
    return functional.linear(tokens, linear.weight * scale_F[:, None], bias)


class AddRows(torch.autograd.Function):
    """``tokens.index_add(0, rows, added)``, which does not keep what is added for the backward."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor, added: Tensor) -> Tensor:
        """Tokens with something added to some rows, each once."""
        ctx.save_for_backward(rows)
        ctx.dtype = added.dtype
        return tokens.index_add(0, rows, added.to(tokens.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        """The gradient for all tokens, and of the rows for what was added."""
        (rows,) = ctx.saved_tensors
        return gradients[0], None, gradients[0].index_select(0, rows).to(ctx.dtype)


class Rotate(torch.autograd.Function):
    """RoPE of the patch tokens, the last N of [B, T, H, C]; the gradient is rotated back.

    Source: Su et al. 2021, section 3.2; halves are paired as in DINOv3.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BTHC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
        """Rotated tokens."""
        ctx.save_for_backward(cos_NC, sin_NC)
        return rotated(tokens_BTHC, cos_NC, sin_NC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, rotated back."""
        cos_NC, sin_NC = ctx.saved_tensors
        return rotated(gradients[0], cos_NC, -sin_NC), None, None


def rotated(tokens_BTHC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """Each pair (c, c + C / 2) of a patch's features turned by its angle."""
    half = cos_NC.shape[1] // 2  # the angles of both halves are the same
    cos, sin = cos_NC[:, None, :half], sin_NC[:, None, :half]
    out = torch.empty_like(tokens_BTHC)
    before = tokens_BTHC.shape[1] - len(cos_NC)
    out[:, :before] = tokens_BTHC[:, :before]
    first, second = tokens_BTHC[:, before:].chunk(2, dim=-1)
    out_first, out_second = out[:, before:].chunk(2, dim=-1)
    out_first.copy_(first * cos).addcmul_(second, sin, value=-1)
    out_second.copy_(second * cos).addcmul_(first, sin)
    return out
