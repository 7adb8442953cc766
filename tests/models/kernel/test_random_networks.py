"""The kernel on random networks; .ci/kernel_sanitize runs more of them, under AddressSanitizer."""

from __future__ import annotations

import pytest

from tests.models.kernel.random_networks import RandomNetwork
from tests.models.skipping.skipping_networks import each_variant

pytestmark = pytest.mark.usefixtures("one_thread")


@each_variant
@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_random_network_equals_torch(variant, seed):
    RandomNetwork(seed).check(variant)
