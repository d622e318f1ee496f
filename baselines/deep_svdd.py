"""Deep SVDD: a network learns to map good images close to one point; the score is the distance to it.

    maskbridge train deep-svdd datasets/bottle runs/bottle-deep-svdd-0 --fold 0
    maskbridge train deep-svdd datasets/bottle runs/bottle-deep-svdd-resnet18-0 --preset resnet18

The one-class objective of Ruff et al., Deep One-Class Classification, ICML 2018
(https://proceedings.mlr.press/v80/ruff18a.html), with the paper's three-block LeNet at half its width (`--channels 32`
is the paper's) or a pretrained encoder. So that the network cannot map every image to the centre, there is no bias
term to learn and no bounded activation, and the centre is fixed before training and away from zero; of a pretrained
encoder biases and batch normalisation stay as they are, and so do its own activations; that slows a collapse and does
not exclude it. The paper's pretraining as an autoencoder is left out. With `--anomalies`, made ones are pushed away
from the centre, weight / (distance + 1e-6), as in Ruff et al., Deep Semi-Supervised Anomaly Detection, ICLR 2020
(https://arxiv.org/abs/1906.02694). Image score only, no anomaly map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from baselines._anomalies import Maker, Method, maker
from baselines._augment import AugmentConfig, view
from baselines._encoder import EncoderConfig, blank_encoder, normalised, start_encoder
from baselines._feature_model import tell_if_alike
from baselines._loop import LoopConfig, Player, drawn_number, in_processes, optimise
from baselines._torch import (
    Tensors,
    choose_device,
    load_checkpoint,
    load_images,
    load_network,
    parameter_count,
    read_square,
    require_at_least,
    require_choices,
    require_multiple,
    require_training_images,
    save_checkpoint,
    to_tensor,
)
from baselines.gaussian import fit_gaussian, mahalanobis
from maskbridge.approach import Context, PredictData, Prediction, TrainData, Trained
from maskbridge.progress import say
from maskbridge.weights import NONE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from lightning_fabric import Fabric

    from baselines._backbones import Backbone

SUPERVISED = False
_PRETRAINED = {"backbone": "auto", "image_size": 224}
PRESETS: dict[str, dict[str, Any]] = {
    "cnn": {},
    "resnet18": _PRETRAINED,
    "resnet18-aug": {**_PRETRAINED, "flip": True, "rotation": 10.0, "crop": 0.8, "colour": 0.1},
    "resnet18-mahalanobis": {**_PRETRAINED, "score": "mahalanobis"},
}

#: Entries of the centre nearer to zero than this are moved away from it: zero weights would match a zero.
CENTRE_EPSILON = 0.1
#: Collapsed: the embeddings vary by less than this part of their squared distance to the centre, or of what they varied
#: by before training.
COLLAPSED_OF_DISTANCE, COLLAPSED_OF_START = 1e-3, 1e-5
#: Each block halves height and width and has twice the filters of the one before.
BLOCKS = 3
#: Added to the distance of a made anomaly.
ANOMALY_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config(LoopConfig, AugmentConfig, EncoderConfig):
    """Options of Deep SVDD."""

    image_size: int = 64
    """side of the square the images are resized to, in pixels; a multiple of 8"""
    channels: int = 16
    """filters of the first of three blocks, each further one has twice as many; the paper has 32"""
    embedding: int = 128
    """number of dimensions of the embedding"""
    weight_decay: float = 1e-6
    """L2 penalty on the weights"""
    score: Literal["distance", "mahalanobis"] = "distance"
    """distance to the centre, squared, or Mahalanobis distance to the embeddings of the training images"""
    anomalies: Literal["none", Method] = "none"
    """how anomalies are made of training images, one of each in each step: by a small GAN trained on them first, by
    pasting pieces of them, or by blending them along random noise"""
    anomaly_weight: float = 1.0
    """weight of made anomalies in the loss"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        LoopConfig.__post_init__(self)
        AugmentConfig.__post_init__(self)
        EncoderConfig.__post_init__(self)
        require_at_least(self, image_size=8, channels=1, embedding=1, anomaly_weight=0)
        require_multiple(self, image_size=2**BLOCKS)
        require_choices(self)


