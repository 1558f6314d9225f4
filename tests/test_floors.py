"""The house stands: wings import downward only and through their doors, rooms never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lazytiles"

# The hall is the modules beside the wings. A wing imports from the hall and from wings before it.
WINGS = [
    "hall",
    "indexing",
    "augment",
    "images",
    "arrays",
    "training",
    "stores",
    "manifests",
    "predictions",
    "reports",
    "cli",
]
# These stand side by side: none imports another, but for `manifests`, which opens saved tiles.
SIDE_BY_SIDE = {"training", "stores", "manifests"}
ALLOWED = {("manifests", "stores")}
# Rooms that import a framework stand behind no door: who wants them names them.
OPEN = {"training.keras", "training.torch"}

OPTIONAL = {
    "aiohttp", "blosc2", "distributed", "fsspec", "grain", "h5py", "imageio", "jax", "keras", "loky",
    "matplotlib", "sklearn", "tensorflow", "torch", "zarr",
}  # fmt: skip
CODECS = {"imagecodecs", "tifffile", "PIL"}
NO_IMAGES = {"indexing", "augment", "arrays", "training", "manifests"}


class Edge(NamedTuple):
    """One import of a module of ours: ``lazytiles.<module>`` as it is written, and the names taken from it."""

    line: int
    module: str
    names: tuple[str, ...]


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ROOMS = {name_of(path) for path in modules()}


def wing_of(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in WINGS else "hall"


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


def imported(node: ast.AST) -> list[tuple[str, tuple[str, ...]]]:
    """(dotted module, names) that one node imports, also through `import_module` and `require` of a literal."""
    if isinstance(node, ast.Import):
        return [(alias.name, ()) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        return [(str(node.module), tuple(alias.name for alias in node.names))]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "require")):
        first = node.args[0] if node.args else None
        return [(first.value, ())] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def edges(tree: ast.Module) -> Iterator[Edge]:
    """Every import from our own package, under TYPE_CHECKING and inside functions too."""
    for node in ast.walk(tree):
        for dotted, names in imported(node):
            package, _, inner = dotted.partition(".")
            if package == "lazytiles":
                yield Edge(getattr(node, "lineno", 0), inner, names)


def rooms_of(edge: Edge) -> set[str]:
    """The modules that an import reaches: a name that is a room of a wing is that room."""
    inside = {f"{edge.module}.{name}".lstrip(".") for name in edge.names} & ROOMS
    return inside | ({edge.module} if len(inside) < max(1, len(edge.names)) else set())


def broken_edges(name: str, tree: ast.Module) -> list[str]:
    """What is wrong with the imports of a module: upward, sideways, or past the door of another wing."""
    said, mine = [], wing_of(name)
    for edge in edges(tree):
        if edge.module == "" and edge.names == ("__version__",):
            continue
        for target in sorted(rooms_of(edge)):
            theirs = wing_of(target)
            where = f"{name}:{edge.line} ({mine}) imports {target} ({theirs})"
            if mine != theirs and {mine, theirs} <= SIDE_BY_SIDE and (mine, theirs) not in ALLOWED:
                said.append(f"{where}, which stands beside it")
            elif WINGS.index(theirs) > WINGS.index(mine):
                said.append(f"{where}, which is above it")
            elif mine != theirs and theirs != "hall" and target != theirs and target not in OPEN:
                said.append(f"{where} past its door")
    return said


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The first circle of imports that a walk meets, as its rooms in order, or nothing."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := walk(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_downward_and_through_doors(path: Path) -> None:
    name, tree = name_of(path), ast.parse(path.read_text())
    if name in {"", "__main__"}:
        return
    assert not (broken := broken_edges(name, tree)), "\n".join(broken)


def test_the_package_itself_imports_nothing_but_the_verbs() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    parents = parents_of(tree)
    runtime = [
        dotted
        for node in ast.walk(tree)
        if not is_for_typing(node, parents)
        for dotted, _ in imported(node)
        if dotted.startswith("lazytiles")
    ]
    assert runtime == ["lazytiles.verbs"]


def test_no_room_imports_in_a_circle() -> None:
    graph = {}
    for path in modules():
        name = name_of(path)
        if name and not (path.name == "__init__.py" and name in WINGS):
            graph[name] = {room for edge in edges(ast.parse(path.read_text())) for room in rooms_of(edge)} - set(WINGS)
    assert not (found := circles(graph)), " -> ".join(found)


@pytest.mark.parametrize("wing", WINGS[1:])
def test_a_door_is_small_and_says_what_the_wing_is_for(wing: str) -> None:
    text = (PACKAGE / wing / "__init__.py").read_text()
    assert text.count("\n") <= 40
    assert ast.get_docstring(ast.parse(text))
    rooms = [path for path in (PACKAGE / wing).iterdir() if path.suffix in {"", ".py"} and "__" not in path.name]
    assert 3 <= len(rooms) <= 20, f"{wing} has {len(rooms)} rooms"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_optional_packages_are_optional(path: Path) -> None:
    tree = ast.parse(path.read_text())
    parents = parents_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom) or is_for_typing(node, parents):
            continue
        for dotted, _ in imported(node):
            package = dotted.partition(".")[0]
            assert package not in OPTIONAL, (
                f"{path.name}:{node.lineno} imports {dotted}: use errors.require where it is needed"
            )
            assert dotted != "dask.array", f"{path.name}:{node.lineno}: dask.array loads on demand only"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    parents = parents_of(tree)
    inner = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and is_inside(node, parents, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert not inner, inner


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_images_wing_opens_images(path: Path) -> None:
    name = name_of(path)
    if wing_of(name) not in NO_IMAGES:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        for dotted, _ in imported(node):
            assert dotted.partition(".")[0] not in CODECS, f"{name} imports {dotted}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_are_one_subject_and_functions_one_thought(path: Path) -> None:
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
        ("indexing.tilings", "from lazytiles.images import read", r"\(indexing\) imports images \(images\), .* above"),
        ("images.codecs", "from lazytiles.arrays.view import into", r"imports arrays.view \(arrays\), which is above"),
        ("arrays.view", "from lazytiles.images.page import Page", r"imports images.page \(images\) past its door"),
        ("arrays.view", "from lazytiles.images import page", r"imports images.page \(images\) past its door"),
        ("training.flow", "from lazytiles.stores import export", r"imports stores \(stores\), which stands beside it"),
        ("display", "require('lazytiles.training.keras', extra='keras')", r"\(hall\) imports training.keras"),
    ],
)
def test_the_check_names_the_edge(name: str, code: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert not (broken := broken_edges(name, ast.parse(code))), "\n".join(broken)


def test_the_check_finds_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []
