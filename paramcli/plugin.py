"""What an author of parametrizations imports: the classes to derive from, the entries that describe them, and tools.

A plug-in is a module, or any object, with the tables `PARAMETRIZATIONS`, and where it needs them `CONSTRAINTS` (sets)
and `MEASURES` (what else verify measures): tuples of `Entry`, `ConstraintEntry` and `MeasureEntry`. It is found as an
installed package through the entry-point group `paramcli.parametrizations`, by `--plugin FILE.py` on the command line,
and in a program by `add_family(module, "who")`.

What a plug-in says of itself
    Entry               a parametrization: card, domain and image, arguments, and the class (`target=MyMap`)
    ConstraintEntry     a set: card, the sets that contain it, arguments, and the class (`target=MySet`)
    MeasureEntry        something that verify measures of a parametrization's own tensors; `Entry.verifies` has its text
    Argument, Value     one argument (`dale:dim=-2`): its type, default and range; what it is once it is parsed
    image_of            an image that has the parametrization's own arguments: image_of("one_sign", "dim")
    itself, masked, based, Shape, Stored
                        what is stored for a weight of a shape, for `Entry.stores`: a hint by which copying starts early

What it computes
    Parametrization     derive the map from it: `map`, `inverse` where a weight is not its own original, `make` where a
                        module is made from the weight, `checks` for what must hold of its own tensors
    Constraint          derive the set from it: `residual`, `tolerance`, `project`, `near_misses`, `candidates`
    Check, Part, Edge   a thing measured; one condition of several; where an open image ends

Arguments arrive as keywords: of the set's constructor, and of the parametrization's class methods (`make`, `by_rows`,
`check_shape`, ...). A tensor that the parametrization keeps beside its originals is a buffer, registered by its
constructor: it is stored as `parametrizations.NAME.INDEX.BUFFER`, loaded again before `map` is called, and shown to
`checks` as an attribute. `make(value)` sets it from the weight; where `value.is_meta` only shapes and dtypes are asked
for. The arguments are in the record's chain, the buffers in the file.

What it raises
    CannotReach         by `inverse`: this value has no original; the message says why, with a number
    Singular            by `project`: there is no nearest point, or no single one
    InputRefused        by `check_shape`, for tensors that the maths is not for
    UsageError          by `add_family`, and for arguments that do not go together

Tools: everything acts on the last two dimensions, and leading ones are a batch
    norm, per_matrix    Euclidean norms along dimensions, of each matrix, of entries of any size
    ratio, relative     |a| / |b| and ||A|| / ||B|| with 0 / 0 = 0: the division of a residual
    asymmetry, spectral_norm
                        of the largest row of W - W^H; of Hermitian matrices, from above
    eps, unit_roundoff, smallest, rounded_bound
                        what rounding to a dtype does, for tolerances
    wide, compute_dtype the dtypes of inverses and residuals, and of the map
    matrix, square      raise InputRefused for other shapes
    started             a member of a set, or its nearest point
    one_entry, row_scaled
                        near-misses of many sets
"""

from __future__ import annotations

from .catalogue.entry import (
    ConstraintEntry,
    Entry,
    MeasureEntry,
    Shape,
    Stored,
    based,
    image_of,
    itself,
    masked,
)
from .errors import InputRefused, UsageError
from .maths.base import (
    CannotReach,
    Check,
    Constraint,
    Edge,
    Parametrization,
    Part,
    Singular,
    matrix,
    one_entry,
    row_scaled,
    square,
    started,
)
from .maths.numbers import (
    asymmetry,
    compute_dtype,
    eps,
    norm,
    per_matrix,
    ratio,
    relative,
    rounded_bound,
    smallest,
    spectral_norm,
    unit_roundoff,
    wide,
)
from .registry import add_family
from .spec import Argument, Value

__all__ = [
    "Argument",
    "CannotReach",
    "Check",
    "Constraint",
    "ConstraintEntry",
    "Edge",
    "Entry",
    "InputRefused",
    "MeasureEntry",
    "Parametrization",
    "Part",
    "Shape",
    "Singular",
    "Stored",
    "UsageError",
    "Value",
    "add_family",
    "asymmetry",
    "based",
    "compute_dtype",
    "eps",
    "image_of",
    "itself",
    "masked",
    "matrix",
    "norm",
    "one_entry",
    "per_matrix",
    "ratio",
    "relative",
    "rounded_bound",
    "row_scaled",
    "smallest",
    "spectral_norm",
    "square",
    "started",
    "unit_roundoff",
    "wide",
]