def train(data: TrainData, config: Config, weights: Path, context: Context) -> Trained:
    """Learn from good images; writes the network and its centre to `model.safetensors`."""
    require_training_images(data)
    return in_processes(_train, data, weights, config=config, context=context)


def predict(data: PredictData, config: Config, weights: Path, context: Context) -> Iterator[Prediction]:
    """Score images, one by one."""
    import numpy as np

    device = choose_device(context.device)
    tensors, header = load_checkpoint(weights)
    parts = {kind: Tensors(weights, _under(kind, tensors)) for kind in ("network", "gaussian")}
    centre = tensors["centre"].to(device)
    gaussian = Tensors(weights, {name: tensor.numpy() for name, tensor in parts["gaussian"].items()})
    backbone = blank_encoder(header.get("backbone"))
    network = build_network(config, backbone)
    load_network(network, parts["network"], weights)
    network.to(device)
    for image_id in data.image_ids:
        images = read_square(data.dataset, image_id, config.image_size)[np.newaxis]
        embedded = _embed(network, images, 1, device, backbone)
        if gaussian:
            score = mahalanobis(embedded[0].cpu().numpy(), gaussian["mean"], gaussian["precision"])
        else:
            score = float(_distances(embedded, centre)[0])
        yield Prediction(image_id=image_id, score=score)


def build_network(config: Config, backbone: Backbone | None = None) -> torch.nn.Sequential:
    """The paper's LeNet, or a pretrained encoder with an embedding in place of its classifier.

    N x 3 x size x size, float32 -> N x embedding, float32; nothing with a bias is trained.
    """
    import torch
    from torch import nn

    if backbone is not None:
        from timm.layers import freeze_batch_norm_2d

        encoder = freeze_batch_norm_2d(backbone.network)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.endswith("bias"))
        with torch.inference_mode():
            width = encoder(torch.zeros(1, 3, config.image_size, config.image_size)).shape[1]
        head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
        linear = nn.Linear(width, config.embedding, bias=False)
        return nn.Sequential(OrderedDict({"encoder": encoder, **head, "embedding": linear}))
    layers: list[nn.Module] = []
    before = 3
    for channels in (config.channels * 2**block for block in range(BLOCKS)):
        layers += [
            nn.Conv2d(before, channels, kernel_size=5, padding=2, bias=False),
            nn.BatchNorm2d(channels, eps=1e-4, affine=False),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
        ]
        before = channels
    side = config.image_size // 2**BLOCKS
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, config.embedding, bias=False))


def fix_centre(embeddings: torch.Tensor) -> torch.Tensor:
    """The centre: the mean of the untrained network's outputs, its entries kept away from zero.

    Args:
        embeddings: N x D, float32.

    Returns:
        D, float32; no entry is nearer to zero than `CENTRE_EPSILON`.
    """
    import torch

    centre = embeddings.mean(dim=0)
    pushed = torch.where(centre < 0, -CENTRE_EPSILON, CENTRE_EPSILON)
    return torch.where(centre.abs() < CENTRE_EPSILON, pushed, centre)


def has_collapsed(untrained: torch.Tensor, trained: torch.Tensor, centre: torch.Tensor) -> bool:
    """Whether training has mapped all images to one point, at the centre or elsewhere.

    Args:
        untrained: Embeddings of the training images before, N x D, float32, not all the same.
        trained: And after.
        centre: D.
    """
    before, after = ((each - each.mean(dim=0)).square().sum(dim=1).mean() for each in (untrained, trained))
    away = _distances(trained, centre).mean()
    return bool(after <= COLLAPSED_OF_DISTANCE * away or after <= COLLAPSED_OF_START * before)


