"""The text-reader package: pictures of text that we render come back as the text; broken and huge ones are refused."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.engines.pipeline.python_step import PythonSteps
from PIL import Image, ImageDraw, ImageFont

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.package import read_labels
from nearmesh.packaging.layout import lay_out
from nearmesh.packaging.release import release
from nearmesh.packaging.sources import default_cache
from nearmesh.packaging.warmup import read_warmup

# Beside Pillow's own, where the system has them.
FONT_FILES = [
    path
    for name in ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif-Italic")
    if (path := Path("/usr/share/fonts/truetype/dejavu") / f"{name}.ttf").is_file()
]
WORDS = (
    "answers bread brown coffee dog Frankfurt garden harbour images invoice latency lazy London models mountain "
    "nearest network night over price quick region river serve site text total Zurich 17:45 2026 38.50 4711 EUR"
)
# Of pages of random words: the share of characters that need no edit. The pages of this test came to 0.9996, one edit
# in 2,491; another version of the fonts or of Pillow may cost some more spaces between words.
CHARACTERS_RIGHT = 0.99


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine(request, folder, tmp_path_factory):
    """The package as a node has it, with each variant of the recognizer."""
    place = tmp_path_factory.mktemp("text-reader")
    artifact = release(folder, default_cache())
    lay_out({file.title: artifact.blobs[file.digest] for file in artifact.manifest.files}, place)
    loaded = OnnxEngines(variants={"recognize": request.param})(place, artifact.package)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def ask(engine):
    def answer(data):
        image = np.empty(1, object)
        image[0] = data
        return engine.infer({"image": image})

    return answer


@pytest.fixture(scope="module")
def steps(folder, package):
    """The package's functions by their steps' names."""
    code = PythonSteps(folder)
    yield {step.name: code.load(step).run for step in package.steps if step.python}
    code.close()


def encode(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def font(path=None, size=28):
    return ImageFont.truetype(str(path), size) if path else ImageFont.load_default(size=size)


def page(lines, *, letters=None, size=28, width=900, spacing=1.6, ink="black", paper="white"):
    """One line below the other, with a margin; and the box of each."""
    letters = letters or font(size=size)
    image = Image.new("RGB", (width, int(size * spacing * len(lines)) + 60), paper)
    draw = ImageDraw.Draw(image)
    boxes = []
    for number, line in enumerate(lines):
        place = (30, 30 + number * size * spacing)
        draw.text(place, line, fill=ink, font=letters)
        boxes.append(draw.textbbox(place, line, font=letters))
    return image, boxes


def texts(answer):
    return [line.decode() for line in answer["text"]]


LINES = ["Nearmesh reads this page", "Frankfurt, London and Zurich", "Invoice of March 2026", "Total: 38.50 EUR"]


def test_warmup(package, folder, ask):
    (warmup,) = package.warmup
    path = folder / warmup.file
    assert path.stat().st_size < 10_000
    inputs, expected = read_warmup(path)
    found = ask(bytes(inputs["image"][0]))
    assert found["text"].tolist() == expected["text"].tolist() == [b"Nearmesh", b"warms up"]
    for name in ("box", "score"):
        np.testing.assert_allclose(found[name], expected[name], rtol=warmup.rtol, atol=warmup.atol)


def test_the_characters_are_the_recognizers(folder):
    assert (folder / "labels.txt").read_bytes() == (folder.parent / "text-recognizer" / "labels.txt").read_bytes()
    assert len(read_labels(folder / "labels.txt")) == 6625


@pytest.mark.parametrize("size", [18, 28, 40])
@pytest.mark.parametrize("path", [None, *FONT_FILES], ids=lambda path: path.stem if path else "Pillow's own")
def test_lines_come_back_exactly_where_they_stand(ask, path, size):
    image, boxes = page(LINES, letters=font(path, size), size=size)
    answer = ask(encode(image))
    assert texts(answer) == LINES
    assert answer["box"].shape == (4, 4) and answer["box"].dtype == np.float32
    # Of the letters' height, which a box holds and goes beyond.
    slack = size * 0.8
    for found, true in zip(answer["box"], boxes, strict=True):
        assert abs(found - true).max() < slack, (found, true)
    assert ((answer["score"] > 0.85) & (answer["score"] <= 1)).all()


def pictures():
    plain, _ = page(LINES)
    grey16 = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257)
    clear = plain.convert("L").point(lambda value: 255 - value)
    ink = Image.new("RGBA", plain.size, "black")
    ink.putalpha(clear)
    sideways = plain.transpose(Image.Transpose.ROTATE_90)
    turned = Image.Exif()
    # Orientation 6: turn by 90 degrees clockwise to see it upright.
    turned[0x0112] = 6
    return {
        "a JPEG": encode(plain, "JPEG", quality=80),
        "grey": encode(plain.convert("L")),
        "black and white": encode(plain.convert("1")),
        "a palette": encode(plain.quantize(16)),
        "16 bits": encode(grey16),
        "CMYK": encode(plain.convert("CMYK"), "JPEG", quality=90),
        "black on nothing": encode(ink),
        "white on black": encode(page(LINES, ink="white", paper="black")[0]),
        "a camera on its side": encode(sideways, "JPEG", quality=90, exif=turned),
        "progressive": encode(plain, "JPEG", quality=80, progressive=True),
    }


PICTURES = pictures()


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_every_kind_of_picture(ask, data):
    assert texts(ask(data)) == LINES


def test_a_picture_larger_than_the_detector_sees(ask):
    image, boxes = page(LINES, size=110, letters=font(size=110), width=2400)
    answer = ask(encode(image))
    assert texts(answer) == LINES
    assert abs(answer["box"] - np.array(boxes)).max() < 110 * 0.8


def test_two_columns_are_read_from_left_to_right(ask):
    image, _ = page(["Left first", "Left second", "Left third"])
    # A little higher, as on a page that lies askew.
    image.paste(page(["Right first", "Right second", "Right third"], width=400)[0].crop((0, 6, 400, 190)), (450, 0))
    order = ["Left first", "Right first", "Left second", "Right second", "Left third", "Right third"]
    assert texts(ask(encode(image))) == order


def test_more_lines_than_one_call_takes(ask):
    lines = [f"Line number {number}" for number in range(11, 30)]
    assert texts(ask(encode(page(lines, size=20, letters=font(size=20), width=400)[0]))) == lines


NOTHING = {
    "white": Image.new("RGB", (640, 480), "white"),
    "black": Image.new("RGB", (100, 900), "black"),
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "a thread": Image.new("RGB", (3000, 1), "blue"),
    "a disc": Image.new("L", (300, 300), 255),
    "noise": Image.fromarray(np.random.default_rng(3).integers(0, 255, (200, 300, 3), np.uint8)),
}
ImageDraw.Draw(NOTHING["a disc"]).ellipse((80, 80, 220, 220), fill=90)


@pytest.mark.parametrize("image", NOTHING.values(), ids=NOTHING.keys())
def test_an_image_without_text_has_no_lines(ask, image):
    answer = ask(encode(image))
    assert {name: (array.shape, array.dtype) for name, array in answer.items()} == {
        "text": ((0,), np.dtype(object)),
        "box": ((0, 4), np.dtype(np.float32)),
        "score": ((0,), np.dtype(np.float32)),
    }


# ---- what is refused


def huge_png(width, height):
    """A PNG that says how large it is and has one row at most."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (12000, 10000), (5001, 5001), (25_000_001, 1)])
