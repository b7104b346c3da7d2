"""What a recipe may say about data, and what it is told when it may not."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.augment_config import PRESETS, AugmentConfig
from pipeline.config import Cap, LoaderConfig, MixConfig, SetConfig


def mix(*shares: Any, **options: Any) -> MixConfig:
    sets = {f"set{i}": {"path": f"data/{i}"} | ({} if s is None else {"share": s}) for i, s in enumerate(shares)}
    return MixConfig.model_validate({"sets": sets, **options})


def one_set(**fields: Any) -> SetConfig:
    return SetConfig.model_validate({"path": "data", **fields})


def shares_of(config: MixConfig) -> list[Fraction | None]:
    return [None if one.share is None else one.share[0] for one in config.sets.values()]


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (["1/3", "1/3", "1/3"], [Fraction(1, 3)] * 3),
        ([0.1, 0.9], [Fraction(1, 10), Fraction(9, 10)]),
        ([0.1] * 10, [Fraction(1, 10)] * 10),
        (["0.25", "3/4"], [Fraction(1, 4), Fraction(3, 4)]),
        ([1e-3, 0.999], [Fraction(1, 1000), Fraction(999, 1000)]),
        ([1], [Fraction(1)]),
        (["70%", "30 %"], [Fraction(7, 10), Fraction(3, 10)]),
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
        ([0, 1], ["share of 0", "leave it out"]),
        ([-0.5, 1.5], ["-0.5", "0 to 1"]),
        (["3/2"], ["3/2", "0 to 1"]),
        (["150%"], ["150%", "0 to 1"]),
        ([{0: 0.5, 5: 1}, {0: 0.5, 5: 0.5}], ["from epoch 5 on", "1.5"]),
        ([{1: 1}], ["[1]", "begin with 0"]),
        ([{0: 1, 5: 1, 3: 1}], ["[0, 5, 3]", "rise"]),
        ([{"soon": 1}], ["soon", "whole numbers"]),
        ([{0: 0}], ["0 in every epoch"]),
        ([{}], ["begin with 0"]),
    ],
)
def test_wrong_shares_are_refused_with_the_value_and_the_way_out(given: list[Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        mix(*given)
    assert all(word in str(caught.value) for word in words)


def test_shares_change_at_once_at_the_epochs_that_are_given() -> None:
    config = mix({0: 1, 10: 0.5}, {0: 0, 10: 0.3, 20: 0.5}, {0: 0, 10: 0.2, 20: 0})
    assert [epoch for epoch, _ in config.phases()] == [0, 10, 20]
    assert config.shares_in(9) == {"set0": Fraction(1), "set1": Fraction(0), "set2": Fraction(0)}
    assert config.shares_in(25) == {"set0": Fraction(1, 2), "set1": Fraction(1, 2), "set2": Fraction(0)}


def test_a_linear_ramp_moves_evenly_from_epoch_to_epoch_and_adds_up_in_each() -> None:
    config = mix({0: 1, 3: "1/2"}, {0: 0, 2: "1/3", 3: "1/2"}, ramp="linear")
    phases = config.phases()
    assert [shares["set0"] for _, shares in phases if shares] == [1, Fraction(5, 6), Fraction(2, 3), Fraction(1, 2)]
    assert all(sum(shares.values()) == 1 for _, shares in phases if shares)


@pytest.mark.parametrize("epoch", ["longest", "shortest"])
def test_an_epoch_that_shares_decide_needs_shares_that_stay(epoch: str) -> None:
    with pytest.raises(ValidationError, match=f"epoch {epoch} has no length"):
        mix({0: 1, 2: 0.5}, {0: 0, 2: 0.5}, epoch=epoch)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("ethnicity", {"ethnicity": "equal"}),
        (["ethnicity", "gender"], {"ethnicity/gender": "equal"}),
        ({"gender": "natural"}, {"gender": "natural"}),
        ({"age": {20: "1/2", 30: "1/2"}}, {"age": {"20": Fraction(1, 2), "30": Fraction(1, 2)}}),
        (
            {"a": {"x": "1/3", "y": "2/3"}, "b": "equal"},
            {"a": {"x": Fraction(1, 3), "y": Fraction(2, 3)}, "b": "equal"},
        ),
    ],
)
def test_a_balance_is_an_axis_axes_or_a_split_of_each(given: Any, read: Any) -> None:
    assert one_set(balance=given).balance == read


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": {"x": 0.3, "y": 0.3}}, r"shares of a 0.3 \+ 0.3 add up to 0.6"),
        ({"a": "even"}, "a is split 'even'; write equal"),
        ({"a": {"x": 0, "y": 1}}, "a share of 0 takes no part"),
        ({"a": {"x": 1.5}}, "lies outside 0 to 1"),
        (3, "3 is no balance"),
        ([], "leave it out"),
    ],
)
def test_a_wrong_balance_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        one_set(balance=given)


def test_a_cap_is_a_number_or_says_which() -> None:
    assert one_set(identities=5000).identities == Cap(most=5000, by="first")
    ranked = one_set(images_per_identity={"most": 20, "by": "quality", "order": "ascending"}).images_per_identity
    assert ranked == Cap(most=20, by="quality", order="ascending")
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        one_set(identities=0)


@pytest.mark.parametrize("more", [{"per_identity": 2}, {"sets": {"a": {"path": "p", "sampling": "identity"}}}])
def test_a_window_of_shards_does_not_go_with_identities(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"window_shards and .* exclude each other"):
        MixConfig.model_validate({"sets": {"a": {"path": "p"}}, "window_shards": 4, **more})


@pytest.mark.parametrize("name", PRESETS)
def test_augmentations_go_by_name(name: str) -> None:
    assert one_set(augment=name).augment == AugmentConfig.model_validate(PRESETS[name])


def test_an_operation_is_a_probability_or_says_more() -> None:
    config = AugmentConfig.model_validate({"blur": 0.1, "jpeg": {"probability": 1, "quality": [20, 40]}})
    assert (config.blur.probability, config.jpeg.quality) == (0.1, (20, 40))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("fancy", "no augmentation is called fancy; there are none, flip, randaugment"),
        ({"blur": 2}, "less than or equal to 1"),
        ({"blur": {"probability": 1, "sigma": [3, 1]}}, r"\[3.0, 1.0\] should rise"),
        ({"randaugment": {"magnitude": 31}}, "less than or equal to 30"),
        ({"affine": {"degrees": 20}}, "not how often; add a probability"),
        ({"blur": {"probability": 1, "sigma": [0, 1]}}, "lie above 0"),
        ({"jpeg": {"probability": 1, "quality": [0.5, 50]}}, "valid integer"),
        ({"jpeg": {"probability": 1, "quality": [50, 101]}}, "not above 100"),
        ({"crop": {"probability": 1, "scale": [0.5, 1.5]}}, "not above 1"),
    ],
)
def test_a_wrong_augmentation_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AugmentConfig.model_validate(given)


def test_the_mix_of_the_papers_reads_as_easily_as_a_sentence() -> None:
    config = MixConfig.model_validate(
        yaml.safe_load("""
