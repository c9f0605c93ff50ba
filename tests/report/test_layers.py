"""Which layers a report holds against each other."""

import pytest

from jaxbert.report.layers import learnt_rule

TOP = {"feature": "scores", "layers": "top"}


@pytest.mark.parametrize(
    ("terms", "rule"),
    [
        ([TOP], "top"),
        ([{"feature": "logits"}, TOP], "top"),
        ([TOP | {"weight": 0.0}, {"feature": "hidden", "layers": "bottom"}], "bottom"),
        ([TOP | {"weight": 0.0, "final_weight": 1.0}], "top"),
        ([{"feature": "key_relation", "layers": "2,3"}, TOP], "2,3"),
        (
            [{"feature": "cls", "layers": "skip"}, {"feature": "hidden", "layers": "last"}],
            "uniform",
        ),
        ([TOP | {"student_layers": [1]}], "uniform"),
        ([TOP | {"key_of_another_version": 1}], "top"),
    ],
)
def test_it_is_of_the_first_term_that_weighs_and_says_it_of_all_layers(terms, rule):
    named = {str(i): term for i, term in enumerate(terms)}
    config = {"phases": ["first", "last"], "first": {}, "last": {"terms": named}}
    assert learnt_rule(config) == rule
