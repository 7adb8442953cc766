"""Model files, latency tables, run states and records of runs with random damage: refused with a reason, or usable."""

from __future__ import annotations

import functools
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from prunegym.models.dynamic_cnn import DynamicCNN, shipped_model, shipped_path
from prunegym.models.gating.static_policy import fixed_policy
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.storage.run_folder import begin_run, finish_run
from prunegym.models.storage.run_state import load_state, save_state
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part, open_table
from tests.damage import Change, altered, bounded, changes, damaged, refused

IMAGES = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@functools.cache
def _model() -> bytes:
    return shipped_path("digits").read_bytes()


def _parts(whole: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and the rest."""
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def _joined(header: dict[str, Any], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@functools.cache
def _masked() -> MaskedCNN:
    return shipped_model().masked


def _static_model(folder: Path) -> bytes:
    model = shipped_model()
    policy = fixed_policy(model.masked, torch.ones(model.masked.mask_size))
    DynamicCNN(model.masked, policy, model.info).save(folder / "static.safetensors")
    return (folder / "static.safetensors").read_bytes()


def _use(path: Path) -> None:
    model = refused(lambda: DynamicCNN.load(path))
    found = None if model is None else refused(lambda: model.predict(IMAGES))
    if found is not None:
        assert found.logits.isfinite().all()
        assert ((found.masks == 0) | (found.masks == 1)).all()
        assert len(found.names) == len(IMAGES)
        assert all(isinstance(name, str) for name in found.names)


@bounded
@given(made=changes)
def test_bytes_of_a_model_file(tmp_path: Path, made: list[Change]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(_model(), made))
    _use(path)


@pytest.mark.parametrize("kind", ["GatePolicy", pytest.param("StaticPolicy", marks=pytest.mark.slow)])
@bounded
@given(data=st.data())
def test_the_description_in_a_model_file(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    header, rest = _parts(_model() if kind == "GatePolicy" else _static_model(tmp_path))
    described = json.loads(header["__metadata__"]["prunegym"])
    header["__metadata__"]["prunegym"] = json.dumps(data.draw(altered(described)))
    path.write_bytes(_joined(header, rest))
    _use(path)


def _table(masked: MaskedCNN) -> LatencyTable:
    gates = tuple((gate.name, gate.width) for gate in masked.gates)
    parts = tuple(
        Part(name, Axis({}, 1.0, (1.0,)), Axis({place: 1.0}, 0.0, (0.0, float(width))), ((0.0, 1.0),))
        for place, (name, width) in enumerate(gates)
    )
    return LatencyTable("torch", gates, 0.5, parts, policy=0.1, machine={"processor": "x", "threads": 1})


@bounded
@given(data=st.data())
def test_fields_of_a_latency_table(tmp_path: Path, data: st.DataObject) -> None:
    path, masked = tmp_path / "table.json", _masked()
    _table(masked).save(path)
    path.write_text(json.dumps(data.draw(altered(json.loads(path.read_text())))))
    table = refused(lambda: open_table(path, masked))
    if table is not None:
        shares = table.share(torch.cat([torch.zeros(1, masked.mask_size), torch.ones(1, masked.mask_size)]))
        assert shares.isfinite().all()
        assert (shares >= 0).all()
        assert math.isfinite(table.policy_share)


@bounded
@given(made=changes)
def test_bytes_of_a_latency_table(tmp_path: Path, made: list[Change]) -> None:
    path, masked = tmp_path / "table.json", _masked()
    _table(masked).save(path)
    path.write_bytes(damaged(path.read_bytes(), made))
    table = refused(lambda: open_table(path, masked))
    assert table is None or table.share(torch.ones(1, masked.mask_size)).isfinite().all()


@bounded
@given(made=changes)
def test_bytes_of_a_run_state(tmp_path: Path, made: list[Change]) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"epoch": 3, "network": {"weight": torch.zeros(4)}, "rates": [0.1, (1, None)]})
    path.write_bytes(damaged(path.read_bytes(), made))
    state = refused(lambda: load_state(path))
    assert state is None or isinstance(state, dict)


@bounded
@given(data=st.data())
def test_fields_of_a_record_of_a_run(tmp_path: Path, data: st.DataObject) -> None:
    folder, settings, masked = tmp_path / "run", {"seed": 0, "recipe": {"env": "x"}}, _masked()
    (folder / "run.json").unlink(missing_ok=True)
    begin_run(folder, settings, resume=False, inputs={"CNN": masked})
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(data.draw(altered(content))))
    refused(lambda: begin_run(folder, settings, resume=True, inputs={"CNN": masked}))
    refused(lambda: finish_run(folder, 1.0, {"figure": 1}))


@bounded
@given(made=changes)
def test_bytes_of_a_record_of_a_run(tmp_path: Path, made: list[Change]) -> None:
    folder, settings = tmp_path / "run", {"seed": 0, "recipe": {"env": "x"}}
    (folder / "run.json").unlink(missing_ok=True)
    begin_run(folder, settings, resume=False)
    (folder / "run.json").write_bytes(damaged((folder / "run.json").read_bytes(), made))
    refused(lambda: begin_run(folder, settings, resume=True))
