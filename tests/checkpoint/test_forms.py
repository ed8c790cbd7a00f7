"""Form detection: every spelling, every look-alike, every half pair, by keys, shapes and dtypes."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.chain import parse_chain
from paramcli.checkpoint.source import Storage, TensorInfo
from paramcli.registry import PARAMETRIZATIONS, target_class
from paramcli.spelling.forms import PARAMETRIZED, PLAIN, detect
from paramcli.spelling.keys import parametrized_key, split_parametrized
from paramcli.spelling.older import FORM_OF_SPELLING
from paramcli.spelling.record import Entry

S = Storage(0, 0, 0, "x")


def infos(**shapes):
    """name=shape or name=(dtype, shape) -> TensorInfos; '__' in a name stands for a dot."""
    made = {}
    for name, shape in shapes.items():
        dtype = "F32"
        if shape and isinstance(shape[0], str):
            dtype, shape = shape
        made[name.replace("__", ".")] = TensorInfo(name.replace("__", "."), dtype, tuple(shape), S)
    return made


P = "fc__parametrizations__weight__"
# label: (tensors, {tensor: (form, chain)})
LAYOUTS = {
    "plain": (dict(fc__weight=(4, 3), fc__bias=(4,)), {"fc.weight": ("plain", None), "fc.bias": ("plain", None)}),
    "old weight norm, linear": (
        dict(fc__weight_g=(4, 1), fc__weight_v=(4, 3)),
        {"fc.weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "old weight norm, conv": (
        dict(c__weight_g=(8, 1, 1), c__weight_v=(8, 3, 5)),
        {"c.weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "old weight norm, dim 1 of a transposed conv": (
        dict(c__weight_g=(1, 4, 1), c__weight_v=(8, 4, 5)),
        {"c.weight": ("weight_norm_old", "weight_norm:dim=1")},
    ),
    "old weight norm, whole tensor": (
        dict(c__weight_g=(), c__weight_v=(8, 4)),
        {"c.weight": ("weight_norm_old", "weight_norm:dim=none")},
    ),
    "old weight norm at top level": (
        dict(weight_g=(4, 1), weight_v=(4, 3)),
        {"weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "old weight norm of an LSTM kernel": (
        dict(rnn__weight_hh_l0_g=(16, 1), rnn__weight_hh_l0_v=(16, 4)),
        {"rnn.weight_hh_l0": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "old weight norm of one row": (
        dict(c__weight_g=(1, 1, 1), c__weight_v=(1, 4, 5)),
        {"c.weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "new weight norm": (
        {P + "original0": (4, 1), P + "original1": (4, 3)},
        {"fc.weight": ("parametrized", "weight_norm:dim=0")},
    ),
    "new weight norm, whole tensor": (
        {P + "original0": (), P + "original1": (4, 3)},
        {"fc.weight": ("parametrized", "weight_norm:dim=none")},
    ),
    "old spectral norm": (
        dict(fc__weight_orig=(4, 3), fc__weight_u=(4,), fc__weight_v=(3,)),
        {"fc.weight": ("spectral_norm_v1", "spectral_norm:dim=0")},
    ),
    "old spectral norm of a transposed conv": (
        dict(c__weight_orig=(4, 6, 3), c__weight_u=(6,), c__weight_v=(12,)),
        {"c.weight": ("spectral_norm_v1", "spectral_norm:dim=1")},
    ),
    "spectral norm by bar": (
        dict(fc__weight_bar=(4, 3), fc__weight_u=(4,), fc__weight_v=(3,)),
        {"fc.weight": ("spectral_norm_bar", "spectral_norm:dim=0")},
    ),
    "oldest spectral norm, with the value and no v": (
        dict(fc__weight_orig=(4, 3), fc__weight=(4, 3), fc__weight_u=(4,)),
        {"fc.weight": ("spectral_norm_v0", "spectral_norm:dim=0")},
    ),
    "RADIO's spectral reparametrization": (
        {
            P + "original": (4, 3),
            P + "0.scale": (1, 1),
            P + "0._u": (4,),
            P + "0._v": (3,),
            P + "0._sn_version": ("I64", ()),
        },
        {"fc.weight": ("parametrized", "spectral_reparam")},
    ),
    "RADIO's, with four scales whose meaning the file does not tell": (
        {
            P + "original": (4, 3),
            P + "0.scale": (1, 4),
            P + "0._u": (4,),
            P + "0._v": (3,),
            P + "0._sn_version": ("I64", ()),
        },
        {"fc.weight": ("parametrized", "shapes do not fit together")},
    ),
    "new spectral norm": (
        {P + "original": (4, 3), P + "0._u": (4,), P + "0._v": (3,)},
        {"fc.weight": ("parametrized", "spectral_norm:dim=0")},
    ),
    "square spectral norm leaves the dim to the data": (
        dict(fc__weight_orig=(4, 4), fc__weight_u=(4,), fc__weight_v=(4,)),
        {"fc.weight": ("spectral_norm_v1", ("spectral_norm:dim=0", "spectral_norm:dim=1"))},
    ),
    "old pruning": (dict(fc__weight_orig=(4, 3), fc__weight_mask=(4, 3)), {"fc.weight": ("prune_old", "mask")}),
    "new pruning": ({P + "original": (4, 3), P + "0__mask": ("BOOL", (4, 3))}, {"fc.weight": ("parametrized", "mask")}),
    "pruned bias": (dict(fc__bias_orig=(4,), fc__bias_mask=(4,)), {"fc.bias": ("prune_old", "mask")}),
    "orthogonal without its map": (
        {P + "original": (4, 4), P + "0__base": (4, 4)},
        {"fc.weight": ("parametrized", "matrix_exp")},
    ),
    "orthogonal or geotorch's, tall": (
        {P + "original": (8, 4), P + "0__base": (8, 8)},
        {
            "fc.weight": (
                "parametrized",
                "geotorch.orthogonal, geotorch.orthogonal:triv=cayley and geotorch.grassmannian fit",
            )
        },
    ),
    "orthogonal by blocks": (
        {P + "original": (8, 4), P + "0__base": (2, 4, 4)},
        {"fc.weight": ("parametrized", "fit, with the view")},
    ),
    "geotorch's sphere": (
        {P + "original": (8, 4), P + "0__base": (8, 4)},
        {"fc.weight": ("parametrized", "geotorch.sphere:radius=X fits")},
    ),
    "geotorch's ranks": (
        {P + "original": (8, 4), P + "0__0__base": (8, 8), P + "0__2__base": (4, 4)},
        {"fc.weight": ("parametrized", "geotorch.low_rank:rank=N")},
    ),
    "geotorch's definite matrices": (
        {P + "original": (4, 4), P + "0__0__base": (4, 4)},
        {"fc.weight": ("parametrized", "geotorch.positive_definite")},
    ),
    "geotorch's stable matrices": (
        {
            **{P + f"original{i}": (4, 4) for i in range(3)},
            P + "0__In": (4, 4),
            P + "0__alpha": (),
            P + "0__0__0__base": (4, 4),
            P + "0__1__0__base": (4, 4),
        },
        {"fc.weight": ("parametrized", "geotorch.alpha_stable:alpha=X fits")},
    ),
    "the tutorial's Id": (
        {P + "original": (4, 4), P + "1__Id": (4, 4)},
        {"fc.weight": ("parametrized", "skew,cayley fits")},
    ),
    "only an original": ({P + "original": (4, 4)}, {"fc.weight": ("parametrized", "do not tell")}),
    "rank one by two originals": (
        {P + "original0": (4, 1), P + "original1": (1, 3)},
        {"fc.weight": ("parametrized", "no weight norm by their shapes")},
    ),
    "lora by parametrize": (
        {P + "original": (4, 3), P + "0__lora_A": (2, 3), P + "0__lora_B": (4, 2)},
        {"fc.weight": ("parametrized", "lora:rank=2:alpha=X fits")},
    ),
    "half: g without v": (dict(fc__weight_g=(4, 1)), {"fc.weight": ("weight_norm_old", "without fc.weight_v")}),
    "half: v without g": (dict(fc__weight_v=(4, 3)), {"fc.weight": ("weight_norm_old", "without fc.weight_g")}),
    "half: orig without mask or u": (
        dict(fc__weight_orig=(4, 3)),
        {"fc.weight": ("prune_old", "without fc.weight_mask")},
    ),
    "half: mask without orig": (dict(fc__weight_mask=(4, 3)), {"fc.weight": ("prune_old", "without fc.weight_orig")}),
    "half: bar without u and v": (
        dict(fc__weight_bar=(4, 3)),
        {"fc.weight": ("spectral_norm_bar", "without fc.weight_u")},
    ),
    "half: orig and u without v": (
        dict(fc__weight_orig=(4, 3), fc__weight_u=(4,)),
        {"fc.weight": ("spectral_norm_v1", "without fc.weight_v")},
    ),
    "half: original0 without original1": (
        {P + "original0": (4, 1)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.original1 is missing")},
    ),
    "half: new u without v": (
        {P + "original": (4, 3), P + "0._u": (4,)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.0._v is missing")},
    ),
    "half: new v without u": (
        {P + "original": (4, 3), P + "0._v": (3,)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.0._u is missing")},
    ),
    "half: both kinds of original": (
        {P + "original": (4, 3), P + "original0": (4, 1)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.original1 is missing")},
    ),
    "half: original1 without original0": (
        {P + "original1": (4, 3)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.original0 is missing")},
    ),
    "half: mask without original": (
        {P + "0__mask": (4, 3)},
        {"fc.weight": ("parametrized", "fc.parametrizations.weight.original is missing")},
    ),
    "look-alike: a gate and a value matrix": (
        dict(attn__w_g=(4, 4), attn__w_v=(4, 4)),
        {"attn.w_g": ("plain", None), "attn.w_v": ("plain", None)},
    ),
    "look-alike: weight_gate": (
        dict(fc__weight_gate=(4, 1), fc__weight_v=(4, 4), fc__weight=(4, 4)),
        {"fc.weight_gate": ("plain", None), "fc.weight": ("plain", None), "fc.weight_v": ("plain", None)},
    ),
    "look-alike: blurred_cent_mask": (
        dict(x__gaussian_blurred_cent_mask=(360,)),
        {"x.gaussian_blurred_cent_mask": ("plain", None)},
    ),
    "look-alike: constraint mask beside its weight": (
        dict(w__a_constraint_mask=(3,), w__a=(3,)),
        {"w.a_constraint_mask": ("plain", None)},
    ),
    "look-alike: a stored mask beside a plain weight": (
        dict(fc__weight=(4, 3), fc__weight_mask=(4, 3)),
        {"fc.weight": ("plain", None), "fc.weight_mask": ("plain", None)},
    ),
    "look-alike: a stored mask beside a parametrized weight": (
        {P + "original0": (4, 1), P + "original1": (4, 3), "fc__weight_mask": (4, 3)},
        {"fc.weight": ("parametrized", "weight_norm:dim=0"), "fc.weight_mask": ("plain", None)},
    ),
    "look-alike: q_u and q_v": (
        dict(a__q_u=(4, 2), a__q_v=(2, 4)),
        {"a.q_u": ("plain", None), "a.q_v": ("plain", None)},
    ),
    "look-alike: original0 and original1 outside parametrizations": (
        dict(fc__weight__original0=(4, 1), fc__weight__original1=(4, 3)),
        {"fc.weight.original0": ("plain", None), "fc.weight.original1": ("plain", None)},
    ),
    "look-alike: integer g": (
        dict(x__w_g=("I64", (4, 1)), x__w_v=("I64", (4, 3))),
        {"x.w_g": ("plain", None), "x.w_v": ("plain", None)},
    ),
    "look-alike: torchao's int8 weight and scale": (
        {P + "original0": ("I8", (4, 3)), P + "original1": (4, 1)},
        {
            "fc.parametrizations.weight.original0": ("plain", None),
            "fc.parametrizations.weight.original1": ("plain", None),
        },
    ),
    "look-alike: torchao's int8 weight, scale and zero point": (
        {P + "original0": ("I8", (4, 3)), P + "original1": (4, 1), P + "original2": ("I64", (4, 1))},
        {f"fc.parametrizations.weight.original{i}": ("plain", None) for i in range(3)},
    ),
    "look-alike: torchao's float8 weight and scale": (
        {P + "original0": ("F8_E4M3", (4, 1)), P + "original1": (4, 1)},
        {f"fc.parametrizations.weight.original{i}": ("plain", None) for i in range(2)},
    ),
    "three float originals are unknown": (
        {P + "original0": (4, 1), P + "original1": (4, 3), P + "original2": (4,)},
        {"fc.weight": ("parametrized", "does not recognise")},
    ),
    "look-alike: g and v beside a weight of another shape": (
        dict(a__weight=(4, 4), a__weight_g=(4, 1), a__weight_v=(4, 3)),
        {"a.weight": ("plain", None), "a.weight_g": ("plain", None), "a.weight_v": ("plain", None)},
    ),
    "twice: g and v beside the weight itself": (
        dict(a__weight=(4, 3), a__weight_g=(4, 1), a__weight_v=(4, 3)),
        {
            "a.weight": ("plain", "twice, spelt by a.weight, a.weight_g, a.weight_v"),
            "a.weight_g": ("weight_norm_old", "twice"),
        },
    ),
    "look-alike: RWKV's parameters g and v": (
        dict(att__x_g=(1, 1, 8), att__x_v=(1, 1, 8)),
        {"att.x_g": ("plain", None), "att.x_v": ("plain", None)},
    ),
    "look-alike: the keys and values that attention adds": (
        dict(attn__in_proj_weight=(12, 4), attn__bias_k=(1, 1, 4), attn__bias_v=(1, 1, 4)),
        {"attn.bias_k": ("plain", None), "attn.bias_v": ("plain", None)},
    ),
    "old weight norm of attention's projection": (
        dict(attn__in_proj_weight_g=(12, 1), attn__in_proj_weight_v=(12, 4)),
        {"attn.in_proj_weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "old spectral norm that keeps its value": (
        dict(fc__weight=(4, 3), fc__weight_orig=(4, 3), fc__weight_u=(4,), fc__weight_v=(3,)),
        {"fc.weight": ("spectral_norm_v1_kept", "spectral_norm:dim=0")},
    ),
    "soft spectral norm": (
        dict(fc__weight_orig=(4, 3), fc__weight_u=(4,), fc__weight_v=(3,), fc__weight_sigma=(1,)),
        {"fc.weight": ("soft_spectral_norm_old", "soft_spectral_norm:coeff=X")},
    ),
    "soft spectral norm of a convolution": (
        dict(c__weight_orig=(4, 3, 3, 3), c__weight_u=(256,), c__weight_v=(192,), c__weight_sigma=(1,)),
        {"c.weight": ("soft_spectral_norm_old", "of the size of the input")},
    ),
    "a word beside a weight norm that none has": (
        dict(fc__weight_g=(4, 1), fc__weight_v=(4, 3), fc__weight_mask=(4, 3)),
        {"fc.weight": ("weight_norm_old", "beside them fc.weight_mask"), "fc.weight_mask": ("plain", None)},
    ),
    "a word beside a spectral norm that none has": (
        dict(fc__weight_orig=(4, 3), fc__weight_u=(4,), fc__weight_v=(3,), fc__weight_scale=(1,)),
        {"fc.weight": ("spectral_norm_v1", "beside them fc.weight_scale"), "fc.weight_scale": ("plain", None)},
    ),
    "both directions of an LSTM, one of them with weight norm": (
        dict(r__weight_hh_l0_g=(16, 1), r__weight_hh_l0_v=(16, 4), r__weight_hh_l0_reverse=(16, 4)),
        {"r.weight_hh_l0": ("weight_norm_old", "weight_norm:dim=0"), "r.weight_hh_l0_reverse": ("plain", None)},
    ),
    "pruned v of an old weight norm": (
        dict(c__weight_g=(4, 1), c__weight_v_orig=(4, 3), c__weight_v_mask=(4, 3)),
        {"c.weight": ("weight_norm_old", "weight_norm:dim=0")},
    ),
    "pruned v of a new weight norm": (
        {P + "original0": (4, 1), P + "original1_orig": (4, 3), P + "original1_mask": (4, 3)},
        {"fc.weight": ("parametrized", "weight_norm:dim=0")},
    ),
    "pruned v, and no g": (
        dict(c__weight_v_orig=(4, 3), c__weight_v_mask=(4, 3)),
        {"c.weight_v": ("prune_old", "mask")},
    ),
    "look-alike: integer positions and their mask": (
        dict(x__ids_orig=("I64", (4,)), x__ids_mask=("F32", (4,))),
        {"x.ids_orig": ("plain", None), "x.ids_mask": ("plain", None)},
    ),
    "look-alike: query_g and query_v": (
        dict(a__query_g=(4, 4), a__query_v=(4, 4)),
        {"a.query_g": ("plain", None), "a.query_v": ("plain", None)},
    ),
    "look-alike: g of another dtype": (
        dict(x__w_g=("F16", (4, 1)), x__w_v=(4, 3)),
        {"x.w_g": ("plain", None), "x.w_v": ("plain", None)},
    ),
    "look-alike: a mask of another shape": (
        dict(x__a_orig=(4, 3), x__a_mask=(4,)),
        {"x.a_orig": ("plain", None), "x.a_mask": ("plain", None)},
    ),
}


def test_every_kind_of_layout_is_in_the_table():
    """All forms occur, and all the roles that a half pair can lack."""
    forms = {form for _, expected in LAYOUTS.values() for form, _ in expected.values()}
    assert forms == {PLAIN, PARAMETRIZED, *FORM_OF_SPELLING}
    kinds = Counter(label.partition(":")[0] if ":" in label else "spelling" for label in LAYOUTS)
    assert kinds["half"] >= 6 and kinds["look-alike"] >= 12 and kinds["spelling"] >= 15


@pytest.mark.parametrize(("tensors", "expected"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_are_classified(tensors, expected):
    """Each layout has the one reading its keys and shapes decide, or says what it lacks."""
    tensors = infos(**tensors)
    groups = detect(tensors)
    for name, (form, reading) in expected.items():
        group = groups[name]
        assert group.form == form
        if isinstance(reading, tuple):
            assert tuple(map(str, group.alternatives)) == reading and group.chain is None
        elif group.problem:
            assert reading in group.problem and group.chain is None
        else:
            assert (group.chain and str(group.chain)) == reading
    # Every key of the file belongs to exactly one group.
    assert sorted(key for group in groups.values() for key in group.keys.values()) == sorted(tensors)


def test_the_table_has_at_least_25_layouts():
    """The promise of the table's size."""
    assert len(LAYOUTS) >= 25


