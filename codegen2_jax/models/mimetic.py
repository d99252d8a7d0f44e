"""Start values under which an encoder-decoder learns to copy within minutes.

Copying takes two parts: encoder heads that look a fixed number of tokens to one side, and cross-attention that finds
the source token equal to the decoder's last one. From T5's start values both grow slowly out of noise; here they are
there at the first step, as in Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023), whose
start values imitate trained weights. The architecture and the layout of the weights stay T5's.
"""

import dataclasses

import jax.numpy as jnp

from codegen2_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyingStart:
    """Turns freshly drawn T5 parameters into ones that copy sooner.

    Attributes:
      bias_std: standard deviation of the relative position bias of both stacks, in logits. At T5's own d_model^-0.5
        every head begins by looking everywhere; at 2 each prefers a few distances of its own.
    """

    bias_std: float = 2.0

    def __post_init__(self):
        if not self.bias_std > 0:
            raise UserError(f"bias_std={self.bias_std} is out of range; it must be above 0.")

    def __call__(self, params: dict) -> dict:
        """The same tree; cross-attention's k is q without its factor 1/sqrt(head_dim), so that like attends to like."""
        stacks = {}
        for name in ("encoder", "decoder"):
            bias_UN = params[name]["relative_bias"]
            stacks[name] = {**params[name], "relative_bias": bias_UN * (self.bias_std / jnp.std(bias_UN))}
        layers = stacks["decoder"]["layers"]
        q_LDNH = layers["cross_attention"]["q"]
        # In T5's start values q has standard deviation (d_model * head_dim)^-0.5 and k has d_model^-0.5.
        aligned = {**layers["cross_attention"], "k": q_LDNH * q_LDNH.shape[-1] ** 0.5}
        stacks["decoder"]["layers"] = {**layers, "cross_attention": aligned}
        return {**params, **stacks}
