"""How well lines are read: the share of their characters that need no edit."""

from pathlib import Path

from nearmesh.devmesh.samples.text import decode
from nearmesh.package import read_labels

CHARACTERS = read_labels(Path(__file__).with_name("labels.txt"))


def characters(outputs, expected):
    """1 for lines without a mistake; each edit (a character too many, too few, or another) costs its share."""
    texts = [text.decode() for text in expected["text"]]
    read = [decode(scores, CHARACTERS).strip() for scores in outputs["softmax_11.tmp_0"]]
    edits = sum(distance(ours, theirs) for ours, theirs in zip(read, texts, strict=True))
    return 1 - edits / sum(map(len, texts))


def distance(one, other):
    """Levenshtein's."""
    above = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        here = [row]
        for column, right in enumerate(other, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (left != right)))
        above = here
    return above[-1]
