"""What stands in a tokenizer.json, told without the library that runs it: recipes, control tokens, the CodeGen layout.

A "content" is the dictionary of such a file. A control token is put into records by code and never comes from text;
what text may use besides the BPE are the runs of blanks that CodeGen's tokenizers add. CodeGen's tokenizers are GPT-2's
with these runs (CodeGen 1), or with them, dummies, `<sep>`, `<eom>` and masks behind (CodeGen2, whose
`<mask_1>` is the last id). Ids are always found by a token's name: CodeGen2.5 has other ids for the same names.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from codegen2_jax.errors import UserError

END = "<|endoftext|>"
CODET5_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
CODET5_SENTINELS = 100
"""CodeT5 adds 100 sentinels behind the 32,000 entries of its vocab.json, which does not list them."""

BLANKS = tuple(" " * n for n in range(31, 1, -1)) + tuple("\t" * n for n in range(9, 1, -1))
"""CodeGen's runs of spaces and tabs, in the order of their ids."""

CODEGEN_MASKS = 899
FAMILIES = ("codegen1-multi", "codegen2")

_SENTINEL = re.compile(r"<(?:extra_id_(\d+)|mask_(\d+))>")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def content_of(vocab: Mapping[str, int], merges: Sequence, added: Mapping[str, int] | None = None) -> dict:
    """The content of GPT-2's kind of tokenizer; `added` tokens are recognised in text first, longest first."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": dict(vocab), "merges": [list(pair) for pair in merges]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token, index, token == END) for token, index in (added or {}).items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def added_token(token: str, index: int, special: bool) -> dict:
    """An entry of `added_tokens`, taken as it is wherever it stands."""
    exactly = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **exactly, "special": special}


def read_merges(text: str) -> list[list[str]]:
    """The pairs of a merges.txt, which may begin with a line that names its version."""
    lines = text.split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return [line.split(" ") for line in lines if line]


def tokens_of(content: Mapping) -> dict[str, int]:
    """Every token's id: the model's entries and the added tokens."""
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    return {**content["model"]["vocab"], **added}


def control_tokens(content: Mapping) -> dict[str, int]:
    """The tokens that never come from text: those flagged special, those in angle brackets, T5's and CodeT5's."""
    vocab = content["model"]["vocab"]
    found = {token: vocab[token] for token in (*CODET5_TOKENS, END) if token in vocab}
    found |= {token: index for token, index in vocab.items() if token.startswith("<extra_id_")}
    for token in content.get("added_tokens", ()):
        name = token["content"]
        if token["special"] or (name.startswith("<") and name.endswith(">") and len(name) > 2):
            found[name] = token["id"]
    return found


def readable(content: Mapping, controls: Mapping[str, int], *, template: bool) -> dict:
    """The content of a tokenizer for text alone, or with `template` one that finds control tokens in the text too.

    Added tokens move into the model's table with their ids, because the library would number anew what is left of them.
    """
    model, added = dict(content["model"]), {token["content"]: token for token in content.get("added_tokens", ())}
    unknown = model.get("unk_token")
    kept = {name: token for name, token in added.items() if name not in controls}
    vocab = {token: index for token, index in tokens_of(content).items() if token not in controls or token == unknown}
    if template:
        vocab |= controls
        kept |= {name: added_token(name, index, False) for name, index in controls.items()}
    model["vocab"] = vocab
    # Nothing is added around what is encoded; a leading blank is taken away by who knows whether one was put there.
    changed = {"model": model, "added_tokens": list(kept.values()), "post_processor": None}
    if content.get("decoder") and content["decoder"]["type"] == "Sequence":
        steps = [step for step in content["decoder"]["decoders"] if step["type"] != "Strip"]
        changed["decoder"] = {"type": "Sequence", "decoders": steps}
    return {**content, **changed}


def strips_leading_space(content: Mapping) -> bool:
    """Whether encoding puts a blank before the text, which decoding takes away (Llama 1 and 2)."""
    decoder = content.get("decoder") or {}
    return any(step["type"] == "Strip" for step in decoder.get("decoders", ()))


def byte_lengths(content: Mapping, controls: Mapping[str, int], size: int) -> np.ndarray:
    """int32 [size]: the UTF-8 bytes that each id stands for, 0 for control tokens."""
    lengths, fallback = np.zeros(size, np.int32), content["model"].get("byte_fallback", False)
    for token, index in tokens_of(content).items():
        if token in controls:
            continue
        if not fallback:  # one character for each byte
            lengths[index] = len(token)
        else:
            lengths[index] = 1 if _BYTE.fullmatch(token) else len(token.replace("\u2581", " ").encode("utf-8"))
    return lengths


def count_sentinels(tokens: Mapping[str, int], size: int) -> int:
    """How many sentinels there are; UserError unless they count down from the last id."""
    number = 0
    for token, index in tokens.items():
        match = _SENTINEL.fullmatch(token)
        if match is None:
            continue
        number += 1
        expected = size - 1 - int(match[1]) if match[1] else size - int(match[2])
        if index != expected:
            rule = "vocabulary size - 1 - k" if match[1] else "vocabulary size - k"
            raise UserError(f"{token} has id {index}, expected {expected} ({rule}); renumber the sentinels.")
    return number


def codegen_tokens(family: str, first: int, num_masks: int = CODEGEN_MASKS) -> dict[str, int]:
    """What CodeGen adds behind a BPE of `first` entries, with ids."""
    names = list(BLANKS)
    if family == "codegen2":
        names += [f"<dummy_{k}>" for k in range(4)] + ["<sep>", "<eom>"]
        names += [f"<mask_{k}>" for k in range(num_masks, 0, -1)]
    elif family != "codegen1-multi":
        raise UserError(f"family={family!r} is unknown; use one of {', '.join(FAMILIES)}.")
    return {name: first + number for number, name in enumerate(names)}


def codegen_content(vocab: Mapping[str, int], merges: Sequence, family: str, num_masks: int = CODEGEN_MASKS) -> dict:
    """The content of a CodeGen tokenizer over the BPE that `vocab` (with `<|endoftext|>`) and `merges` are."""
    if END not in vocab or max(vocab.values()) != len(vocab) - 1:
        raise UserError(f"a BPE with {END} and ids without holes is required; use GPT-2's vocab.json and merges.txt.")
    return content_of(vocab, merges, {END: vocab[END], **codegen_tokens(family, len(vocab), num_masks)})


def check_codegen(content: Mapping, tokens: Mapping[str, int], num_masks: int) -> None:
    """UserError unless the ids of a vocabulary with `<mask_1>` are those of its recipe.

    CodeGen2.5, which has no dummies, has ids of its own; there the names that records need must exist.
    """
    missing = [name for name in ("<sep>", "<eom>", END) if name not in tokens]
    if missing:
        raise UserError(f"the vocabulary has <mask_1> but no {', '.join(missing)}; its tokenizer.json is incomplete.")
    if "<dummy_0>" in tokens:
        base = len(set(content["model"]["vocab"]) - set(codegen_tokens("codegen2", 0, num_masks)))
        for name, expected in codegen_tokens("codegen2", base, num_masks).items():
            if tokens.get(name) != expected:
                raise UserError(
                    f"{name!r} has id {tokens.get(name)}, CodeGen2's recipe over {base} entries gives {expected}; "
                    f"this tokenizer.json is not CodeGen2's, build one with write_codegen_vocabulary."
                )


def digest_of(content: Mapping) -> str:
    """sha256 of what decides the ids: two files of one tokenizer may be written in different ways."""
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    deciding = [sorted(tokens_of(content).items()), merges, sorted(control_tokens(content))]
    return hashlib.sha256(json.dumps(deciding, ensure_ascii=True).encode()).hexdigest()
