"""How the training step is compiled: jitted where its state lies, with the options of XLA that a gin file names."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from codegen2_jax.errors import UserError
from codegen2_jax.sharding import partitioning

# Options of XLA for one program, by name without dashes, such as {"xla_tpu_scoped_vmem_limit_kib": 65536}.
Options = Mapping[str, str | int | float | bool]


def jit_step(step: Callable, layout: partitioning.Layout, shardings: Any, options: Options | None = None) -> Any:
    """`step(state, batch) -> state, metrics` jitted: the state is donated and stays where it lies, metrics everywhere.

    Args:
        shardings: of the state. options: for XLA; unlike those in XLA_FLAGS or LIBTPU_INIT_ARGS they hold for this
            program alone, and a run's configuration records them.

    Raises UserError for options that the compiler of the layout's devices does not know or cannot read.
    """
    checked = _checked(options, layout)
    whole = partitioning.replicated(layout)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=checked)


def _checked(options: Options | None, layout: partitioning.Layout) -> dict[str, Any] | None:
    """The options after a program of one sum was compiled with each, since XLA itself is told of them late."""
    if not options:
        return None
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UserError(f"COMPILER_OPTIONS = {options!r} is no dictionary of options; write {{'xla_...': value}}.")
    devices = layout.mesh.devices.flat
    mine = next((device for device in devices if device.process_index == jax.process_index()), devices[0])
    number = jax.ShapeDtypeStruct((), np.float32, sharding=SingleDeviceSharding(mine))
    for name, value in options.items():
        if not isinstance(value, str | int | float | bool):
            raise UserError(f"COMPILER_OPTIONS: {name} = {value!r} is no text, number, True or False.")
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(number).compile()
        except jax.errors.JaxRuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"COMPILER_OPTIONS: {name} = {value!r} is refused by the compiler for {mine.platform} ({reason}); "
                f"leave it out there, or see its list of flags."
            ) from None
    return dict(options)