def contrast_normalised(images: torch.Tensor) -> torch.Tensor:
    """Global contrast normalisation of each image, as in the paper: zero mean, unit mean absolute value.

    N x 3 x H x W, float32, [0, 1] -> the same shape.
    """
    tensor = images - images.mean(dim=(1, 2, 3), keepdim=True)
    return tensor / tensor.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)


def _train(fabric: Fabric, data: TrainData, weights: Path, *, config: Config, context: Context) -> Trained:
    import numpy as np
    import torch

    device = fabric.device
    backbone = start_encoder("deep-svdd", config, config.image_size, context.seed)
    images = load_images(data.dataset, data.train, config.image_size, context)
    torch.manual_seed(context.seed)
    network = build_network(config, backbone).to(device).to(memory_format=torch.channels_last)
    untrained = _embed(network, images, config.batch_size, device, backbone)
    alike = fabric.global_rank == 0 and tell_if_alike("deep-svdd", untrained.cpu().numpy())
    centre = fix_centre(untrained)
    made = None if config.anomalies == "none" else maker(config.anomalies, images, fabric, context)

    def losses(networks: Sequence[torch.nn.Module], rows: torch.Tensor) -> torch.Tensor:
        some = images[rows.numpy()]
        if made is None:
            return _distances(networks[0](_prepared(view(to_tensor(some, device), config), backbone)), centre)
        both = view(to_tensor(np.concatenate([some, _anomalous(some, made)]), device), config)
        near, far = _distances(networks[0](_prepared(both, backbone)), centre).chunk(2)
        return near + config.anomaly_weight / (far + ANOMALY_EPSILON)

    [history] = optimise(fabric, [Player(network, losses)], len(images), "deep-svdd", config, context)
    trained = _embed(network, images, config.batch_size, device, backbone)
    end = _distances(trained, centre)
    collapsed = not alike and len(images) > 1 and has_collapsed(untrained, trained, centre)
    if collapsed and fabric.global_rank == 0:
        say("deep-svdd has collapsed: all images have the same embedding; try a smaller --learning-rate")
    kept = {f"network.{name}": tensor for name, tensor in network.state_dict().items()} | {"centre": centre}
    if config.score == "mahalanobis":
        gaussian = fit_gaussian(trained.cpu().numpy())
        kept |= {f"gaussian.{name}": torch.from_numpy(value) for name, value in gaussian.items()}
    name = None if backbone is None else backbone.name
    if fabric.global_rank == 0:
        save_checkpoint(weights, kept, {"approach": "deep-svdd", "options": asdict(config), "backbone": name})
    return Trained(
        parameters=parameter_count(network),
        weights_from=NONE if backbone is None else backbone.weights_from,
        facts={
            "backbone": name,
            "loss_by_epoch": history,
            "distance_mean": float(end.mean()),
            "distance_std": float(end.std(correction=0)),
            "collapsed": collapsed,
        },
    )


def _anomalous(images: npt.NDArray[np.uint8], made: Maker) -> npt.NDArray[np.uint8]:
    import numpy as np

    rng = np.random.default_rng(drawn_number())
    return np.stack([made(image, rng)[0] for image in images])


def _prepared(images: torch.Tensor, backbone: Backbone | None) -> torch.Tensor:
    return contrast_normalised(images) if backbone is None else normalised(images, backbone)


def _embed(
    network: torch.nn.Module,
    images: npt.NDArray[np.uint8],
    batch_size: int,
    device: torch.device,
    backbone: Backbone | None,
) -> torch.Tensor:
    """Embeddings of all images, N x D, with the network as it is at prediction."""
    import torch

    network.eval()
    with torch.no_grad():
        starts = range(0, len(images), batch_size)
        batches = [network(_prepared(to_tensor(images[i : i + batch_size], device), backbone)) for i in starts]
    return torch.cat(batches)


def _distances(embeddings: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Squared distance of each embedding to the centre: N x D, D -> N."""
    return (embeddings - centre).square().sum(dim=1)


def _under(kind: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}
