"""Multiply-accumulates of matrix products in every layout, against formulas by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.models.masking.cost import counting
from prunegym.models.masking.masked_cnn import MaskedCNN


def z(*sizes: int) -> Tensor:
    return torch.zeros(sizes)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


TOKENS = 2 * 7
# Each: what runs, and by hand (rows) x (inner) x (columns) of each product.
PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "lstm": (
        lambda: nn.LSTM(32, 16, 2, bidirectional=True)(z(7, 2, 32)),
        TOKENS * 2 * (4 * 16 * (32 + 16) + 4 * 16 * (32 + 16)),
    ),
    "lstm with a projection": (lambda: nn.LSTM(32, 16, proj_size=5)(z(7, 2, 32)), TOKENS * (64 * (32 + 5) + 16 * 5)),
    "gru": (lambda: nn.GRU(32, 16)(z(7, 2, 32)), TOKENS * 3 * 16 * (32 + 16)),
    "rnn": (lambda: nn.RNN(32, 16)(z(7, 2, 32)), TOKENS * 16 * (32 + 16)),
    "lstm cell": (lambda: nn.LSTMCell(32, 16)(z(2, 32)), 2 * 4 * 16 * (32 + 16)),
    "bilinear": (lambda: nn.Bilinear(32, 8, 5)(z(2, 7, 32), z(2, 7, 8)), TOKENS * 32 * 8 * 5),
    "bilinear of vectors": (lambda: nn.Bilinear(32, 8, 5)(z(32), z(8)), 32 * 8 * 5),
    "matrix by vector": (lambda: z(4, 6) @ z(6), 4 * 6),
    "vector by matrix": (lambda: z(6) @ z(6, 4), 4 * 6),
    "vectors": (lambda: z(6) @ z(6), 6),
    "matrices by vector": (lambda: z(3, 4, 6) @ z(6), 3 * 4 * 6),
    "linear of a vector": (lambda: nn.Linear(6, 4)(z(6)), 4 * 6),
    "addmv": (lambda: torch.addmv(z(4), z(4, 6), z(6)), 4 * 6),
    "addbmm": (lambda: torch.addbmm(z(4, 5), z(3, 4, 6), z(3, 6, 5)), 3 * 4 * 6 * 5),
    "baddbmm": (lambda: torch.baddbmm(z(3, 4, 5), z(3, 4, 6), z(3, 6, 5)), 3 * 4 * 6 * 5),
    "inner": (lambda: torch.inner(z(3, 6), z(4, 6)), 3 * 6 * 4),
    "einsum": (lambda: torch.einsum("nchw,nc->nhw", z(2, 6, 5, 5), z(2, 6)), 2 * 6 * 25),
    "convolution of a sequence": (lambda: torch.conv_tbc(z(7, 2, 3), z(3, 3, 5), z(5)), (7 - 2) * 2 * 3 * 3 * 5),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2)(z(1, 4, 5, 5)), 25 * 4 * 3 * 9),
    "attention": (
        lambda: F.scaled_dot_product_attention(z(1, 4, 9, 8), z(1, 4, 5, 8), z(1, 4, 5, 6)),
        4 * 9 * 5 * (8 + 6),
    ),
    "causal": (
        lambda: F.scaled_dot_product_attention(z(1, 4, 9, 8), z(1, 4, 9, 8), z(1, 4, 9, 8), is_causal=True),
        2 * 4 * 9 * 9 * 8,
    ),
    "other widths": (
        lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=8).eval()(z(7, 2, 32), z(5, 2, 16), z(5, 2, 8)),
        2 * (7 * 32 * 32 * 2 + 5 * 16 * 32 + 5 * 8 * 32 + 2 * 7 * 5 * 32),
    ),
    "encoder": (lambda: encoder().eval()(z(2, 7, 32)), 2 * 2 * (7 * 4 * 32 * 32 + 2 * 49 * 32 + 2 * 7 * 32 * 64)),
    "encoder in training": (lambda: encoder()(z(2, 7, 32)), 2 * 2 * (7 * 4 * 32 * 32 + 2 * 49 * 32 + 2 * 7 * 32 * 64)),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(32, 4, 64, batch_first=True).eval()(z(2, 7, 32), z(2, 7, 32)),
        2 * (7 * 8 * 32 * 32 + 4 * 49 * 32 + 2 * 7 * 32 * 64),
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_counts(name: str) -> None:
    run, macs = PRODUCTS[name]
    with counting() as counter, torch.no_grad():
        run()
    assert counter.get_total_flops() == 2 * macs


def test_counting_leaves_torch_as_it_was() -> None:
    fast, flash = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(ZeroDivisionError), counting():
        1 // 0  # noqa: B018
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (fast, flash)


class Tokens(nn.Module):
    """Two convolutions, then a step on 64 tokens of 8 channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.inner, self.linear = inner, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.b(torch.relu(self.a(x))).flatten(2).transpose(1, 2)
        return self.linear(self.inner(tokens)[0].mean(1))


def test_what_has_no_channels_is_in_the_cost_of_masks() -> None:
    cost = MaskedCNN(Tokens(nn.LSTM(8, 8, batch_first=True)), torch.zeros(1, 3, 8, 8)).cost
    recurrent = 64 * 4 * 8 * (8 + 8)
    assert cost.total_macs == 64 * 27 * 4 + 64 * 36 * 8 + recurrent + 8 * 5
    assert cost.fixed_macs == recurrent + 8 * 5
