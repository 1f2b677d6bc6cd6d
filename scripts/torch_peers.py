"""What PyTorch users write for the same mathematics: the peers that measure_peers.py times, and the float64 forms that both
sides are checked against."""

from __future__ import annotations

import math
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA_BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
}


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """x (B, n, d), places (B, k) -> (B, k, d)"""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def halve(x: Tensor, scores: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """One round (arXiv 2010.15552): rank i meets rank N-1-i, and the pair is mixed by the softmax of base^score."""
    ranked, order = scores.sort(dim=1, descending=True)
    half = scores.shape[1] // 2
    high, low = ranked[:, :half], ranked[:, half:].flip(1)
    share = torch.sigmoid(base**high - base**low)
    column = share.unsqueeze(2).to(x.dtype)
    mixed = column * rows_at(x, order[:, :half]) + (1 - column) * rows_at(x, order[:, half:].flip(1))
    return mixed, share * high + (1 - share) * low


def vectorised(x: Tensor, scores: Tensor, k: int, base: float = 20.0) -> Tensor:
    """Successive Halving, all batch rows at once; n must be k times a power of two. Rows come by falling rank."""
    while scores.shape[1] > k:
        x, scores = halve(x, scores, base)
    return x


def per_row_loop(x: Tensor, scores: Tensor, k: int, base: float = 20.0) -> Tensor:
    """The same as its authors wrote it: one batch row after the other."""
    return torch.cat([vectorised(x[b : b + 1], scores[b : b + 1], k, base) for b in range(x.shape[0])])


def topk_gather(x: Tensor, scores: Tensor, k: int) -> Tensor:
    return rows_at(x, scores.topk(k, dim=1).indices)


def halves_evenly(n: int, k: int) -> bool:
    return n % k == 0 and math.log2(n // k).is_integer()


def successive_halving_form(x: Tensor, scores: Tensor, k: int, base: float, keep_order: bool) -> Tensor:
    """Successive Halving for any n and k, in the dtype of its inputs: padded with rows that weigh nothing."""
    batch, n, width = x.shape
    padded = k << max(0, math.ceil(math.log2(n / k)))
    x = torch.cat([x, x.new_zeros(batch, padded - n, width)], 1)
    scores = torch.cat([scores, scores.new_full((batch, padded - n), -math.inf)], 1)
    places = torch.arange(padded, device=x.device).expand(batch, -1)
    while scores.shape[1] > k:
        order = scores.sort(dim=1, descending=True, stable=True).indices
        half = scores.shape[1] // 2
        winners, losers = order[:, :half], order[:, half:].flip(1)
        high, low = scores.gather(1, winners), scores.gather(1, losers)
        absent = low == -math.inf
        low = low.masked_fill(absent, 0)
        share = torch.sigmoid(base**high - base**low).masked_fill(absent, 1)
        x = share.unsqueeze(2) * rows_at(x, winners) + (1 - share).unsqueeze(2) * rows_at(x, losers)
        scores, places = share * high + (1 - share) * low, places.gather(1, winners)
        if keep_order:
            back = places.argsort(dim=1)
            x, scores, places = rows_at(x, back), scores.gather(1, back), places.gather(1, back)
    return x


def hard_topk_form(x: Tensor, scores: Tensor, k: int, keep_order: bool, gradient: str) -> Tensor:
    places = scores.topk(k, dim=1).indices
    if keep_order:
        places = places.sort(dim=1).values
    rows, gate = rows_at(x, places), scores.gather(1, places).unsqueeze(2)
    return {"none": rows, "gated": rows * gate, "straight_through": rows * (1 + gate - gate.detach())}[gradient]


def attention_form(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """Full attention, one head at a time: (n, n) matrices of all heads at once may not fit in float64."""

    def shares(h: int) -> Tensor:
        logits = q[:, h] @ k[:, h].transpose(1, 2) / math.sqrt(q.shape[3])
        return torch.softmax(logits if keys is None else logits.masked_fill(~keys[:, 0], -math.inf), 2)

    return torch.stack([shares(h) @ v[:, h] for h in range(q.shape[1])], 1)


def chunked(attention: Callable[..., Tensor], chunk: int, mask: Tensor | None = None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention within chunks, which become batch rows by a reshape: a view where q, k, v are views of (B, n, h, e). What is
    left of a length that the chunk does not divide is a call of its own. mask (B, 1, 1, n), for an n that it divides: keys
    that count; each chunk keeps its first one, since a row without keys is not a number."""

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, n, width = q.shape

        def split(t: Tensor) -> Tensor:
            return t.transpose(1, 2).reshape(batch * n // chunk, chunk, heads, width).transpose(1, 2)

        masks = []
        if mask is not None:
            keys = mask[:batch].reshape(batch * n // chunk, 1, 1, chunk)
            first = torch.zeros_like(keys)
            first[..., 0] = True
            masks = [keys | first]
        out = attention(split(q), split(k), split(v), *masks)
        return out.transpose(1, 2).reshape(batch, n, heads, width).transpose(1, 2)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        rest = n % chunk
        if rest == 0:
            return whole(q, k, v)
        tail = attention(*(t[:, :, n - rest :] for t in (q, k, v)))
        return tail if rest == n else torch.cat([whole(*(t[:, :, : n - rest] for t in (q, k, v))), tail], 2)

    return call


def sdpa(name: str) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
        with sdpa_kernel(SDPA_BACKENDS[name]):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)

    return call
