"""What each global that a torch pickle names means here. Nothing is ever imported or called.

Three kinds. A few are torch's own building blocks, understood symbolically. A few reach the system or
code, or would hand out memory of this process as weights: a file that calls one of them, or hands one
to what it calls, is refused. A name alone does nothing, and it and all others become inert stand-ins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...errors import InputRefused
from ...text import printable

# Modules none of whose names a checkpoint has reason to call: each reaches the system, the interpreter, the network,
# or rebuilds code. The list names the danger to a person; what is not on it becomes an inert object all the same.
_DANGEROUS_MODULES = frozenset(
    [
        "os",
        "posix",
        "nt",
        "subprocess",
        "sys",
        "importlib",
        "imp",
        "runpy",
        "pty",
        "socket",
        "shutil",
        "ctypes",
        "pickle",
        "_pickle",
        "cPickle",
        "marshal",
        "codeop",
        "webbrowser",
        "multiprocessing",
        "commands",
        "popen2",
        "pdb",
        "bdb",
        "timeit",
        "cProfile",
        "pydoc",
        "urllib",
        "http",
        "ftplib",
        "smtplib",
        "telnetlib",
        "xmlrpc",
        "imaplib",
        "poplib",
        "pip",
        "ensurepip",
        "zipimport",
        "pkgutil",
        "_posixsubprocess",
        "_ctypes",
        "_thread",
        "mmap",
        "sqlite3",
        "cloudpickle",
        "dill",
        "joblib",
    ]
)
_DANGEROUS_NAMES = {
    ("builtins", "__builtin__"): frozenset(
        [
            "eval",
            "exec",
            "execfile",
            "compile",
            "open",
            "file",
            "input",
            "raw_input",
            "__import__",
            "getattr",
            "setattr",
            "delattr",
            "globals",
            "locals",
            "vars",
            "breakpoint",
            "exit",
            "quit",
            "apply",
            "reload",
            "map",
            "filter",
            "memoryview",
            "classmethod",
            "staticmethod",
            "super",
            "type",
            "print",
        ]
    ),
    ("operator", "_operator"): frozenset(["attrgetter", "methodcaller", "call"]),
    ("types",): frozenset(["FunctionType", "CodeType", "LambdaType", "MethodType", "ModuleType"]),
    ("functools", "_functools"): frozenset(("reduce",)),
    ("io", "_io", "codecs"): frozenset(["open", "FileIO", "open_code"]),
    ("code",): frozenset(["interact", "InteractiveInterpreter", "InteractiveConsole", "compile_command"]),
    ("torch",): frozenset(["load", "save", "hub", "jit", "from_file", "ops"]),
    ("torch.storage",): frozenset(("_load_from_bytes",)),
    ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"): frozenset(
        ["load", "fromfile", "memmap", "loadtxt", "genfromtxt"]
    ),
    ("pandas", "pandas.io.pickle"): frozenset(("read_pickle",)),
}
_DANGEROUS_PREFIXES = (
    "torch.hub",
    "torch.jit",
    "torch.ops",
    "torch.fx",
    "torch.utils.cpp_extension",
    "torch.utils.collect_env",
    "torch.distributed.rpc",
    "torch._inductor",
    "torch._dynamo",
    "torch.package",
    "numpy.testing",
    "numpy.f2py",
)
# Modules of those packages that only take texts apart.
_OF_TEXTS = ("urllib.parse", "http.cookies", "http.cookiejar")
# Of dangerous modules: what only gives a type by its name, as pickles of dill and cloudpickle name Python's own.
_INERT = frozenset(
    [
        "dill._dill._load_type",
        "dill.dill._load_type",
        "cloudpickle.cloudpickle._builtin_type",
        "http.HTTPStatus",
    ]
)
# Modules whose classes may be called: torch.compile leaves a dozen of them in a pickled model. Their functions compile.
_OF_CLASSES = "torch._dynamo"

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
# Storages whose elements no safetensors dtype can hold: code that starts with '?' names them in messages.
OTHER_STORAGES = {
    "ComplexDoubleStorage": ("?complex128", 16),
    "QInt8Storage": ("?qint8", 1),
    "QUInt8Storage": ("?quint8", 1),
    "QInt32Storage": ("?qint32", 4),
    "QUInt4x2Storage": ("?quint4x2", 1),
    "QUInt2x4Storage": ("?quint2x4", 1),
}
OTHER_WIDTHS = dict(OTHER_STORAGES.values())
TORCH_DTYPES = {
    "float64": "F64",
    "double": "F64",
    "float32": "F32",
    "float": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "long": "I64",
    "int32": "I32",
    "int": "I32",
    "int16": "I16",
    "short": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
    "cfloat": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float4_e2m1fn_x2": "F4x2",
    "complex128": "?complex128",
    "cdouble": "?complex128",
}


# Dtypes of torch that have neither a storage class nor a safetensors form.
OTHER_DTYPES = frozenset(
    ["complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)]
)


def storage_dtype(module: str, name: str) -> str | None:
    """The dtype code of a storage class such as torch.FloatStorage or torch.cuda.HalfStorage; None for others."""
    if module not in ("torch", "torch.cuda", "torch.storage"):
        return None
    return STORAGE_DTYPES.get(name) or OTHER_STORAGES.get(name, (None, 0))[0]


def is_dangerous(module: str, name: str) -> bool:
    """Could a call of this name run code, or reach files or the system?"""
    if f"{module}.{name}" in _INERT:
        return False
    # A dotted name walks attributes: 'torch' and 'os.system' is os.system.
    steps = [module, *name.split(".")]
    return any(is_dangerous_step(owner, step) for owner, step in pairwise(steps)) or any(
        step.startswith("__") for step in steps[1:-1]
    )


def is_dangerous_step(owner: str, name: str) -> bool:
    """The same of one attribute of a module, or of what looks like one."""
    return (
        (owner.partition(".")[0] in _DANGEROUS_MODULES and owner not in _OF_TEXTS)
        or any(owner in modules and name in names for modules, names in _DANGEROUS_NAMES.items())
        or any(owner == prefix or owner.startswith(f"{prefix}.") for prefix in _DANGEROUS_PREFIXES)
    )


def is_harmless_call(module: str, name: str, arguments: Sequence[object], built: bool) -> bool:
    """Is a call of what is dangerous none after all? `built`: the class is made anew (`cls.__new__`), not called."""
    if module in ("builtins", "__builtin__"):
        # type(x) tells a class, and getattr(x, "name") an attribute: bound methods and members of enums are so pickled.
        if name == "type":
            return len(arguments) == 1
        last = arguments[-1] if len(arguments) == 2 else None
        return name == "getattr" and isinstance(last, str) and not last.startswith("__")
    is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()
    of_classes = module == _OF_CLASSES or module.startswith(f"{_OF_CLASSES}.")
    return is_class and (of_classes or (built and module.partition(".")[0] == "torch"))


def dangerous(what: str) -> InputRefused:
    """The refusal of a file for what its pickle does: "calls os.system"."""
    return InputRefused(
        f"its pickle {what}, which could run code; nothing was run",
        hint="do not load this file with other tools; get it from a source you trust, as safetensors",
        code="unsafe",
    )


def refuse_built_memory(module: str, name: str, arguments: tuple[object, ...]) -> None:
    """Raise InputRefused where a class is built whose elements would be this process's own memory."""
    is_storage = module.startswith("torch") and name.endswith("Storage")
    is_tensor = module.startswith("torch") and name.endswith("Tensor") and not name.startswith("_")
    sized = (
        module in ("builtins", "__builtin__")
        and name in ("bytearray", "bytes")
        and any(isinstance(a, int) for a in arguments[:1])
    )
    if is_storage or is_tensor or sized:
        raise InputRefused(
            f"its pickle builds a {printable(module, 80)}.{printable(name, 80)} from a size, "
            "whose content would be memory of this machine",
            hint="this is no file that torch.save writes; get it from a source you trust",
            code="unsafe",
        )
