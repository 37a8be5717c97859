"""How well pages are read: the share of their characters that need no edit."""


def characters(outputs, expected):
    """1 for pages without a mistake; each edit (a character too many, too few, or another) costs its share."""
    edits = total = 0
    for read, lines in zip(outputs["text"], expected["text"], strict=True):
        theirs = "\n".join(line.decode() for line in lines)
        edits += distance("\n".join(line.decode() for line in read), theirs)
        total += len(theirs)
    return 1 - edits / total


def distance(one, other):
    """Levenshtein's."""
    above = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        here = [row]
        for column, right in enumerate(other, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (left != right)))
        above = here
    return above[-1]
