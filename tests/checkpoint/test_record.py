"""The record: strict data, never code."""

import json

import pytest

from paramcli.checkpoint.record import Entry, check_against, parse_record, record_text
from paramcli.errors import InputRefused

GOOD = {"schema": 1, "version": "0.1.0", "tensors": {"fc.weight": {"state": "parametrized", "chain": "skew,cayley", "view": None, "constraint": "special_orthogonal"}}}


def test_the_example_of_the_format_reads():
    """The documented example parses to its entries and prints back with sorted keys."""
    entries = parse_record(json.dumps(GOOD))
    assert entries == {"fc.weight": Entry("parametrized", "skew,cayley", None, "special_orthogonal")}
    assert json.loads(record_text(entries, "0.1.0")) == GOOD
    assert record_text(entries, "0.1.0") == json.dumps(GOOD, sort_keys=True)


def changed(**fields):
    entry = {**GOOD["tensors"]["fc.weight"], **fields}
    return json.dumps({**GOOD, "tensors": {"fc.weight": entry}})


BAD = {
    "not json": "{",
    "nan": '{"schema": NaN, "version": "1", "tensors": {}}',
    "a list": "[]",
    "duplicate keys": '{"schema": 1, "schema": 1, "version": "1", "tensors": {}}',
    "deep": "[" * 100_000,
    "another schema": json.dumps({**GOOD, "schema": 2}),
    "schema true": json.dumps({**GOOD, "schema": True}),
    "extra key": json.dumps({**GOOD, "import": "os"}),
    "missing key": json.dumps({"schema": 1, "tensors": {}}),
    "tensors a list": json.dumps({**GOOD, "tensors": []}),
    "unknown state": changed(state="half"),
    "state a list": changed(state=["baked"]),
    "chain a number": changed(chain=3),
    "unknown chain": changed(chain="os.system"),
    "chain as path": changed(chain="../../x"),
    "huge chain": changed(chain="skew," * 10_000 + "skew"),
    "unknown view": changed(view="__import__"),
    "view a number": changed(view=4),
    "unknown constraint": changed(constraint="eval"),
    "extra field": changed(plugin="x.py"),
    "entry a text": json.dumps({**GOOD, "tensors": {"a": "skew"}}),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_malformed_records_are_refused_with_the_way_out(text):
    """Anything but the schema is refused, and the hint says how to read the file without it."""
    with pytest.raises(InputRefused) as caught:
        parse_record(text)
    assert "--ignore-record" in caught.value.hint


def test_a_record_that_contradicts_the_tensors_is_refused():
    """Absent tensors, and states that the keys deny."""
    entries = parse_record(json.dumps(GOOD))
    check_against(entries, {"fc.weight": "parametrized"})
    with pytest.raises(InputRefused, match="does not have: fc.weight"):
        check_against(entries, {"other": "plain"})
    with pytest.raises(InputRefused, match="calls fc.weight parametrized"):
        check_against(entries, {"fc.weight": "plain"})
