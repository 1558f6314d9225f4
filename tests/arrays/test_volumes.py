"""Volumes: slices gathered lazily, boxes of six numbers, slices as bands, and whole scans back."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import lazytiles as lt
from lazytiles.arrays.volumes import VolumeTiles, stack_regions

RNG = np.random.default_rng(0)


@pytest.fixture
def slices(tmp_path):
    """Seven images in seven files, and the volume that they are."""
    volume = RNG.integers(0, 60000, (7, 40, 52), np.uint16)
    for k, image in enumerate(volume):
        tifffile.imwrite(tmp_path / f"{k}.tif", image, tile=(16, 16), compression="zlib")
    return [tmp_path / f"{k}.tif" for k in range(7)], volume


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_slices_in_separate_files_are_one_lazy_volume(slices, axis):
    paths, volume = slices
    expected = np.moveaxis(volume, 0, axis)
    before = lt.counters()["segments_decoded"]
    stack = stack_regions(paths, axis=axis)
    assert lt.counters()["segments_decoded"] == before
    assert (stack.shape, stack.dtype, len(stack)) == (expected.shape, expected.dtype, len(expected))
    assert stack.axes[axis] == "Z"
    np.testing.assert_array_equal(np.asarray(stack), expected)
    keys = [3, (slice(1, 5), slice(None, None, 7)), (..., -1), ([2, 0], 3), (slice(None), [1, 4], [0, 2]), ()]
    keys += [True, False, (slice(None), False), (False, 0), [], ([True, False] * 26)[: len(expected)]]
    for key in keys:
        np.testing.assert_array_equal(stack[key], expected[key])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack))[2:4, 3], expected[2:4, 3])
    with pytest.raises(IndexError):
        stack[99]


def test_colour_slices_keep_their_samples(tmp_path):
    volume = RNG.integers(0, 255, (3, 20, 30, 3), np.uint8)
    for k, image in enumerate(volume):
        tifffile.imwrite(tmp_path / f"{k}.tif", image, photometric="rgb")
    paths = [tmp_path / f"{k}.tif" for k in range(3)]
    np.testing.assert_array_equal(stack_regions(paths)[1:, 5:7], volume[1:, 5:7])
    np.testing.assert_array_equal(stack_regions(paths, bands=[2, 0])[:], volume[..., [2, 0]])
    np.testing.assert_array_equal(np.asarray(stack_regions(paths, axis=2)), np.moveaxis(volume, 0, 2))


def test_slices_that_differ_are_named(slices, tmp_path):
    paths, _ = slices
    tifffile.imwrite(tmp_path / "other.tif", np.zeros((4, 4), np.uint16))
    with pytest.raises(lt.RegionError, match=r"slice 7 .*other\.tif.* is \(4, 4\) uint16, slice 0 .* is \(40, 52\)"):
        stack_regions([*paths, tmp_path / "other.tif"])
    with pytest.raises(lt.RegionError, match="at least one slice"):
        stack_regions([])
    assert stack_regions(path for path in paths).shape == (7, 40, 52)
    with pytest.raises(TypeError, match="a list, not one path"):
        stack_regions(str(paths[0]))
    with pytest.raises(ValueError, match="axis=3 for slices of 2 axes"):
        stack_regions(paths, axis=3)
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((2, 4, 4), np.uint16), photometric="minisblack")
    with pytest.raises(lt.RegionError, match="holds several slices itself"):
        stack_regions([lt.open_region(tmp_path / "many.tif", page="all")])


def padded(volume, window, mode):
    """The oracle: a volume padded far on every side, then cut."""
    by = 12
    axes = ((by, by),) * 3 + ((0, 0),)
    wide = np.pad(volume, axes, mode=mode)
    z0, y0, x0, z1, y1, x1 = (int(n) + by for n in window)
    return wide[z0:z1, y0:y1, x0:x1]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
def test_boxes_that_leave_a_volume_are_padded_as_numpy_pads(data, mode):
    volume = np.arange(5 * 6 * 7 * 2).reshape(5, 6, 7, 2)
    extent = np.array([data.draw(st.integers(1, 9)) for _ in range(3)])
    low = [
        [data.draw(st.integers(1 - s, n - 1)) for n, s in zip((5, 6, 7), extent.tolist(), strict=True)]
        for _ in range(3)
    ]
    windows = np.array([[*one, *(one + extent)] for one in np.array(low)])
    tiles = VolumeTiles(lambda: volume, windows, 2, volume.dtype, pad=mode)
    expected = np.stack([padded(volume, window, mode) for window in windows])
    np.testing.assert_array_equal(tiles[:], expected)
    np.testing.assert_array_equal(tiles[[2, 0], ..., 1], expected[[2, 0], ..., 1])


@pytest.fixture
def scans(tmp_path):
    """Two volumes in files of several kinds, their masks, and a grid of boxes."""
    volumes = {"a": RNG.integers(0, 60000, (9, 40, 52), np.uint16), "b": RNG.integers(0, 60000, (6, 33, 64), np.uint16)}
    for name, volume in volumes.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, photometric="minisblack", compression="zlib")
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", (volume > 30000).astype("u1"), photometric="minisblack")
        np.save(tmp_path / f"{name}.npy", volume)
    return tmp_path, volumes


@pytest.mark.parametrize("kind", ["tif", "npy", "stack", "array"])
@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_what_was_cut_from_volumes_comes_back(scans, kind, edge, blend):
    folder, volumes = scans
    table = lt.make_grid(volumes, (4, 16, 20), stride=(3, 11, 20), edge=edge)
    where, options = folder, {"path": "{region_id}." + kind}
    if kind == "array":
        where, options = volumes, {}
    if kind == "stack":
        for name, volume in volumes.items():
            for k, image in enumerate(volume):
                tifffile.imwrite(folder / f"{name}-{k}.tif", image)
        names = {name: [folder / f"{name}-{k}.tif" for k in range(len(v))] for name, v in volumes.items()}
        where, options = {name: stack_regions(paths) for name, paths in names.items()}, {}
    tiles = lt.open_volumes(table, where, pad="reflect" if edge == "pad" else None, **options)
    assert tiles.shape == (len(table), 4, 16, 20, 1)
    assert list(tiles.table.tile_id) == list(table.tile_id)
    if edge == "shift":
        row = tiles.table.iloc[3]
        box = np.s_[row.zmin : row.zmax, row.ymin : row.ymax, row.xmin : row.xmax]
        np.testing.assert_array_equal(tiles[3, ..., 0], volumes[str(row.region_id)][box])
    tiles.shuffle(1)
    for scan in lt.predict(lambda x: x, tiles, blend=blend, batch_size=5):
        np.testing.assert_array_equal(scan["y_pred"][..., 0], volumes[scan["id"]])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_identity_model_returns_any_volume(data):
    shape = [data.draw(st.integers(1, 12)) for _ in range(3)]
    edge = [data.draw(st.sampled_from(["shift", "pad"])) for _ in shape]
    most = [n if one == "shift" else n + 4 for n, one in zip(shape, edge, strict=True)]
    size = [data.draw(st.none() | st.integers(1, n)) for n in most]
    stride = [n if n is None else data.draw(st.integers(-(-n // 3), n)) for n in size]
    dtype, bands = (
        data.draw(st.sampled_from(["uint8", "int16", "float32", "float64"])),
        data.draw(st.sampled_from([1, 2])),
    )
    volume = (np.random.default_rng(0).normal(size=(*shape, bands)) * 50).astype(dtype)
    grid = lt.make_grid({"v": volume}, size, stride=stride, edge=edge)
    pad = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    tiles = lt.open_volumes(grid, {"v": volume}, pad=pad).shuffle(data.draw(st.integers(0, 9)))
    blend, batch = data.draw(st.sampled_from(["crop", "mean", "hann", "gaussian", "max"])), data.draw(st.integers(1, 9))
    (scan,) = lt.predict(lambda x: x, tiles, blend=blend, batch_size=batch)
    np.testing.assert_array_equal(scan["y_pred"], volume)


def test_masks_are_boxes_of_their_own_volumes(scans):
    folder, volumes = scans
    table = lt.make_grid(volumes, (3, 11, 13), edge="shift")
    tiles = lt.open_volumes(table, folder, masks="{region_id}_mask.tif").shuffle(0)

    def guess(x):
        return (x > 20000).astype(np.uint8)

    for scan in lt.predict(guess, tiles, blend="crop", with_x=True):
        truth = volumes[scan["id"]] > 30000
        np.testing.assert_array_equal(scan["x"][..., 0], volumes[scan["id"]])
        np.testing.assert_array_equal(scan["y_true"][..., 0], truth)
        dense = (guess(volumes[scan["id"]]) == truth).mean()
        assert (scan["y_pred"] == scan["y_true"]).mean() == dense


@pytest.mark.parametrize("k", [0, 1, 2])
def test_neighbouring_slices_are_bands(scans, k):
    folder, volumes = scans
    table = lt.make_grid(volumes, (1, 16, 16), edge="shift")
    tiles = lt.open_volumes(table, folder, context=k, masks="{region_id}_mask.tif")
    assert tiles.shape == (len(table), 16, 16, 2 * k + 1)
    for i in range(0, len(table), 7):
        row = tiles.table.iloc[i]
        volume = volumes[str(row.region_id)]
        at = np.clip(np.arange(row.zmin - k, row.zmin + k + 1), 0, len(volume) - 1)
        expected = volume[at][:, row.ymin : row.ymax, row.xmin : row.xmax]
        np.testing.assert_array_equal(tiles[i], np.moveaxis(expected, 0, -1))
        middle = (volume > 30000)[row.zmin, row.ymin : row.ymax, row.xmin : row.xmax]
        np.testing.assert_array_equal(tiles.labels[i][..., 0], middle)
    for scan in lt.predict(lambda x: x[..., k : k + 1], tiles.shuffle(3)):
        np.testing.assert_array_equal(scan["y_pred"][..., 0], volumes[scan["id"]])
        np.testing.assert_array_equal(scan["y_true"][..., 0], volumes[scan["id"]] > 30000)


def test_volumes_are_written_slice_by_slice(scans):
    folder, volumes = scans
    table = lt.make_grid(volumes, (3, 16, 16), stride=(2, 16, 16), edge="pad")
    tiles = lt.open_volumes(table, folder, pad="edge")
    for scan in lt.predict(lambda x: x, tiles, blend="crop", out=folder / "maps"):
        np.testing.assert_array_equal(tifffile.imread(folder / "maps" / f"{scan['id']}.tif"), volumes[scan["id"]])
        np.testing.assert_array_equal(np.asarray(scan["y_pred"])[..., 0], volumes[scan["id"]])


def test_an_axis_may_be_whole_and_shuffles_and_flows_work(scans):
    folder, volumes = scans
    table = lt.make_grid({"a": volumes["a"]}, (None, 20, 20), edge="shift")
    table["target"] = np.arange(len(table))
    tiles = lt.open_volumes(table, folder)
    assert tiles.shape[1] == 9
    expected = np.asarray(tiles)
    tiles.shuffle(5)
    flow = lt.BatchFlow((tiles, tiles.labels), 4)
    for x, y in flow:
        np.testing.assert_array_equal(x, expected[y])
    copied = pickle.loads(pickle.dumps(tiles))
    np.testing.assert_array_equal(copied[:3], tiles[:3])


def test_wrong_volumes_are_named(scans):
    folder, volumes = scans
    table = lt.make_grid(volumes, (4, 16, 20), edge="shift")
    with pytest.raises(lt.ManifestError, match="volumes need boxes of six numbers"):
        lt.open_volumes(lt.make_grid({"a": (40, 40)}, (16, 16)), folder)
    with pytest.raises(lt.ManifestError, match="there is no volume for region b"):
        lt.open_volumes(table, {"a": volumes["a"]})
    with pytest.raises(lt.ManifestError, match="context=1 needs boxes of one slice, not of 4"):
        lt.open_volumes(table, volumes, context=1)
    with pytest.raises(ValueError, match="context=-1: how many neighbouring slices"):
        lt.open_volumes(lt.make_grid(volumes, (1, 16, 16)), volumes, context=-1)
    with pytest.raises(lt.ManifestError, match=r"a volume is \(Z, H, W\)"):
        lt.open_volumes(table, {"a": np.zeros((4, 4)), "b": volumes["b"]})
    with pytest.raises(ValueError, match="pad is None or one of"):
        lt.open_volumes(table, volumes, pad="mirror")
    moved = table.assign(zmin=table.zmin + 3, zmax=table.zmax + 3)
    with pytest.raises(lt.ManifestError, match=r"tile a_.*: box \(.*\) leaves region a \(9 x 40 x 52\); pass pad"):
        lt.open_volumes(moved, volumes)[:]
    other = table.assign(zmax=np.where(np.arange(len(table)) == 2, table.zmax + 1, table.zmax))
    with pytest.raises(lt.ManifestError, match=r"is 5 x 16 x 20 voxels, tile .* 4 x 16 x 20 \(1 tiles differ"):
        lt.open_volumes(other, volumes)
    floats = {"a": volumes["a"], "b": volumes["b"].astype("f4")}
    with pytest.raises(lt.RegionError, match=r"region b: is \(6, 33, 64\) float32; volumes of .* uint16 are expected"):
        lt.open_volumes(table, floats)[:]


def test_errors_name_tiles_of_volumes_as_those_of_images(tmp_path):
    volume = np.zeros((4, 8, 9), np.uint8)
    for name, array in (("a", volume), ("b", volume), ("a_mask", volume[:, :7]), ("b_mask", volume[:, :7])):
        np.save(tmp_path / f"{name}.npy", array)
    table = lt.make_grid({"a": volume, "b": volume}, (2, 7, 9), edge="shift")
    how = {"path": "{region_id}.npy", "masks": "{region_id}_mask.npy"}
    tiles = lt.open_volumes(table, tmp_path, **how)
    assert tiles.name_of(1) == f"tile {table.tile_id[1]} with box (0, 1, 0, 9, 8, 2) of region a"
    with pytest.raises(
        lt.ManifestError, match=r"^tile a_.*: box \(0, 0, 0, 9, 7, 2\): .*a_mask\.npy is 4 x 7 x 9 voxels"
    ):
        tiles.verify()
    whole = lt.open_volumes(pd.DataFrame({"tile_id": ["s", "t"], "region_id": ["a", "b"]}), tmp_path, **how)
    with pytest.raises(lt.ManifestError, match=r"^tile s: .*a_mask\.npy is 4 x 7 x 9 voxels, .*\ntile t: "):
        whole.verify()
    (tmp_path / "b.npy").write_bytes(b"no volume")
    again = lt.open_volumes(table, tmp_path, path="{region_id}.npy")
    with pytest.raises(lt.ManifestError, match=r"^tile b_.* with box \(0, 0, 0, 9, 7, 2\) of region b: .*b\.npy"):
        again.verify()


def test_boxes_beyond_the_limit_are_refused_before_there_is_memory_for_them():
    tiles = VolumeTiles(lambda: np.zeros((2, 2, 2)), np.array([[0, 0, 0, *[10**6] * 3]]), 1, "f8", pad="constant")
    with pytest.raises(lt.LimitError, match=r"a read of \(1, 1000000, 1000000, 1000000, 1\) from region"):
        tiles[:]


def test_registered_data_sets_open_by_name(scans):
    folder, volumes = scans
    table = lt.make_grid(volumes, (4, 16, 20), edge="shift").assign(split="train")
    table.loc[::3, "split"] = "test"
    lt.register("scans", lambda **options: lt.open_volumes(table, folder, **options))
    try:
        assert lt.open_registered("scans").shape == (len(table), 4, 16, 20, 1)
        test = lt.open_registered("scans", where={"split": "test", "region_id": ["a", "x"]}, target=None)
        assert len(test) == ((table.split == "test") & (table.region_id == "a")).sum()
        low = lt.open_registered("scans", where={"zmin": lambda z: z < 2})
        assert (low.table.zmin < 2).all()
        with pytest.raises(lt.ManifestError, match="no column 'fold' to filter by; there are tile_id"):
            lt.open_registered("scans", where={"fold": 1})
        with pytest.raises(lt.ManifestError, match="no data set 'scan' is registered; there are: scans"):
            lt.open_registered("scan")
        with pytest.raises(ValueError, match="could be a path"):
            lt.register("scans.csv", print)
        with pytest.raises(TypeError, match="a function that opens the tiles"):
            lt.register("scans", pd.DataFrame())
    finally:
        from lazytiles.manifests.catalog import catalog

        catalog.clear()


def test_whole_volumes_need_no_boxes(tmp_path):
    arrays = RNG.random((5, 8, 9, 20), np.float32)
    for k, array in enumerate(arrays):
        np.save(tmp_path / f"id-{k}.npy", array)
    table = pd.DataFrame({"tile_id": [f"id-{k}" for k in range(5)], "target": range(5)})
    table["region_id"] = table.tile_id
    tiles = lt.open_volumes(table, tmp_path, path="{tile_id}.npy").shuffle(2)
    assert tiles.shape == (5, 8, 9, 20, 1)
    np.testing.assert_array_equal(np.asarray(tiles)[..., 0], arrays[tiles.labels])
    # `open_tiles` opens them by the same call, and one id is enough.
    plain = lt.open_tiles(table.drop(columns="region_id"), tmp_path, path="{tile_id}.npy")
    assert plain.shape == tiles.shape
    np.testing.assert_array_equal(plain.labels, range(5))
    np.testing.assert_array_equal(plain[3, ..., 0], arrays[3])
    with pytest.raises(lt.ManifestError, match="the column region_id is missing"):
        lt.open_tiles(table.drop(columns="region_id"), tmp_path)
    with pytest.raises(lt.ManifestError, match=r"id-0\.npy is a volume; size=.* is for images"):
        lt.open_tiles(table, tmp_path, path="{tile_id}.npy", size=(8, 8))
    np.save(tmp_path / "flat.npy", arrays[0, 0])
    mixed = pd.DataFrame({"tile_id": ["flat", "id-1"]})
    with pytest.raises(lt.RegionError, match=r"tile id-1, the whole of region id-1: .* is a volume of 8 slices"):
        lt.open_tiles(mixed, tmp_path, path="{tile_id}.npy", size=(8, 8))[:]
    np.save(tmp_path / "id-3.npy", arrays[3][:, :7])
    tiles = lt.open_volumes(table, tmp_path, path="{tile_id}.npy")
    with pytest.raises(lt.RegionError, match=r"region id-3: is \(8, 7, 20\), the first is \(8, 9, 20\)"):
        tiles[:]


def test_labels_that_are_places_follow_their_tile(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 80), np.uint8))
    row = {"tile_id": ["t"], "region_id": ["a"], "xmin": [10], "ymin": [20], "xmax": [50], "ymax": [30]}
    table = pd.DataFrame({**row, "x": [20.0], "y": [25.0], "other": [3.0]})
    names = ["other", "x", "y"]
    tiles = lt.open_tiles(table, tmp_path, size=(20, 20), target=names, scale_boxes=["x", "y"])
    np.testing.assert_array_equal(tiles.labels, [[3, 5, 10]])
    with pytest.raises(lt.ManifestError, match=r"scale_boxes=\['x'\]: 4 columns to a box of the format 'xyxy'"):
        lt.open_tiles(table, tmp_path, target=names, scale_boxes=["x"])


def test_tables_are_filtered_and_names_opened_by_open_tiles(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    table = lt.make_grid({"a": (64, 64)}, 16).assign(split=["train", "test"] * 8)
    assert len(lt.open_tiles(table, tmp_path, where={"split": "test"})) == 8
    # Ids are text, whoever asks with numbers.
    years = table.assign(label_id=[2017, 2018] * 8)
    assert len(lt.open_tiles(years, tmp_path, path="{region_id}.tif", where={"label_id": 2018})) == 8
    assert len(lt.open_tiles(years, tmp_path, path="{region_id}.tif", where={"label_id": [2017, 2018]})) == 16
    lt.register("ramp", lambda: lt.open_tiles(table, tmp_path))
    from lazytiles.manifests.catalog import catalog

    try:
        assert len(lt.open_tiles("ramp")) == 16
        assert len(lt.open_tiles("ramp", where={"split": "train", "xmin": [0, 32]})) == 8
        with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
            lt.open_tiles("ramp", size=(8, 8))
        lt.register("ramp", lambda folder=tmp_path, **options: lt.open_tiles(table, folder, **options))
        assert lt.open_tiles("ramp", size=(8, 8), where={"split": "test"}).shape == (8, 8, 8, 1)
        assert lt.open_tiles("ramp", tmp_path, target=None).labels is None
        with pytest.raises(lt.ManifestError, match="no data set 'rampe' is registered; there are: ramp"):
            lt.open_tiles("rampe")
        assert pickle.loads(pickle.dumps(lt.open_tiles)) is lt.open_tiles
        assert list(inspect.signature(lt.open_tiles).parameters)[:2] == ["manifest", "image_dir"]
    finally:
        catalog.clear()


def test_open_tiles_opens_boxes_of_six_numbers(scans):
    folder, volumes = scans
    table = lt.make_grid(volumes, (4, 16, 20), edge="shift")
    table["target"], table["split"] = range(len(table)), np.resize(["a", "b"], len(table))
    tiles = lt.open_tiles(table, folder)
    assert tiles.shape == (len(table), 4, 16, 20, 1)
    np.testing.assert_array_equal(tiles.labels, table.target)
    np.testing.assert_array_equal(lt.open_tiles(table, folder, where={"split": "b"}).labels, table.target[1::2])
    np.testing.assert_array_equal(tiles[5], lt.open_volumes(table, folder)[5])
    np.testing.assert_array_equal(lt.open_tiles(table, volumes)[5], tiles[5])
    np.testing.assert_array_equal(lt.open_tiles(table, volumes, masks=volumes).labels[5], tiles[5])
    wholes = lt.open_tiles(pd.DataFrame({"tile_id": ["t"], "region_id": ["a"]}), volumes)
    np.testing.assert_array_equal(wholes[0, ..., 0], volumes["a"])
    with pytest.raises(lt.ManifestError, match="volumes need boxes of six numbers"):
        lt.open_tiles(table.drop(columns=["zmin", "zmax"]), volumes)
    table.to_csv(folder / "boxes.csv", index=False)
    np.testing.assert_array_equal(lt.open_tiles(folder / "boxes.csv")[5], tiles[5])
    np.testing.assert_array_equal(lt.open_volumes(folder / "boxes.csv").labels, table.target)
    with pytest.raises(lt.ManifestError, match=r"boxes of six numbers lie in volumes; size=.* is for images"):
        lt.open_tiles(table, folder, size=(8, 8))


def test_leaks_between_volumes_are_found(scans):
    _, volumes = scans
    tiles = lt.open_volumes(lt.make_grid(volumes, (4, 16, 20), stride=(2, 16, 20), edge="drop"), volumes)
    assert tiles.sample_windows.shape == (len(tiles), 6)
    first, second = tiles.split(0.5, by="region_id")
    assert not len(lt.leakage(first, second))
    assert len(lt.leakage(tiles.select([0]), tiles.select(slice(1, None))))


# -- other sizes and files with channels -------------------------------------------------------------------------


def boxes(*rows):
    names = ["xmin", "ymin", "zmin", "xmax", "ymax", "zmax"]
    ids = pd.DataFrame({"tile_id": [f"t{k}" for k in range(len(rows))], "region_id": ["v"] * len(rows)})
    return pd.concat([ids, pd.DataFrame(rows, columns=names)], axis=1)


def ramp(shape, slopes=(3.0, 2.0, 1.0)):
    """A volume whose value is linear in the place of a voxel's centre, which linear resampling keeps."""
    lines = np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij")
    return sum(slope * line for slope, line in zip(slopes, lines, strict=True))


