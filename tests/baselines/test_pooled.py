"""Gaussian, PCA and one-class SVM beside scikit-learn's own, and where features do not vary."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.svm import OneClassSVM

from baselines import gaussian, knn, ocsvm, pca
from maskbridge.errors import OptionError

MODULES = [knn, gaussian, pca, ocsvm]
BACKBONE = {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64}


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    """Of training images, correlated, and of others."""
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(12, 12))
    return ((rng.normal(size=(n, 12)) @ turn + 3).astype(np.float32) for n in (40, 9))


def test_the_gaussian_is_scikit_learns(features) -> None:
    train, others = features
    model = gaussian.fit_gaussian(train)
    expected = np.sqrt(LedoitWolf().fit(train.astype(np.float64)).mahalanobis(others))
    found = [gaussian.mahalanobis(x, model["mean"], model["precision"]) for x in others]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("variance", [0.5, 0.95, 0.999])
def test_what_pca_leaves_over_is_scikit_learns(features, variance: float) -> None:
    train, others = features
    model = pca.components(train, variance)
    theirs = PCA(n_components=variance, svd_solver="full").fit(train.astype(np.float64))
    assert len(model["components"]) == theirs.n_components_
    expected = np.linalg.norm(others - theirs.inverse_transform(theirs.transform(others)), axis=1)
    found = [pca.left_over(x, model["mean"], model["components"]) for x in others]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5])
def test_the_decision_of_the_machine_is_scikit_learns(features, nu: float) -> None:
    train, others = features
    model = ocsvm.support(train, nu)
    standard = lambda x: (x - train.mean(axis=0)) / train.std(axis=0)  # noqa: E731
    theirs = OneClassSVM(nu=nu, gamma="scale").fit(standard(train.astype(np.float64)))
    found = [ocsvm.outside(x, model) for x in others]
    np.testing.assert_allclose(found, -theirs.decision_function(standard(others.astype(np.float64))), atol=1e-4)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_where_features_do_not_vary_the_nearer_one_is_less_defective(module, monkeypatch) -> None:
    kept: dict[str, np.ndarray] = {}
    monkeypatch.setattr(module, "fit", lambda *arguments: kept.update(arguments[-1](np.ones((5, 8), np.float32))))
    monkeypatch.setattr(module, "score", lambda *arguments: [arguments[-1]])
    module.train(None, module.Config(), None, None)
    (score,) = module.predict(None, module.Config(), None, None)
    same, near, far = (score(np.full(8, value, np.float32), kept) for value in (1.0, 1.5, 3.0))
    assert same < near < far


def test_features_that_do_not_vary_are_said(work, dataset, capsys, monkeypatch) -> None:
    monkeypatch.setattr("baselines._features.read_square", lambda *_: np.full((64, 64, 3), 90, np.uint8))
    work.train(gaussian, gaussian.Config(**BACKBONE))
    assert "the features of all 20 training images are the same" in capsys.readouterr().err


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_more_stages_are_other_features(module, work, tmp_path) -> None:
    config = module.Config(**BACKBONE)
    one = work.train(module, config)
    two = work.train(module, dataclasses.replace(config, stages=2), folder=tmp_path / "two")
    assert two.facts["feature_dimensions"] > one.facts["feature_dimensions"]
    assert len(work.predictions(module, dataclasses.replace(config, stages=2), folder=tmp_path / "two")) == 10


@pytest.mark.parametrize(
    ("module", "options"), [(pca, {"variance": 1.0}), (pca, {"variance": -1}), (ocsvm, {"nu": 0}), (ocsvm, {"nu": 2})]
)
def test_shares_that_are_none_are_refused(module, options) -> None:
    with pytest.raises(OptionError, match="cannot be used"):
        module.Config(**options)
