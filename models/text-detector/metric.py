"""How well lines are found: F1 of the areas that the map shows, each right if it lies along most of a line."""

from nearmesh.devmesh.samples.text import Box, regions

# As PP-OCR reads the map: a pixel above this is text.
TEXT_PROBABILITY = 0.3


def lines_found(outputs, expected):
    """1 if every line of every page is found once, and nothing else."""
    right = found = there = 0
    for heat, boxes in zip(outputs["sigmoid_0.tmp_0"], expected["boxes"], strict=True):
        lines = [Box(*map(int, box)) for box in boxes if box.any()]
        areas = regions(heat[0, 0] > TEXT_PROBABILITY)
        right += sum(any(line.holds(area) for area in areas) for line in lines)
        found, there = found + len(areas), there + len(lines)
    return 2 * right / (found + there)
