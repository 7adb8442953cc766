"""Plans of the compiled kernel on several threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from prunegym.errors import InvalidInputError
from prunegym.models.kernel.shared_library import library, openmp
from tests.models.kernel.test_kernel_plans import widths_of, zoo_network
from tests.models.skipping.skipping_networks import kept_sets, needs_kernel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[True, False], ids=["openmp", "own"])
def _each_kind_of_threads(request):
    if not request.param:
        library().prunegym_use_openmp(None)
    elif openmp() is None:
        pytest.skip("torch does not use GNU's OpenMP here")
    yield
    library().prunegym_use_openmp(openmp())


@needs_kernel
@pytest.mark.usefixtures("_each_kind_of_threads")
@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_threads_share_an_image(name):
    masked, plan = zoo_network(name)
    images, masks = torch.randn(2, 3, 32, 32), kept_sets(2, widths_of(masked))
    masks[1, :3] = False
    expected, _ = plan(images, masks, threads=1)
    for _ in range(5):
        for threads in (3, 5):  # side by side, and sharing each image
            assert torch.equal(plan(images, masks, threads=threads)[0], expected)


@needs_kernel
@pytest.mark.usefixtures("_each_kind_of_threads")
def test_threads_that_are_called_again_and_again_miss_nothing():
    masked, plan = zoo_network("resnet20")
    images, masks = torch.randn(1, 3, 32, 32), kept_sets(1, widths_of(masked))
    expected, _ = plan(images, masks, threads=1)
    busy = torch.randn(300, 300)
    for pause in (0, 0, 1e-4, 3e-4, 2e-3) * 15:  # at once, or when OpenMP's have fallen asleep
        time.sleep(pause)
        busy.mul(2)  # torch's threads at work in between
        assert torch.equal(plan(images, masks, threads=3)[0], expected)


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_threads_share_an_image_after_fork():
    """Threads do not survive a fork; the child must start its own."""
    program = """if True:
        import os, sys, torch
        from prunegym.models import MaskedCNN, build
        from prunegym.models.skipping.translation import translate
        from prunegym.models.skipping.program.lowering import lower
        program = lower(MaskedCNN(build("simple-cnn"), torch.zeros(1, 3, 32, 32)))
        plan = translate(program).plan
        images, masks = torch.randn(1, 3, 32, 32), torch.ones(1, 48)
        expected = plan(images, masks, threads=2)[0].tolist()
        idle = translate(program).plan
        idle(images, masks, threads=2)
        child = os.fork()
        if child == 0:
            sys.exit(0 if plan(images, masks, threads=2)[0].tolist() == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


@needs_kernel
def test_several_threads_may_call_one_plan():
    masked, plan = zoo_network("resnet20")
    images, masks = torch.randn(4, 3, 32, 32), kept_sets(4, widths_of(masked))
    expected, _ = plan(images, masks)
    results: list[Tensor] = []
    callers = [threading.Thread(target=lambda: results.append(plan(images, masks, 1)[0])) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="torch uses GNU's OpenMP on Linux")
def test_torchs_threads_are_found_beside_another_packages_openmp():
    program = """if True:
        import sklearn.ensemble, torch
        from prunegym.models.kernel.shared_library import openmp
        found = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
        print(len(found), openmp() is not None)
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    libraries, found = done.stdout.split()
    if libraries == "1":
        pytest.skip("scikit-learn brings no OpenMP of its own here")
    assert found == "True"


@needs_kernel
def test_layers_are_timed_on_threads_that_share_an_image():
    masked, plan = zoo_network("vgg11")
    images, masks = torch.randn(2, 3, 32, 32), kept_sets(2, widths_of(masked))
    assert all(seconds >= 0 for seconds in plan.timed(images[:1], masks[:1], threads=3).values())
    with pytest.raises(InvalidInputError, match=r"2 images on 2 threads may run in parallel.*Give threads=1"):
        plan.timed(images, masks, threads=2)


@needs_kernel
@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 1025, 2_000_000, 2**32, 99999999999])
def test_a_wrong_number_of_threads(threads):
    masked, plan = zoo_network("simple-cnn")
    images, masks = torch.randn(2, 3, 32, 32), kept_sets(2, widths_of(masked))
    for run in (plan, plan.timed):
        with pytest.raises(InvalidInputError, match=rf"threads is {threads}; a whole number from 1 to 1024 is needed"):
            run(images, masks, threads=threads)


@needs_kernel
@pytest.mark.slow
def test_the_end_of_the_program_while_a_plan_runs():
    """A thread that nobody waits for may be inside the kernel when the interpreter ends.

    It calls nothing of torch, in which Python may end such a thread by an abort that is not ours.
    """
    program = """if True:
        import ctypes, threading, time, torch
        from prunegym.models import MaskedCNN, build
        from prunegym.models.kernel.plan import as_they_lie
        from prunegym.models.skipping.translation import translate
        from prunegym.models.skipping.program.lowering import lower
        plan = translate(lower(MaskedCNN(build("vgg11"), torch.zeros(1, 3, 32, 32)))).plan
        images, masks = torch.randn(64, 3, 32, 32), torch.ones(64, plan.mask_size, dtype=torch.bool)
        outputs = torch.empty(64, plan.outputs)
        error = ctypes.create_string_buffer(256)
        places = as_they_lie(images), masks.data_ptr(), outputs.data_ptr()
        run, handle = plan.library.prunegym_plan_run, plan.handle
        def loop():
            while True:
                run(handle, 64, *places, 1, None, error)
        threading.Thread(target=loop, daemon=True).start()
        time.sleep(0.2)
    """
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
