"""The safetensors header: bytes equal to the library's, and every broken one refused."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from paramcli.checkpoint.header import PAGE, Slot, build_header, congruent_end, file_order, header_length, parse_header
from paramcli.dtypes import CODE_OF_TORCH, DTYPES
from paramcli.errors import InputRefused

from ..pace import calls, times

TORCH_DTYPES = sorted(CODE_OF_TORCH)


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float32).to(getattr(torch, dtype))


def ours(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    slots = [Slot(name, CODE_OF_TORCH[str(t.dtype)[6:]], tuple(t.shape)) for name, t in tensors.items()]
    return build_header(slots, metadata or {})


def library_accepts(path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        with safe_open(path, "pt") as file:
            file.keys()
        return True
    except Exception:
        return False


def content_of(text: str | bytes, data: bytes = b"") -> bytes:
    header = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data


def parse(text: str | bytes, data: bytes = b""):
    content = content_of(text, data)
    length = header_length(content[:8], len(content))
    return parse_header(content[8 : 8 + length], len(content) - 8 - length)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_each_dtype_gives_the_library_s_bytes(dtype):
    """A header of one dtype is byte for byte what safetensors.torch.save writes."""
    tensors = {"b": tensor(dtype, 2, 3), "a": tensor(dtype), "empty": tensor(dtype, 0, 4)}
    assert save(tensors, {"format": "pt"}).startswith(ours(tensors, {"format": "pt"}))


def test_all_dtypes_together_give_the_library_s_bytes():
    """Tensors of every dtype are laid out in the library's order, its metadata and escapes included."""
    tensors = {f"{i}.{d}": tensor(d, i % 3, 2) for i, d in enumerate(TORCH_DTYPES * 2)}
    tensors |= {'quote " slash \\ / tab \t bell \x07 del \x7f é 層 😀 \u2028': tensor("int8", 3)}
    for metadata in (None, {"format": "pt"}, {'k"é\n': "v\x01\t</b>"}):
        assert save(tensors, metadata) == ours(tensors, metadata) + bytes(sum(t.nbytes for t in tensors.values()))


def test_names_sort_by_code_point_as_in_the_library():
    """Within a dtype the order is that of the names' UTF-8 bytes."""
    tensors = {name: tensor("float32", 1) for name in ("é", "z", "\uffff", "😀", "a.10", "a.9", "A", "")}
    assert save(tensors) == ours(tensors) + bytes(32)


def test_no_tensors_give_the_library_s_bytes():
    """An empty state dict is a header of two braces and six spaces."""
    assert ours({}) == save({}) == b"\x08" + bytes(7) + b"{}      "


def test_sub_byte_dtypes_come_in_the_library_s_order(tmp_path):
    """F4 and F6, which torch cannot save, are placed so that safe_open reads them in its own order."""
    slots = [Slot(code, code, (8,)) for code in DTYPES]
    path = tmp_path / "all.safetensors"
    path.write_bytes(build_header(slots, {}) + bytes(sum(slot.nbytes for slot in slots)))
    with safe_open(path, "pt") as file:
        assert file.offset_keys() == [slot.name for slot in file_order(slots)]


def test_several_metadata_keys_are_sorted():
    """More than one metadata key gives one fixed order, where the library's changes."""
    assert b'{"__metadata__":{"a":"1","b":"2","c":"3"}}' in build_header([], {"c": "3", "a": "1", "b": "2"})


