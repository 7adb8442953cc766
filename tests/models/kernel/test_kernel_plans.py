"""Plans of the compiled kernel: whole networks, threads, memory, and what it refuses."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from prunegym.errors import InvalidInputError, MissingDependencyError
from prunegym.models import MaskedCNN
from prunegym.models.kernel import KernelError, Pass, Plan, PlanBuilder, shared_library
from prunegym.models.kernel.plan import as_they_lie
from prunegym.models.skipping.program.lowering import lower
from prunegym.models.skipping.translation import translate
from prunegym.models.zoo.network_registry import build
from tests.models.skipping.skipping_networks import close, each_variant, kept_sets, needs_kernel
from tests.models.slicing import randomise

pytestmark = pytest.mark.usefixtures("one_thread")


def zoo_network(name: str, size: int = 32, variant: str | None = None) -> tuple[MaskedCNN, Plan]:
    """A zoo network whose batch norms do something, and its plan."""
    masked = MaskedCNN(randomise(build(name, image_size=size)), torch.zeros(1, 3, size, size))
    return masked, translate(lower(masked), variant=variant).plan


def widths_of(masked: MaskedCNN) -> list[int]:
    return [gate.width for gate in masked.gates]


@each_variant
@pytest.mark.parametrize(
    "name", [pytest.param("vgg16", marks=pytest.mark.slow), "resnet20", "m-cifarnet", "simple-cnn"]
)
def test_whole_network(variant, name):
    masked, plan = zoo_network(name, variant=variant)
    for batch, threads in ((1, 1), (5, 2)):
        images, masks = torch.randn(batch, 3, 32, 32), kept_sets(batch, widths_of(masked))
        close(plan(images, masks, threads)[0], masked(images, masks))


@needs_kernel
def test_groups_of_images_and_odd_sizes():
    """More images than pass the late layers together, a size whose poolings drop a row, and results per image."""
    masked, plan = zoo_network("vgg11", 45)
    images, masks = torch.randn(37, 3, 45, 45), kept_sets(37, widths_of(masked))
    outputs, _ = plan(images, masks, threads=1)
    close(outputs, masked(images, masks))
    alone, _ = plan(images[35:36], masks[35:36])
    close(alone[0], outputs[35], 1e-5)


@needs_kernel
def test_images_and_masks_are_read_as_they_lie_in_memory():
    masked, plan = zoo_network("simple-cnn")
    images, masks = torch.randn(4, 3, 32, 32), kept_sets(4, widths_of(masked))
    expected, _ = plan(images, masks)
    close(expected, masked(images, masks))
    layouts = {
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "turned": images.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": images.repeat_interleave(2, 0)[::2],
        "part of a larger one": F.pad(images, (3, 2, 1, 4))[:, :, 1:33, 3:35],
    }
    for given in layouts.values():
        assert torch.equal(given, images)
        assert torch.equal(plan(given, masks)[0], expected)
    assert torch.equal(plan(images[:1].expand(4, -1, -1, -1), masks[:1].expand(4, -1))[0][3], expected[0])
    outputs, used = plan(images, masks.T.contiguous().T)
    assert torch.equal(outputs, expected)
    assert torch.equal(used, masks)


@needs_kernel
def test_times_of_layers():
    _, plan = zoo_network("simple-cnn")
    seconds = plan.timed(torch.randn(1, 3, 32, 32), torch.ones(1, plan.mask_size))
    assert list(seconds) == ["0 load", "1 conv", "2 max_pool", "3 conv", "4 max_pool", "5 linear", "6 store"]
    assert all(value > 0 for value in seconds.values())


@needs_kernel
def test_wrong_input_is_refused():
    _, plan = zoo_network("simple-cnn")
    images, masks = torch.zeros(2, 3, 32, 32), torch.ones(2, 48)
    assert plan(images[:0], masks[:0])[0].shape == (0, 10)
    with pytest.raises(InvalidInputError, match=r"Images are torch\.float64, .*; dense float32 on the CPU is needed"):
        plan(images.double(), masks)
    with pytest.raises(InvalidInputError, match=r"Images is of shape \(2, 3, 32, 31\); \(batch, 3, 32, 32\) is needed"):
        plan(images[..., 1:], masks)
    with pytest.raises(InvalidInputError, match=r"The mask is of shape \(2, 47\); \(2, 48\) is needed"):
        plan(images, masks[:, 1:])
    with pytest.raises(InvalidInputError, match=r"The mask has the value 0\.5; only 0 and 1 are allowed"):
        plan(images, masks / 2)
    with pytest.raises(InvalidInputError, match=r"Masks of shape \(2, 48\) are needed"):
        plan(images)


@needs_kernel
def test_unknown_variant():
    builder = PlanBuilder(3, 8, 8)
    with pytest.raises(InvalidInputError, match="Kernel variant 'mmx' cannot run here"):
        builder.build(builder.average(builder.images), "mmx")


def test_switched_off_it_says_so():
    """In a fresh process, since the library is loaded once."""
    program = (
        "from prunegym.models import kernel; print(kernel.available(), kernel.variants(), kernel.unavailable_reason())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PRUNEGYM_KERNEL": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("False () it is switched off by the environment variable PRUNEGYM_KERNEL=off")


@needs_kernel
def test_a_library_of_another_version_is_not_called(monkeypatch):
    monkeypatch.setattr("prunegym.models.kernel.shared_library.INTERFACE", 1)
    found, reason = shared_library.load.__wrapped__()
    assert found is None
    assert "was built for another version of prunegym; rebuild it" in reason


def test_without_the_library_building_a_plan_names_the_cure(monkeypatch):
    monkeypatch.setattr("prunegym.models.kernel.shared_library.load", lambda: (None, "it was not built"))
    builder = PlanBuilder(3, 8, 8)
    with pytest.raises(MissingDependencyError, match="The compiled kernel is not available: it was not built"):
        builder.build(builder.average(builder.images))


@needs_kernel
@pytest.mark.parametrize(("batch", "threads"), [(1, 0), (1, -5), (1, 1025), (1, 2_000_000), (-1, 1), (2**30, 1)])
def test_the_library_itself_refuses_numbers_out_of_range(batch, threads):
    _, plan = zoo_network("simple-cnn")
    images, masks, outputs = torch.zeros(1, 3, 32, 32), torch.ones(1, plan.mask_size), torch.zeros(1, plan.outputs)
    error = ctypes.create_string_buffer(shared_library.ERROR_SIZE)
    failed = plan.library.prunegym_plan_run(
        plan.handle, batch, as_they_lie(images), masks.data_ptr(), outputs.data_ptr(), threads, None, error
    )
    assert failed
    assert b"is out of range" in error.value


def deep_network(size: int, channels: int = 4) -> Plan:
    """Convolutions of all kinds on large maps, and a policy's features."""
    builder = PlanBuilder(1, size, size, gates=[channels])
    x = builder.conv(builder.images, torch.ones(channels, 1, 3, 3) / 9, padding=1, relu=True, gate=0)
    x = builder.conv(x, torch.ones(channels, channels, 3, 3) / 9, torch.ones(channels), padding=1, relu=True)
    x = builder.max_pool(builder.conv(x, torch.ones(2, channels, 2, 2), stride=2), 2)
    return builder.build(builder.average(x))