@pytest.mark.parametrize("size", [(3, 4, 5), (6, 16, 12), (9, 20, 14)])
def test_boxes_are_resampled_in_three_dimensions(size):
    volume = ramp((20, 40, 36))
    table = boxes((8, 8, 6, 20, 24, 12), (12, 10, 4, 24, 26, 10))
    tiles = lt.open_volumes(table, {"v": volume}, size=size)
    assert tiles.shape == (2, *size, 1)
    for tile, low in zip(np.asarray(tiles), ((6, 8, 8), (4, 10, 12)), strict=True):
        steps = [extent / n for extent, n in zip((6, 16, 12), size, strict=True)]
        lines = [a + (np.arange(n) + 0.5) * step for a, n, step in zip(low, size, steps, strict=True)]
        expected = sum(s * line for s, line in zip((3, 2, 1), np.meshgrid(*lines, indexing="ij"), strict=True))
        np.testing.assert_allclose(tile[..., 0], expected, atol=0.03)  # a kernel of few voxels is not quite even
    whole = lt.open_volumes(table, {"v": np.round(volume).astype(np.int16)}, size=size, masks={"v": volume > 90})
    assert (whole.dtype, whole.labels.shape, whole.labels.dtype) == (np.int16, (2, *size, 1), bool)
    assert np.abs(np.asarray(whole) - np.asarray(tiles)).max() <= 1