@pytest.mark.parametrize(
    "slot",
    [
        Slot("__metadata__", "F32", (1,)),
        Slot("a\ud800", "F32", (1,)),
        Slot("a", "F4", (3,)),
        Slot("a", "U8", (1,) * 65),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(slot):
    """A reserved or non-Unicode name, a broken byte and 65 dimensions never reach a file."""
    with pytest.raises(InputRefused):
        build_header([slot], {})


def test_a_header_reads_back():
    """Names, dtypes, shapes, offsets and metadata come back as they went in."""
    header = parse_header(build_header([Slot("b", "F16", (2, 3)), Slot("a", "F32", ())], {"k": "v"})[8:], 16)
    assert header.tensors == {"a": ("F32", (), 0, 4), "b": ("F16", (2, 3), 4, 16)}
    assert header.metadata == {"k": "v"}


@pytest.mark.parametrize("end", [0, 8, 96, 4088])
def test_a_header_can_be_padded_to_end_anywhere_in_a_page(end, tmp_path):
    """Spaces follow the JSON; the library reads the file, and no more is added than needed."""
    slots = [Slot("b", "F16", (2, 3)), Slot("a", "F32", ())]
    plain, padded = build_header(slots, {"k": "v"}), build_header(slots, {"k": "v"}, end)
    assert len(padded) % PAGE == end and 0 <= len(padded) - len(plain) < PAGE
    assert padded[8:].rstrip() == plain[8:].rstrip() and parse_header(padded[8:], 16) == parse_header(plain[8:], 16)
    (tmp_path / "a.safetensors").write_bytes(padded + bytes(16))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["a", "b"] and file.metadata() == {"k": "v"}


MB = 1 << 20


@pytest.mark.parametrize(
    "sizes, origins, expected",
    [
        ([2 * MB], [5000], 904),  # 5000 - 4096
        ([8, 2 * MB], [None, 5000], 896),  # 8 new bytes before it
        ([MB, 3 * MB, MB], [800, 5000 + MB, 800 + 4 * MB], 904),  # the most bytes have their way
        ([MB - 1], [5000], None),  # not worth the spaces
        ([2 * MB], [5004], None),  # a header ends at a multiple of 8
        ([2 * MB], [None], None),
    ],
)
def test_the_header_ends_where_copied_bytes_keep_their_place_in_a_page(sizes, origins, expected):
    """(the header's end + a tensor's place) and its place in the input are congruent modulo a page for most bytes."""
    places, at = {}, 0
    for number, size in enumerate(sizes):
        places[f"t{number}"] = (at, at + size)
        at += size
    assert (
        congruent_end(
            places, {f"t{n}": origin for n, origin in enumerate(origins) if origin is not None} | {"elsewhere": 8}
        )
        == expected
    )


ENTRY = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
ODD_BUT_VALID = {
    "spaces": '{ "a" :\t{ "dtype" : "U8" ,\n"shape" : [ 2 ] , "data_offsets" : [ 0 , 2 ] } }\r\n   ',
    "field order": '{"a":{"data_offsets":[0,2],"shape":[2],"dtype":"U8"}}',
    "escaped keys": '{"\\u0061":{"\\u0064type":"U8","shape":[2],"data_offsets":[0,2]}}',
    "metadata last": '{"a":' + ENTRY + ',"__metadata__":{"x":"{}[]\\"}"}}',
    "empty metadata": '{"a":' + ENTRY + ',"__metadata__":{}}',
    "empty name": '{"":' + ENTRY + "}",
    "hole filled by empties": '{"z":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]},"a":'
    + ENTRY
    + ',"y":{"dtype":"F64","shape":[0],"data_offsets":[2,2]}}',
    "out of order": '{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
    '"a":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}',
    "control characters escaped": '{"a\\u0000\\u001b[31m":' + ENTRY + "}",
    "surrogate pair": '{"\\ud83d\\ude00":' + ENTRY + "}",
}


@pytest.mark.parametrize("text", ODD_BUT_VALID.values(), ids=ODD_BUT_VALID)
def test_odd_but_valid_headers_are_read(text, tmp_path):
    """What the library reads and loses nothing of is read, and names the same tensors."""
    assert library_accepts(tmp_path / "x", content_of(text, b"ab"))
    with safe_open(tmp_path / "x", "pt") as file:
        assert set(parse(text, b"ab").tensors) == set(file.keys())


def entry(dtype='"U8"', shape="[2]", offsets="[0,2]", more="") -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}}}'


