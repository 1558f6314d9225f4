"""The house stands: imports go downward only, optional packages stay optional, rooms stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lazytiles"

# A module imports from floors with a smaller number, and from its own floor only what stands before it.
HOUSE = """
0 errors config lazy doors keys window indexing grid seeds order overlap blends
0 augment.geometry augment.recipe augment.transform boxlabels augment.structure augment.batch augment
1 memory ranges remote files jpeg decode page kinds resample cache plan raw reader datasets
2 region volumes problems paths columns table conflicts manifest survey cost digest
3 gather travel view
4 regiontiles agreement blocks split multisource catalog frames findings scenes tiles doctor
5 pool tandem readahead stage ranks schedule flow adapters adapters.portable
5 formats hdf5 chunked journal tfrecord record sink blockwise cluster rows write stored beside store
5 pixels cut patches stitch assembly scans statistics
6 adapters.serving adapters.resume adapters.keras
6 adapters.torch adapters.dask
7 pictures report pages demo __init__ options cli __main__
"""
RANK = {
    name: (int(line[0]), place)
    for place, (line, name) in enumerate(
        (line, name) for line in HOUSE.split("\n") if line for name in line.split()[1:]
    )
}

# Methods that open a leaf when they are called: the only imports that go upward, or stand inside a function.
DOORS = {
    ("lazy", "report"),
    ("doors", "adapters.dask"),
    ("doors", "adapters.torch"),
    ("doors", "cost"),
    ("doors", "multisource"),
    ("doors", "report"),
    ("doors", "statistics"),
    ("doors", "store"),
}

OPTIONAL = {
    "aiohttp", "blosc2", "distributed", "fsspec", "grain", "h5py", "imageio", "jax", "keras", "loky",
    "matplotlib", "sklearn", "tensorflow", "torch", "zarr",
}  # fmt: skip
CODECS = {"imagecodecs", "tifffile", "PIL"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parents_of(tree: ast.Module) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def is_inside(node: ast.AST, parents: dict[ast.AST, ast.AST], kinds: tuple[type[ast.AST], ...]) -> bool:
    while node in parents:
        node = parents[node]
        if isinstance(node, kinds):
            return True
    return False


def is_for_typing(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return True
    return False


def imported(node: ast.AST) -> list[str]:
    """Dotted names that one node imports, also through `import_module` and `require` of a literal."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        if node.module == "lazytiles":
            return ["lazytiles" if alias.name.startswith("__") else f"lazytiles.{alias.name}" for alias in node.names]
        return [str(node.module)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "require")):
        first = node.args[0] if node.args else None
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def edges(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import from our own package."""
    for node in ast.walk(tree):
        for dotted in imported(node):
            package, _, inner = dotted.partition(".")
            if package == "lazytiles":
                yield node.lineno, inner or "__init__"


def broken_edges(name: str, tree: ast.Module) -> list[str]:
    if name not in RANK:
        return [f"{name} stands on no floor: give it a line in HOUSE"]
    said = []
    for line, target in edges(tree):
        if (name, target) in DOORS:
            continue
        if target not in RANK:
            said.append(f"{name}:{line} imports {target}, which stands on no floor")
        elif not (RANK[target] < RANK[name]):
            said.append(f"{name}:{line} (floor {RANK[name][0]}) imports {target} (floor {RANK[target][0]})")
    return said


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_downward(path: Path) -> None:
    name, tree = name_of(path), ast.parse(path.read_text())
    if name == "__init__":
        typing = [n for n in tree.body if isinstance(n, ast.If)]
        inside = {line for n in typing for line in range(n.lineno, (n.end_lineno or 0) + 1)}
        runtime = [line for line, _ in edges(tree) if line not in inside]
        assert not runtime, f"__init__ imports eagerly on lines {runtime}"
        return
    assert not (broken := broken_edges(name, tree)), "\n".join(broken)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_optional_packages_are_optional(path: Path) -> None:
    tree = ast.parse(path.read_text())
    parents = parents_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom) or is_for_typing(node, parents):
            continue
        for dotted in imported(node):
            package = dotted.partition(".")[0]
            assert package not in OPTIONAL, (
                f"{path.name}:{node.lineno} imports {dotted}: use errors.require where it is needed"
            )
            assert dotted != "dask.array", f"{path.name}:{node.lineno}: dask.array loads on demand only"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    name, tree = name_of(path), ast.parse(path.read_text())
    parents = parents_of(tree)
    doors = {f"lazytiles.{target}" for module, target in DOORS if module == name}
    inner = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and is_inside(node, parents, (ast.FunctionDef, ast.AsyncFunctionDef))
        and not doors.issuperset(imported(node))
    ]
    assert not inner, inner


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_bytes_floor_opens_images(path: Path) -> None:
    name = name_of(path)
    if name not in RANK or RANK[name][0] == 1 or RANK[name][0] > 4:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        for dotted in imported(node):
            assert dotted.partition(".")[0] not in CODECS, f"{name}:{node.lineno} imports {dotted}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500, f"{path.name} has {text.count(chr(10))} lines; at most 500"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 60, f"{path.name}:{node.lineno}: {node.name} has {lines} lines; at most 60"


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("grid", "from lazytiles.reader import read", r"grid:1 \(floor 0\) imports reader \(floor 1\)"),
        ("decode", "import lazytiles.page", r"decode:1 \(floor 1\) imports page \(floor 1\)"),
        ("view", "from lazytiles import tiles", r"view:1 \(floor 3\) imports tiles \(floor 4\)"),
        ("flow", "require('lazytiles.adapters.keras', extra='keras')", "flow:1 .* imports adapters.keras"),
        ("oven", "", "oven stands on no floor"),
    ],
)
def test_the_check_names_the_edge(name: str, code: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert not (broken := broken_edges(name, ast.parse(code))), "\n".join(broken)
