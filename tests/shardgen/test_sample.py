"""What stands beside an image in a shard is one JSON, however many samples are written at a time."""

import json

from hypothesis import given
from hypothesis import strategies as st

from shardgen.sample import Sample, json_members, json_text

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tags = st.dictionaries(texts, texts, max_size=3)


@given(samples=st.lists(st.tuples(texts, texts, tags), max_size=4), dataset=texts, origin=texts)
def test_samples_written_together_are_canonical_json(
    samples: list[tuple[str, str, dict[str, str]]], dataset: str, origin: str
) -> None:
    sources, identities, tagged = zip(*samples, strict=True) if samples else ((), (), ())
    members = json_members(sources, identities, map(json_text, tagged), dataset, origin)
    for member, (source, identity, of_sample) in zip(members, samples, strict=True):
        fields = {
            "attributes": {"source": source},
            "dataset": dataset,
            "identity": identity,
            "origin": origin,
            "tags": of_sample,
        }
        assert member == json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        assert member == Sample("0", identity, dataset, origin, of_sample, {"source": source}).json_member()
