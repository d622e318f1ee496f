"""What the baselines with anomaly maps share.

smooth(enlarge(distances, 256), 4.0)
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32]


def enlarge(low: Map, size: int) -> Map:
    """Resize a map, h x w, float32, to size x size, bilinearly."""
    return np.asarray(cv2.resize(low, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def smooth(anomaly: Map, sigma: float) -> Map:
    """Gaussian blur: h x w, float32 -> the same; sigma in pixels, 0 for none; the mean stays (mirrored frame)."""
    if sigma == 0:
        return anomaly
    return np.asarray(cv2.GaussianBlur(anomaly, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), dtype=np.float32)
