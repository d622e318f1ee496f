"""PatchCore and PaDiM: coreset, nearest patches, Gaussians, maps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import _coreset, _patches, padim, patchcore
from baselines._feature_model import reopen
from baselines._features import Features, features
from baselines._maps import enlarge
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError

BACKBONE = {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64}
CHIP = 28  # whose defect covers rows 20 to 35 and columns 60 to 79 of 48 x 80


def one_at_a_time(points, count, seed):
    chosen = [int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))]
    nearest = (points - points[chosen[0]]).square().sum(dim=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((points - points[chosen[-1]]).square().sum(dim=1))
    return chosen


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 200), clusters=st.integers(1, 8))
def test_the_coreset_is_that_of_one_point_at_a_time(seed: int, count: int, clusters: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = (
        torch.randn(900, 5, generator=generator, dtype=torch.float64)
        + 6
        * torch.randn(clusters, 5, generator=generator, dtype=torch.float64)
        .repeat(900 // clusters + 1, 1)[:900]
        .sort(dim=0)
        .values
    )
    assert _coreset.k_center(points, count, seed=seed).tolist() == one_at_a_time(points, count, seed)


def test_a_coreset_of_everything_and_of_equal_points() -> None:
    assert _coreset.k_center(torch.randn(4, 3), 9, seed=0).tolist() == [0, 1, 2, 3]
    chosen = _coreset.k_center(torch.ones(50, 3), 10, seed=0).tolist()
    assert len(set(chosen)) == 10


def test_a_projection_keeps_distances_nearly() -> None:
    points = torch.randn(60, 400, generator=torch.Generator().manual_seed(0))
    low = _coreset.project(points, seed=0)
    assert low.shape == (60, 64)
    ratio = (torch.pdist(low) / torch.pdist(points)).numpy()
    assert abs(ratio.mean() - 1) < 0.02
    assert ratio.std() < 0.12
    assert torch.equal(_coreset.project(points[:, :64], seed=0), points[:, :64])


@pytest.mark.parametrize("neighbours", [1, 5])
def test_nearest_patches_are_exact_over_chunks_of_the_bank(neighbours: int, monkeypatch) -> None:
    monkeypatch.setattr(patchcore, "_BANK_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    bank, patches = torch.randn(40, 6, generator=generator) + 30, torch.randn(11, 6, generator=generator) + 30
    patches[0] = bank[17]
    found, rows = patchcore.nearest(patches, bank, neighbours)
    expected = torch.cdist(patches.double(), bank.double()).topk(neighbours, largest=False)
    assert torch.equal(rows, expected.indices)
    np.testing.assert_allclose(found, expected.values, atol=1e-5)
    assert (float(found[0, 0]), int(rows[0, 0])) == (0.0, 17)


@pytest.mark.parametrize(
    ("option", "patches", "size"),
    [
        ("auto", 3000, 3000), ("auto", 100_000, 8000), ("auto", 2_000_000, 20_000), ("0.1", 1000, 100),
        ("0.0001", 1000, 1), ("50", 1000, 50), ("5000", 1000, 1000), ("1", 10, 1),
    ],
)  # fmt: skip
def test_the_size_of_the_coreset(option: str, patches: int, size: int) -> None:
    assert patchcore.coreset_size(option, patches) == size


@pytest.mark.parametrize("option", ["0", "-1", "1.5", "nan", "few", "1e999"])
def test_a_coreset_that_is_no_size_is_refused(option: str) -> None:
    with pytest.raises(OptionError, match="--coreset cannot be used"):
        patchcore.Config(coreset=option)


def test_the_image_score_by_hand() -> None:
    """A patch at 3 whose nearest of 5 kept ones is 0; weight 1 - e^3 / (e^3 + e^4 + e^5).

    The three nearest to that one are 0, -1 and -2; those nearest to the patch itself would be 0, 6.5 and -1.
    """
    bank = torch.tensor([[-1.0], [6.5], [0.0], [30.0], [-2.0]])
    measure = patchcore._measure(3, {"bank": bank})
    low, score = measure(torch.tensor([[[3.0], [0.5]]]))
    np.testing.assert_allclose(low, [[3.0, 0.5]])
    assert score == pytest.approx(3 * (1 - np.exp(3) / np.exp([3, 4, 5]).sum()), rel=1e-5)
    assert patchcore._measure(1, {"bank": bank})(torch.tensor([[[3.0]]]))[1] == 3.0


def test_too_many_patches_are_thinned_out_and_it_is_said(work: SimpleNamespace, monkeypatch, capsys) -> None:
    monkeypatch.setattr(patchcore, "MOST_PATCHES", 100)
    trained = work.train(patchcore, patchcore.Config(**BACKBONE))
    assert "a random 100 patches, as many of each image, stand for all" in capsys.readouterr().err
    assert trained.facts["learned_values"] == 100 * (48 + 96)


def test_patches_are_the_maps_side_by_side() -> None:
    fine = np.random.default_rng(0).random((3, 6, 6)).astype(np.float16)
    coarse = np.full((2, 3, 3), 0.25, np.float16)
    row = Features(image_id=1, pooled={}, maps={16: coarse, 8: fine}, seconds=0)
    patches = _patches.embed(row, torch.device("cpu"), local=False)
    assert patches.shape == (6, 6, 5)
    np.testing.assert_array_equal(patches[..., :3], fine.transpose(1, 2, 0).astype(np.float32))
    assert (patches[..., 3:] == 0.25).all()
    local = _patches.embed(row, torch.device("cpu"), local=True)
    assert float(local[2, 3, 0]) == pytest.approx(fine[0, 1:4, 2:5].astype(np.float32).mean(), rel=1e-5)


def test_padim_is_the_mahalanobis_distance_of_each_place() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 2, 3, 7)).astype(np.float16).astype(np.float32)
    config = padim.Config(dimensions=4)
    model = padim._gaussians(config, 5, (torch.from_numpy(image) for image in images), 30)
    other = rng.normal(size=(2, 3, 7)).astype(np.float32)
    low, score = padim._measure({key: torch.from_numpy(value) for key, value in model.items()})(torch.from_numpy(other))
    assert score is None
    chosen = model["chosen"]
    assert len(set(chosen.tolist())) == 4
    for y in range(2):
        for x in range(3):
            seen = images[:, y, x][:, chosen].astype(np.float64)
            covariance = np.cov(seen.T) + 0.01 * np.eye(4)
            away = other[y, x, chosen] - seen.mean(axis=0)
            assert float(low[y, x]) == pytest.approx(np.sqrt(away @ np.linalg.inv(covariance) @ away), rel=1e-4)


@pytest.mark.parametrize("module", [patchcore, padim], ids=["patchcore", "padim"])
def test_the_map_is_brightest_on_the_defect(module, work: SimpleNamespace) -> None:
    config = module.Config(**BACKBONE)
    work.train(module, config)
    [prediction] = work.predictions(module, config, image_ids=(CHIP,))
    assert prediction.map.shape == (64, 64)
    assert prediction.map.dtype == np.float32
    row, column = np.unravel_index(prediction.map.argmax(), prediction.map.shape)
    assert 20 <= row * 48 / 64 < 36
    assert 60 <= column * 80 / 64 < 80
    sharp = work.predictions(module, dataclasses.replace(config, blur=0.0), image_ids=(CHIP,))[0]
    assert sharp.map.max() > prediction.map.max()


@pytest.mark.parametrize("module", [patchcore, padim], ids=["patchcore", "padim"])
def test_a_stride_that_the_backbone_has_not_is_refused(module, work: SimpleNamespace) -> None:
    with pytest.raises(OptionError, match=r"no feature map of this stride; found --strides 7; expected .*8, 16, 32"):
        work.train(module, module.Config(**BACKBONE, strides=("8", "7")))
    with pytest.raises(OptionError, match="--strides cannot be used"):
        module.Config(strides=("layer2",))


def test_patches_of_padim_are_whole_and_those_of_patchcore_smooth() -> None:
    """Of a coarse map one place covers 2 x 2 of the fine one: the same four times, or interpolated between means."""
    coarse = np.arange(1, 7, dtype=np.float16).reshape(1, 2, 3)
    row = Features(image_id=1, pooled={}, maps={16: coarse, 8: np.zeros((1, 4, 6), np.float16)}, seconds=0)
    whole = _patches.embed(row, torch.device("cpu"), local=False)[..., 1]
    np.testing.assert_array_equal(whole, coarse[0].repeat(2, axis=0).repeat(2, axis=1))
    smooth = _patches.embed(row, torch.device("cpu"), local=True)[..., 1]
    means = np.array([[12, 21, 16], [12, 21, 16]]) / 9  # zeros around
    np.testing.assert_allclose(
        smooth[0], [means[0, 0], *np.interp([0.25, 0.75, 1.25, 1.75], [0, 1, 2], means[0]), means[0, 2]], rtol=1e-5
    )


def patches_of(work: SimpleNamespace, dataset: Dataset, context: Context, ids: tuple[int, ...], *, local: bool):
    backbone, model = reopen(work.folder)
    rows = features(backbone, dataset, ids, 64, context, strides=(8, 16))
    return [_patches.embed(row, torch.device("cpu"), local=local) for row in rows], model


def test_patchcore_learns_and_measures_patches_averaged_with_their_neighbours(
    work: SimpleNamespace, dataset: Dataset, context: Context
) -> None:
    config = patchcore.Config(**BACKBONE, coreset="1000000", blur=0.0)
    work.train(patchcore, config, train=(1, 2))
    patches, model = patches_of(work, dataset, context, (1, 2), local=True)
    expected = torch.cat([each.reshape(-1, each.shape[-1]) for each in patches]).half().float().numpy()
    np.testing.assert_array_equal(np.unique(model["bank"], axis=0), np.unique(expected, axis=0))
    same, other = work.predictions(patchcore, config, image_ids=(2, CHIP))
    assert same.map.max() < 0.01 * other.map.max()


def test_padim_learns_and_measures_patches_as_they_are(
    work: SimpleNamespace, dataset: Dataset, context: Context
) -> None:
    config = padim.Config(**BACKBONE, strides=("8", "16"), blur=0.0)
    work.train(padim, config, train=(1, 2, 3))
    patches, model = patches_of(work, dataset, context, (1, 2, 3, CHIP), local=False)
    means = torch.stack(patches[:3]).half().float().mean(dim=0)[..., model["chosen"]]
    np.testing.assert_allclose(model["means"], means.reshape(model["means"].shape), atol=1e-5)
    low, _ = padim._measure({key: torch.from_numpy(value) for key, value in model.items()})(patches[3])
    [prediction] = work.predictions(padim, config, image_ids=(CHIP,))
    np.testing.assert_allclose(prediction.map, enlarge(low.numpy(), 64), rtol=1e-3, atol=1e-2)
