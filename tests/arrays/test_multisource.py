"""Lazy arrays are the dense arrays they stand for: in every key, in every order, with all that stands beside them."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

import lazytiles as lt
from tests.anykey import keys, same_as_numpy
from tests.conformance import check_source
from tests.limits import Counting, within_limits
from tests.made import LAYOUTS, make, pixels, write

MANY = settings(max_examples=5 * settings().max_examples, suppress_health_check=list(HealthCheck))


OPEN = []  # files that a test's sources lie in


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays")


@pytest.fixture(scope="module")
def made(folder):
    return make(folder / "made", tiles=11)


def ask_anything(lazy, dense):
    """Hundreds of random keys."""

    @MANY
    @given(keys(dense.shape))
    def law(key):
        same_as_numpy(lazy, dense, key)

    law()


# -- the oracle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["strips", "tiles", "planar", "raw", "bands", "gray", "stack", "npy", "sparse"])
def test_any_key_of_a_region(kind, folder):
    image = pixels((37, 41, 3), np.uint16 if kind != "gray" else np.uint8, seed=3)
    path, options = folder / f"{kind}.tif", {}
    if kind == "strips":
        write(path, image[..., 0], compression="lzw", rowsperstrip=5)
        image = image[..., 0]
    elif kind in ("tiles", "bands", "gray"):
        write(path, image, compression="zlib", tile=(16, 16))
    elif kind == "planar":
        write(path, image, compression="zlib", tile=(16, 16), planarconfig="separate")
    elif kind == "raw":
        write(path, image, rowsperstrip=37)
    elif kind == "stack":
        image = np.moveaxis(image, -1, 0).copy()
        import tifffile

        with tifffile.TiffWriter(path) as tiff:
            for page in image:
                tiff.write(page, compression="zlib", tile=(16, 16), metadata=None)
        options = {"page": "all"}
    elif kind == "npy":
        path = path.with_suffix(".npy")
        np.save(path, image)
    elif kind == "sparse":
        image[:16, 16:32] = 7
        image[16:32] = 7
        write(path, image, compression="zlib", tile=(16, 16), extratags=[(42113, "s", 0, "7", True)])
        drop_segments(path, 7)
    if kind == "bands":
        options, image = {"bands": [2, 0]}, image[..., [2, 0]]
    elif kind == "gray":
        options = {"gray": True}
        image = ((image.astype(int) @ [299, 587, 114] + 500) // 1000).astype(np.uint8)
    ask_anything(lt.open_region(path, **options), image)


def drop_segments(path, value):
    """Make the segments of one value sparse: neither offset nor bytes."""
    import tifffile

    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        for k in range(len(offsets)):
            tiff.filehandle.seek(offsets[k])
            if (page.decode(tiff.filehandle.read(counts[k]), k)[0] == value).all():
                offsets[k] = counts[k] = 0
        assert offsets.count(0) >= 2
        page.tags[324].overwrite(offsets)
        page.tags[325].overwrite(counts)


@pytest.mark.leaks("Zarr keeps its loop and its threads")
@pytest.mark.parametrize("source", ["array", "memmap", "hdf5", "zarr", "region", "view", "tiles", "big-endian"])
def test_any_key_of_a_view(source, folder, made):
    lazy, dense = some_source(source, folder, made)
    view = lt.DelayedView(lazy, idx_min=2, idx_max=-1, shuffle=True, seed=5)
    wanted = dense[2:-1][view.order]
    ask_anything(view, wanted)
    again = lt.DelayedView(view, idx_min=1)
    assert again.source is view.source  # a view of a view is one view
    ask_anything(again, wanted[1:])


def some_source(kind, folder, made):
    """A source of a kind, (about 12, 5, 6), and what it holds."""
    dense = pixels((12, 5, 6), np.int32, seed=8)
    path = folder / f"source-{kind}"
    if kind == "array":
        return dense, dense
    if kind == "big-endian":
        return dense.astype(">i4"), dense
    if kind == "memmap":
        np.save(path.with_suffix(".npy"), dense)
        return np.load(path.with_suffix(".npy"), mmap_mode="r"), dense
    if kind == "hdf5":
        h5py = pytest.importorskip("h5py")
        file = h5py.File(path.with_suffix(f".{len(OPEN)}"), "w", driver="core", backing_store=False)
        OPEN.append(file)
        return file.create_dataset("x", data=dense), dense
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        return zarr.create_array(zarr.storage.MemoryStore(), data=dense, chunks=(5, 3, 4)), dense
    if kind == "region":
        image = pixels((34, 29, 2), np.int32)
        return lt.open_region(write(path.with_suffix(".tif"), image, compression="zlib", tile=(16, 16))), image
    if kind == "view":
        return lt.DelayedView(dense, idx_min=1, shuffle=True, seed=3), dense[
            1 + lt.DelayedView(dense, idx_min=1, shuffle=True, seed=3).order
        ]
    return lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)).shuffle(4), made.dense()[
        lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)).shuffle(4).order
    ]


@pytest.mark.leaks("Zarr keeps its loop and its threads")
@pytest.mark.parametrize("shuffled", [False, True])
def test_any_key_of_many_sources(shuffled, folder, made):
    kinds = ("array", "memmap", "hdf5", "zarr", "view", "big-endian")
    sources, parts = zip(*(some_source(kind, folder, made) for kind in kinds), strict=True)
    inner = lt.MultiSourceArray(sources[:2]).shuffle(1)
    lazy = lt.MultiSourceArray([*sources, inner, lt.DelayedView(inner, idx_max=3)])
    parts = [*parts, np.concatenate(parts[:2])[inner.order], np.concatenate(parts[:2])[inner.order][:3]]
    dense = np.concatenate(parts)
    if shuffled:
        lazy.shuffle(9)
        dense = dense[lazy.order]
    ask_anything(lazy, dense)
    chosen = lazy.select(slice(None, None, 3))
    ask_anything(chosen, dense[::3])


@pytest.mark.parametrize("options", ["plain", "single", "bands", "pad", "size", "gray", "shuffled"])
def test_any_key_of_opened_tiles(options, made, folder):
    given_options = {"frames": list(made.frames)}
    dense = made.dense()
    if options == "single":
        given_options, dense = {"frames": "2016"}, dense[:, 0]
    elif options == "bands":
        given_options["bands"], dense = [1], dense[..., [1]]
    elif options == "size":
        given_options |= {"size": (4, 5), "resample": "nearest"}
        rows, columns = ((2 * np.arange(m) + 1) * n // (2 * m) for n, m in ((9, 4), (7, 5)))
        dense = dense[:, :, rows][:, :, :, columns]
    elif options == "gray":
        given_options["gray"] = True
        dense = ((dense.astype(int) @ [299, 587, 114] + 500) // 1000).astype(np.uint8)[..., None]
    manifest = made.manifest
    if options == "pad":
        table = made.table.copy()
        table["region_coordinates"] = "(-3, -2, 4, 7)"
        table["tile_id"] = table.tile_id
        manifest = table
        given_options["pad"] = "edge"
        padded = {name: np.pad(image, ((2, 0), (3, 0), (0, 0)), mode="edge") for name, image in made.images.items()}
        dense = np.stack(
            [np.stack([padded[frame, region][:9, :7] for frame in made.frames]) for region in made.rows.region_id]
        )
    lazy = lt.open_tiles(manifest, made.folder, **given_options)
    if options == "shuffled":
        lazy.shuffle(3)
        dense = dense[lazy.order]
    ask_anything(lazy, dense)


# -- conformance -------------------------------------------------------------------------------------------------


@pytest.mark.leaks("Zarr keeps its loop and its threads")
def test_every_source_conforms(folder, made):
    for kind in ("array", "memmap", "big-endian"):
        lazy, dense = some_source(kind, folder, made)
        check_source(lambda lazy=lazy: lazy, dense, full=kind == "array", pickles=True)
    for kind in ("hdf5", "zarr"):
        lazy, dense = some_source(kind, folder, made)
        check_source(lambda lazy=lazy: lazy, dense, full=False, pickles=False)
    for kind in ("region", "view", "tiles"):
        lazy, dense = some_source(kind, folder, made)
        check_source(lambda lazy=lazy: lazy, dense)
    for kind in ("array", "memmap", "big-endian", "region", "view", "tiles"):
        lazy, dense = some_source(kind, folder, made)
        check_source(lambda lazy=lazy: lt.DelayedView(lazy), dense)
        check_source(lambda lazy=lazy: lt.MultiSourceArray([lazy, lazy]), np.concatenate([dense, dense]))
    for kind in ("hdf5", "zarr"):  # the HDF5 file is in memory only
        lazy, dense = some_source(kind, folder, made)
        check_source(lambda lazy=lazy: lt.DelayedView(lazy), dense, pickles=kind == "zarr")
        check_source(lambda lazy=lazy: lt.MultiSourceArray([lazy]), dense, pickles=kind == "zarr")


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_travels_by_the_name_of_its_file(order, tmp_path):
    dense = np.arange(200_000).reshape(1000, 200)
    np.save(tmp_path / "a.npy", np.asarray(dense, order=order))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for array in (lt.DelayedView(mapped), lt.MultiSourceArray([mapped], labels=np.zeros(1000, np.int8))):
        packed = pickle.dumps(array.shuffle(3))
        assert len(packed) < 20_000
        np.testing.assert_array_equal(pickle.loads(packed)[:], dense[array.order])
    slices = lt.MultiSourceArray([mapped[10:20], mapped[:, ::-1][:5]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slices))[:], slices[:])


def test_an_hdf5_dataset_travels_by_the_name_of_its_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    dense = np.arange(60).reshape(10, 3, 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/x"] = dense
        file["masks"] = dense * 2
    with h5py.File(tmp_path / "a.h5", "r") as file:
        check_source(lambda: lt.DelayedView(file["group/x"]), dense)
        check_source(lambda: lt.MultiSourceArray([file["group/x"]]), dense)
        packed = pickle.dumps(lt.MultiSourceArray([file["group/x"]], labels=file["masks"]).shuffle(3))
    twin = pickle.loads(packed)
    np.testing.assert_array_equal(twin[:], dense[twin.order])
    np.testing.assert_array_equal(twin.labels[:], dense[twin.order] * 2)


# -- orders and what stands beside the samples -------------------------------------------------------------------


def beside(array, images):
    """Everything that must stay in step, by sample."""
    ids = array.table.tile_id.tolist()
    assert array.labels.tolist() == array.table.target.tolist() == array.get_labels().tolist()
    np.testing.assert_array_equal(array.tabular[:, 0], array.table.elevation.to_numpy(np.float32))
    for k, tile in enumerate(ids):
        np.testing.assert_array_equal(array[k], images[tile])
        assert tile in array.name_of(k)
    return ids


def test_labels_tabular_and_table_follow_everything(made):
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames), tabular="elevation")
    images = dict(zip(made.rows.tile_id, made.dense(), strict=True))
    names = beside(tiles, images)
    assert names == made.rows.tile_id.tolist()
    tiles.shuffle(7)
    order = tiles.order
    assert beside(tiles, images) == [names[k] for k in order]
    chosen = tiles.select([5, 0, 5, 2])
    assert beside(chosen, images) == [names[order[k]] for k in (5, 0, 5, 2)]
    mask = tiles.labels > np.median(tiles.labels)
    part = tiles.select(mask).shuffle(2).select(slice(None, None, -1))
    assert sorted(beside(part, images)) == sorted(np.array(names)[order][mask])
    for train, test in [tiles.split(0.6, by="region_id", seed=1), *tiles.kfold(3, seed=2)]:
        assert sorted(beside(train, images) + beside(test, images)) == sorted(names)
    train.shuffle(5)
    beside(train, images)
    twin = pickle.loads(pickle.dumps(tiles))
    assert beside(twin, images) == beside(tiles, images)
    tiles.reset_order()
    assert beside(tiles, images) == names
    assert beside(twin, images) != names
    other = tiles.copy().shuffle(1)
    assert beside(other, images) != beside(tiles, images)


def test_mask_tiles_follow_everything(folder):
    made = make(folder / "masked", frames=("2016",), tiles=9)
    masks = {}
    for (_, name), image in made.images.items():
        masks[name] = image[..., 0] // 64
        write(made.folder / "masks" / f"{name}.tif", masks[name], compression="lzw")
    tiles = lt.open_tiles(made.manifest, made.folder, masks="masks/{region_id}.tif")

    def check(array):
        assert array.labels.shape == (len(array), 9, 7, 1)
        for k, row in enumerate(array.table.itertuples()):
            x, y = row.xmin, row.ymin
            np.testing.assert_array_equal(array[k], made.images["2016", row.region_id][y : y + 9, x : x + 7])
            np.testing.assert_array_equal(array.labels[k][..., 0], masks[row.region_id][y : y + 9, x : x + 7])
        np.testing.assert_array_equal(array.labels[:], np.stack(list(array.labels)))

    check(tiles)
    check(tiles.shuffle(3))
    check(tiles.select([4, 1, 1]))
    for part in tiles.split(0.5, by="region_id"):
        check(part)
    check(pickle.loads(pickle.dumps(tiles)))
    check(tiles.reset_order())
    sized = lt.open_tiles(made.manifest, made.folder, masks="masks/{region_id}.tif", size=(5, 3))
    assert set(np.unique(sized.labels[:])) <= {0, 1, 2, 3}


def test_an_order_is_a_function_of_seed_and_length():
    a, b = lt.MultiSourceArray([np.arange(40)]), lt.MultiSourceArray([np.arange(100, 120), np.arange(200, 220)])
    assert a.shuffle(1234) is a
    first = a.order
    a.shuffle(5).shuffle(6)
    b.shuffle(99)
    assert np.array_equal(a.shuffle(1234).order, first)
    assert np.array_equal(b.shuffle(1234).order, first)
    assert np.array_equal(lt.DelayedView(np.zeros(40), shuffle=True, seed=1234).order, first)
    assert not np.array_equal(first, np.arange(40))
    assert not np.array_equal(first, a.shuffle(1235).order)
    a.shuffle()
    assert np.array_equal(a.order, b.shuffle(a.seed).order)
    assert sorted(a[:].tolist()) == list(range(40))


def test_nobody_moves_what_stands_beside_the_samples():
    masks = lt.MultiSourceArray([np.arange(9)[:, None] * 10])
    valid = np.ones((9, 1), bool)
    for labels in (masks, np.arange(9) * 10):
        table = pd.DataFrame({"x": np.arange(9)})
        array = lt.MultiSourceArray([np.arange(9)], labels, table=table)
        array.companions = replace(array.companions, valid=valid.copy())
        table["x"] = -1
        for _ in range(2):
            if labels is masks:
                masks.shuffle()
                array.labels.shuffle()
            else:
                labels[:] = -1
                array.labels[:] = -1
            handed_out = array.table
            handed_out["x"] = -1
            array.order[:] = -1
            array.index_pairs[:] = -1
            array.valid[:] = False
            assert (array.labels[:].ravel() == array[:] * 10).all()
            assert (array.table["x"] == array[:]).all()
            assert array.valid.all()
            array.shuffle(5)


def test_a_shuffle_that_is_refused_changes_nothing():
    for array in (lt.MultiSourceArray([np.arange(9)]), lt.DelayedView(np.arange(9))):
        before = array.shuffle(3).order
        for refused in ({"seed": 0.5}, {"seed": 1, "window": 0}, {"seed": 1, "window": 1.5}):
            with pytest.raises((TypeError, ValueError)):
                array.shuffle(**refused)
        assert array.seed == 3
        assert np.array_equal(array.order, before)


@pytest.mark.parametrize(
    "order",
    [[0, 1], [0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [0.0, 1, 2, 3], [[0, 1, 2, 3]], "abcd", [0, 1, 2, 3, 4], None],
    ids=repr,
)
def test_an_order_that_is_no_permutation_is_refused(order):
    for array in (lt.MultiSourceArray([np.arange(4)]), lt.DelayedView(np.arange(4))):
        with pytest.raises((ValueError, TypeError), match=r"order of 4 samples"):
            array.order = order
        assert array[:].tolist() == [0, 1, 2, 3]


def test_orders_and_index_pairs_are_carried_over():
    a = lt.MultiSourceArray([np.arange(5), np.arange(10, 13)]).shuffle(3)
    b = lt.MultiSourceArray([np.arange(5) * 2, np.arange(10, 13) * 2])
    b.order = a.order
    np.testing.assert_array_equal(b[:], a[:] * 2)
    b.reset_order()
    b.index_pairs = a.index_pairs
    np.testing.assert_array_equal(b[:], a[:] * 2)
    np.testing.assert_array_equal(b.labels, a.labels)
    b.order = list(range(7, -1, -1))
    assert b[:].tolist() == [24, 22, 20, 8, 6, 4, 2, 0]
    assert b.index_pairs.tolist() == [[1, 2], [1, 1], [1, 0], [0, 4], [0, 3], [0, 2], [0, 1], [0, 0]]
    order = b.order
    order[:] = 0  # a copy
    assert b.order[0] == 7
    for pairs, message in [
        ([[0, 0]], r"shape \(8, 2\)"),
        ([[2, 0]] * 8, r"outside 0 to 1"),
        ([[1, 3]] * 8, r"outside their source"),
        ([[0, 0]] * 8, r"does not hold, or not so often"),
        ([[0, -1]] * 8, r"outside their source"),
    ]:
        with pytest.raises(ValueError, match=message):
            b.index_pairs = pairs
    twice = a.select([3, 3, 1])
    twice.index_pairs = twice.index_pairs[[1, 2, 0]]
    assert twice[:].tolist() == a[[3, 1, 3]].tolist()
    half = a.select(slice(0, 4))
    other = lt.MultiSourceArray([np.arange(5), np.arange(10, 13)])
    with pytest.raises(ValueError, match=r"does not hold|shape"):
        half.index_pairs = other.index_pairs[:4]


def test_labels_by_source_by_sample_and_lazy():
    sources = [np.zeros((2, 3)), np.ones((3, 3)), np.ones((1, 3))]
    assert lt.MultiSourceArray(sources).labels.tolist() == [0, 0, 1, 1, 1, 2]
    named = lt.MultiSourceArray(sources, ["c", "a", "b"])
    assert (named.labels.tolist(), named.classes) == ([2, 2, 0, 0, 0, 1], ["a", "b", "c"])
    assert lt.MultiSourceArray(sources, [7, 8, 9]).select([5, 2]).labels.tolist() == [9, 8]
    by_sample = lt.MultiSourceArray(sources, [[1, 2], [3, 4, 5], [6]])
    assert by_sample.shuffle(1).labels.tolist() == (by_sample.order + 1).tolist()
    assert lt.MultiSourceArray(sources, np.arange(6)).labels.tolist() == list(range(6))
    lazy = lt.DelayedView(np.arange(6) * 10)
    masks = lt.MultiSourceArray(sources, lazy).shuffle(2)
    np.testing.assert_array_equal(masks.labels[:], masks.order * 10)
    for labels, message in [([1, 2], r"2 labels for 3 sources"), ([[1], [3, 4, 5], [6]], r"source 0 has 2 samples")]:
        with pytest.raises(ValueError, match=message):
            lt.MultiSourceArray(sources, labels)
    with pytest.raises(ValueError, match=r"labels are 5"):
        lt.MultiSourceArray(sources, lt.DelayedView(np.arange(5)))


def test_maxlen_takes_the_samples_it_says():
    sources = [np.arange(10), np.arange(100, 103), np.arange(200, 220)]
    first = lt.MultiSourceArray(sources, maxlen=4)
    assert first[:].tolist() == [0, 1, 2, 3, 100, 101, 102, 200, 201, 202, 203]
    assert first.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    drawn = lt.MultiSourceArray(sources, maxlen=4, shuffle=True, seed=3)
    assert np.array_equal(drawn[:], lt.MultiSourceArray(sources, maxlen=4, shuffle=True, seed=3)[:])
    counts = np.bincount(drawn.labels)
    assert counts.tolist() == [4, 3, 4]
    assert len(set(drawn[:].tolist())) == 11
    assert sorted(drawn[:].tolist()) != first[:].tolist()
    others = {tuple(sorted(lt.MultiSourceArray(sources, maxlen=4, shuffle=True, seed=s)[:].tolist())) for s in range(9)}
    assert len(others) > 3
    assert (drawn[:] // 100 == drawn.labels).all()
    with pytest.raises(ValueError, match=r"maxlen"):
        lt.MultiSourceArray(sources, maxlen=0)


def test_sources_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"source 2 has samples of shape \(4,\), source 0 of \(3,\)"):
        lt.MultiSourceArray([np.zeros((2, 3)), np.zeros((1, 3)), np.zeros((2, 4))])
    with pytest.raises(ValueError, match=r"source 1 is float32, source 0 is float64"):
        lt.MultiSourceArray([np.zeros((2, 3)), np.zeros((2, 3), np.float32)])
    cast = lt.MultiSourceArray([np.zeros((2, 3)), np.ones((2, 3), np.float32)], dtype=np.float32)
    assert cast[:].dtype == np.float32
    assert cast[:].sum() == 6
    with pytest.raises(ValueError, match=r"at least one source"):
        lt.MultiSourceArray([])
    with pytest.raises(ValueError, match=r"source 0"):
        lt.MultiSourceArray([np.float64(1)])
    with pytest.raises(ValueError, match=r"source 1 \(list\) has no samples.*np\.asarray"):
        lt.MultiSourceArray([np.zeros(3), [1, 2]])
    with pytest.raises(ValueError, match=r"a list is no source of samples.*np\.asarray"):
        lt.DelayedView([1, 2])


# -- defects of the older systems --------------------------------------------------------------------------------


def test_defects_of_the_older_systems(folder):
    made = make(folder / "old", dtype=np.uint16, tiles=8, size=(11, 6), frames=("2016",))
    tiles = lt.open_tiles(made.manifest, made.folder)
    dense = made.dense()[:, 0]
    assert tiles.shape == (8, 11, 6, 3)  # height and width are not swapped
    assert tiles.dtype == np.uint16  # 16 bits stay 16 bits
    for key in (np.s_[-3:], np.s_[::-1], np.s_[5:1:-2], np.s_[3:3], np.s_[-1], np.s_[2, 3:5, ..., 0], []):
        same_as_numpy(tiles, dense, key)
    same_as_numpy(tiles, dense, np.arange(8) > 4)
    same_as_numpy(tiles, dense, (np.arange(8) > 4, slice(None), 2))
    assert len({tuple(tiles.shuffle(seed).order) for seed in range(10)}) == 10  # shuffling really shuffles
    floats = make(folder / "floats", dtype=np.float32, tiles=4, frames=("2016",))
    lazy = lt.open_tiles(floats.manifest, floats.folder)
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(lazy[:], floats.dense()[:, 0])
    sized = lt.open_tiles(made.manifest, made.folder, size=(5, 20))
    assert sized.shape == (8, 5, 20, 3)
    assert sized[0].dtype == np.uint16
    assert sized[:].max() > 255


# -- reading only what is needed ---------------------------------------------------------------------------------


def test_a_batch_grouped_by_region_touches_the_fewest_regions(folder):
    made = make(folder / "grouped", regions=8, tiles=256, frames=("2016",), size=(5, 5))
    tiles = lt.open_tiles(made.manifest, made.folder)
    tiles.shuffle(3, window=1)
    regions = tiles.table.region_id.to_numpy()
    changes = (regions[1:] != regions[:-1]).sum()
    assert changes == 7  # each region is one run
    counts = tiles.table.region_id.value_counts()
    for start in range(0, 256, 32):
        touched = len(set(regions[start : start + 32]))
        assert touched <= 1 + -(-31 // counts.min())
    pooled = tiles.shuffle(3, window=4).table.region_id.to_numpy()
    assert len(set(pooled[:128])) <= 5
    mixed = lt.open_tiles(made.manifest, made.folder).shuffle(3).table.region_id.to_numpy()
    assert np.mean([len(set(mixed[s : s + 32])) for s in range(0, 256, 32)]) > 6


def test_a_manifest_of_100_000_tiles_opens_one_image(tmp_path):
    image = pixels((64, 64), seed=1)
    original = write(tmp_path / "0.tif", image, compression="zlib", tile=(16, 16))
    for k in range(1, 1000):
        (tmp_path / f"{k}.tif").hardlink_to(original)
    k = np.arange(100_000)
    x, y = k * 7 % 48, k * 5 % 48
    table = pd.DataFrame({"tile_id": k.astype(str), "region_id": (k * 37 % 1000).astype(str), "target": k})
    table["region_coordinates"] = [f"({a}, {b}, {a + 16}, {b + 16})" for a, b in zip(x, y, strict=True)]
    table.to_csv(tmp_path / "tiles.csv", index=False)
    with Counting() as done:
        start = time.perf_counter()
        tiles = lt.open_tiles(tmp_path / "tiles.csv")
        seconds = time.perf_counter() - start
    print(f"opened 100,000 tiles in {seconds:.2f} s")
    assert tiles.shape == (100_000, 16, 16, 1)
    assert done.files == 1
    assert done.segments == 0
    for i in (0, 77_777, 99_999):
        np.testing.assert_array_equal(tiles[i][..., 0], image[y[i] : y[i] + 16, x[i] : x[i] + 16])


# -- options of opened tiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["frame", "csv", "parquet", "columns"])
def test_manifests_of_every_kind_open_alike(source, made, tmp_path):
    manifest = made.table
    if source == "csv":
        manifest = made.manifest
    elif source == "parquet":
        manifest = tmp_path / "tiles.parquet"
        made.table.to_parquet(manifest)
    elif source == "columns":
        corners = made.table.region_coordinates.str.strip("()").str.split(", ", expand=True).astype(int)
        manifest = made.table.drop(columns="region_coordinates")
        manifest[["xmin", "ymin", "xmax", "ymax"]] = corners
    tiles = lt.open_tiles(manifest, made.folder, frames=list(made.frames))
    np.testing.assert_array_equal(tiles[:], made.dense())
    assert tiles.labels.tolist() == made.rows.target.tolist()


def test_targets_frames_and_paths(made):
    options = {"manifest": made.manifest, "image_dir": made.folder}
    both = lt.open_tiles(**options, frames=["2017", "2016"], target=["elevation", "target"])
    assert both.labels.shape == (11, 2)
    np.testing.assert_array_equal(both[:], made.dense()[:, ::-1])
    assert lt.open_tiles(**options, frames=2017, target=None).labels is None
    np.testing.assert_array_equal(lt.open_tiles(**options, frames=2017)[:], made.dense()[:, 1])
    named = lt.open_tiles(**options, frames="2016", path="2017/{region_id}.tif")
    np.testing.assert_array_equal(named[:], made.dense()[:, 1])
    with pytest.raises(lt.ManifestError, match=r"2040"):
        lt.open_tiles(**options, frames=["2040"])
    with pytest.raises(lt.ManifestError, match=r"(?s)missing|no such|not there"):
        lt.open_tiles(**options, frames="2016", path="{region_id}/nowhere.tif")


def test_a_path_column_names_any_image_file(tmp_path):
    from PIL import Image

    image = pixels((20, 30, 3), seed=4)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", image[::-1])
    write(tmp_path / "sub.tif", image[:, ::-1], compression="lzw")
    Image.fromarray(image).save(tmp_path / "c.jpg")
    wanted = {"a.png": image, "b.npy": image[::-1], "sub.tif": image[:, ::-1]}
    wanted["c.jpg"] = np.asarray(Image.open(tmp_path / "c.jpg"))
    table = pd.DataFrame({"tile_id": list("wxyz"), "region_id": list("abcd"), "path": list(wanted), "target": range(4)})
    whole = lt.open_tiles(table, tmp_path)
    np.testing.assert_array_equal(whole[:], np.stack(list(wanted.values())))
    table["region_coordinates"] = "(3, 2, 13, 8)"
    np.testing.assert_array_equal(lt.open_tiles(table, tmp_path)[:], np.stack([w[2:8, 3:13] for w in wanted.values()]))


def test_missing_frames_are_filled_and_told(folder):
    made = make(folder / "missing", frames=("2016", "2017", "2018"), tiles=10)
    (made.folder / "2017" / "001.tif").unlink()
    options = {"frames": list(made.frames)}
    with pytest.raises(lt.ManifestError, match=r"(?s)2017/001\.tif"):
        lt.open_tiles(made.manifest, made.folder, **options)
    tiles = lt.open_tiles(made.manifest, made.folder, **options, missing="fill")
    dense, lost = made.dense(), made.rows.region_id.to_numpy() == "001"
    assert lost.any()
    dense[lost, 1] = 0
    np.testing.assert_array_equal(tiles[:], dense)
    np.testing.assert_array_equal(tiles[:, 1], dense[:, 1])
    wanted = np.ones((10, 3), bool)
    wanted[lost, 1] = False
    np.testing.assert_array_equal(tiles.valid, wanted)
    tiles.shuffle(5)
    np.testing.assert_array_equal(tiles.valid, wanted[tiles.order])
    np.testing.assert_array_equal(tiles.select([3, 1]).valid, wanted[tiles.order][[3, 1]])
    ask_anything(tiles, dense[tiles.order])
    tiles.verify()
    assert lt.open_tiles(made.manifest, made.folder, frames="2016", missing="fill").valid.all()


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_padding_is_numpys_padding_of_the_whole_image(mode, tmp_path):
    images = {"a": pixels((23, 31, 2), seed=1), "b": pixels((40, 18, 2), seed=2)}
    rng = np.random.default_rng(5)
    rows, wanted = [], []
    far = 50
    for k in range(60):
        name = "ab"[k % 2]
        write(tmp_path / f"{name}.tif", images[name], compression="zlib", tile=(16, 16))
        y, x = (int(rng.integers(-11, n)) for n in images[name].shape[:2])
        rows.append((f"t{k}", name, 0, x, y, x + 12, y + 13))
        padded = np.pad(images[name], ((far, far), (far, far), (0, 0)), mode=mode)
        wanted.append(padded[y + far : y + far + 13, x + far : x + far + 12])
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "target", "xmin", "ymin", "xmax", "ymax"])
    tiles = lt.open_tiles(table, tmp_path, pad=mode)
    for k, expected in enumerate(wanted):
        np.testing.assert_array_equal(tiles[k], expected, err_msg=str(rows[k]))
    np.testing.assert_array_equal(tiles[:], np.stack(wanted))
    np.testing.assert_array_equal(tiles[::7, 3:9, ::2, 1], np.stack(wanted)[::7, 3:9, ::2, 1])


@pytest.mark.parametrize("mode", ["linear_ramp", "maximum", "mean", "median", "minimum"])
def test_padding_by_whole_lines_is_numpys(mode, tmp_path):
    image = pixels((23, 31, 2), seed=1)
    write(tmp_path / "a.tif", image, compression="zlib", tile=(16, 16))
    corners = [(-5, -4), (-5, 10), (9, -7), (20, 25), (-12, 30), (15, 8), (3, 30), (-3, 28)]
    table = pd.DataFrame([(f"t{k}", "a", x, y, x + 12, y + 13) for k, (y, x) in enumerate(corners)])
    table.columns = ["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"]
    tiles = lt.open_tiles(table, tmp_path, pad=mode)
    wanted = []
    for y, x in corners:
        beyond = [(max(0, -y), max(0, y + 13 - 23)), (max(0, -x), max(0, x + 12 - 31)), (0, 0)]
        padded = np.pad(image, beyond, mode=mode)
        wanted.append(padded[y + beyond[0][0] :, x + beyond[1][0] :][:13, :12])
    np.testing.assert_array_equal(tiles[:], np.stack(wanted))
    np.testing.assert_array_equal(tiles[::-1, 3:9, ::2, 1], np.stack(wanted)[::-1, 3:9, ::2, 1])
    with within_limits(max_window_bytes=1000), pytest.raises(lt.LimitError, match=f"pad='{mode}'"):
        lt.open_tiles(table, tmp_path, pad=mode).take([0])


def test_windows_that_leave_their_region_are_named(tmp_path):
    write(tmp_path / "1225.tif", pixels((80, 84)), compression="lzw")
    table = pd.DataFrame(
        {
            "tile_id": ["ok", "4879221"],
            "region_id": "1225",
            "target": 0,
            "region_coordinates": ["(0, 0, 44, 40)", "(61, 6, 105, 46)"],
        }
    )
    tiles = lt.open_tiles(table, tmp_path)
    for read in (lambda: tiles[1], lambda: tiles[:], tiles.verify, lambda: tiles.take([0, 1])):
        with pytest.raises(
            lt.ManifestError, match=r'(?s)tile 4879221.*\(61, 6, 105, 46\).*1225.*80 x 84.*pad="reflect"'
        ):
            read()
    assert tiles[0].shape == (40, 44, 1)


SIZES = [(5, 12), (30, 9), (13, 13), (40, 3)]


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_resampling_is_pillows(method, dtype, folder):
    from PIL import Image

    made = make(folder / f"{method}-{np.dtype(dtype)}", dtype=dtype, size=None, frames=("2016",), tiles=10)
    kernel = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}.get(method, "NEAREST")

    def reference(crop, size):
        if dtype == np.uint8:
            bands = [Image.fromarray(np.ascontiguousarray(crop[..., k])) for k in range(3)]
        else:
            bands = [Image.fromarray(crop[..., k].astype(np.float32)) for k in range(3)]
        return np.stack([np.asarray(b.resize(size[::-1], Image.Resampling[kernel])) for b in bands], axis=-1)

    for size in SIZES:
        tiles = lt.open_tiles(made.manifest, made.folder, size=size, resample=method)
        assert tiles.shape == (10, *size, 3)
        assert tiles.dtype == dtype
        for tile, row in zip(tiles[:], made.rows.itertuples(), strict=True):
            wanted = reference(made.crop(row, "2016"), size).astype(np.float64)
            if np.dtype(dtype).kind == "u" and dtype != np.uint8:
                wanted = wanted.clip(0, 65535)
            elif dtype == np.int16:
                wanted = wanted.clip(-32768, 32767)
            tolerance = 0 if dtype == np.uint8 or method == "nearest" else 0.51 if dtype != np.float32 else 1e-3
            np.testing.assert_allclose(tile.astype(np.float64), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resampling_leaves_a_nan_out_and_spreads_infinity_no_further_than_pillow(method, dtype, tmp_path):
    from PIL import Image

    image = pixels((40, 50), dtype)
    image[7, 9], image[30, 31] = np.nan, np.inf
    write(tmp_path / "r.tif", image)
    table = pd.DataFrame({"tile_id": ["a"], "region_id": ["r"], "region_coordinates": ["(0, 0, 50, 40)"]})
    kernel = Image.Resampling[{"bilinear": "BILINEAR", "bicubic": "BICUBIC", "area": "BOX"}[method]]
    for size in ((20, 21), (90, 77), (13, 60)):
        tile = lt.open_tiles(table, tmp_path, size=size, resample=method)[0, ..., 0]
        wanted = np.asarray(Image.fromarray(image.astype(np.float32)).resize(size[::-1], kernel))
        assert (~np.isfinite(tile)).sum() <= (~np.isfinite(wanted)).sum() < wanted.size / 10
        both = np.isfinite(wanted)
        np.testing.assert_allclose(tile[both], wanted[both], rtol=1e-5, atol=1e-3)


def test_resampling_gives_the_same_numbers_whatever_is_taken_of_a_tile(tmp_path):
    write(tmp_path / "r.tif", pixels((60, 70, 5), np.float64))
    table = pd.DataFrame({"tile_id": ["a", "b"], "region_id": "r"})
    table["region_coordinates"] = ["(0, 0, 61, 47)", "(3, 9, 70, 60)"]
    tiles = lt.open_tiles(table, tmp_path, size=(31, 23))
    whole = tiles[:]
    for key in ((1,), (slice(None), slice(3, 9), slice(None, None, -2), [4, 1]), (0, ..., 2), (1, 30, 22)):
        np.testing.assert_array_equal(tiles[key], whole[key])


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_every_layout_and_dtype_gives_the_crops(layout, folder):
    for dtype in (np.uint8, np.int16, np.float32, np.float64, np.uint32):
        if dtype in (np.float32, np.float64) and LAYOUTS[layout].get("predictor"):
            continue
        made = make(folder / f"{layout}{np.dtype(dtype)}", dtype=dtype, layouts=(LAYOUTS[layout],), tiles=6)
        tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
        np.testing.assert_array_equal(tiles[:], made.dense())
        np.testing.assert_array_equal(tiles[:, -1, 2:5, ::2], made.dense()[:, -1, 2:5, ::2])


def test_levels_of_a_pyramid(tmp_path):
    import tifffile

    image = pixels((64, 96), seed=3)
    with tifffile.TiffWriter(tmp_path / "r.tif") as tiff:
        tiff.write(image, subifds=2, tile=(16, 16), compression="zlib")
        tiff.write(image[::2, ::2], subfiletype=1, tile=(16, 16), compression="zlib")
        tiff.write(image[::4, ::4], subfiletype=1, tile=(16, 16), compression="zlib")
    table = pd.DataFrame({"tile_id": ["a"], "region_id": ["r"], "region_coordinates": ["(3, 2, 13, 9)"]})
    for level in range(3):
        tile = lt.open_tiles(table, tmp_path, level=level)[0]
        np.testing.assert_array_equal(tile[..., 0], image[:: 2**level, :: 2**level][2:9, 3:13])
    with pytest.raises(lt.LazyTilesError, match=r"level 3"):
        lt.open_tiles(table, tmp_path, level=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, r"size is \(height, width\)"),
        ({"size": (3,)}, r"size is \(height, width\)"),
        ({"size": 3}, r"size is \(height, width\) in pixels, such as \(64, 64\), not 3"),
        ({"size": (True, 3)}, r"size is \(height, width\)"),
        ({"size": (0, 3)}, r"size is \(height, width\)"),
        ({"size": (2, 2), "resample": "cubic"}, r"resample must be one of 'nearest', 'bilinear', 'bicubic', 'area'"),
        ({"pad": "mirror"}, r"pad must be one of"),
        ({"missing": "skip"}, r"missing must be"),
        ({"bands": [3]}, r"bands \[3\].*0 to 2"),
        ({"bands": []}, r"bands"),
        ({"bands": 1}, r"bands are a list of integers"),
        ({"bands": [1.0]}, r"bands are a list of integers"),
        ({"bands": [0], "gray": True}, r"bands= or gray"),
        ({"frames": []}, r"frames"),
        ({"target": "nothing"}, r"nothing"),
        ({"tabular": ["nothing"]}, r"nothing"),
        ({"path": "../{region_id}.tif"}, r"\.\."),
        ({"level": 1}, r"level 1"),
    ],
    ids=repr,
)
def test_options_that_make_no_sense(options, message, made):
    with pytest.raises((ValueError, lt.LazyTilesError), match=message):
        lt.open_tiles(made.manifest, made.folder, **{"frames": list(made.frames), **options})


def test_regions_that_disagree_are_named(folder):
    made = make(folder / "disagree", frames=("2016",), tiles=12)
    write(made.folder / "2016" / "002.tif", pixels((70, 70, 1), np.uint8)[..., 0])
    tiles = lt.open_tiles(made.manifest, made.folder)
    with pytest.raises(lt.LazyTilesError, match=r"(?s)002\.tif.*1 bands of uint8.*3"):
        tiles[:]
    with pytest.raises(lt.ManifestError, match=r"002\.tif"):
        tiles.verify()


def test_unequal_windows_need_a_size(folder):
    made = make(folder / "unequal", frames=("2016",), size=None, tiles=6)
    with pytest.raises(lt.ManifestError, match=r"(?s)tile t\d.*pass size=\(height, width\)"):
        lt.open_tiles(made.manifest, made.folder)


def test_take_batches_equals_take(made):
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames)).shuffle(2)
    batches = [np.array([1, 2, 3]), np.array([0]), np.array([10, 9, 1]), np.empty(0, np.int64)]
    for threads in (1, 4):
        got = {}
        tiles.take_batches(batches, got.__setitem__, threads=threads)
        assert sorted(got) == [0, 1, 2, 3]
        for k, batch in enumerate(batches):
            np.testing.assert_array_equal(got[k], tiles.take(batch))
            assert got[k].flags.c_contiguous
            assert got[k].flags.writeable
    out = np.empty((3, *tiles.shape[1:]), tiles.dtype)
    assert tiles.take(batches[0], out=out) is out
    with pytest.raises(ValueError, match=r"out is"):
        tiles.take(batches[0], out=out[:2])
    with pytest.raises(IndexError, match=r"."):
        tiles.take([11])


def test_the_first_read_leaves_strips_out_too(tmp_path):
    image = pixels((64, 48, 1), seed=3)
    write(tmp_path / "a.tif", image[..., 0], rowsperstrip=4, compression="zlib")
    table = pd.DataFrame([("t", "a", 8, 0, 40, 64)], columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"])
    with within_limits(cache_bytes=0), Counting() as done:
        np.testing.assert_array_equal(lt.open_tiles(table, tmp_path)[0, ::16], image[::16, 8:40])
    assert done.segments == 4


def test_frames_and_rows_are_pushed_down(folder):
    made = make(
        folder / "pushed", frames=("2016", "2017"), tiles=30, layouts=({"tile": (16, 16), "compression": "zlib"},)
    )
    tiles = lt.open_tiles(made.manifest, made.folder, frames=list(made.frames))
    with within_limits(cache_bytes=0):
        for name in ("000", "001", "002"):
            (made.folder / "2017" / f"{name}.tif").rename(made.folder / "2017" / f"{name}.moved")
        try:
            fresh = pickle.loads(pickle.dumps(tiles))
            np.testing.assert_array_equal(fresh[:, 0], made.dense()[:, 0])  # never opens the other frames' files
            with pytest.raises(lt.LazyTilesError, match=r"2017/00\d\.tif"):
                fresh[0]
        finally:
            for name in ("000", "001", "002"):
                (made.folder / "2017" / f"{name}.moved").rename(made.folder / "2017" / f"{name}.tif")
        row = made.rows.iloc[4]
        x0, y0, x1, _ = map(int, row.region_coordinates.strip("()").split(","))
        with Counting() as done:
            np.testing.assert_array_equal(tiles[4, -1, 3], made.dense()[4, -1, 3])
        assert done.segments == (x1 - 1) // 16 - x0 // 16 + 1
        assert y0 >= 0
        with Counting() as done:
            tiles.take(np.arange(30))
        assert done.segments == tiles.plan(slice(None)).segments
        everything = sum(-(-image.shape[0] // 16) * -(-image.shape[1] // 16) for image in made.images.values())
        assert done.segments <= everything
