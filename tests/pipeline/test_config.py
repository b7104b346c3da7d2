"""What a recipe may say about data, and what it is told when it may not."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import AugmentConfig, LoaderConfig, MixConfig


def mix(*shares: Any, **options: Any) -> MixConfig:
    sets = {f"set{i}": {"path": f"data/{i}"} | ({} if s is None else {"share": s}) for i, s in enumerate(shares)}
    return MixConfig.model_validate({"sets": sets, **options})


def shares_of(config: MixConfig) -> list[Fraction | None]:
    return [one.share for one in config.sets.values()]


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (["1/3", "1/3", "1/3"], [Fraction(1, 3)] * 3),
        ([0.1, 0.9], [Fraction(1, 10), Fraction(9, 10)]),
        ([0.1] * 10, [Fraction(1, 10)] * 10),
        (["0.25", "3/4"], [Fraction(1, 4), Fraction(3, 4)]),
        ([1e-3, 0.999], [Fraction(1, 1000), Fraction(999, 1000)]),
        ([1], [Fraction(1)]),
        ([None, None], [None, None]),
    ],
)
def test_shares_are_read_exactly(given: list[Any], exact: list[Fraction | None]) -> None:
    assert shares_of(mix(*given)) == exact


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.5, 0.4], ["0.5 + 0.4", "0.9", "1/3"]),
        ([0.333, 0.333, 0.333], ["0.999", "1/3"]),
        (["1/2", "1/2", "1/2"], ["1.5"]),
        ([0.5, None], ["set1", "no share"]),
        (["a third", 0.5], ["a third", "1/3"]),
        (["1/0", 0.5], ["1/0"]),
        ([float("nan"), 0.5], ["nan"]),
        ([True, None], ["True"]),
        ([0, 1], ["greater than 0"]),
        ([-0.5, 1.5], ["greater than 0"]),
        (["3/2"], ["less than or equal to 1"]),
    ],
)
def test_wrong_shares_are_refused_with_the_value_and_the_way_out(given: list[Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        mix(*given)
    assert all(word in str(caught.value) for word in words)


def test_a_mix_needs_a_set() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        mix()


@pytest.mark.parametrize("epoch", ["total", "longest", "shortest", 1000])
def test_an_epoch_is_a_kind_or_a_number(epoch: str | int) -> None:
    assert mix(1, epoch=epoch).epoch == epoch


@pytest.mark.parametrize("epoch", ["forever", 0, -5, 1.5])
def test_other_epochs_are_refused(epoch: Any) -> None:
    with pytest.raises(ValidationError, match="epoch"):
        mix(1, epoch=epoch)


def test_a_mix_survives_being_written_and_read() -> None:
    original = mix("1/3", "2/3", epoch="longest")
    assert '"1/3"' in original.model_dump_json()
    assert MixConfig.model_validate_json(original.model_dump_json()) == original
    assert MixConfig.model_validate(original.model_dump(mode="json")) == original


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (AugmentConfig, "flip", 1.1),
        (AugmentConfig, "flip", -0.1),
        (AugmentConfig, "flipp", 0.5),
        (LoaderConfig, "batch_size", 0),
        (LoaderConfig, "image_size", 15),
        (LoaderConfig, "device", "tpu"),
        (LoaderConfig, "threads", 0),
        (LoaderConfig, "prefetch", 0),
        (LoaderConfig, "workers", 2),
    ],
)
def test_wrong_values_and_unknown_fields_are_refused_by_name(model: type[BaseModel], field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        model.model_validate({field: value})


def test_a_configuration_cannot_change() -> None:
    config = mix(1)
    with pytest.raises(ValidationError, match="frozen"):
        config.epoch = "longest"  # type: ignore[misc]
    assert config.sets["set0"].path == Path("data/0")
