"""Schemes of tags, against an encoder of each that starts from the entities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data.tagging import SchemeError, find_scheme, to_iob2
from jaxbert.data.tasks import SCHEMES

# A sentence as its segments: (words, type), of type "" outside of entities.
SEGMENTS = st.lists(
    st.one_of(
        st.tuples(st.just(1), st.just("")),
        st.tuples(st.integers(1, 3), st.sampled_from(["PER", "LOC", "PER-X"])),
    ),
    max_size=8,
)


def write(segments: list[tuple[int, str]], scheme: str) -> list[str]:
    """The tags of a sentence whose entities are known."""
    tags: list[str] = []
    before = ""
    for words, kind in segments:
        if not kind:
            tags.append("O")
        elif scheme == "IOB2":
            tags += [f"B-{kind}", *[f"I-{kind}"] * (words - 1)]
        elif scheme == "IOB1":
            tags += [f"{'B' if before == kind else 'I'}-{kind}", *[f"I-{kind}"] * (words - 1)]
        else:
            whole = ["S"] if words == 1 else ["B", *"I" * (words - 2), "E"]
            tags += [f"{mark}-{kind}" for mark in whole]
        before = kind
    return tags


@pytest.mark.parametrize("scheme", SCHEMES)
@given(segments=SEGMENTS)
def test_the_same_entities_have_the_same_tags_from_every_scheme(scheme, segments):
    assert to_iob2(write(segments, scheme), scheme) == write(segments, "IOB2")


@pytest.mark.parametrize("scheme", SCHEMES)
@given(sentences=st.lists(SEGMENTS, min_size=1, max_size=4))
def test_the_scheme_is_found_where_the_tags_tell(scheme, sentences):
    written = [write(segments, scheme) for segments in sentences]
    found = find_scheme(written)
    expected = [write(segments, "IOB2") for segments in sentences]
    assert [to_iob2(tags, found) for tags in written] == expected


def test_a_few_broken_sentences_do_not_change_the_scheme():
    good = [["B-PER", "I-PER", "O"]] * 3
    assert find_scheme([*good, ["O", "I-PER"]]) == "IOB2"
    assert find_scheme([["I-PER", "B-PER"], ["I-LOC"], ["B-LOC"]]) == "IOB1"
    assert find_scheme([["S-PER", "O"], ["B-LOC", "E-LOC"], ["I-LOC"]]) == "BIOES"


@pytest.mark.parametrize(
    ("scheme", "tags", "place", "what"),
    [
        ("IOB2", "O I-PER", 1, "'I-PER' cannot follow 'O' in IOB2"),
        ("IOB2", "I-PER", 0, "'I-PER' cannot follow 'the beginning' in IOB2"),
        ("IOB2", "B-PER I-LOC", 1, "'I-LOC' cannot follow 'B-PER' in IOB2"),
        ("IOB1", "O B-PER", 1, "'B-PER' cannot follow 'O' in IOB1"),
        ("BIOES", "B-PER O", 1, "'O' cannot follow 'B-PER' in BIOES"),
        ("BIOES", "B-PER I-PER", 1, "'I-PER' is not closed by 'E-PER'"),
        ("BIOES", "S-PER E-PER", 1, "'E-PER' cannot follow 'S-PER' in BIOES"),
        ("BIOES", "B-PER E-LOC", 1, "'E-LOC' cannot follow 'B-PER' in BIOES"),
        ("IOB2", "S-PER", 0, "'S-PER' is no tag of IOB2"),
        ("IOB2", "O-PER", 0, "'O-PER' is no tag of IOB2"),
        ("IOB2", "B", 0, "'B' is no tag of IOB2"),
        ("IOB2", "NN", 0, "'NN' is no tag of IOB2"),
    ],
)
def test_a_tag_that_cannot_stand_there_is_named_by_its_place(scheme, tags, place, what):
    with pytest.raises(SchemeError) as error:
        to_iob2(tags.split(), scheme)
    assert (error.value.place, str(error.value)) == (place, what)
