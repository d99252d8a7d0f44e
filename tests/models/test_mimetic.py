"""The copying start: what it changes, what it leaves, and that cross-attention then finds its own token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen2_jax.data.vocabulary import Vocabulary
from codegen2_jax.errors import UserError
from codegen2_jax.interop import huggingface
from codegen2_jax.models.language_models import EncoderDecoder
from codegen2_jax.models.mimetic import CopyingStart
from codegen2_jax.models.t5 import T5Config
from codegen2_jax.training import initialisation

CONFIG = T5Config(
    vocab_size=64, d_model=48, d_ff=96, num_encoder_layers=2, num_decoder_layers=3, num_heads=3, head_dim=16
)


@pytest.fixture(scope="module")
def drawn():
    return jax.jit(EncoderDecoder(CONFIG).init_params)(jax.random.key(3))


def token_share(params):
    """Mean attention that a decoder state holding only token v pays to the source position of v, per layer."""
    embedding_VD = params["embedding"] / jnp.sqrt(jnp.mean(params["embedding"] ** 2, axis=-1, keepdims=True))
    cross = params["decoder"]["layers"]["cross_attention"]
    q_LVNH = jnp.einsum("vd,ldnh->lvnh", embedding_VD, cross["q"])
    k_LSNH = jnp.einsum("sd,ldnh->lsnh", embedding_VD, cross["k"])
    probs_LNVS = jax.nn.softmax(jnp.einsum("lvnh,lsnh->lnvs", q_LVNH, k_LSNH), axis=-1)
    return np.asarray(jnp.diagonal(probs_LNVS, axis1=2, axis2=3).mean(axis=(1, 2)))


def test_cross_attention_finds_its_own_token(drawn):
    assert (token_share(drawn) < 3 / CONFIG.vocab_size).all()
    assert (token_share(CopyingStart()(drawn)) > 0.25).all()


def test_only_the_named_leaves_change(drawn):
    started = CopyingStart(bias_std=1.5)(drawn)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(drawn), jax.tree.leaves(started), strict=True)
        if not np.array_equal(old, new)
    }
    assert jax.tree.structure(started) == jax.tree.structure(drawn)
    assert changed == {
        "encoder/relative_bias", "decoder/relative_bias", "decoder/layers/cross_attention/k",
    }  # fmt: skip
    np.testing.assert_allclose(np.std(started["encoder"]["relative_bias"]), 1.5, rtol=1e-5)


def test_it_starts_random_weights_and_leaves_read_ones():
    source = dict(vocabulary="nano_t5", start=CopyingStart(bias_std=1.0))
    loaded = initialisation.ModelSource(init_from="nano_t5", **source).load()
    placed = initialisation.place_params(loaded, jax.tree.map(lambda _: jax.devices()[0], loaded.params), seed=0)
    np.testing.assert_array_equal(placed["encoder"]["relative_bias"], loaded.params["encoder"]["relative_bias"])

    config = T5Config(**{**CONFIG.__dict__, "vocab_size": Vocabulary.from_directory(
        huggingface.resolve_directory("nano_t5")).size})  # fmt: skip
    random = initialisation.ModelSource(init_from="random", config=config, **source).load()
    placed = initialisation.place_params(random, None, seed=0)
    np.testing.assert_allclose(np.std(placed["encoder"]["relative_bias"]), 1.0, rtol=1e-5)


def test_a_bias_of_no_size_is_refused():
    with pytest.raises(UserError, match="bias_std=0.* above 0"):
        CopyingStart(bias_std=0.0)
