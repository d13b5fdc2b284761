"""Language model bodies: from tokens to features that have seen no later token.

Both are built of Linear, Embedding and LayerNorm and of plain operations, so that they work under
`torch.func.vmap` (cohorts) and with Opacus' per-sample gradients as they are. `nn.GRU` does
neither, and is hardly faster on one thread: it trains on 118,000 tokens a second, and the loop
here on 112,000, in batches of 64 records of 64 tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

Memory = tuple[Tensor, ...]
"""What a reader keeps of the tokens it has read, each tensor with the samples as its first axis."""


class Reader(nn.Module, ABC):
    """A body that reads tokens in order, and can go on where it stopped."""

    @abstractmethod
    def read(self, tokens: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """Features [b, k, d] of the next tokens int64 [b, k], and the memory afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        """Features [b, L, d] of tokens int64 [b, 1, 1, L]."""
        return self.read(x.flatten(1))[0]


class Gru(Reader):
    """An embedding and one layer of gated recurrent units, starting from a state of zeros.

    Source: Cho et al. 2014, arXiv:1406.1078, in the form of `torch.nn.GRU`: the reset gate acts
    on the product with the recurrent weights.
    """

    def __init__(self, n_symbols: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_symbols, width)
        self.inputs = nn.Linear(width, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def read(self, tokens: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """As `Reader.read`; the memory is the state [b, hidden]."""
        from_inputs = self.inputs(self.embedding(tokens))
        zeros = from_inputs.new_zeros(len(tokens), self.recurrent.in_features)
        state = memory[0] if memory else zeros
        states = []
        for step in from_inputs.unbind(1):
            reset_in, update_in, new_in = step.chunk(3, dim=-1)
            reset, update, new = self.recurrent(state).chunk(3, dim=-1)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset) * new)
            state = torch.lerp(new, state, torch.sigmoid(update_in + update))
            states.append(state)
        return torch.stack(states, dim=1), (state,)


class Transformer(Reader):
    """Causal blocks on token and learned position embeddings, and a LayerNorm at the end.

    Source: Vaswani et al. 2017, arXiv:1706.03762, with the norms before each part (pre-norm, as
    in GPT-2), GELU, and no dropout.
    """

    def __init__(self, n_symbols: int, longest: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_symbols, width)
        self.positions = nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def read(self, tokens: Tensor, memory: Memory = ()) -> tuple[Tensor, Memory]:
        """As `Reader.read`, for `longest` tokens at most; the memory is each block's."""
        n_read = memory[0].shape[2] if memory else 0
        # One row of positions a sample: Opacus takes the first axis of any input for the samples.
        places = torch.arange(n_read, n_read + tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places.expand_as(tokens))
        kept = []
        for block, past in zip(self.blocks, memory or [None] * len(self.blocks), strict=True):
            x, joint = block(x, past)
            kept.append(joint)
        return self.norm(x), tuple(kept)


class Block(nn.Module):
    """Self-attention, then two dense layers, each added to what came in."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        """Args: causal: whether a token sees no later one."""
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.dense_norm = nn.LayerNorm(width)
        self.dense_in = nn.Linear(width, 4 * width)
        self.dense_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """[b, k, width] of [b, k, width], and the keys and values of all that was read.

        Shapes: `past`, of t tokens before these, [b, heads, t, 2 * width / heads], or None; what
        is returned has t + k.
        """
        joint = self.queries_keys_values(self.attention_norm(x))
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for part in joint.chunk(3, dim=-1)
        )
        seen = torch.cat([k, v], dim=-1)
        if past is not None:
            seen = torch.cat([past, seen], dim=-2)
        k, v = seen.chunk(2, dim=-1)
        # Spelled out: torch's fused attention has no rule for vmap on a CPU.
        fit = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            n_new, n_all = fit.shape[-2:]
            later = torch.ones(n_new, n_all, dtype=torch.bool, device=x.device)
            fit = fit.masked_fill(later.triu(n_all - n_new + 1), -math.inf)
        mixed = fit.softmax(dim=-1) @ v
        x = x + self.attention_out(mixed.transpose(-2, -3).flatten(-2))
        dense = nn.functional.gelu(self.dense_in(self.dense_norm(x)))
        return x + self.dense_out(dense), seen
