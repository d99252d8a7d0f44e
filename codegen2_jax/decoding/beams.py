"""Beam search behind prompts, for decoders and encoder-decoders.

Shapes: B batch, K beams, T positions.
"""

import functools

import jax
import jax.numpy as jnp

from codegen2_jax.decoding.search import beam_search, segments


@functools.partial(jax.jit, static_argnames=("model", "num_beams", "length_penalty", "max_new_tokens", "eos_id"))
def search(model, decoder, prefix, *, num_beams: int, length_penalty: float, max_new_tokens: int, eos_id: int):
    """The num_beams best continuations of every prompt, best first: (token_BKT int32, log_prob_BK float32).

    T = max_new_tokens; behind the first eos_id everything is eos_id. prefix: from `sampling.read`.
    """
    max_length = max_new_tokens + 1  # of the search, in which a start token counts
    room = segments(max_length)[0]
    cache = model.start_decoding(decoder, prefix.encoded, prefix.mask_BS, max_length=room, num_beams=num_beams)

    def step(cache, tokens_BK, position, ancestry_BKT):
        if prefix.logits_BV is None:
            return model.decode_step(decoder, cache, tokens_BK, position, ancestry_BKT)
        return jax.lax.cond(position == 0, at_the_prompt, behind_it, cache, tokens_BK, position, ancestry_BKT)

    # A decoder has no start token: the search's position 0 is the prompt's last, which the prefill has read already (in
    # a prefix-LM it must have, since a prompt is bidirectional up to its end), and its position t the model's t - 1.
    def at_the_prompt(cache, tokens_BK, position, ancestry_BKT):
        logits_B1V = prefix.logits_BV[:, None]
        return jnp.broadcast_to(logits_B1V, (*tokens_BK.shape, logits_B1V.shape[-1])), cache

    def behind_it(cache, tokens_BK, position, ancestry_BKT):
        return model.decode_step(decoder, cache, tokens_BK, position - 1, ancestry_BKT[:, :, 1:])

    def grow(cache, length):
        return model.grow_decoding(cache, length, num_beams=num_beams)

    start_id = eos_id if prefix.logits_BV is not None else model.config.decoder_start_token_id
    token_BKT, score_BK = beam_search(
        step,
        grow,
        cache,
        batch_size=prefix.mask_BS.shape[0],
        max_length=max_length,
        num_beams=num_beams,
        length_penalty=length_penalty,
        start_id=start_id,
        eos_id=eos_id,
        pad_id=eos_id,
    )
    token_BKT = token_BKT[:, :, 1:]
    length_BK = jnp.minimum(jnp.sum(token_BKT != eos_id, axis=2) + 1, max_new_tokens)
    return token_BKT, score_BK * length_BK.astype(jnp.float32) ** length_penalty