def test_a_huge_image_is_refused_before_it_is_decoded(ask, monkeypatch, width, height):
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(InvalidInput, match=r"step 'decode': the image .* expected 25000000 (pixels )?at most"):
        ask(huge_png(width, height))


BROKEN = {
    "nothing": b"",
    "text": b"Nearmesh reads this page",
    "half a PNG": PICTURES["grey"][: len(PICTURES["grey"]) // 2],
    "half a JPEG": PICTURES["a JPEG"][: len(PICTURES["a JPEG"]) // 2],
    "a PNG's head": PICTURES["grey"][:20],
    "a GIF": encode(Image.new("L", (8, 8)), "GIF"),
    "a PNG with one row": huge_png(100, 100),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_bytes_are_the_callers_mistake(ask, data):
    with pytest.raises(
        InvalidInput, match=rf"step 'decode': the {len(data)} bytes are no whole PNG or JPEG image"
    ) as caught:
        ask(data)
    assert " at 0x" not in caught.value.message


# Pillow warns of damaged notes in an image; here warnings are errors.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["grey", "a JPEG", "a palette", "a camera on its side", "16 bits"])
def test_damaged_bytes_are_an_image_or_a_callers_mistake(steps, kind):
    """Nothing else may come of any bytes, above all no bug of the step's own."""
    dice = random.Random(kind)
    outcomes = set()
    for _ in range(150):
        data = bytearray(PICTURES[kind])
        for _ in range(dice.choice((1, 3, 30))):
            # Headers are where damage does most.
            data[dice.randrange(dice.choice((64, 700, len(data))))] = dice.randrange(256)
        try:
            found = steps["decode"]({"image": np.array([bytes(data)], object)})
        except InvalidInput:
            outcomes.add("refused")
        else:
            assert found["page"].shape[2] % 32 == found["page"].shape[3] % 32 == 0
            outcomes.add("decoded")
    assert "refused" in outcomes


def test_more_text_than_a_request_may_have(steps):
    heat = np.zeros((1, 1, 1280, 1280), np.float32)
    heat[0, 0, 5::10] = heat[0, 0, 6::10] = heat[0, 0, 7::10] = 1
    with pytest.raises(InvalidInput, match=r"the image has 128 lines of text, .* send it in parts"):
        steps["cut"]({"heat": heat, "pixels": np.zeros((1280, 1280, 3), np.uint8)})


def test_a_node_without_pillow_is_told_what_to_do(folder, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        PackageError, match=r"steps\.py cannot be loaded: .* needs Pillow: pip install 'nearmesh\[images"
    ):
        PythonSteps(folder).load(package.steps[0])


# ---- areas of a map


def flooded(mask):
    """Boxes of connected areas, the slow way."""
    left, boxes = {tuple(at) for at in np.argwhere(mask).tolist()}, set()
    while left:
        todo, area = [left.pop()], []
        while todo:
            y, x = todo.pop()
            area.append((y, x))
            for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if at in left:
                    left.remove(at)
                    todo.append(at)
        ys, xs = [y for y, _ in area], [x for _, x in area]
        if len(area) >= 12 and max(ys) - min(ys) >= 2:
            boxes.add((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return boxes


@pytest.mark.parametrize("share", [0.0, 0.4, 0.55, 0.6, 0.7, 1.0])
def test_regions_are_the_connected_areas(folder, share):
    regions = module_of(folder).regions
    rng = np.random.default_rng(int(share * 100))
    for height, width in [(1, 1), (40, 7), (30, 30), (9, 80)]:
        mask = rng.random((height, width)) < share
        found = {tuple(int(side) for side in box) for box in regions(mask)}
        assert found == flooded(mask)


def test_a_winding_area_is_one(folder):
    mask = np.zeros((60, 60), bool)
    mask[::4] = True
    mask[:, 0], mask[:, -1] = False, False
    mask[0:57:8, 1:59] = True
    for row in range(0, 56, 4):
        mask[row : row + 5, 1 if row % 8 else 58] = True
    assert [tuple(box) for box in module_of(folder).regions(mask)] == [(1, 0, 59, 57)]


def module_of(folder):
    """The step's file, for what no step shows."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("text_reader_steps", folder / "steps.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- how well it reads


def distance(left, right):
    """Edits from one text to the other (Levenshtein)."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def test_pages_of_random_words(ask):
    dice = random.Random(20)
    edits = characters = 0
    for number in range(20):
        size = dice.randint(16, 36)
        letters = font([None, *FONT_FILES][number % (len(FONT_FILES) + 1)], size)
        lines = [" ".join(dice.choices(WORDS.split(), k=dice.randint(2, 4))) for _ in range(dice.randint(3, 9))]
        image, _ = page(lines, letters=letters, size=size, width=1000, spacing=dice.uniform(1.3, 2))
        text = "\n".join(texts(ask(encode(image))))
        edits += distance(text, "\n".join(lines))
        characters += len("\n".join(lines))
    assert 1 - edits / characters >= CHARACTERS_RIGHT, f"{edits} edits in {characters} characters"
