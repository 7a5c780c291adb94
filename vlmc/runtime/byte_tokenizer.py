"""The tokenizer of a twin: one token for each byte, so that any text fits a small vocabulary."""

from __future__ import annotations

from typing import Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as TokenizerFile
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.tokenizer import Tokenizer

Architecture = Literal["decoder", "encoder_decoder", "encoder"]
ARCHITECTURES: dict[str, Architecture] = {
    "sequence": "decoder",
    "cross_attention": "decoder",
    "encoder_decoder": "encoder_decoder",
    "single_pass": "encoder",
}
"""The kind of language model, by how vision reaches it."""

SPECIAL = ("<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens, after the 256 bytes."""

SPECIAL_IDS = {token: 256 + index for index, token in enumerate(SPECIAL)}

SURROUNDINGS: dict[Architecture, tuple[str, str]] = {
    "decoder": ("<s>", ""),
    "encoder_decoder": ("", "</s>"),
    "encoder": ("[CLS]", "[SEP]"),
}
"""What stands before and after a prompt, by the kind of language model (Llama, T5, BERT)."""


def byte_file() -> TokenizerFile:
    """The tokenizer's file: ids 0 to 255 are the bytes, then `SPECIAL`."""
    characters = _byte_characters()
    vocabulary = {character: byte for byte, character in enumerate(characters)}
    vocabulary |= SPECIAL_IDS
    tokenizer = TokenizerFile(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    added = [AddedToken(token, normalized=False) for token in SPECIAL]
    tokenizer.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


def byte_tokenizer(architecture: Architecture, vocabulary: int) -> Tokenizer:
    """The byte tokenizer for a language model of `vocabulary` entries.

    Raises UsageError where the vocabulary is too small to hold it.
    """
    need = 256 + len(SPECIAL)
    if vocabulary < need:
        raise UsageError(
            f"the language model's vocabulary has {vocabulary} entries, but a twin's text needs "
            f"256 bytes + {len(SPECIAL)} special tokens = {need}; give a fitting file with "
            f"--tokenizer PATH"
        )
    start, end = SURROUNDINGS[architecture]
    return Tokenizer(
        byte_file(),
        "bytes",
        (SPECIAL_IDS[start],) if start else (),
        (SPECIAL_IDS[end],) if end else (),
        frozenset((SPECIAL_IDS["</s>"], SPECIAL_IDS["[SEP]"])),
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (Radford et al.,
    2019): itself where it is printable Latin-1, else one from 256 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    shifted = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + shifted))
            shifted += 1
    return characters
