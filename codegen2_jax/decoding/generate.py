"""Generation: encode once, then search.

Takes any model with `encode`, `decoder_params`, `start_decoding`, `decode_step` and `grow_decoding`.

Shapes: B batch, T target length, P prompt vectors, D width, K beams.
"""

from typing import Any

import jax

from codegen2_jax.decoding.search import beam_search, greedy, segments


def generate(
    model: Any,
    params: Any,
    batch: Any,
    prompt_BPD: jax.Array | None = None,
    *,
    max_length: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    start_B: jax.Array | None = None,
) -> jax.Array:
    """tokens_BT int32, T = max_length, which counts the start token in column 0; pad follows the first eos.

    start_B: the start token of every row; None: the model's `decoder_start_token_id`. One beam is greedy search. Pure:
    jit it with model, max_length, num_beams and length_penalty static.
    """
    encoded, mask_BS = model.encode(params, batch["inputs_BS"], batch["inputs_mask_BS"], prompt_BPD)
    decoder = model.decoder_params(params)
    cache = model.start_decoding(decoder, encoded, mask_BS, max_length=segments(max_length)[0], num_beams=num_beams)

    def step(cache, tokens_BK, position, ancestry_BKT):
        return model.decode_step(decoder, cache, tokens_BK, position, ancestry_BKT)

    def grow(cache, length):
        return model.grow_decoding(cache, length, num_beams=num_beams)

    ids = {
        "start_id": model.config.decoder_start_token_id if start_B is None else start_B,
        "eos_id": model.config.eos_token_id,
        "pad_id": model.config.pad_token_id,
    }
    search = {"batch_size": batch["inputs_BS"].shape[0], "max_length": max_length, **ids}
    if num_beams == 1:
        return greedy(step, grow, cache, **search)
    tokens_BKT, _ = beam_search(step, grow, cache, num_beams=num_beams, length_penalty=length_penalty, **search)
    return tokens_BKT[:, 0]
