"""The reference for parity tests: transformers' T5 on torch, tiny and random, and the batch both sides see."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs torch (extra [test])")
transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers (extra [test])")

torch.set_num_threads(1)  # two spinning threads are slower than one wherever somebody else computes too
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
KEYS = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4)


def save_random_t5(directory, *, tied: bool, seed: int = 0, vocab_size: int = 97, eos_scale: float = 1.0, **changes):
    """Write a random T5 whose logits are of order 1 to 10, with transformers' own save_pretrained."""
    torch.manual_seed(seed)
    ids = dict(decoder_start_token_id=0, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    feed_forward = "relu" if tied else "gated-gelu"
    config = transformers.T5Config(
        vocab_size=vocab_size, feed_forward_proj=feed_forward, tie_word_embeddings=tied, dropout_rate=0.0,
        **ids, **(KEYS | changes),
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:  # ones would hide a norm that forgets its scale
                weight.add_(0.1 * torch.randn_like(weight))
            if "relative_attention_bias" in name:
                weight.mul_(10.0)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.shared.weight))
        model.lm_head.weight[2] *= eos_scale
    model.save_pretrained(directory)


def load(directory):
    return transformers.T5ForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()


def random_batch(*, source_length, target_length, vocab_size=97, seed=0):
    """Three rows of unequal lengths, padded; numpy, with our names."""
    rng = np.random.default_rng(seed)
    lengths = np.array([source_length, source_length // 2, 3])
    target_lengths = np.array([target_length, 2, target_length - 1])
    targets_BT = rng.integers(3, vocab_size, (3, target_length), dtype=np.int32)
    return {
        "inputs_BS": rng.integers(3, vocab_size, (3, source_length), dtype=np.int32),
        "inputs_mask_BS": np.arange(source_length)[None] < lengths[:, None],
        "decoder_inputs_BT": np.concatenate([np.zeros((3, 1), np.int32), targets_BT[:, :-1]], axis=1),
        "targets_BT": targets_BT,
        "loss_mask_BT": np.arange(target_length)[None] < target_lengths[:, None],
    }


def reference_loss(model, batch):
    """(loss, logits) of transformers on our batch."""
    labels = np.where(batch["loss_mask_BT"], batch["targets_BT"], -100)
    outputs = model(
        input_ids=torch.tensor(batch["inputs_BS"]),
        attention_mask=torch.tensor(batch["inputs_mask_BS"]).long(),
        decoder_input_ids=torch.tensor(batch["decoder_inputs_BT"]),
        labels=torch.tensor(labels).long(),
    )
    return outputs.loss, outputs.logits.detach().numpy()
