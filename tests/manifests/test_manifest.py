"""The manifest reader: hostile tables, ids as text, boxes by grammar, all problems in one error."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazytiles.errors import ManifestError
from lazytiles.manifests.columns import column_hashes, parse_boxes
from lazytiles.manifests.manifest import Columns, inspect_manifest, read_manifest
from lazytiles.manifests.paths import resolve_paths, template_columns
from lazytiles.manifests.tiles import open_tiles
from tests import made

HEADER = "tile_id,region_id,label_id,target,region_coordinates\n"
ROW = 't0,r0,2018,0.5,"(0, 0, 32, 32)"\n'

# Found out by opening the image, not by reading the table.
NEEDS_IMAGES = {"coords_oob", "region_corrupt"}


class Audit:
    """What the interpreter opened or executed while it was switched on; a hook cannot be removed."""

    on = False
    seen: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def hook(cls, event: str, arguments: tuple[object, ...]) -> None:
        if cls.on and event in {"open", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect"}:
            cls.seen.append((event, str(arguments[0])))


sys.addaudithook(Audit.hook)


@pytest.fixture
def audited() -> type[Audit]:
    read_manifest(pd.DataFrame({"tile_id": ["warm"], "region_id": ["r"]}))
    Audit.seen = []
    return Audit


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "tiles.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def hostile_names() -> list[str]:
    folder = Path(__file__).resolve().parents[3] / "shared" / "hostile"
    if not folder.is_dir():
        return []
    with (folder / "manifests.csv").open() as file:
        return [row["name"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", hostile_names())
def test_hostile_manifests(
    name: str,
    hostile_dir: Path,
    audited: type[Audit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with (hostile_dir / "manifests.csv").open() as file:
        expect = {row["name"]: row["expect"] for row in csv.DictReader(file)}[name]
    path = hostile_dir / "manifests" / f"{name}.csv"

    def attempt() -> None:
        Audit.on = True
        try:
            table = read_manifest(path, target="target")
            resolve_paths(table, "{region_id}.tif", hostile_dir / "regions")
        finally:
            Audit.on = False

    if expect == "ok" or name in NEEDS_IMAGES:
        attempt()
    else:
        with pytest.raises(ManifestError, match=re.escape(path.name)):
            attempt()
    foreign = [
        (event, what)
        for event, what in audited.seen
        if event != "open" or (what != str(path) and not what.endswith((".py", ".pyc", ".so")))
    ]
    assert not [entry for entry in foreign if entry[0] not in {"exec", "compile"}]
    assert not list(tmp_path.iterdir())


DAMAGED = {
    "empty": ("", "the file is empty"),
    "only a mark": ("\ufeff", "the file is empty"),
    "header alone": (HEADER, "the table has no rows"),
    "nul": (HEADER + ROW + "t1,\0,a,1,\n", "line 3, column 2: a NUL byte"),
    "utf-16": ((HEADER + ROW).encode("utf-16"), "it is UTF-16: save it as UTF-8"),
    "utf-16 without its mark": ((HEADER + ROW).encode("utf-16-be"), "it is UTF-16: save it as UTF-8"),
    "latin-1": ((HEADER + ROW + 't1,ré,2018,1,"(0,0,1,1)"\n').encode("latin-1"), "line 3, column 2.*Latin-1"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "compressed with gzip"),
    "cut character": ((HEADER + "t1,r0").encode() + "é".encode()[:1], "ends within a character"),
    "semicolons": (HEADER.replace(",", ";") + ROW, "line 1: the fields are separated by semicolons"),
    "tabs": (HEADER.replace(",", "\t") + ROW, "line 1: the fields are separated by tabs"),
    "column twice": (
        HEADER.replace("label_id", "region_id") + ROW,
        "the column region_id appears more than once",
    ),
    "boxes by another name": (
        HEADER.replace("region_coordinates", "region_coordinate") + ROW,
        "line 1: the column region_coordinate holds boxes; name it region_coordinates",
    ),
    "no name": (HEADER.replace("label_id", "") + ROW, "line 1: column 3 has no name"),
    "column missing": (HEADER.replace("region_id", "region") + ROW, "the column region_id is missing"),
    "no ids": ("file,kind\na.png,cat\n", 'tile_id, region_id.* are missing.*path="\\{file\\}"'),
    "no tiles": (HEADER.replace("tile_id", "tile") + ROW, "the column tile_id is missing.*the same in all its frames"),
    "capitals": (HEADER.replace("region_id", "Region_ID") + ROW, "is 'Region_ID' meant"),
    "too many": (HEADER + ROW + "t1,r0,2018,0.5,x,y\n", "line 3: 6 fields where the header has 5"),
    "decimal comma": (HEADER + 't1,r0,2018,0,5,"(0,0,1,1)"\n', "line 2: 6 fields.*a decimal comma"),
    "quoted decimal comma": (
        HEADER + 't1,r0,2018,"0,5","(0,0,1,1)"\n',
        "'0,5' is not a finite.*decimal comma",
    ),
    "box without quotes": (
        HEADER + "t1,r0,2018,1,(0,0,1,1)\n",
        "line 2: 8 fields.*a box is written in quotes",
    ),
    "too few": (HEADER + ROW + "t1,r0\n" + ROW.replace("t0", "t2"), "line 3: 2 fields.*cut short"),
    "open quote": (HEADER + ROW + 't1,"r0,2018,1,x\n', "line 3: a quote is opened and never closed"),
    "two open quotes": (
        HEADER + 't0,r0,2018,"1,"(0,0,1,1)"\n' + ROW + 't2,r0,2018,"1,"(0,0,1,1)"\n',
        "line 2: 7 fields.*is a quote opened and never closed",
    ),
    "semicolons below": (HEADER + ROW.replace(",", ";"), "line 2: 1 fields.*separated by something else than commas"),
    "header again": (HEADER + ROW + HEADER, r"^\S*: line 3: the header again; were files joined\?$"),
    "nan target": (HEADER + ROW.replace("0.5", "nan"), "tile t0: target 'nan' is not a finite number"),
    "infinite target": (HEADER + ROW.replace("0.5", "inf"), "target 'inf' is not a finite number"),
    "huge target": (HEADER + ROW.replace("0.5", "1e400"), "is not a finite number"),
    "no target": (HEADER + ROW.replace("0.5", "") + ROW.replace("t0", "t1"), "line 2: tile t0: target is empty"),
    "inverted": (
        HEADER + ROW.replace("(0, 0", "(40, 0"),
        "tile t0: box .40, 0, 32, 32. of region r0 is empty or inverted",
    ),
    "empty box": (HEADER + ROW.replace("(0, 0", "(32, 0"), "is empty or inverted"),
    "negative": (HEADER + ROW.replace("(0, 0", "(-1, 0"), "begins before pixel 0"),
    "too large": (HEADER + ROW.replace("32, 32", "32, 9999999999"), "beyond 2147483647"),
    "brackets mixed": (HEADER + ROW.replace("32)", "32]"), "is not .xmin, ymin, xmax, ymax."),
    "float box": (HEADER + ROW.replace("(0,", "(0.0,"), "is not .xmin"),
    "url": (HEADER + ROW.replace("r0", "https://x"), "an id is not an address"),
    "absolute": (HEADER + ROW.replace("r0", "/etc/passwd"), "an id is one name"),
    "dots": (HEADER + ROW.replace("r0", ".."), "an id is one name"),
    "duplicate": (HEADER + ROW + ROW, r"line 3: tile t0 \(label 2018\) is already on line 2"),
    "frames disagree": (
        HEADER + ROW + ROW.replace("2018", "2019").replace("(0", "(1"),
        "but box .* on line 2",
    ),
    "not parquet": (b"PAR1" + b"x" * 50, "cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tables_are_named(case: str, tmp_path: Path) -> None:
    text, message = DAMAGED[case]
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(tmp_path, text), target="target")


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROW,
        "\ufeff" + HEADER + ROW,
        (HEADER + ROW).replace("\n", "\r\n"),
        HEADER + "\n" + ROW + "\n\n",
        (HEADER + ROW).rstrip("\n"),
    ],
    ids=["plain", "mark", "crlf", "blank lines", "no last newline"],
)
def test_harmless_forms_read_alike(text: str, tmp_path: Path) -> None:
    table = read_manifest(write(tmp_path, text), target="target")
    assert table.to_dict("records") == [
        {
            "tile_id": "t0", "region_id": "r0", "label_id": "2018", "target": 0.5,
            "xmin": 0, "ymin": 0, "xmax": 32, "ymax": 32,
        }
    ]  # fmt: skip


def test_lines_are_the_files_own(tmp_path: Path) -> None:
    text = (
        HEADER.replace("target", "note,target")
        + '\nt0,r0,2018,"two\nlines",1,"(0,0,1,1)"\n\n'
        + 'short\nt1,r0,2018,,1,bad\n,,\nt0,r0,2018,,1,"(0,0,1,1)"\n'
    )
    with pytest.raises(ManifestError) as raised:
        read_manifest(write(tmp_path, text))
    assert re.findall(r"line (\d+)[: ]", str(raised.value)) == ["7", "6", "8", "9"]
    assert "is already on line 3" in str(raised.value)


def test_all_problems_at_once_with_a_count(tmp_path: Path) -> None:
    rows = "".join(f't{k},r/{k},2018,nan,"(0,0,0,{k})"\n' for k in range(50))
    with pytest.raises(ManifestError) as raised:
        read_manifest(write(tmp_path, HEADER + rows + "short\n"), target="target")
    message = str(raised.value)
    assert "151 problems" in message
    for kind in ("bad region_id", "empty box", "target not a number"):
        assert f"and 30 more of this kind ({kind})" in message
    assert "line 52: 1 fields" in message
    assert len(message.splitlines()) == 1 + 1 + 3 * 21


IDS: dict[str, Callable[[], pd.Series]] = {
    "integers": lambda: pd.Series([1, 2, 3]),
    "unsigned": lambda: pd.Series([1, 2, 3], dtype="uint8"),
    "nullable": lambda: pd.Series([1, 2, 3], dtype="Int64"),
    "text": lambda: pd.Series(["1", "2", "3"]),
    "objects": lambda: pd.Series(["1", "2", "3"], dtype=object),
    "mixed objects": lambda: pd.Series(["1", 2, np.int64(3)], dtype=object),
    "python strings": lambda: pd.Series(["1", "2", "3"], dtype="string[python]"),
    "arrow text": lambda: pd.Series(["1", "2", "3"], dtype=pd.ArrowDtype(pa.string())),
    "arrow large text": lambda: pd.Series(["1", "2", "3"], dtype=pd.ArrowDtype(pa.large_string())),
    "arrow integers": lambda: pd.Series([1, 2, 3], dtype=pd.ArrowDtype(pa.int32())),
    "arrow dictionary": lambda: pd.Series(pd.arrays.ArrowExtensionArray(pa.array(["1", "2", "3"]).dictionary_encode())),
    "categorical": lambda: pd.Series(["1", "2", "3"], dtype=pd.CategoricalDtype(["3", "9", "2", "1"])),
    "categorical integers": lambda: pd.Series([1, 2, 3], dtype="category"),
    "mixed categories": lambda: pd.Series(pd.Categorical(["1", 2, 3], categories=[2, "2", 3, "1"])),
}


@pytest.mark.parametrize("kind", IDS)
def test_every_kind_of_id_column_is_text(kind: str) -> None:
    ids = IDS[kind]()
    frame = pd.DataFrame({"tile_id": ids, "region_id": ids, "label_id": ids}).set_index(np.array([7, 7, 9]))
    table = read_manifest(frame)
    plain = read_manifest(pd.DataFrame({name: ["1", "2", "3"] for name in ("tile_id", "region_id", "label_id")}))
    for name in plain:
        assert table[name].to_list() == ["1", "2", "3"]
    assert list(table.index) == [0, 1, 2]
    assert table.dtypes.astype(str).to_dict() == plain.dtypes.astype(str).to_dict()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pd.Series([1.0, 2.0]), "holds double, ids are text; read the table with dtype=str"),
        (pd.Series([True, False]), "holds bool, ids are text"),
        (pd.Series([1, None], dtype="Int64"), "row 1: tile b: the region_id is empty"),
        (pd.Series(["a", None], dtype=object), "row 1: tile b: the region_id is empty"),
        (pd.Series(pd.to_datetime(["2018-01-01", "2019-01-01"])), "ids are text"),
    ],
    ids=["floats", "booleans", "missing integer", "missing text", "dates"],
)
def test_ids_that_are_no_text_are_refused(ids: pd.Series, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(pd.DataFrame({"tile_id": ["a", "b"], "region_id": ids}))


def test_ids_stay_text(tmp_path: Path) -> None:
    ids = ["001", "1e3", "NA", "1.0", "null", "True", "-0", "ré gion 北", "nan", "0x10"]
    text = "tile_id,region_id\n" + "".join(f"{k},{name}\n" for k, name in enumerate(ids))
    table = read_manifest(write(tmp_path, text))
    assert table["region_id"].to_list() == ids
    assert isinstance(table["region_id"].dtype, pd.CategoricalDtype)
    parquet = tmp_path / "tiles.parquet"
    table.to_parquet(parquet)
    assert read_manifest(parquet).equals(table)
    assert read_manifest(table).equals(table)


NUMBERS: dict[str, Callable[[], pd.Series]] = {
    "float64": lambda: pd.Series([0.5, 2]),
    "float32": lambda: pd.Series([0.5, 2], dtype=np.float32),
    "int16": lambda: pd.Series([0, 2], dtype=np.int16),
    "nullable": lambda: pd.Series([1, 2], dtype="Int64"),
    "nullable float": lambda: pd.Series([0.5, 2], dtype="Float64"),
    "arrow": lambda: pd.Series([0.5, 2], dtype=pd.ArrowDtype(pa.float32())),
    "objects": lambda: pd.Series([0.5, 2], dtype=object),
    "text": lambda: pd.Series(["0.5", "2e0"]),
    "categorical": lambda: pd.Series([1, 2], dtype="category"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_targets_are_plain_numbers(kind: str) -> None:
    given_ = NUMBERS[kind]()
    frame = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r", "target": given_})
    values = read_manifest(frame, target="target")["target"]
    assert isinstance(values.dtype, np.dtype)
    assert values.dtype.kind in "if"
    assert values.to_list() == [float(value) for value in given_]


@pytest.mark.parametrize(
    "bad", [None, np.nan, np.inf, pd.NA, "x", "", complex(1), "0x10"], ids=lambda value: repr(value)
)
def test_a_target_that_is_no_number_is_named(bad: object) -> None:
    frame = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r", "y": pd.Series([1, bad], dtype=object)})
    with pytest.raises(ManifestError, match=r"row 1: tile b: y .*not a finite number"):
        read_manifest(frame, tabular=["y"])


def test_targets_are_needed_in_the_last_frame_only(tmp_path: Path) -> None:
    text = HEADER + ROW.replace("0.5", "").replace("2018", "2016") + ROW
    path = write(tmp_path, text)
    assert read_manifest(path, target="target", frames=[2016, 2018])["target"].iloc[1] == 0.5
    with pytest.raises(ManifestError, match="line 2: tile t0: target is empty"):
        read_manifest(path, target="target", frames=[2018, 2016])


def test_other_columns_are_numbers_only_where_every_cell_is_one(tmp_path: Path) -> None:
    text = "tile_id,region_id,a,b,c,d,year\nt0,r,1,1.5,01,x,2018\nt1,r,-2,2,2,3,2019\n"
    table = read_manifest(write(tmp_path, text), text=["year"])
    assert table["a"].to_list() == [1, -2]
    assert table["b"].to_list() == [1.5, 2.0]
    assert table["c"].to_list() == ["01", "2"]
    assert table["d"].to_list() == ["x", "3"]
    assert table["year"].to_list() == ["2018", "2019"]


def test_four_columns_and_volumes(tmp_path: Path) -> None:
    four = "tile_id,region_id,xmin,ymin,xmax,ymax\nt0,r,0,1,10,20\n"
    assert read_manifest(write(tmp_path, four)).iloc[0, 2:].to_list() == [0, 1, 10, 20]
    six = 'tile_id,region_id,region_coordinates\nt0,r,"(0,1,2,3,4,5)"\n'
    table = read_manifest(write(tmp_path, six))
    assert list(table.columns[2:]) == ["xmin", "ymin", "zmin", "xmax", "ymax", "zmax"]
    assert table.iloc[0, 2:].to_list() == [0, 1, 2, 3, 4, 5]
    assert (table.dtypes.iloc[2:] == np.int32).all()
    with pytest.raises(ManifestError, match="the column ymax is missing"):
        read_manifest(write(tmp_path, "tile_id,region_id,xmin,ymin,xmax\nt0,r,0,1,10\n"))
    with pytest.raises(ManifestError, match=r"box \(0, 1, 1e1, 20\) of region r is not"):
        read_manifest(write(tmp_path, four.replace("10", "1e1")))
    whole = read_manifest(write(tmp_path, "tile_id,region_id\nt0,r\n"))
    assert "xmin" not in whole


@pytest.mark.parametrize("values", [[0, 1, 10, 20], [0.0, 1.0, 10.0, 20.0]], ids=["integers", "floats"])
def test_box_columns_of_a_dataframe(values: list[float]) -> None:
    frame = pd.DataFrame([["t", "r", *values]], columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"])
    assert read_manifest(frame).iloc[0, 2:].to_list() == [0, 1, 10, 20]
    frame["xmax"] = 10.5
    with pytest.raises(ManifestError, match=r"row 0: tile t: box .* is not"):
        read_manifest(frame)
    frame["xmax"] = np.nan
    with pytest.raises(ManifestError, match=r"row 0: tile t: box .* is not"):
        read_manifest(frame)


def test_whole_numbers_of_any_size_are_map_units() -> None:
    box = {"xmin": 0, "ymin": 0, "xmax": 2**60, "ymax": 2**60}
    table = read_manifest(pd.DataFrame({"tile_id": ["a"], "region_id": "r"} | box), coordinates="map")
    assert table.xmax.tolist() == [2.0**60]


def test_boxes_of_a_dataframe_may_be_tuples() -> None:
    frame = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r", "region_coordinates": [(0, 0, 1, 2), [3, 4, 5, 6]]})
    assert read_manifest(frame)[["xmin", "ymax"]].to_numpy().tolist() == [[0, 2], [3, 6]]
    frame["region_coordinates"] = [(True, 0, 1, 2), (0, 0, 1, 2)]
    with pytest.raises(ManifestError, match=r"row 0: tile a: box .True"):
        read_manifest(frame)


def test_a_box_may_begin_outside_when_padded(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + ROW.replace("(0", "(-5"))
    assert read_manifest(path, allow_outside=True)["xmin"].to_list() == [-5]


CELL = r"[ \t]*(-?[0-9]{1,10})[ \t]*"
GRAMMAR = re.compile(rf"[ \t]*(?:\({CELL},{CELL},{CELL},{CELL}\)|\[{CELL},{CELL},{CELL},{CELL}\])[ \t]*", re.ASCII)


@given(
    st.lists(
        st.one_of(
            st.text(alphabet="0123456789-,() []eExT.\t_+٣", max_size=30),
            st.tuples(*[st.integers(-(10**9), 10**9)] * 4).map(str),
            st.lists(st.integers(-5, 10**9), min_size=3, max_size=5).map(str),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_box_grammar_is_the_regular_expressions(cells: list[str]) -> None:
    boxes, bad = parse_boxes(pa.array(cells), 4)
    for cell, box, wrong in zip(cells, boxes.tolist(), bad, strict=True):
        match = GRAMMAR.fullmatch(cell)
        assert wrong == (match is None)
        assert box == ([int(part) for part in match.groups() if part] if match else [0, 0, 0, 0])


@given(st.lists(st.text(max_size=12), max_size=20), st.integers(0, 5))
def test_hashes_tell_texts_apart(texts: list[str], start: int) -> None:
    column = pd.Series(texts, dtype="str").iloc[start:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazytiles.manifests.columns._HASHED_ROWS", 3)
        hashes = column_hashes(column).tolist()
    assert len(hashes) == len(column)
    same: dict[str, set[int]] = {}
    for text, value in zip(column, hashes, strict=True):
        same.setdefault(text, set()).add(value)
    assert all(len(values) == 1 for values in same.values())
    assert len({next(iter(values)) for values in same.values()}) == len(same)


def test_a_manifest_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazytiles.manifests.table.BLOCK_BYTES", 1 << 10)
    rows = "".join(f't{k},r{k % 7},2018,{k},"({k}, 0, {k + 9}, 9)"\n' for k in range(500))
    seen: list[int] = []
    table = read_manifest(write(tmp_path, HEADER + rows), target="target", progress=seen.append)
    assert table["tile_id"].to_list() == [f"t{k}" for k in range(500)]
    assert table["region_id"].to_list() == [f"r{k % 7}" for k in range(500)]
    assert table["xmin"].to_list() == list(range(500))
    assert table["target"].dtype == np.int64
    assert len(seen) > 5
    assert seen[-1] == 500
    with pytest.raises(ManifestError, match=r"line 502: tile t0 .label 2018. is already on line 2"):
        read_manifest(write(tmp_path, HEADER + rows + 't0,r0,2018,1,"(0, 0, 9, 9)"'))


def test_memory_per_row_is_small(tmp_path: Path) -> None:
    rows = "".join(f'tile{k:08d},r{k % 100},2018,{k / 7:.4f},"({k}, 0, {k + 9}, 9)"\n' for k in range(20_000))
    table = read_manifest(write(tmp_path, HEADER + rows), target="target")
    assert table.memory_usage(deep=True).sum() < 100 * len(table)


def test_inspection_gives_table_and_problems(tmp_path: Path) -> None:
    table, problems = inspect_manifest(write(tmp_path, HEADER + ROW + ROW), Columns(target="target"))
    assert len(table) == 2
    assert problems.counts == {"duplicate": 1}
    assert problems.rows == {"duplicate": [1]}


@pytest.mark.parametrize("thing", [3, None, b"x"], ids=str)
def test_what_is_no_manifest_is_refused(thing: object, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="a manifest is a DataFrame or the path"):
        read_manifest(thing)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="there is no such manifest"):
        read_manifest(tmp_path / "absent.csv")
    with pytest.raises(ManifestError, match="not a regular file"):
        read_manifest(tmp_path)


# -- paths


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def table_of(**columns: list[object]) -> pd.DataFrame:
    length = len(next(iter(columns.values())))
    return read_manifest(pd.DataFrame({"tile_id": [f"t{k}" for k in range(length)], **columns}), text=["year"])


def test_paths_are_resolved_once_each(tmp_path: Path) -> None:
    images(tmp_path, "2018/a.tif", "2019/a.tif", "2018/b.tif")
    table = table_of(region_id=["a", "b", "a", "a"], label_id=[2018, 2018, 2019, 2018])
    codes, paths = resolve_paths(table, "{label_id}/{region_id}.tif", tmp_path)
    assert codes.tolist() == [0, 1, 2, 0]
    assert paths == [str(tmp_path / name) for name in ("2018/a.tif", "2018/b.tif", "2019/a.tif")]
    codes, paths = resolve_paths(table, "{label_id}/a.tif", str(tmp_path))
    assert (codes.tolist(), len(paths)) == ([0, 0, 1, 0], 2)
    one = resolve_paths(table, "2018/a.tif", tmp_path)
    assert (one[0].tolist(), len(one[1])) == ([0, 0, 0, 0], 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{region_id.__class__}", "a field is the name of a column"),
        ("{region_id[0]}", "a field is the name of a column"),
        ("{region_id!r}", "a field is the name of a column"),
        ("{region_id:>9}", "a field is the name of a column"),
        ("{}", "a field is the name of a column"),
        ("{0}", "a field is the name of a column"),
        ("{region_id", "path template"),
        ("../{region_id}.tif", "a path inside the image folder"),
        ("a/../../{region_id}.tif", "a path inside the image folder"),
        ("/etc/{region_id}", "a path inside the image folder"),
        ("..\\{region_id}", "a path inside the image folder"),
        ("", "a path inside the image folder"),
    ],
)
def test_templates_are_names_in_braces(template: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        template_columns(template)


def test_a_template_over_an_absent_column(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no column year; there are tile_id, region_id"):
        resolve_paths(table_of(region_id=["a"]), "{year}/{region_id}.tif", tmp_path)


def test_values_of_any_column_are_one_component(tmp_path: Path) -> None:
    table = table_of(region_id=["a", "b"], year=["..", "2018"])
    with pytest.raises(ManifestError, match=r"year '\.\.': a part of a path is one name"):
        resolve_paths(table, "{year}/{region_id}.tif", tmp_path)


def test_missing_images_are_all_listed(tmp_path: Path) -> None:
    images(tmp_path, "a.tif", "B.TIF")
    (tmp_path / "dir.tif").mkdir()
    table = table_of(region_id=["a", "b", "c", "dir", "c"])
    with pytest.raises(ManifestError) as raised:
        resolve_paths(table, "{region_id}.tif", tmp_path)
    message = str(raised.value)
    assert "3 problems" in message
    assert "tile t1: " in message
    assert "but B.TIF is there" in message
    assert "tile t2: " in message
    assert "dir.tif is not a regular file" in message
    with pytest.raises(ManifestError, match="there is no such image folder"):
        resolve_paths(table, "{region_id}.tif", tmp_path / "absent")


@pytest.mark.parametrize(
    ("row", "file"),
    [
        ("t4,r0,2018,(80, 60, 112, 92)", r"2018/r0\.tif"),
        ("t4,zz,2018,(0, 0, 32, 32)", r"2018/zz\.tif"),
        ("t4,r0,2018,(32, 0, 0, 32)", "region r0"),
        ("t4,r0,2018,(-3, 0, 29, 32)", "region r0"),
        ("t1,r0,2018,(0, 0, 32, 32)", "region r0"),
        ("t4,../r0,2018,(0, 0, 32, 32)", r"region_id '\.\./r0'"),
        ("t4,,2018,(0, 0, 32, 32)", "region_id is empty"),
    ],
)
def test_every_refusal_names_tile_file_and_window(row: str, file: str, tmp_path: Path) -> None:
    made.write(tmp_path / "2018" / "r0.tif", made.pixels((80, 100)))
    tile, *_, box = row.split(",", 3)
    lines = HEADER.replace("target,", ""), 't1,r0,2018,"(9, 9, 41, 41)"\n', row.replace(box, f'"{box}"\n')
    (tmp_path / "t.csv").write_text("".join(lines))
    with pytest.raises(ManifestError) as raised:
        open_tiles(tmp_path / "t.csv", tmp_path).verify()
    for part in (rf"\b{tile}\b", file, re.escape(box)):
        assert re.search(part, str(raised.value)), raised.value


def test_integer_ids_whose_file_has_zeros(tmp_path: Path) -> None:
    images(tmp_path, "2018/001.tif")
    table = table_of(region_id=[1], label_id=[2018])
    with pytest.raises(ManifestError, match=r"1\.tif is missing, but 2018/001\.tif is there.*dtype=str"):
        resolve_paths(table, "{label_id}/{region_id}.tif", tmp_path)


def test_files_that_are_named_otherwise_are_told_once(tmp_path: Path) -> None:
    images(tmp_path, "2018/north_10m.tif")
    table = table_of(region_id=["north", "south"], label_id=[2018, 2018])
    with pytest.raises(ManifestError, match="path= says how the files are named") as raised:
        resolve_paths(table, "{label_id}/{region_id}.tif", tmp_path)
    assert str(raised.value).count("there is 2018/north_10m.tif") == 1


def test_links_are_the_owners_choice(tmp_path: Path) -> None:
    outside = images(tmp_path / "outside", "a.tif")
    folder = images(tmp_path / "images", "b.tif")
    (folder / "a.tif").symlink_to(outside / "a.tif")
    (folder / "linked").symlink_to(outside)
    table = table_of(region_id=["a", "b"])
    assert len(resolve_paths(table, "{region_id}.tif", folder)[1]) == 2
    with pytest.raises(ManifestError, match=r"a\.tif goes through a link"):
        resolve_paths(table, "{region_id}.tif", folder, follow_symlinks=False)
    with pytest.raises(ManifestError, match="goes through a link"):
        resolve_paths(table_of(region_id=["a"]), "linked/{region_id}.tif", folder, follow_symlinks=False)


def test_an_address_is_not_looked_at() -> None:
    table = table_of(region_id=["a", "b"])
    codes, paths = resolve_paths(table, "{region_id}.tif", "s3://bucket/images/")
    assert paths == ["s3://bucket/images/a.tif", "s3://bucket/images/b.tif"]
    assert codes.tolist() == [0, 1]


GOOD = HEADER.replace("\n", ",note\n") + "".join(
    f't{k},r{k % 3},{2016 + k % 2},{k / 7:.3f},"({k}, 0, {k + 8}, 8)","a, b"\r\n' for k in range(8)
)
BITS = [
    b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"(", b")", b"[", b"-", b"9" * 40, b"1e999", b"nan", b"inf", b";",
    b"\t", b"../", b"\\", b"\xc3\xa9", b"\xd9\xa1", b" ", b'""', b"\xef\xbb\xbf", b"0x1", b"tile_id", b"NULL",
]  # fmt: skip
edits = st.one_of(
    st.tuples(st.just("insert"), st.integers(0, len(GOOD)), st.sampled_from(BITS)),
    st.tuples(st.just("delete"), st.integers(0, len(GOOD)), st.integers(1, 20)),
    st.tuples(st.just("put"), st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=1)),
)


@given(edits=st.lists(edits, max_size=4))
def test_a_damaged_file_is_read_right_or_refused(
    edits: list[tuple[str, int, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(GOOD.encode())
    for kind, place, value in edits:
        if kind == "delete":
            del data[place : place + int(str(value))]
        else:
            data[place : place + (kind == "put")] = value
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(data)
    try:
        table = read_manifest(path, target="target")
    except ManifestError:
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    for name in ("tile_id", "region_id", "label_id"):
        if name in header:
            assert table[name].to_list() == [row[header.index(name)] for row in rows]
    if "region_coordinates" not in header:
        assert "coord" not in str(header)
        return
    boxes = [re.findall(r"-?\d+", row[header.index("region_coordinates")]) for row in rows]
    assert table[["xmin", "ymin", "xmax", "ymax"]].to_numpy().tolist() == [list(map(int, box)) for box in boxes]


def test_a_conflict_is_found_without_hashing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "r", 2017, 0), ("a", "r", 2018, 0), ("b", "r", 2017, 8), ("b", "r", 2018, 9)]
    table = pd.DataFrame([(t, r, str(y), x, 0, x + 8, 8) for t, r, y, x in rows])
    table.columns = ["tile_id", "region_id", "label_id", "xmin", "ymin", "xmax", "ymax"]
    assert inspect_manifest(table, Columns())[1].counts == {"frames disagree": 1}
    assert not inspect_manifest(table[:3], Columns())[1].counts
    # Tiles of one hash look like a conflict, but are told apart by their names.
    monkeypatch.setattr("lazytiles.manifests.conflicts.column_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    assert inspect_manifest(table, Columns())[1].counts == {"frames disagree": 1}
    assert not inspect_manifest(table[:3], Columns())[1].counts
