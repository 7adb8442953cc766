"""Latency tables: exact numbers from one made by hand, and a real measurement."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models import GatePolicy, MaskedCNN, MaskFeatures, StaticPolicy, build, kernel, shipped_model
from prunegym.models.skipping.torch_paths.gather import GatherPath
from prunegym.models.timing.latency_measurement import kept_widths, measure
from prunegym.models.timing.latency_table import Axis, LatencyTable, Part
from prunegym.models.timing.latency_timers import PathTimer, make_timer, policy_timer, step_counts
from tests.models.many_networks import NETWORKS
from tests.models.slicing import randomise


def small() -> MaskedCNN:
    return MaskedCNN(randomise(build("simple-cnn", in_channels=1, image_size=8)), torch.zeros(1, 1, 8, 8))


def masked_network(name: str) -> MaskedCNN:
    return MaskedCNN(randomise(NETWORKS[name][0]()), torch.zeros(1, 3, 8, 8))


def by_hand() -> LatencyTable:
    """16 and 32 channels: one part makes the first gate's, one reads them and makes the second's."""
    first = Part("a", Axis({}, 1.0, (1.0,)), Axis({0: 1.0}, 0.0, (0.0, 8.0, 16.0)), ((0.0, 2.0, 3.0),))
    second = Part(
        "b",
        Axis({0: 1.0}, 0.0, (0.0, 16.0)),
        Axis({1: 4.0}, 0.0, (0.0, 64.0, 128.0)),
        ((0.0, 1.0, 1.0), (1.0, 4.0, 8.0)),
    )
    return LatencyTable("hand", (("features.0", 16), ("features.3", 32)), 0.5, (first, second), policy=1.0)


def test_interpolation_by_hand() -> None:
    table = by_hand()
    kept = torch.tensor([[16.0, 32.0], [0.0, 0.0], [8.0, 16.0], [12.0, 8.0], [4.0, 32.0]])
    #            fixed + first + second, which is linear between the four numbers around
    expected = [0.5 + 3 + 8, 0.5 + 0 + 0, 0.5 + 2 + (1 + 4) / 2]
    expected.append(0.5 + 2.5 + 0.25 * (0 + 1) / 2 + 0.75 * (1 + 4) / 2)
    expected.append(0.5 + 1 + 0.75 * 1 + 0.25 * 8)
    torch.testing.assert_close(table.seconds_of_widths(kept), torch.tensor(expected, dtype=torch.float64))
    mask = torch.zeros(2, 48)
    mask[:, :8], mask[:, 16:32] = 1, 1
    assert table.dense_seconds == 11.5
    assert table.seconds(mask).tolist() == [5.0, 5.0]
    assert table.share(mask).tolist() == [5 / 11.5] * 2
    assert table.policy_share == 1 / 11.5


def test_a_saved_table_says_the_same(tmp_path: Path) -> None:
    table, path = dataclasses.replace(by_hand(), machine={"cores": 2}), tmp_path / "table.json"
    table.save(path)
    loaded = LatencyTable.load(path)
    assert loaded == table
    assert loaded.check(small()) is loaded


class CountingTimer:
    """An execution that takes a nanosecond a pair of channels, so that a table of it is known exactly."""

    name = "counting"

    def __init__(self, masked: MaskedCNN) -> None:
        self.masked = masked
        convolutions = [masked.graph[gate.producers[0]] for gate in masked.gates]
        linear = next(step for step in masked.graph.steps if step.kind.name == "LINEAR")
        self.parts = {step.name: step_counts(masked, step) for step in (*convolutions, linear)}

    def prepare(self, mask: Tensor) -> tuple[Callable[[], Mapping[str, float]], Callable[[], object]]:
        kept = torch.tensor([*(float(part.sum()) for part in self.masked.split(mask)), 1.0], dtype=torch.float64)
        times = {
            name: 1e-9 * float(torch.tensor(inputs).double() @ kept) * float(torch.tensor(outputs).double() @ kept)
            for name, (inputs, outputs) in self.parts.items()
        }
        return (lambda: times), (lambda: None)

    def deciding(self, policy: GatePolicy) -> Callable[[], float]:
        return lambda: 3.0


def test_measuring_sees_every_pair_of_widths() -> None:
    masked = small()
    table = measure(masked, CountingTimer(masked), rounds=1, validation_masks=2)
    torch.manual_seed(0)
    masks = (torch.rand(50, 48) < torch.rand(50, 1)).double()
    first, second = masks[:, :16].sum(1), masks[:, 16:].sum(1)
    expected = 1e-9 * (first + first * second + 4 * second * 10)  # a product of widths is bilinear: no error
    torch.testing.assert_close(table.seconds(masks), expected, rtol=1e-9, atol=0)
    assert [len(part.outputs.points) for part in table.parts] == [6, 6, 1]
    assert kept_widths(16) == [0, 5, 9, 13, 15, 16]


def test_times_that_depend_on_no_mask_are_added() -> None:
    masked = small()
    timer = CountingTimer(masked)
    before = measure(masked, timer, rounds=1, validation_masks=1)
    timer.parts["stem"] = ((0.0, 0.0, 2.0), (0.0, 0.0, 5.0))
    timer.parts["end"] = ((0.0, 0.0, 3.0), (0.0, 0.0, 4.0))
    table = measure(masked, timer, rounds=1, validation_masks=1)
    assert before.fixed == 0.0
    assert table.fixed == pytest.approx(2e-9 * 5 + 3e-9 * 4)


def test_a_real_measurement(tmp_path: Path) -> None:
    model = shipped_model("digits")
    table = measure(model.masked, make_timer("torch", model.masked), model.policy, rounds=3, validation_masks=3)
    table.save(tmp_path / "table.json")
    table = LatencyTable.load(tmp_path / "table.json")
    assert 0 < table.dense_seconds < 10
    assert table.policy > 0
    assert {"processor", "cores", "threads", "torch"} <= set(table.machine)
    assert len(table.validation["measured"]) == 3
    assert 0 <= table.validation["mean_error"] <= table.validation["max_error"]


@pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
@pytest.mark.parametrize("name", ["simple-cnn", "resnet20"])
def test_the_kernel_is_measured(name: str) -> None:
    masked = MaskedCNN(build(name), torch.zeros(1, 3, 32, 32))
    timer = make_timer("kernel", masked)
    table = measure(masked, timer, rounds=1, validation_masks=1)
    assert table.execution.startswith("kernel, ")
    assert {gate for part in table.parts for axis in (part.inputs, part.outputs) for gate in axis.each} == set(
        range(len(masked.gates))
    )


def test_the_policy_is_timed_as_the_way_of_running_decides() -> None:
    masked = small()
    policy = GatePolicy(MaskFeatures(masked))
    table = measure(masked, CountingTimer(masked), policy, rounds=1, validation_masks=1)
    assert table.policy == 3.0
    assert measure(masked, CountingTimer(masked), rounds=1, validation_masks=1).policy == 0.0
    static = StaticPolicy(policy.features)
    assert measure(masked, CountingTimer(masked), static, rounds=1, validation_masks=1).policy == 0.0


@pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
def test_the_kernel_decides_in_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32))
    policy = GatePolicy(MaskFeatures(masked), bias=-2.0)
    before = copy.deepcopy(policy.state_dict())
    timer = make_timer("kernel", masked)
    table = measure(masked, timer, policy, rounds=3, validation_masks=1)
    in_torch = policy_timer(PathTimer(GatherPath, masked), policy)
    in_torch()
    assert 0 < table.policy < in_torch()
    torch.testing.assert_close(policy.state_dict(), before, rtol=0, atol=0)
    monkeypatch.setattr(kernel.Plan, "timed", lambda plan, *_: dict.fromkeys(plan.layers, 1.0))
    assert policy_timer(timer, policy)() == len(masked.gates)


@pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
def test_policies_that_the_kernel_leaves_to_torch_or_refuses() -> None:
    masked = small()
    timer = make_timer("kernel", masked)
    at_once = GatePolicy(MaskFeatures(masked, layerwise=False))
    assert policy_timer(timer, at_once)() > 0
    pooled = GatePolicy(MaskFeatures(masked, feature_size=4))
    with pytest.raises(InvalidInputError, match=r"'kernel' cannot run this policy: .*Measure with execution 'torch'"):
        policy_timer(timer, pooled)


def test_what_the_layers_of_the_torch_path_read_and_make() -> None:
    """Two convolutions, of which the pooling behind treats each channel by itself, and a linear layer over 2x2 maps."""
    nothing, one, first, second = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    layers = [(one, first), (nothing, first), (first, second), (nothing, second), ((0.0, 4.0, 0.0), (0.0, 0.0, 10.0))]
    assert list(PathTimer(GatherPath, small()).parts.values()) == [(nothing, nothing), *layers]


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "m-cifarnet"])
def test_each_layer_of_the_torch_path_is_timed(name: str) -> None:
    """By a clock that goes on by a second whenever it is read."""
    masked = MaskedCNN(randomise(build(name)), torch.zeros(1, 3, 32, 32))
    ticks = itertools.count()
    timer = PathTimer(GatherPath, masked, lambda: float(next(ticks)))
    timed, run = timer.prepare(torch.arange(masked.mask_size) % 2 == 0)
    before = next(ticks)
    run()
    assert next(ticks) == before + 1
    found = timed()
    assert set(found) == set(timer.parts)
    call = found.pop("call")
    assert set(found.values()) == {1.0}
    assert call == len(found) + 1


def test_errors(tmp_path: Path) -> None:
    masked, path = small(), tmp_path / "table.json"
    with pytest.raises(
        MissingDataError, match=r"There is no latency table .*none\.json\. Measure one: prunegym latency"
    ):
        LatencyTable.load(tmp_path / "none.json")
    for text in ("{", "[]", "{}", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(
            InvalidInputError, match=r"table\.json is not a latency table .*Make one with prunegym latency\."
        ):
            LatencyTable.load(path)
    by_hand().save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(InvalidInputError, match=r"has format 7; this version reads format 1\. Update it\."):
        LatencyTable.load(path)
    for part, value in (("parts", []), ("execution", 5), ("validation", []), ("machine", 3)):
        path.write_text(json.dumps({**content, part: value}))
        with pytest.raises(InvalidInputError, match=rf"table\.json is not a latency table .*{part}"):
            LatencyTable.load(path)
    content["parts"][0]["seconds"] = [[1.0]]
    path.write_text(json.dumps(content))
    with pytest.raises(
        InvalidInputError, match="Part 'a' of a latency table does not have one time for each pair of points"
    ):
        LatencyTable.load(path)
    other = MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        InvalidInputError, match=r"is for 2 gates \(features\.0: 16, .*the model has 9 gates \(layer1\.0"
    ):
        by_hand().check(other)
    with pytest.raises(UnknownNameError, match=r"Unknown execution 'touch'\. Did you mean 'torch'\?"):
        make_timer("touch", masked)
    with pytest.raises(UnknownNameError, match=r"Unknown clock 'gpu'\. Did you mean 'cpu'\?"):
        make_timer("torch", masked, "gpu")
    with pytest.raises(InvalidInputError, match=r"uses its own wall clock\. Leave --clock out"):
        make_timer("kernel", masked, "cpu")
    with pytest.raises(InvalidInputError, match=r"rounds is 0; a whole number of at least 1 is needed\."):
        measure(masked, PathTimer(GatherPath, masked), rounds=0, validation_masks=4)
    for execution in ("torch", *(["kernel"] if kernel.available() else [])):  # also with steps that it does not know
        other = masked_network("swish by hand")
        timer = make_timer(execution, other)
        timed, _ = timer.prepare(torch.ones(other.mask_size))
        assert set(timed()) == set(timer.parts)


@pytest.mark.skipif(not kernel.available(), reason=f"no compiled kernel: {kernel.unavailable_reason()}")
def test_the_kernel_is_timed_on_as_many_threads_as_run_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    timed, whole = [], []
    in_parts, at_once = kernel.Plan.timed, kernel.Plan.__call__

    def note_parts(plan: kernel.Plan, images: Tensor, masks: Tensor, threads: int) -> dict[str, float]:
        timed.append(threads)
        return in_parts(plan, images, masks, threads)

    def note_whole(plan: kernel.Plan, images: Tensor, masks: Tensor, threads: int | None) -> tuple[Tensor, Tensor]:
        whole.append(torch.get_num_threads() if threads is None else threads)
        return at_once(plan, images, masks, threads)

    monkeypatch.setattr(kernel.Plan, "timed", note_parts)
    monkeypatch.setattr(kernel.Plan, "__call__", note_whole)
    for masked in (shipped_model("digits").masked, MaskedCNN(build("resnet20"), torch.zeros(1, 3, 32, 32))):
        for run in make_timer("kernel", masked).prepare(torch.ones(masked.mask_size, dtype=torch.bool)):
            run()
    assert sorted(set(timed)) == sorted(set(whole)) == [1, 2]
    assert timed == sorted(timed)
    assert whole == sorted(whole)