@needs_kernel
def test_a_map_whose_products_are_beyond_32_bits():
    """From 1217x1217 pixels on pixels times parts of the work are above 2**31."""
    plan, size = deep_network(1300), 1300
    images, masks = torch.randn(1, 1, size, size), torch.tensor([[1, 0, 1, 1]])
    x = F.conv2d(images, torch.ones(4, 1, 3, 3) / 9, padding=1).relu() * masks[:, :, None, None]
    x = F.conv2d(x, torch.ones(4, 4, 3, 3) / 9, torch.ones(4), padding=1).relu()
    expected = F.max_pool2d(F.conv2d(x, torch.ones(2, 4, 2, 2), stride=2), 2).mean((2, 3))
    for threads in (1, 3):
        close(plan(images, masks, threads=threads)[0], expected)


@needs_kernel
def test_torchs_default_dtype_and_negative_views_do_not_matter():
    masked, plan = zoo_network("simple-cnn")
    images, masks = torch.randn(2, 3, 32, 32), kept_sets(2, widths_of(masked))
    expected, _ = plan(images, masks)
    lazily = torch.complex(torch.zeros_like(images), -images).conj().imag
    assert lazily.is_neg()
    assert torch.equal(plan(lazily, masks)[0], expected)
    torch.set_default_dtype(torch.float64)
    try:
        outputs, _ = plan(images, masks)
    finally:
        torch.set_default_dtype(torch.float32)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, expected)


@needs_kernel
def test_too_many_images_and_tensors_without_plain_memory():
    _, plan = zoo_network("simple-cnn")
    images, masks = torch.zeros(2, 3, 32, 32), torch.ones(2, 48)
    with pytest.raises(InvalidInputError, match=r"number of images is 4294967296; .* Use smaller batches"):
        plan(images[:1].expand(2**32, -1, -1, -1), masks[:1].expand(2**32, -1))
    for given in (images.to_sparse(), images.to("meta")):
        with pytest.raises(InvalidInputError, match="dense"):
            plan(given, masks)
    for given in (masks.to_sparse(), masks.to("meta")):
        with pytest.raises(InvalidInputError, match="dense"):
            plan(images, given)


