"""A `.pt2` archive is data if every member of it is: allow what the writer writes, refuse the rest.

`torch.export.load` (seen in torch 2.13) runs code from a hostile archive in several ways: it unpickles members named in
its JSON, retries a failed safe load unsafely, evaluates shape expressions and guards as Python, imports the module of
an enum in a tree specification, and puts names from the JSON into generated source. Each is judged here before torch
sees the file. An ordinary program passes; nothing here imports torch.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

from bnfold.loading.archives import contradictions, pickle_globals

MAX_JSON, MAX_PICKLE = 512 << 20, 64 << 20
SAFE_TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|qtensor)"
    r"|torch\.(\w+Storage|Size|device|Tensor|storage\.UntypedStorage|nn\.parameter\.Parameter)"
    r"|torch\._tensor\._rebuild_from_type_v2|(__builtin__|builtins)\.set"  # torch marks a tensor's dynamic axes on it
    r"|torch\.(float|bfloat|int|uint|complex)\d+|torch\.(bool|float8_\w+)|torch\.serialization\._get_layout"
)
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchvision|higher_order)"
    r"\.((?!__)\w+|__i?(and|or|xor|lshift|rshift)__)(\.(?!__)\w+)?"
    r"|torch\.sym_\w+|torch\._sym_\w+|math\.(ceil|floor|trunc|sqrt|pow|log2)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|[lr]shift)"
)
REACHES_OUT = re.compile(
    r"torch\.ops\.aten\.(from_file|save|_print|warn|seed|manual_seed|set_grad_enabled|to_here|dist_backward)(\.\w+)?"
)
"""Operators of TorchScript among those of tensors, which write files, print, or change the process."""
SYMBOLIC_FUNCTION = re.compile(
    "Symbol|Integer|Float|Rational|Half|One|Zero|NegativeOne|Infinity|NegativeInfinity|oo|int_oo|True|False|evaluate"
    "|positive|negative|nonnegative|nonpositive|nonzero|zero|integer|real|finite|commutative"
    "|Add|Mul|Pow|Max|Min|Abs|Mod|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|floor|ceiling|log|sqrt"
    "|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    "|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural"
    "|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    "|RoundDecimal|ToFloat|Identity"
)
SYMBOL = re.compile(r"[a-z]{1,4}\d+")
GROWS = ("Pow", "PowByNatural", "FloatPow", "LShift", "Float", "RoundDecimal")
LARGEST_EXPONENT, MOST_POWERS = 100, 2
TREE_TYPES = (
    *("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.namedtuple"),
    *("torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict", None),
)
IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*|")
PATH_IN_MODULE = re.compile(r"[\w.@$/:+<>\[\] -]*")
GUARD_CALLS = frozenset(["size", "stride", "storage_offset", "dim", "numel"])
GUARD_NODES = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Constant, ast.Subscript, ast.Load),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple),
)


def complaints(archive: zipfile.ZipFile) -> Iterator[str]:
    """Every reason why an archive is more than data. torch finds members whatever their case, and so does this."""
    for member in archive.infolist():
        name = member.filename.partition("/")[2].casefold()
        if name.startswith("extra/"):
            continue
        if name.startswith("models/") or name.endswith(".json"):
            yield from _json_member(archive, member, name)
        elif name.endswith(".pt"):
            yield from _pickled_member(archive, member, name)
        elif name.startswith("data/aotinductor"):
            yield f"it holds compiled code ({name})"
        elif name.startswith("data/constants/") and not re.fullmatch(r"data/constants/tensor_\d+", name):
            yield f"it holds a pickled object ({name})"


def _json_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Iterator[str]:
    if member.file_size > MAX_JSON:
        yield f"{name} is larger than {MAX_JSON:,} bytes"
        return
    try:
        document = json.loads(archive.read(member).decode())
        if name.startswith("models/"):
            yield from _strings(document, "")
        else:
            yield from _payloads(document, name)
    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
        yield f"{name} is no valid JSON ({type(error).__name__})"


def _payloads(document: Any, name: str) -> Iterator[str]:
    """The tables that say where a weight or constant lies."""
    if not isinstance(document, dict) or not isinstance(document.get("config"), dict):
        yield f"{name} is no table of tensors"
        return
    for key, entry in document["config"].items():
        if not PATH_IN_MODULE.fullmatch(key):
            yield f"a tensor has the odd name {key!r}"
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            yield f"the tensor {key!r} is stored as a pickle"
        elif not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            yield f"the tensor {key!r} names the file {entry.get('path_name')!r}"


def _pickled_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Iterator[str]:
    """Sample inputs: nothing, or a torch.save archive of plain tensors."""
    if not member.file_size:
        return
    try:
        data = archive.read(member)
        with zipfile.ZipFile(BytesIO(data)) as inner:
            if (complaint := next(contradictions(inner, BytesIO(data)), None)) is not None:
                raise ValueError(complaint)
            members = [each for each in inner.infolist() if each.filename.casefold().endswith(".pkl")]
            if sum(each.file_size for each in members) > MAX_PICKLE:
                raise ValueError(f"its pickles are larger than {MAX_PICKLE:,} bytes")
            pickles = [inner.read(member) for member in members]
        wanted = set[str]().union(*(pickle_globals(pickle) for pickle in pickles))
    except Exception as error:
        yield f"{name} cannot be checked ({error})"
        return
    for unknown in sorted(item for item in wanted if not SAFE_TENSOR_GLOBALS.fullmatch(item)):
        yield f"{name} is a pickle that wants {unknown!r}"


def _strings(value: Any, key: str) -> Iterator[str]:
    """Walk the program's JSON and judge every string by the key under which it stands. Keys may be names from the
    program, so none of them excuses what is below it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in ("as_custom_obj", "custom_obj", "opaque") and item is not None:
                yield "it holds a custom object"
            yield from _strings(item, name)
            yield from _odd(name, "path")
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield from _odd(value, key)