def test_the_record_decides_what_keys_cannot():
    """A recorded chain takes the place of the question."""
    tensors = infos(**{P + "original": (4, 4)})
    group = detect(
        tensors, {"fc.weight": Entry("parametrized", parse_chain("skew,cayley"), constraint="special_orthogonal")}
    )["fc.weight"]
    assert (str(group.chain), group.constraint, group.problem) == ("skew,cayley", "special_orthogonal", None)


@pytest.mark.parametrize(
    "key", ["parametrizations.weight.original", "a.b.parametrizations.weight.0._u", "parametrizations.w.original12"]
)
def test_keys_split_and_join(key):
    """Splitting a key and joining its parts gives it back."""
    assert parametrized_key(*split_parametrized(key)) == key


@pytest.mark.parametrize(
    "key",
    [
        "parametrizations.weight",
        "a.parametrizations.weight.foo",
        "xparametrizations.weight.original",
        "weight.original",
    ],
)
def test_other_keys_are_no_parametrizations(key):
    """Only torch's layout counts."""
    assert split_parametrized(key) is None


def test_what_is_said_to_fit_can_be_typed():
    """Each chain that a problem names is one of the table, its arguments filled in."""
    named = 0
    for tensors, _ in LAYOUTS.values():
        for group in detect(infos(**tensors)).values():
            for chain in re.findall(r"(?:geotorch\.|orthogonal:|skew,)[a-z_.:=,]*[A-Z]?", group.problem or ""):
                parse_chain(re.sub("=[NX]$", "=1", chain.rstrip(",:.")))
                named += 1
    assert named > 20


