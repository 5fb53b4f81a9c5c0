"""XLA options."""

from __future__ import annotations

import jax
import pytest

from qa_jax.parallel.xla_flags import xla_flags
from qa_jax.plan import find_target
from tests.plan.configs import needs_libtpu


@needs_libtpu
def test_compilers_accept_the_options() -> None:
    """Every option of `train.xla_flags: tuned` is accepted by the platform's compiler."""
    place = jax.sharding.SingleDeviceSharding(find_target("v6e:2x4").devices[0])
    x = jax.ShapeDtypeStruct((128, 128), jax.numpy.bfloat16, sharding=place)
    lowered = jax.jit(lambda x: x @ x).lower(x)
    assert xla_flags("tpu", "tuned")
    for name, value in xla_flags("tpu", "tuned").items():
        lowered.compile({name: value})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile({"xla_tpu_no_such_option": True})
    assert not xla_flags("tpu", "default") and not xla_flags("cpu", "tuned")