def test_boxes_are_resampled_to_a_spacing(tmp_path):
    volume = ramp((20, 40, 36)).astype(np.float32)
    about = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "v.ome.tif", volume, ome=True, metadata=about, photometric="minisblack")
    table = boxes((8, 8, 6, 20, 24, 12))
    how = {"path": "{region_id}.ome.tif", "size": (12, 8, 6), "spacing": (1.0, 1.0, 1.0)}
    tile = lt.open_volumes(table, tmp_path, series=0, **how)[0, ..., 0]
    expected = ramp((40, 20, 18), (1.5, 4, 2))[12:24, 4:12, 4:10]  # at voxels of a micrometre
    np.testing.assert_allclose(tile, expected, rtol=1e-5)
    same = lt.open_volumes(table, {"v": volume}, size=(12, 8, 6), spacing=1.0, source_spacing=(2, 0.5, 0.5))
    np.testing.assert_allclose(same[0, ..., 0], expected, rtol=1e-5)
    with pytest.raises(lt.RegionError, match=r"does not say its spacing; pass source_spacing="):
        lt.open_volumes(table, {"v": volume}, size=(12, 8, 6), spacing=1.0)[0]
    with pytest.raises(lt.ManifestError, match=r"tiles of that size and spacing are 12\.0 x 16\.0 x 12\.0 voxels"):
        lt.open_volumes(table, tmp_path, series=0, **{**how, "spacing": (2.0, 1.0, 1.0)})[0]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_statistics_of_volumes_leave_out_nodata_and_padding(dtype, tmp_path):
    volume = np.random.default_rng(0).integers(0, 99, (6, 24, 20)).astype(dtype)
    volume[2:4, :12] = -9
    tifffile.imwrite(tmp_path / "v.tif", volume, photometric="minisblack", extratags=[(42113, "s", 0, "-9", False)])
    table = boxes((0, 0, 0, 12, 24, 4), (8, -2, 2, 20, 22, 6))
    tiles = lt.open_volumes(table, tmp_path, pad="constant")
    shown = [volume[:4, :, :12], volume[2:6, :22, 8:20]]
    values = np.concatenate([one[one != -9] for one in shown])
    for asked in (tiles, lt.persist(tiles), pickle.loads(pickle.dumps(tiles))):
        found = asked.statistics()
        assert found.count.tolist() == [values.size]
        np.testing.assert_allclose([found.mean[0], found.min[0]], [values.mean(), values.min()])
    sized = {"size": (2, 12, 6)}
    near = lt.open_volumes(table.iloc[:1], tmp_path, resample="nearest", **sized)
    assert set(np.unique(near[:])) <= set(np.unique(volume))
    with pytest.raises(lt.RegionError, match=r"v\.tif.*no data.*pass resample=\"nearest\""):
        lt.open_volumes(table.iloc[:1], tmp_path, **sized)[0]


