"""The digest by which a stale answer is told from one to this round's parameters."""

import numpy as np

from nearmesh.round_messages import digest

WEIGHT, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(0.5, np.float32)


def test_it_is_of_names_dtypes_shapes_and_numbers() -> None:
    one = digest({"weight": WEIGHT, "bias": BIAS})
    assert len(one) == 64
    others = [
        {"weight": WEIGHT},
        {"weight": WEIGHT, "Bias": BIAS},
        {"weight": WEIGHT.astype(np.float64), "bias": BIAS},
        {"weight": WEIGHT.reshape(3, 2), "bias": BIAS},
        {"weight": WEIGHT + np.float32(1e-3), "bias": BIAS},
    ]
    assert one not in {digest(other) for other in others}


def test_it_is_not_of_order_strides_or_byte_order() -> None:
    one = digest({"weight": WEIGHT, "bias": BIAS})
    assert one == digest({"bias": BIAS, "weight": WEIGHT})
    assert one == digest({"weight": np.asfortranarray(WEIGHT), "bias": BIAS})
    assert one == digest({"weight": WEIGHT.astype(">f4"), "bias": BIAS})
