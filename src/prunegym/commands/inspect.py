"""``inspect``: which channels of a CNN can be masked."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from prunegym.commands.options import NO_DATA, AnyModel, Data, Machine, Network, grouped
from prunegym.commands.output import Facts, Table, emit, percent, shares_on
from prunegym.errors import CoverageWarning, InvalidInputError

if TYPE_CHECKING:
    from prunegym.models.storage.model_file import Bundle

SMALL = 0.2
"""Share of the MACs. Less is hardly worth gates: the policy costs about 1 %, and time falls less than MACs."""


@grouped
def inspect(model: AnyModel, data: Data, network: Network, machine: Machine) -> None:
    """Show a CNN's gates, what a channel of each costs, and which convolutions cannot be gates, with the reason."""
    from prunegym.models.zoo.network_registry import is_network

    machine.settle(data)
    if not is_network(model) and dataclasses.replace(data, data_root=None) != NO_DATA:
        option = "--dataset" if data.dataset is not None else "An option on images"
        raise InvalidInputError(
            f"{option} is only for a network by name; {model} already has a data set. Leave it out."
        )
    stored = network.open(model, data, trained=False)
    document = describe(stored)
    caption = "price: MACs per image that removing one channel from the full network saves"
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
    if document["removable"] < SMALL:
        more = any("gates='all'" in reason for reason in document["rejected"].values())
        warnings.warn(
            f"Masks can remove {percent(document['removable'])} of the MACs at most, less than {percent(SMALL)}."
            + (" --gates all (in Python, gates='all') opens residual sums and hidden layers too." if more else ""),
            CoverageWarning,
            stacklevel=2,
        )


def describe(stored: Bundle) -> dict[str, Any]:
    """Return the facts about a model as plain JSON."""
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
        "removable": 1 - masked.cost.fixed_macs / masked.cost.total_macs,
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
        "MACs per image": f"{total:,}",
        "fixed MACs": f"{fixed:,} ({percent(fixed / total)}): no mask can remove them",
        "removable": percent(document["removable"]),
        "a masked channel is": "zero" if document["compensation"] == "zero" else "a learnt constant for its readers",
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
    rows |= {f"step {entry['step']}": entry["command"] for entry in document["metadata"].get("history", [])}
    return rows
