"""The byte-level BPE in a GGUF file's metadata as Hugging Face's tokenizer.json and tokenizer_config.json."""

from collections.abc import Mapping
from typing import Any

from codegen2_jax.errors import UserError

CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# How a text is cut before the merges, by tokenizer.ggml.pre (ggml-org/llama.cpp `src/llama-vocab.cpp`).
PRE_TOKENIZERS = {
    "gpt-2": [_BYTES],
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), [_DIGITS, _BYTES]),
}


def tokenizer_of(metadata: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """{file name: content}. Raises UserError for tokenizers of another kind, and for tables that do not fit."""
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(
            f"{source}: a tokenizer of the kind {kind!r} that cuts text as {cut!r} is not converted (only 'gpt2' with "
            f"{known}); put the model's own tokenizer.json into the directory."
        )
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    merges = metadata.get("tokenizer.ggml.merges")
    if not all(isinstance(table, list) for table in (tokens, types, merges)) or len(tokens) != len(types):
        raise UserError(f"{source}: tokenizer.ggml.tokens, token_type and merges do not fit; take another file.")
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [merge.split(" ") for merge in merges]
    wrong = [pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys()]
    if wrong or len(vocab) != len(tokens):
        raise UserError(f"{source}: tokens are repeated or unknown ones merged ({wrong[:1]}); take another file.")
    kinds = zip(tokens, types, strict=True)
    added = [_added(token, i, kind) for i, (token, kind) in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    steps = PRE_TOKENIZERS[cut]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
            **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
            "vocab": vocab,
            "merges": pairs,
        },
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            config[f"{role}_token"] = tokens[index]
    if isinstance(metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return {"tokenizer.json": content, "tokenizer_config.json": config}


def _added(token: str, index: int, kind: int) -> dict[str, Any]:
    exactly = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **exactly, "special": kind == CONTROL}
