"""``inspect``: what in a CNN can be masked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from prunegym.commands.options import AnyModel, Data, Machine, grouped
from prunegym.commands.output import Facts, Table, emit, percent, shares_on
from prunegym.errors import InvalidInputError

if TYPE_CHECKING:
    from prunegym.models.storage.model_file import Bundle


@grouped
def inspect(model: AnyModel, data: Data, machine: Machine) -> None:
    """Show a CNN's gates, what a channel of each costs, and which convolutions cannot be gates, with the reason."""
    from prunegym.models.catalog import open_model
    from prunegym.models.zoo.network_registry import ZOO

    machine.settle(data)
    if model not in ZOO and dataclasses.replace(data, data_root=None) != Data():
        option = "--dataset" if data.dataset is not None else "An option on images"
        raise InvalidInputError(
            f"{option} is for a network of the zoo, which is built for it; {model} has its images. Leave it out."
        )
    stored = open_model(model, data.dataset, **data.transform)
    document = describe(stored)
    caption = "price: MACs of an image that one channel less saves in the full network"
    rows = [[gate["name"], str(gate["width"]), f"{gate['price']:,}"] for gate in document["gates"]]
    tables: list[Table | Facts] = [
        Facts(model, _summary(document)),
        Table("Gates", ["gate", "channels", "price"], rows, caption),
    ]
    if document["without_constants"]:
        tables.append(Facts("Layers that no constant for masked channels reaches", document["without_constants"]))
    if document["rejected"]:
        tables.append(Facts("Convolutions that cannot be gates", document["rejected"]))
    emit(document, machine.as_json, *tables)


def describe(stored: Bundle) -> dict[str, Any]:
    """Return what is known of a model, plain JSON."""
    masked, policy, info = stored.masked, stored.policy, stored.info
    prices = masked.cost.channel_price().tolist()
    return {
        "architecture": info.architecture,
        "image_shape": list(info.image_shape),
        "classes": list(info.classes),
        "dataset": info.dataset,
        "data_path": info.data_path,
        "transform": None if info.transform is None else str(info.transform),
        "targets": info.objective.as_json(),
        "mask_size": masked.mask_size,
        "total_macs": masked.cost.total_macs,
        "fixed_macs": masked.cost.fixed_macs,
        "total_weights": masked.cost.total_weights,
        "policy": None if policy is None else type(policy).__name__,
        "policy_macs": None if policy is None else policy.macs,
        "compensation": masked.compensation,
        "without_constants": {f"{layer} of {gate}": why for (gate, layer), why in masked.without_constants.items()},
        "gates": [
            {"name": gate.name, "width": gate.width, "price": round(price)}
            for gate, price in zip(masked.gates, prices, strict=True)
        ],
        "rejected": dict(masked.rejected),
        "metadata": info.metadata,
    }


def _summary(document: dict[str, Any]) -> dict[str, object]:
    total, fixed, policy = document["total_macs"], document["fixed_macs"], document["policy_macs"]
    rows: dict[str, object] = {
        "architecture": document["architecture"],
        "images": "x".join(map(str, document["image_shape"])),
        "classes": len(document["classes"]),
        "data set": document["data_path"] or document["dataset"],
        "channels to mask": f"{document['mask_size']} in {len(document['gates'])} gates",
        "MACs of an image": f"{total:,}",
        "of these fixed": f"{fixed:,} ({percent(fixed / total)}): no mask removes them",
        "masked channels": "zero" if document["compensation"] == "zero" else "learnt constants for their readers",
        "policy": "none" if policy is None else f"{document['policy']}, {policy:,} MACs ({percent(policy / total)})",
    }
    if document["transform"] is not None:
        rows["images of other sizes"] = document["transform"]
    if document["targets"]["kind"] != "classes":
        rows["targets"] = document["targets"]["kind"]
    rows |= {name: text for name in ("loss", "metric") if (text := document["targets"][name]) is not None}
    if document["metadata"].get("splits"):
        rows["splits"] = " ".join(document["metadata"]["splits"])
    rows |= shares_on(document["metadata"], "dense_accuracy", "prepared_accuracy")
    rows |= {f"made by ({entry['step']})": entry["command"] for entry in document["metadata"].get("history", [])}
    return rows
