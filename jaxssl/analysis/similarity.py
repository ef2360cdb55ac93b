"""How alike two models' layers are: linear centred kernel alignment."""

import numpy as np

from compress.errors import InputError


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compute linear CKA of two sets of features of the same frames, in [0, 1].

    ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), Frobenius norms, columns centred: the feature-space form of Kornblith et al. 2019,
    section 3, over all frames at once in float64. It is the same under rotation and scaling of either side. With few
    frames it reads high, by about width / frames for features that have nothing in common: use many more frames than
    dimensions.

    Args:
        x: (frames, width).
        y: (frames, another width).

    Raises:
        InputError: the frames differ in number, there are fewer than two, or a side does not vary.

    >>> x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> round(cka(x, -2 * x[:, ::-1] + 5), 6)
    1.0
    """
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"CKA: {len(x)} and {len(y)} frames; give the same ones of both sides, two or more")
    x, y = (side.astype(np.float64) - side.mean(0, dtype=np.float64) for side in (x, y))
    sizes = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if not sizes > 0:
        raise InputError(f"CKA: one of two sides does not vary over {len(x)} frames; look at the model")
    return float(np.square(np.linalg.norm(y.T @ x)) / sizes)
