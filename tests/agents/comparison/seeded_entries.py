"""Entries of a comparison whose masks depend on the seed and on nothing else."""

from __future__ import annotations

import torch

from prunegym.agents.comparison.entries import Entry


def masks_of(seed, count=40, share=0.6):
    return torch.rand(count, 48, generator=torch.Generator().manual_seed(seed)) < share


def seeded(name="seeded", share=0.6, made=None):
    """An entry whose masks depend on the seed; `made` collects the seeds for which it was asked."""

    def make(model, _terms):
        if made is not None:
            made.append(model.seed)
        return masks_of(model.seed + int(1000 * share), share=share)

    return Entry(name, make, {"test": name, "share": share}, seeded=True)
