import pytest

from evaluation.columns import heading, short


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("image", "auroc", "image AUROC"),
        ("image", "precision", "image precision"),
        ("pixel", "f1_max", "pixel F1 max"),
        ("instance", "bbox_ap75", "box AP75"),
        ("instance", "segm_ar100", "mask AR100"),
        ("instance", "bbox_ap50_100_1000px", "box AP50, 100–1000 px"),
        ("instance_by_type", "segm_ap_under_100px", "mask AP, under 100 px by type"),
        ("detection_rate_by_type", "broken_ap_large", "defects found, broken_ap_large"),
        ("image_recall_by_type", "x<y", "images called, x<y"),
        ("type", "macro_recall", "macro recall of types"),
        ("type", "accuracy", "accuracy of types"),
        ("type_recall", "good", "images called by their type, good"),
    ],
)
def test_every_metric_has_a_name_for_people(family, name, expected):
    assert heading(family, name) == expected


def test_shares_are_short():
    assert [short(x) for x in (0.9124, 1.0, -0.02, 0.0, 0.9999)] == [".912", "1.000", "-.020", ".000", "1.000"]
    assert [short(x) for x in (0.8125, -0.8125, 0.0625, -1e-9)] == [".813", "-.813", ".063", ".000"]