sets:
  authentic: {path: data/bupt, share: 70%, balance: ethnicity, identities: 5000}
  synthetic: {path: data/dcface, share: 30%, balance: ethnicity, identities: 5000, augment: randaugment}
""")
    )
    assert shares_of(config) == [Fraction(7, 10), Fraction(3, 10)]
    assert config.sets["synthetic"].augment == AugmentConfig.model_validate({"randaugment": {}})


def test_a_mix_needs_a_set() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        mix()


@pytest.mark.parametrize("epoch", ["total", "longest", "shortest", 1000])
def test_an_epoch_is_a_kind_or_a_number(epoch: str | int) -> None:
    assert mix(1, epoch=epoch).epoch == epoch


@pytest.mark.parametrize("epoch", ["forever", 0, -5, 1.5, True])
def test_other_epochs_are_refused(epoch: Any) -> None:
    with pytest.raises(ValidationError, match="epoch"):
        mix(1, epoch=epoch)


@pytest.mark.parametrize(
    "original",
    [
        mix("1/3", "2/3", epoch="longest"),
        mix({0: "1/3", 4: 1}, {0: "2/3", 4: 0}, ramp="linear"),
        MixConfig.model_validate({"sets": {"a": {"path": "p", "balance": {"x": {"y": "1/3", "z": "2/3"}}}}}),
    ],
)
def test_a_mix_survives_being_written_and_read(original: MixConfig) -> None:
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
        (LoaderConfig, "read_ahead", -1),
        (LoaderConfig, "check_shards", "never"),
        (LoaderConfig, "max_failures", -1),
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
