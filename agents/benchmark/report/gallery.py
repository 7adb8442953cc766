"""Images of a report: what a network says with all channels on and under its mask, from cheap to expensive."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from prunegym.agents.benchmark.records import Record
from prunegym.agents.benchmark.validation.reopening import open_cell, saved_agent
from prunegym.html import png
from prunegym.models.dynamic_cnn import DynamicCNN
from prunegym.models.tasks.answers import target_text

IMAGES = 24


@torch.inference_mode()
def gallery(record: Record, images: int = IMAGES) -> dict[str, Any] | None:
    """Return images at equal steps of the MACs that a run spends on them, as plain JSON.

    Args:
        record: A result that has its masks.
        images: Number of images.

    Returns:
        The names and widths of the gates, and for each image a PNG as a data URL, its label, the predictions with all
        channels on and under its mask, its total MAC share, and the mask of each gate as a text of 0 and 1. None if the
        result has no masks, or its images have no classes.
    """
    result = record.result
    if result.masks is None:
        return None
    model, agent = open_cell(record), saved_agent(record)
    if isinstance(agent, DynamicCNN):  # its CNN may be another than the task's, one that was tuned
        model = dataclasses.replace(model, masked=agent.masked, info=agent.info)
    dataset, masked = model.info.adapt(model.data["evaluated"]), model.masked
    if dataset.objective.kind != "classes" or masked.mask_size != result.masks.shape[1]:
        return None
    order = result.total_mac_shares.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(images, len(order))).round().long()]
    inputs, masks = dataset.batch(chosen), result.masks[chosen]
    masked.eval()
    answers = masked(inputs).argmax(1).tolist(), masked(inputs, masks.float()).argmax(1).tolist()
    pixels = dataset.normalisation.as_bytes(dataset.images[chosen])
    shown = []
    for row, place in enumerate(chosen.tolist()):
        label = dataset.labels[place]
        shown.append(
            {
                "image": png(pixels[row]),
                "label": None if dataset.unlabelled else target_text("classes", label, dataset.classes),
                "dense": dataset.classes[answers[0][row]],
                "masked": dataset.classes[answers[1][row]],
                "right": bool(result.correct[place]),
                "macs": float(result.total_mac_shares[place]),
                "mask": ["".join(map(str, part.int().tolist())) for part in masked.split(masks[row])],
            }
        )
    gates = [[gate.name, gate.width] for gate in masked.gates]
    return {**record.where._asdict(), "agent": record.agent, "seed": record.seed, "gates": gates, "images": shown}
