from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from baselines import knn
from maskbridge.approach import Context, PredictData, TrainData
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset

#: Taken before the fixtures point the variables elsewhere.
DATA, WEIGHTS = os.environ.get("MASKBRIDGE_DATA", ""), os.environ.get("MASKBRIDGE_WEIGHTS", "")
CONFIG = knn.Config(backbone="shufflenet_v2_x0_5", backbone_weights="none", image_size=64)


@pytest.mark.parametrize("neighbours", [1, 3, 7])
def test_the_distance_is_that_of_scikit_learn(neighbours: int) -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.random((30, 12), dtype=np.float32), rng.random((5, 12), dtype=np.float32)
    expected = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(bank).kneighbors(queries)[0].mean(axis=1)
    found = [knn.nearest_distance(query, bank, neighbours) for query in queries]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_distance_by_hand() -> None:
    bank = np.array([[0, 0], [3, 4], [0, 2]], np.float32)
    assert knn.nearest_distance(np.zeros(2, np.float32), bank, 2) == 1.0
    assert knn.nearest_distance(np.zeros(2, np.float32), bank, 9) == pytest.approx(7 / 3)


def test_a_training_image_has_distance_zero_to_itself(work: SimpleNamespace) -> None:
    work.train(knn, CONFIG)
    [prediction] = work.predictions(knn, dataclasses.replace(CONFIG, neighbours=1), image_ids=(4,))
    assert prediction.score == pytest.approx(0, abs=1e-6), "a batch of another size may round otherwise"
    assert prediction.map is None
    assert "neighbours" in knn.PREDICT_OPTIONS


def test_the_backbone_is_said_and_recorded(work: SimpleNamespace, capsys) -> None:
    trained = work.train(knn, CONFIG)
    assert trained.weights_from == "none"
    assert trained.facts["backbone"] == "shufflenet_v2_x0_5"
    assert trained.facts["learned_values"] == 20 * trained.facts["feature_dimensions"] == 20 * 1024
    assert trained.parameters > 300_000
    assert capsys.readouterr().err == "knn: backbone shufflenet_v2_x0_5, weights from none\n"


@pytest.mark.real
@pytest.mark.skipif(not (DATA and WEIGHTS), reason="needs MASKBRIDGE_DATA and MASKBRIDGE_WEIGHTS")
def test_mobilenet_v2_reaches_97_percent_auroc_on_the_official_split_of_bottle(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", WEIGHTS)
    source, out = Path(DATA) / "mvtec_ad" / "bottle", tmp_path / "bottle"
    convert("mvtec", source, out, ConvertOptions(link="symlink"))
    dataset = Dataset.open(out)
    split = dataset.split("official")
    config = knn.Config(backbone="mobilenet_v2")
    knn.train(TrainData(dataset=dataset, train=split.train, val=(), fold="official"), config, tmp_path, context)
    predictions = knn.predict(
        PredictData(dataset=dataset, image_ids=split.test, fold="official", part="test"), config, tmp_path, context
    )
    scores = {prediction.image_id: prediction.score for prediction in predictions}
    assert len(scores) == 83
    defective = [not dataset.image_by_id[image_id].is_good for image_id in scores]
    assert roc_auc_score(defective, list(scores.values())) >= 0.97