def _odd(value: str, key: str) -> Iterator[str]:
    allowed = _JUDGES.get(key, _is_path if key.endswith(("_name", "fqn", "path")) else None)
    if allowed is not None and not allowed(value):
        yield f"its {key.replace('_', ' ')} {value[:80]!r} is not one that torch.export writes"


def _is_identifier(value: str) -> bool:
    return IDENTIFIER.fullmatch(value) is not None


def _is_path(value: str) -> bool:
    return PATH_IN_MODULE.fullmatch(value) is not None


def _is_operator(value: str) -> bool:
    return OPERATOR.fullmatch(value) is not None and not REACHES_OUT.fullmatch(value)


def _is_expression(value: str) -> bool:
    """Arithmetic over symbols: no attribute, no string but a symbol's name, no function but the known ones, and no
    number that takes long to be worked out."""
    if not re.fullmatch(r"[\w\s+\-*/%(),.<>=!&|~']*", value) or re.search(r"[^\W\d]\.|\.[^\W\d]|\d{20,}", value):
        return False
    words = re.findall(r"[^\W\d]\w*", value)
    known = all(SYMBOLIC_FUNCTION.fullmatch(word) or SYMBOL.fullmatch(word) for word in words)
    try:
        tree = ast.parse(value.strip(), mode="eval")
        return known and _powers_in_each_other(tree) <= MOST_POWERS and all(map(_is_small, ast.walk(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _powers_in_each_other(node: ast.AST) -> int:
    deepest = max(map(_powers_in_each_other, ast.iter_child_nodes(node)), default=0)
    return deepest + bool(_exponents(node))


def _exponents(node: ast.AST) -> list[ast.expr]:
    """What says how large the result of an operation is: an exponent, a shift, a number of digits."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return [node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in GROWS:
        return node.args[1:]
    return []


def _is_small(node: ast.AST) -> bool:
    """Whether every exponent of an operation is a small number, and nothing in it is a power itself."""
    parts = [each for exponent in _exponents(node) for each in ast.walk(exponent)]
    numbers = [each.value for each in parts if isinstance(each, ast.Constant)]
    named = any(isinstance(each, ast.Name) and (each.id == "Symbol" or SYMBOL.fullmatch(each.id)) for each in parts)
    return not (named or any(map(_exponents, parts))) and all(
        isinstance(each, int | float) and each < LARGEST_EXPONENT for each in numbers
    )


def _is_guard(value: str) -> bool:
    """A comparison of sizes of inputs, such as `L['x'].size()[0] == 4`."""
    try:
        nodes = list(ast.walk(ast.parse(value, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, GUARD_NODES) or _is_guard_word(node) for node in nodes)


def _is_guard_word(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id == "L"
    if isinstance(node, ast.Attribute):
        return node.attr in GUARD_CALLS
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args and not node.keywords


def _is_tree(value: str) -> bool:
    try:
        version, tree = json.loads(value)
        return version == 1 and _is_tree_node(tree)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_tree_node(node: dict[str, Any]) -> bool:
    context = json.loads(node["context"]) if node["context"] is not None else None
    keys = context if isinstance(context, list) else [context]
    plain = all(key is None or isinstance(key, int) or (isinstance(key, str) and _is_path(key)) for key in keys)
    return plain and node["type"] in TREE_TYPES and all(_is_tree_node(child) for child in node["children_spec"])


_JUDGES = {
    "name": _is_identifier,
    "as_name": _is_identifier,
    "arg_name": _is_identifier,
    "graph_name": _is_identifier,
    "forward_arg_names": _is_identifier,
    "field_names": _is_identifier,
    "target": _is_operator,
    "as_operator": _is_operator,
    "expr_str": _is_expression,
    "guards_code": _is_guard,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
}
