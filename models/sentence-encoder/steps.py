"""Before the graph of sentence-encoder: texts to tokens, by the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from tokenizers import Tokenizer
except ImportError:
    raise ImportError("splitting texts needs tokenizers: pip install 'nearmesh[texts]'") from None

Array = npt.NDArray[Any]

# As the authors ran it; more of a text is not read.
MAX_TOKENS = 256
# Of one text. The tokenizer reads all of it, though 256 tokens are some 1,500 characters.
MAX_BYTES = 100_000

TOKENIZER = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
TOKENIZER.enable_truncation(MAX_TOKENS)
# To the longest of a call.
TOKENIZER.enable_padding()


def tokenize(text: Array) -> dict[str, Array]:
    """BYTES [n] as int64 [n, tokens] of `input_ids`, `attention_mask` (1: a token) and `token_type_ids` (all 0)."""
    # Fast is without the tokens' places in the text, which nobody asks for.
    found = TOKENIZER.encode_batch_fast([_read(number, item) for number, item in enumerate(text)])
    # Without a text there are no tokens, and one column of them.
    shape = (len(found), len(found[0].ids) if found else 1)
    ids = np.array([each.ids for each in found], np.int64).reshape(shape)
    mask = np.array([each.attention_mask for each in found], np.int64).reshape(shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


def _read(number: int, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ValueError(f"text {number} has {len(data)} bytes, expected {MAX_BYTES} at most; send it in parts")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"text {number} is not UTF-8: {error}") from None