def test_sizes_of_volumes_are_three_numbers():
    table, volumes = boxes((0, 0, 0, 4, 4, 4)), {"v": np.zeros((8, 8, 8))}
    for wrong in ({"size": (4, 4)}, {"size": (4, 4, 0)}, {"size": (4, 4, 4), "spacing": (1, 1)}):
        with pytest.raises(ValueError, match="is three numbers above 0, for slices, rows and columns"):
            lt.open_volumes(table, volumes, **wrong)
    with pytest.raises(ValueError, match="are for tiles of size="):
        lt.open_volumes(table, volumes, spacing=1)
    with pytest.raises(ValueError, match="not both"):
        lt.open_volumes(boxes((0, 0, 0, 4, 4, 1)), volumes, size=(1, 4, 4), context=1)
    with pytest.raises(lt.ManifestError, match="resampling of bool makes no sense"):
        lt.open_volumes(table, {"v": np.zeros((8, 8, 8), bool)}, size=(2, 2, 2))


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_channels_of_volumes_come_last(axes, tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, 5, 20, 18)).astype(np.uint8)  # C, Z, Y, X
    stored = stack if axes == "CZYX" else stack.swapaxes(0, 1)
    about = {"axes": axes, "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(tmp_path / "v.ome.tif", stored, ome=True, metadata=about, photometric="minisblack")
    np.save(tmp_path / "v.npy", stored)
    table, expected = boxes((2, 3, 1, 12, 11, 4)), np.moveaxis(stack, 0, -1)[1:4, 3:11, 2:12]
    for path, how in (("{region_id}.ome.tif", {"series": 0}), ("{region_id}.npy", {"axes": axes})):
        np.testing.assert_array_equal(lt.open_volumes(table, tmp_path, path=path, **how)[0], expected)
        some = lt.open_volumes(table, tmp_path, path=path, **how | {"channels": [2, 0]})
        np.testing.assert_array_equal(some[0], expected[..., [2, 0]])
        np.testing.assert_array_equal(some[0, 1, ::-2, [0, 3], 1], expected[1, ::-2, [0, 3]][..., 0])
    np.save(tmp_path / "v.npy", stack[None])
    with pytest.raises(lt.RegionError, match=r"has the axes TCZYX.*a volume has slices, rows, columns and channels"):
        lt.open_volumes(table, tmp_path, path="{region_id}.npy", axes="TCZYX")
