"""The printed plan says what the plan does, what stays out and what cannot be had."""

from typing import Any

import numpy as np
import pytest

from pipeline import plan_report
from pipeline.plan import Plan
from tests.pipeline.simulated import Rows, catalog_of, mix_of

SETS: dict[str, Rows] = {
    "real": [(number // 4, group) for number, group in enumerate(["north"] * 32 + ["unknown"] * 8 + ["south"] * 12)],
    "drawn": [(number // 4, group) for number, group in enumerate(["south"] * 8 + ["east"] * 48 + ["north"] * 4)],
}
BALANCED: dict[str, Any] = {"balance": "group"}


def plan_of(sets: dict[str, dict[str, Any]], batch_size: int = 18, **options: Any) -> Plan:
    return Plan(catalog_of(SETS, synthetic=["drawn"]), mix_of(sets, **options), 0, batch_size)


def warnings_of(sets: dict[str, dict[str, Any]], batch_size: int = 18, **options: Any) -> list[str]:
    found: list[str] = plan_report.to_json(plan_of(sets, batch_size, **options))["warnings"]
    return found


THIRDS = {"real": BALANCED | {"share": "1/3"}, "drawn": BALANCED | {"share": "2/3"}}
CURRICULUM = {"real": {"share": {0: 1, 2: 0.5}}, "drawn": {"share": {0: 0, 2: 0.5}}}


@pytest.mark.parametrize("sets", [THIRDS, CURRICULUM])
@pytest.mark.parametrize("unit", [1, 2])
def test_every_row_says_what_the_batches_of_an_epoch_hold(sets: dict[str, dict[str, Any]], unit: int) -> None:
    plan = plan_of(sets, per_identity=unit)
    report = plan_report.to_json(plan)
    assert (report["batch_size"], report["batches_per_epoch"]) == (18, plan.batches_per_epoch)
    for phase in report["phases"]:
        first = phase["first_epoch"] * plan.batches_per_epoch
        batches = [plan.batch(number) for number in range(first, first + plan.batches_per_epoch)]
        counts = np.bincount(np.concatenate([one.strata for one in batches]), minlength=len(plan.strata))
        for stratum, count, row in zip(plan.strata, counts.tolist(), phase["strata"], strict=True):
            labels = plan.labels(np.asarray(stratum.members.ids, np.int64))
            assert row["stratum"] == stratum.name
            assert row["samples"] == len(stratum.members.ids)
            assert row["identities"] == len(set(labels.tolist()))
            assert row["per_epoch"] == count
            assert row["seen_per_epoch"] == pytest.approx(count / len(stratum.members.ids))
            assert row["per_batch"] == pytest.approx(row["share"] * 18)
        assert sum(row["share"] for row in phase["strata"]) == pytest.approx(1)


def test_a_person_reads_the_same() -> None:
    lines = plan_report.lines(plan_of(THIRDS))
    assert lines[0].split() == [
        "stratum",
        "samples",
        "identities",
        "share",
        "a",
        "batch",
        "an",
        "epoch",
        "each",
        "sample",
    ]
    assert lines[1].split() == ["real/north", "32", "8", "16.67%", "3.00", "15", "0.47x"]
    assert [line.split()[0] for line in lines[1:6]] == [
        "real/north", "real/south", "drawn/east", "drawn/north", "drawn/south",
    ]  # fmt: skip
    assert lines[6:8] == [
        "an epoch is 5 batches of 18; 26 classes",
        "8 samples of real stay out: group unknown",
    ]
    assert all(line.startswith("warning: ") for line in lines[8:])


def test_shares_that_change_have_a_table_each() -> None:
    lines = plan_report.lines(plan_of(CURRICULUM))
    assert [line for line in lines if line.startswith("from epoch")] == ["from epoch 0 on", "from epoch 2 on"]
    assert [line.split()[3] for line in lines if line.startswith("drawn ")] == ["0.00%", "50.00%"]


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ("disjoint", [28], "28 classes"),
        ("joined", [15], "15 classes"),
        ("separate", [13, 15], "a head each: 13 classes of real, 15 classes of drawn"),
    ],
)
def test_classes_are_told_for_every_head(labels: str, classes: list[int], words: str) -> None:
    plan = plan_of({"real": {}, "drawn": {}}, labels=labels)
    assert plan_report.to_json(plan)["classes"] == classes
    assert any(line.endswith(words) for line in plan_report.lines(plan))


def test_what_stays_out_is_listed_with_the_reason() -> None:
    capped = {"real": BALANCED | {"identities": 6}, "drawn": {"images_per_identity": {"most": 3, "by": "draw"}}}
    report = plan_report.to_json(plan_of(capped))
    assert report["left_out"] == [
        {"set": "real", "reason": "group unknown", "samples": 8},
        {"set": "real", "reason": "over 6 identities", "samples": 20},
        {"set": "drawn", "reason": "over 3 images per identity", "samples": 15},
    ]
    assert report["identities"] == {"real": 6, "drawn": 15}


@pytest.mark.parametrize(
    ("sets", "options", "warning"),
    [
        (
            {"real": {"share": 0.9}, "drawn": {"share": 0.1}},
            {},
            "real has 52 samples, its share shows each 1.88 times an epoch",
        ),
        (CURRICULUM, {}, "real has 52 samples, its share shows each 2.08 times an epoch"),
        (
            {"real": {"share": 0.99}, "drawn": {"share": 0.01}},
            {},
            "drawn gives 0.18 samples to a batch: not every batch holds any of it",
        ),
        ({"real": {"identities": 50}}, {}, "real has 13 identities where 50 may stay"),
        (
            {"real": {"images_per_identity": {"most": 9, "by": "draw"}}},
            {},
            "no identity of real has more than the 9 images that may stay",
        ),
        ({"real": {}}, {"per_identity": 6}, "13 identities of real have fewer than 6 images, so a visit repeats some"),
        (
            {"real": BALANCED | {"identities": 10}},
            {},
            "real/south has 3 identities, its part of 10 is 5: others take its room",
        ),
    ],
)
def test_what_cannot_be_had_is_warned_of(sets: dict[str, Any], options: dict[str, Any], warning: str) -> None:
    assert warning in warnings_of(sets, **options)


def test_a_mix_that_asks_for_what_is_there_is_not_warned_of() -> None:
    assert warnings_of({"real": {"identities": 13}, "drawn": {}}, per_identity=2) == []
