"""The reference for decoders: transformers' CodeGen and Llama on torch, tiny and random, and our logits on the same."""

import functools

import jax
import numpy as np
import pytest

from codegen2_jax.models.decoder_only import DecoderOnly

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (extra [test])")
transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers (extra [test])")

torch.set_num_threads(1)  # two spinning threads are slower than one wherever somebody else computes too
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CODEGEN = dict(
    vocab_size=97, n_positions=96, n_ctx=96, n_embd=64, n_layer=2, n_head=8, rotary_dim=4, n_inner=None,
    bos_token_id=3, eos_token_id=4, pad_token_id=4,
)  # fmt: skip
LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=8, max_position_embeddings=96, rms_norm_eps=1e-5, bos_token_id=3, eos_token_id=4,
)  # fmt: skip


def codegen(*, seed=0, **changes):
    """A random CodeGen whose logits reach 1 to 10; nothing in it is zero or one, which could be left out unnoticed."""
    torch.manual_seed(seed)
    return _scaled(transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**(CODEGEN | changes))), gain=1.3)


def llama(*, seed=0, gain=0.8, **changes):
    """A random Llama. With the gain of 1.3 that CodeGen has, rounding alone puts either side 1e-5 from float64."""
    torch.manual_seed(seed)
    return _scaled(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(LLAMA | changes))), gain)


def _scaled(model, gain):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn_like(weight) * gain * weight.shape[1] ** -0.5)
            else:
                weight.copy_(torch.randn_like(weight) * 0.3 + ("bias" not in name))
    return model.eval()


def load(directory, dtype=None):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=dtype).eval()


def tokens(vocab_size=97, rows=3, length=48, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, length), dtype=np.int32)


def their_logits(model, tokens_BT):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BT).long()).logits.float().numpy()


def our_logits(config, params, tokens_BT):
    batch = {
        "tokens_BT": tokens_BT,
        "positions_BT": np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape),
        "segments_BT": np.ones_like(tokens_BT),
        "bidirectional_BT": np.zeros(tokens_BT.shape, bool),
    }
    with jax.default_matmul_precision("highest"):
        return np.asarray(_compiled(config)(params, batch))


@functools.cache
def _compiled(config):
    return jax.jit(DecoderOnly(config).logits)


def regroup(weights, shards):
    """Rows of every qkv_proj from 4 shards to `shards`, as the formula for it is given (4 -> 8), not as we do it."""
    changed = dict(weights)
    for name, w in weights.items():
        if name.endswith("qkv_proj.weight") and shards == 8:
            d = w.shape[1]
            changed[name] = np.ascontiguousarray(w.reshape(4, 3, 2, d // 8, d).swapaxes(1, 2).reshape(3 * d, d))
    return changed