@pytest.mark.parametrize("of_a_plugin", [False, True])
def test_the_table_tells_half_a_tensor_and_a_plugin_s_hint_does_not(of_a_plugin, monkeypatch):
    """What a plug-in says that it stores may be wrong, and a whole tensor is not refused for it."""
    skew = PARAMETRIZATIONS["skew"]

    def stores(shape, arguments):
        return {"original": (None, shape), "extra": (None, shape)}

    monkeypatch.setitem(
        PARAMETRIZATIONS,
        "skew",
        replace(skew, stores=stores, target=target_class(skew) if of_a_plugin else skew.target),
    )
    group = detect(
        infos(**{f"{P}original": (3, 3)}), {"fc.weight": Entry("parametrized", parse_chain("skew"), constraint="skew")}
    )["fc.weight"]
    assert str(group.chain) == "skew" and (
        group.problem is None if of_a_plugin else "lacks its 0.extra" in group.problem
    )


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("g_dtype, v_dtype", [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)])
def test_a_norm_may_have_another_dtype_than_its_directions(g_dtype, v_dtype, new, paramcli, tmp_path):
    """It folds to the dtype of v, computed in float32 or wider; both ways of spelling it rename to the other."""
    v = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(v_dtype)
    g = torch.arange(1.0, 7.0).unsqueeze(1).to(g_dtype)
    old, now = ("l.weight_g", "l.weight_v"), tuple(f"l.parametrizations.weight.original{i}" for i in (0, 1))
    save_file(dict(zip(now if new else old, (g, v), strict=True)), tmp_path / "a.safetensors")
    paramcli("remove", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    value = load_file(tmp_path / "b.safetensors")["l.weight"]
    wanted = g.double() * v.double() / torch.linalg.vector_norm(v.double(), dim=1, keepdim=True)
    assert value.dtype == v_dtype
    torch.testing.assert_close(value.double(), wanted, rtol=torch.finfo(v_dtype).eps, atol=0)
    paramcli("migrate", tmp_path / "a.safetensors", "--to", "old" if new else "new", "-o", tmp_path / "c.safetensors")
    renamed = load_file(tmp_path / "c.safetensors")
    assert [renamed[key].dtype for key in (old if new else now)] == [g_dtype, v_dtype]