BROKEN = {
    "not JSON": "{nonsense}",
    "empty": "",
    "array": "[]",
    "number": "1",
    "BOM": "\ufeff" + entry(),
    "trailing text": entry() + "x",
    "trailing brace": entry() + "}",
    "trailing zeros": entry() + "\0\0",
    "unclosed": entry()[:-1],
    "unclosed name": '{"a',
    "trailing comma": entry()[:-1] + ",}",
    "no colon": '{"a" {}}',
    "single quotes": "{'a':1}",
    "comment": entry()[:-1] + "/* */}",
    "raw newline in a name": '{"a\nb":' + ENTRY + "}",
    "wrong escape": '{"a\\q":' + ENTRY + "}",
    "lone surrogate": '{"a\\ud800":' + ENTRY + "}",
    "lone surrogate in metadata": '{"__metadata__":{"\\udfff":""},"a":' + ENTRY + "}",
    "surrogate as bytes": '{"a\ud800":' + ENTRY + "}",
    "Latin-1": b'{"\xe9":' + ENTRY.encode() + b"}",
    "deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep metadata": '{"__metadata__":' + '{"a":' * 100_000 + "}" * 100_000 + "}",
    "deep shape": entry(shape="[" * 2000 + "]" * 2000),
    "NaN size": entry(shape="[NaN]"),
    "infinite offset": entry(offsets="[0,Infinity]"),
    "float size": entry(shape="[2.0]"),
    "exponent": entry(shape="[2e0]"),
    "bool size": entry(shape="[true,2]"),
    "bool offset": entry(offsets="[false,2]"),
    "text size": entry(shape='["2"]'),
    "null size": entry(shape="[null]"),
    "negative size": entry(shape="[-2]"),
    "negative zero": entry(offsets="[-0,2]"),
    "leading zero": entry(shape="[02]"),
    "negative sizes, positive product": entry(shape="[-1,-2]"),
    "21 digits": entry(shape="[0,100000000000000000000]", offsets="[0,0]"),
    "5000 digits": entry(shape="[" + "9" * 3000 + "]"),
    "2**64 in the shape": entry(shape="[0,18446744073709551616]", offsets="[0,0]"),
    "product beyond 64 bits": entry(shape="[4294967296,4294967296,0]", offsets="[0,0]"),
    "shape is a number": entry(shape="2"),
    "shape is text": entry(shape='"2"'),
    "shape is null": entry(shape="null"),
    "dtype is a number": entry(dtype="1"),
    "dtype is a list": entry(dtype='["U8"]'),
    "unknown dtype": entry(dtype='"F128"'),
    "small letters": entry(dtype='"u8"'),
    "one offset": entry(offsets="[2]"),
    "three offsets": entry(offsets="[0,2,2]"),
    "offsets turned": entry(offsets="[2,0]"),
    "beyond the file": entry(shape="[3]", offsets="[0,3]"),
    "bytes left over": entry(shape="[1]", offsets="[0,1]"),
    "does not begin at 0": entry(shape="[1]", offsets="[1,2]"),
    "dtype lie": entry(dtype='"F32"'),
    "half a byte": entry(dtype='"F4"', shape="[5]"),
    "no dtype": '{"a":{"shape":[2],"data_offsets":[0,2]}}',
    "entry is null": '{"a":null}',
    "overlap": '{"a":' + ENTRY + ',"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    "same place twice": '{"a":' + ENTRY + ',"b":' + ENTRY + "}",
    "gap": '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    "metadata number": '{"__metadata__":{"a":1},"a":' + ENTRY + "}",
    "metadata list": '{"__metadata__":[],"a":' + ENTRY + "}",
    "nested metadata": '{"__metadata__":{"a":{}},"a":' + ENTRY + "}",
}
# What the library takes although it loses data by it, or bends the format.
BROKEN_BUT_ACCEPTED = {
    "duplicate tensor": '{"a":' + ENTRY + ',"a":' + ENTRY + "}",
    "duplicate through an escape": '{"a":' + ENTRY + ',"\\u0061":' + ENTRY + "}",
    "duplicate metadata key": '{"__metadata__":{"k":"1","k":"2"},"a":' + ENTRY + "}",
    "entry is an array": '{"a":["U8",[2],[0,2]]}',
    "extra field": entry(more=',"x":1'),
    "leading space": " " + entry(),
    "metadata null": '{"__metadata__":null,"a":' + ENTRY + "}",
}
REFUSED_BY_BOTH = {
    "duplicate metadata": '{"__metadata__":{},"__metadata__":{},"a":' + ENTRY + "}",
    "duplicate field": '{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
}


@pytest.mark.parametrize("text", [*BROKEN.values(), *REFUSED_BY_BOTH.values()], ids=[*BROKEN, *REFUSED_BY_BOTH])
def test_what_the_library_refuses_is_refused(text, tmp_path):
    """Every broken header the library refuses is InputRefused, in one printable line."""
    assert not library_accepts(tmp_path / "x", content_of(text, b"ab"))
    with pytest.raises(InputRefused) as caught:
        parse(text, b"ab")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("text", BROKEN_BUT_ACCEPTED.values(), ids=BROKEN_BUT_ACCEPTED)
def test_what_loses_data_is_refused_though_the_library_reads_it(text, tmp_path):
    """Duplicate keys and entries of another kind are refused, which safe_open lets pass."""
    assert library_accepts(tmp_path / "x", content_of(text, b"ab"))
    with pytest.raises(InputRefused):
        parse(text, b"ab")


def test_every_truncation_is_refused(tmp_path):
    """A file cut at any byte is refused, as is one with a byte more."""
    whole = save({"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.int8)}, {"format": "pt"})
    for cut in [*range(len(whole)), len(whole) + 1]:
        content = (whole + b"x")[:cut]
        with pytest.raises(InputRefused):
            length = header_length(content[:8], len(content))
            parse_header(content[8 : 8 + length], len(content) - 8 - length)


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**63, 2**64 - 1])
def test_length_lies_are_refused(length):
    """A header length beyond the file or the cap, or too small to be one, is refused before reading it."""
    content = length.to_bytes(8, "little") + entry().encode() + b"ab"
    with pytest.raises(InputRefused):
        parse_header(content[8 : 8 + header_length(content[:8], len(content))], 2)


def test_a_random_flip_is_refused_or_read_as_the_library_reads_it(tmp_path):
    """One changed byte of a header gives a refusal, or the tensors that safe_open finds."""
    whole = bytearray(save({"a.b": torch.arange(4.0), "c": torch.zeros(2, dtype=torch.int8)}, {"format": "pt"}))
    end = 8 + int.from_bytes(whole[:8], "little")
    accepted = 0
    for place in range(8, end):
        for new in b'"{}[],:019 aU\\\x00\xff':
            content = bytes(whole[:place]) + bytes([new]) + bytes(whole[place + 1 :])
            try:
                found = parse_header(content[8:end], len(content) - end)
            except InputRefused:
                continue
            accepted += 1
            assert library_accepts(tmp_path / "x", content), content
            with safe_open(tmp_path / "x", "pt") as file:
                assert set(found.tensors) == set(file.keys())
    assert accepted


def test_a_hundred_thousand_tensors_take_linear_time():
    """100,000 tensors parse in as many calls for each as 10,000 do."""
    for count in (10_000, 100_000):
        text = build_header([Slot(f"layers.{i}.weight", "F32", (2, 2)) for i in range(count)], {})[8:]
        assert len(parse_header(text, 16 * count).tensors) == count
        assert calls(partial(parse_header, text, 16 * count)) < 60 * count


@pytest.mark.parametrize(
    "filler",
    [b"[", b"[],", b"1", b"9,", b'"",', b" ", b"\\n", b'{"a":'],
    ids=["deep", "lists", "digits", "list", "texts", "spaces", "escapes", "objects"],
)
def test_a_large_broken_header_is_refused_quickly(filler):
    """20 MB of one thing is refused, without building what it says, in less time than `json` takes to read 10 MB."""
    megabyte = json.dumps([0] * 350_000)

    def refused(text: bytes) -> None:
        with pytest.raises(InputRefused):
            parse_header(text, 0)

    for before in (b'{"a":', b'{"a":{"dtype":"U8","shape":[', b'{"__metadata__":{"a":"'):
        text = before + filler * (20_000_000 // len(filler))
        assert times(partial(refused, text), partial(json.loads, megabyte), 10) < 10


def test_numbers_are_json_s_own():
    """Every accepted header is one that a strict JSON parser reads the same way."""
    for text in ODD_BUT_VALID.values():
        document = json.loads(text)
        document.pop("__metadata__", None)
        for name, (dtype, shape, begin, end) in parse(text, b"ab").tensors.items():
            assert document[name] == {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
