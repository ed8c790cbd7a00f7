"""The record: strict data, never code."""

import json

import pytest

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.spelling.record import Entry, check_against, join_records, parse_record, record_text

GOOD = {
    "schema": 1,
    "version": "0.1.0",
    "tensors": {
        "fc.weight": {"state": "parametrized", "chain": "skew,cayley", "view": None, "constraint": "special_orthogonal"}
    },
}


def test_the_example_of_the_format_reads():
    """The documented example parses to its entries and prints back with sorted keys."""
    entries = parse_record(json.dumps(GOOD))
    assert entries == {"fc.weight": Entry("parametrized", parse_chain("skew,cayley"), constraint="special_orthogonal")}
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
    assert "ignore_record=True" in caught.value.hint


def test_a_record_that_contradicts_the_tensors_is_refused():
    """Absent tensors, and states that the keys deny."""
    entries = parse_record(json.dumps(GOOD))
    check_against(entries, {"fc.weight": "parametrized"})
    with pytest.raises(InputRefused, match=r"does not have: fc\.weight"):
        check_against(entries, {"other": "plain"})
    with pytest.raises(InputRefused, match=r"calls fc\.weight parametrized"):
        check_against(entries, {"fc.weight": "plain"})


def text_of(version: str = "1", **chains: str) -> str:
    return record_text({name: Entry("parametrized", parse_chain(chain)) for name, chain in chains.items()}, version)


def test_records_of_several_files_are_one():
    """Each file speaks of its own tensors, or all of them of all."""
    joined = join_records(
        {"1": text_of("0.1", a="skew"), "2": text_of("0.2", b="symmetric"), "3": text_of("0.2", a="skew")}
    )
    assert joined == {
        "a": Entry("parametrized", parse_chain("skew")),
        "b": Entry("parametrized", parse_chain("symmetric")),
    }


def test_records_of_several_files_may_not_contradict_each_other():
    """Two words on one tensor are refused, with the file, the tensor and the way out."""
    with pytest.raises(InputRefused) as caught:
        join_records({"one": text_of(a="skew"), "two": text_of(a="symmetric")})
    assert "two has another paramcli record of a" in caught.value.message and caught.value.tensor == "a"
    assert "ignore_record=True" in caught.value.hint


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_malformed_record_among_others_is_refused(text):
    """With the file that has it, and the way out."""
    with pytest.raises(InputRefused) as caught:
        join_records({"1": text_of(a="skew"), "2": text})
    assert caught.value.path == "2" and "ignore_record=True" in caught.value.hint


@pytest.mark.parametrize(("limit", "value"), [("MAX_ENTRIES", 3), ("MAX_BYTES", 300)])
def test_records_of_several_files_have_one_limit(limit, value, monkeypatch):
    """As many tensors as one record may name, and as many characters, in all."""
    monkeypatch.setattr(f"paramcli.spelling.record.{limit}", value)
    texts = {str(part): text_of(**{f"t{part}_{i}": "skew" for i in range(2)}) for part in range(3)}
    assert all(len(text) < 300 for text in texts.values())
    with pytest.raises(InputRefused, match=r"more than 3|characters long in all files"):
        join_records(texts)