@needs_kernel
def test_more_memory_than_there_is():
    """Before any is taken: a process that writes to more than there is would be ended by the system."""
    builder = PlanBuilder(1, 2000, 2000, gates=[2**14])
    builder.look(builder.images, torch.zeros(1), torch.ones(1))
    x = builder.conv(builder.images, torch.ones(2**14, 1, 1, 1), gate=0)
    plan = builder.build(builder.linear(builder.average(x), torch.ones(1, 2**14)))
    message = r"cannot run {} images: .* GB of memory are needed and the machine has .* GB"
    with pytest.raises(KernelError, match=message.format(1)):
        plan(torch.zeros(1, 1, 2000, 2000), torch.ones(1, 2**14))
    with pytest.raises(KernelError, match=message.format(2**24)):
        Pass(plan, 2**24)
    with pytest.raises(InvalidInputError, match="batch is 10000000000; a whole number from 1 to"):
        Pass(plan, 10**10)


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_that_the_system_refuses():
    program = """if True:
        import resource, torch
        from prunegym.models.kernel import KernelError, PlanBuilder
        builder = PlanBuilder(1, 2000, 2000)
        x = builder.conv(builder.images, torch.ones(64, 1, 1, 1))
        plan = builder.build(builder.linear(builder.average(x), torch.ones(1, 64)))
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (200 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            plan(torch.zeros(1, 1, 2000, 2000), threads=1)
        except KernelError as error:
            print(error)
    """
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer's own memory is beyond any limit")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "The kernel cannot run 1 images: not enough memory.\n"


def wrong_records() -> dict[str, Callable[[list, list, list, list], None]]:
    """Changes of one number in the records of a plan: load, conv, pool, linear, store."""

    def change(place: int, index: int, name: str, number: int) -> Callable[..., None]:
        return lambda *records: setattr(records[place][index], name, number)

    def width(_buffers: list, _values: list, widths: list, _layers: list) -> None:
        widths[0] = 3

    buffers = {("height", 0), ("height", 2**30), ("width", -1), ("stride", 3), ("channels", 2), ("channels", 2**30)}
    values = {("buffer", -1), ("buffer", 99), ("channels", 0), ("channels", 2**30), ("space", 1), ("space", -2)}
    conv = {
        ("input", -1), ("input", 99), ("input", 2), ("output", 0), ("output", -1), ("second", 0), ("second", 3),
        ("kernel", 0), ("kernel", 8), ("stride", 0), ("stride", -1), ("padding", -1), ("padding", 2),
        ("padding_width", 2), ("dilation", 0), ("dilation", 2), ("groups", 0), ("groups", 2), ("activation", 8),
        ("kernel_width", 2), ("kind", 15), ("kind", -1),
    }  # fmt: skip
    pool = {("kernel", 0), ("stride", 0), ("padding", 2), ("padding", -1), ("second", 0), ("input", 3)}
    return {
        "width": width,
        **{f"buffer {n} {v}": change(0, 0, n, v) for n, v in sorted(buffers)},
        **{f"value {n} {v}": change(1, 1, n, v) for n, v in sorted(values)},
        **{f"conv {n} {v}": change(3, 1, n, v) for n, v in sorted(conv)},
        **{f"pool {n} {v}": change(3, 2, n, v) for n, v in sorted(pool)},
        "linear": change(3, 3, "output", 1),
        "store": change(3, 4, "input", 99),
        "place in the outputs": change(3, 4, "offset", 2**31 - 1),
        "weight": lambda *records: setattr(records[3][1], "weight", None),
    }


@needs_kernel
@pytest.mark.parametrize("change", wrong_records())
def test_the_library_itself_refuses_wrong_records(change, monkeypatch):
    def changed(variant, buffers, values, widths, spaces, records, **more):
        wrong_records()[change](buffers, values, widths, records)
        return Plan(variant, buffers, values, widths, spaces, records, **more)

    builder = PlanBuilder(3, 8, 8, gates=[4])
    x = builder.conv(builder.images, torch.ones(4, 3, 3, 3), padding=1, gate=0)
    output = builder.linear(builder.max_pool(x, 2), torch.ones(2, 64))
    builder.build(output)
    monkeypatch.setattr("prunegym.models.kernel.builder.Plan", changed)
    with pytest.raises(KernelError, match="is out of range"):
        builder.build(output)
