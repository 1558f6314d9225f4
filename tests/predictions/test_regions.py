"""`predict` gives whole regions back: the same for every order, as dense arrays say, clean when left."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import tifffile

import lazytiles as lt
from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.predictions.regions import predict

ZARR = pytest.param("zarr", marks=pytest.mark.leaks("zarr keeps its event loop and threads"))
SHAPES = {"a": (70, 90), "b": (64, 64), "c": (100, 40)}


def grid(region, shape, size, stride):
    rows = []
    for y in range(0, shape[0], stride):
        for x in range(0, shape[1], stride):
            y0, x0 = min(y, shape[0] - size), min(x, shape[1] - size)
            rows.append((f"{region}-{y}-{x}", region, x0, y0, x0 + size, y0 + size))
    return rows


@pytest.fixture
def scene(tmp_path):
    """Three regions, their masks, and a table of overlapping tiles in mixed order."""
    rng = np.random.default_rng(0)
    images, masks, rows = {}, {}, []
    for name, shape in SHAPES.items():
        images[name] = rng.integers(0, 255, (*shape, 3), np.uint8)
        masks[name] = (images[name].sum(axis=-1) > 300).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", images[name], tile=(32, 32), compression="zlib")
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", masks[name])
        rows += grid(name, shape, 32, 24)
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"])
    table["target"] = np.arange(len(table)) % 3
    mixed = table.iloc[np.random.default_rng(1).permutation(len(table))].reset_index(drop=True)
    return tmp_path, mixed, images, masks


def identity(batch):
    return batch


def model(batch):
    """Two channels that differ with the place in the tile, so that every blend matters."""
    ramp = np.linspace(0, 1, batch.shape[2], dtype=np.float32)[:, None]
    return np.stack([batch[..., 0] * ramp[..., 0], batch[..., 1] / 255], axis=-1).astype(np.float32)


def dense(function, image, rows, size):
    """Mean of all tiles, tile by tile, in float64."""
    first = function(image[None, :size, :size])
    total, count = np.zeros((*image.shape[:2], first.shape[-1])), np.zeros(image.shape[:2])
    for row in rows.itertuples():
        box = np.s_[row.ymin : row.ymax, row.xmin : row.xmax]
        total[box] += function(image[None][(slice(None), *box)])[0]
        count[box] += 1
    return total / count[..., None]


@pytest.mark.parametrize("blend", ["crop", "mean", "hann", "gaussian", "max"])
def test_an_identity_model_returns_the_scan(scene, blend):
    folder, table, images, masks = scene
    tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif")
    seen = []
    for scan in predict(identity, tiles, blend=blend, batch_size=7, with_x=True):
        np.testing.assert_array_equal(scan["y_pred"], images[scan["id"]])
        np.testing.assert_array_equal(scan["x"], images[scan["id"]])
        np.testing.assert_array_equal(scan["y_true"][..., 0], masks[scan["id"]])
        assert scan["x"].dtype == np.uint8
        assert scan["seconds"] > 0
        seen.append(scan["id"])
    assert seen == list(dict.fromkeys(table.region_id))


def test_the_result_does_not_depend_on_the_order(scene):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder)
    expected = {scan["id"]: scan["y_pred"] for scan in predict(model, tiles)}
    for name, whole in expected.items():
        np.testing.assert_allclose(
            whole, dense(model, images[name], table[table.region_id == name], 32), rtol=1e-5, atol=1e-5
        )
    tiles.shuffle(3)
    order = tiles.order
    for size in (1, 5, 64):
        found = {scan["id"]: scan["y_pred"] for scan in predict(model, tiles, batch_size=size)}
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes()
    np.testing.assert_array_equal(tiles.order, order)
    part = tiles.select(tiles.table.region_id == "b")
    ((only, whole),) = ((scan["id"], scan["y_pred"]) for scan in predict(model, part))
    assert only == "b"
    assert whole.tobytes() == expected["b"].tobytes()


def test_metrics_of_each_scan_equal_those_of_the_dense_array(scene):
    folder, table, images, masks = scene
    tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif").shuffle(0)

    def guess(batch):
        return (batch.astype(np.int64).sum(axis=-1, keepdims=True) > 280).astype(np.uint8)

    for scan in predict(guess, tiles, blend="crop"):
        expected = (guess(images[scan["id"]])[..., 0] == masks[scan["id"]]).mean()
        assert (scan["y_pred"] == scan["y_true"]).mean() == expected


def test_two_predictions_at_once_do_not_disturb_each_other(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    alone = [scan["y_pred"].tobytes() for scan in predict(model, tiles)]
    both = [
        (first["y_pred"].tobytes(), second["y_pred"].tobytes())
        for first, second in zip(predict(model, tiles), predict(model, tiles, batch_size=3), strict=True)
    ]
    assert both == [(one, one) for one in alone]


@pytest.mark.parametrize("ending", [".tif", ".npy"])
def test_a_consumer_that_stops_early_leaves_nothing_half_written(scene, ending):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder)
    scans = predict(identity, tiles, blend="crop", batch_size=4, out=str(folder / "maps" / ("{id}" + ending)))
    (folder / "maps").mkdir()
    first = next(scans)
    scans.close()
    assert [path.name for path in (folder / "maps").iterdir()] == [first["id"] + ending]
    np.testing.assert_array_equal(np.asarray(first["y_pred"]), images[first["id"]])

    def failing(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        next(predict(failing, tiles, out=folder / "other"))
    assert list((folder / "other").iterdir()) == []


def test_outputs_are_folders_paths_mappings_functions_and_arrays(scene, tmp_path):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder)
    for scan in predict(identity, tiles, blend="crop", out=tmp_path / "new"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "new" / f"{scan['id']}.tif"), images[scan["id"]])
        assert isinstance(scan["y_pred"], lt.Region)
    arrays = {name: np.zeros((*shape, 3), np.float32) for name, shape in SHAPES.items()}
    for scan in predict(identity, tiles, out=arrays):
        assert scan["y_pred"] is arrays[scan["id"]]
        np.testing.assert_array_equal(arrays[scan["id"]], images[scan["id"]])
    for scan in predict(identity, tiles, blend="crop", out=lambda name: tmp_path / f"map-{name}.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / f"map-{scan['id']}.npy"), images[scan["id"]])
    for scan in predict(identity, tiles, blend="crop", out=f"{tmp_path}/of/{{id}}/map.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "of" / scan["id"] / "map.npy"), images[scan["id"]])
    paths = pd.DataFrame({"tile_id": ["u", "v"], "path": ["new/a.tif", "new/b.tif"]})
    images_of = lt.open_tiles(paths, tmp_path, size=(64, 64))
    scans = list(predict(identity, images_of, out=tmp_path / "by-path"))
    assert [scan["id"] for scan in scans] == ["new/a.tif", "new/b.tif"]
    assert scans[1]["y_pred"].path == str(tmp_path / "by-path" / "new" / "b.tif.tif")
    with pytest.raises(ValueError, match=r"id '\.\./a' cannot be part of a file name"):
        predict(
            identity,
            MultiSourceArray([np.zeros((2, 4, 4, 1))], table=pd.DataFrame({"name": ["../a"] * 2})),
            by="name",
            out=tmp_path,
        )
    one = tiles.select(tiles.table.region_id == "b")
    (scan,) = predict(identity, one, out=arrays["b"])
    assert scan["y_pred"] is arrays["b"]
    with pytest.raises(ValueError, match="one array for 3 regions"):
        predict(identity, tiles, out=arrays["b"])
    with pytest.raises(ValueError, match=r"out= has nothing for the scan '[ac]'; there are 3 scans"):
        predict(identity, tiles, out={"b": arrays["b"]})
    with pytest.raises(ValueError, match=r"one file for 3 regions; write \{id\}"):
        predict(identity, tiles, out=tmp_path / "x.tif")


@pytest.fixture
def years(tmp_path):
    """Two regions in two years, and tiles of both years."""
    rng, rows, images = np.random.default_rng(0), [], {}
    for year in ("2017", "2018"):
        (tmp_path / year).mkdir()
        for name, shape in (("a", (300, 40)), ("b", (64, 64))):
            images[year, name] = rng.integers(0, 255, (*shape, 3), np.uint8)
            tifffile.imwrite(tmp_path / year / f"{name}.tif", images[year, name], tile=(32, 32), compression="zlib")
            rows += [(*row[:2], year, *row[2:]) for row in grid(name, shape, 32, 30)]
    names = ["tile_id", "region_id", "label_id", "xmin", "ymin", "xmax", "ymax"]
    return lt.open_tiles(pd.DataFrame(rows, columns=names), tmp_path, frames=["2017", "2018"])


@pytest.mark.parametrize("kind", ["npy", ZARR, "tif", "arrays"])
def test_predictions_have_one_shape_wherever_they_go(years, tmp_path, kind):
    if kind == "zarr":
        pytest.importorskip("zarr")
    plain = MultiSourceArray([np.random.default_rng(0).random((n, 8, 9, 1), np.float32) for n in (1, 5)])
    for number, (tiles, function) in enumerate(
        [
            (years, identity),
            (years, lambda x: x[:, -1].mean(axis=-1, keepdims=True)),
            (years, lambda x: x[:, -1].mean(axis=-1)),
            (plain, identity),
            (plain, lambda x: x[..., 0]),
        ]
    ):
        expected = {scan["id"]: scan["y_pred"] for scan in predict(function, tiles, dtype="float32")}
        out = str(tmp_path / f"maps{number}/{{id}}.{kind}")
        if kind == "arrays":
            out = {name: np.zeros(whole.shape, np.float32) for name, whole in expected.items()}
        if kind == "tif" and number == 0:
            with pytest.raises(ValueError, match=r"a TIFF holds one row of channels.*choose \.npy or \.zarr"):
                next(predict(function, tiles, out=out))
            continue
        for scan in predict(function, tiles, out=out, dtype="float32"):
            found = scan["y_pred"]
            assert found.shape == expected[scan["id"]].shape
            np.testing.assert_array_equal(np.asarray(found[:]), expected[scan["id"]])
            if kind == "arrays":
                assert found is out[scan["id"]]
            assert pickle.loads(pickle.dumps(found)).shape == found.shape


def test_an_array_without_an_axis_for_the_one_channel_gets_it(scene):
    folder, table, images, _ = scene
    arrays = {name: np.zeros(shape, np.uint8) for name, shape in SHAPES.items()}
    for scan in predict(lambda x: x[..., :1], lt.open_tiles(table, folder), out=arrays):
        np.testing.assert_array_equal(scan["y_pred"], images[scan["id"]][..., :1])
        np.testing.assert_array_equal(arrays[scan["id"]], images[scan["id"]][..., 0])


def test_samples_of_arrays_are_rounded_and_clipped_too(tmp_path):
    volume = np.array([300.7, -3, 1.6, 2.5], np.float32).reshape(1, 2, 2, 1)
    for out in (None, tmp_path / "a.npy", tmp_path / "a.tif", np.zeros(volume.shape, np.uint8)):
        (scan,) = predict(identity, volume, dtype="uint8", out=out)
        assert np.asarray(scan["y_pred"]).ravel().tolist() == [255, 0, 2, 2]
    with pytest.raises(ValueError, match="the values hold NaN, which uint8 cannot"):
        next(predict(lambda x: x * np.nan, volume, out=np.zeros(volume.shape, np.uint8)))


def test_one_class_or_number_a_tile_becomes_a_table_and_a_map(scene):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder).shuffle(5)

    def means(batch):
        return batch.mean(axis=(1, 2))

    found = list(predict(means, tiles, paint=True))
    for scan in found:
        rows = table[table.region_id == scan["id"]]
        frame = scan["y_pred"]
        assert frame.index.name == "tile_id"
        assert list(frame.index) == list(rows.tile_id)
        np.testing.assert_array_equal(scan["y_true"], rows.target)
        for row in rows.itertuples():
            tile = images[scan["id"]][row.ymin : row.ymax, row.xmin : row.xmax]
            np.testing.assert_allclose(frame.loc[row.tile_id], tile.mean(axis=(0, 1)), rtol=1e-6)
        assert scan["map"].shape == (*SHAPES[scan["id"]], 3)
    scores = pd.concat([scan["y_pred"] for scan in predict(lambda x: x.mean(axis=(1, 2, 3)), tiles)])
    assert list(scores.columns) == ["prediction"]
    assert set(scores.index) == set(table.tile_id)
    (b,) = [scan for scan in predict(lambda x: x.mean(axis=(1, 2, 3)), tiles, paint=True) if scan["id"] == "b"]
    assert b["map"].shape == SHAPES["b"]
    with pytest.raises(
        ValueError, match=r"the model gives \(3,\) a tile, a table and no map .*leave out= away, or pass p"
    ):
        next(predict(means, tiles, out=folder / "maps"))
    for scan, again in zip(found, predict(means, tiles, paint=True, out=folder / "maps"), strict=True):
        np.testing.assert_array_equal(scan["map"], np.asarray(again["map"]))


def test_activations_are_applied_to_predictions(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    for scan in predict(lambda x: x.astype(np.float32) - 100, tiles, activation="softmax"):
        np.testing.assert_allclose(scan["y_pred"].sum(axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="activation='relu' is not known; choose softmax or sigmoid"):
        predict(identity, tiles, activation="relu")


def test_resampled_tiles_come_back_at_the_size_of_their_window(scene):
    folder, table, images, _ = scene
    table = table.assign(xmax=table.xmin + 24)
    tiles = lt.open_tiles(table, folder, size=(64, 48), resample="nearest")
    for scan in predict(identity, tiles, blend="crop", fill=0):
        image = images[scan["id"]]
        assert scan["y_pred"].shape == image.shape
        covered = np.zeros(image.shape[:2], bool)
        for row in table[table.region_id == scan["id"]].itertuples():
            covered[row.ymin : row.ymax, row.xmin : row.xmax] = True
        np.testing.assert_array_equal(scan["y_pred"][covered], image[covered])
        break


def test_padded_tiles_are_cut_off_at_the_edge(scene):
    folder, table, images, _ = scene
    rows = [
        (f"{name}{y}-{x}", name, x, y, x + 32, y + 32)
        for name, (height, width) in SHAPES.items()
        for y in range(-9, height, 24)
        for x in range(-5, width, 24)
    ]
    tiles = lt.open_tiles(pd.DataFrame(rows, columns=table.columns[:6]), folder, pad="reflect")
    for scan in predict(identity, tiles, blend="gaussian"):
        np.testing.assert_array_equal(scan["y_pred"], images[scan["id"]])


def test_frames_come_back_in_front(scene, tmp_path):
    _, table, images, _ = scene
    for year in ("2017", "2018"):
        (tmp_path / year).mkdir()
        for name, image in images.items():
            tifffile.imwrite(tmp_path / year / f"{name}.tif", image // 2 if year == "2017" else image)
    table = table.assign(label_id="2018")
    tiles = lt.open_tiles(table, tmp_path, frames=["2017", "2018"])
    for scan in predict(identity, tiles):
        np.testing.assert_array_equal(scan["y_pred"], np.stack([images[scan["id"]] // 2, images[scan["id"]]]))
    for scan in predict(lambda x: x[:, -1], tiles):
        np.testing.assert_array_equal(scan["y_pred"], images[scan["id"]])


def test_regions_of_one_column_value_are_slices_of_one_scan(tmp_path):
    rng = np.random.default_rng(0)
    slices = rng.integers(0, 255, (5, 40, 50), np.uint8)
    rows = []
    for k, image in enumerate(slices):
        tifffile.imwrite(tmp_path / f"s{k}.tif", image)
        patient = "anna" if k % 2 else "bert"
        rows += [(*row, patient) for row in grid(f"s{k}", (40, 50), 20, 10)]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax", "patient"])
    tiles = lt.open_tiles(table, tmp_path).shuffle(2)
    scans = {scan["id"]: scan["y_pred"] for scan in predict(identity, tiles, by="patient", blend="hann")}
    assert list(scans) == ["bert", "anna"]
    np.testing.assert_array_equal(scans["bert"][..., 0], slices[::2])
    np.testing.assert_array_equal(scans["anna"][..., 0], slices[1::2])
    with pytest.raises(ValueError, match="by='doctor' is no column of the table; there are tile_id"):
        predict(identity, tiles, by="doctor")


def test_plain_arrays_are_scans_of_samples():
    rng = np.random.default_rng(0)
    volumes = [rng.random((n, 8, 9, 1)) for n in (3, 5)]
    masks = [volume > 0.5 for volume in volumes]
    tiles = MultiSourceArray(volumes, labels=masks).shuffle(4)
    for scan in predict(lambda x: x * 2, tiles, batch_size=2, with_x=True):
        np.testing.assert_array_equal(scan["y_pred"], volumes[scan["id"]] * 2)
        np.testing.assert_array_equal(scan["x"], volumes[scan["id"]])
        np.testing.assert_array_equal(scan["y_true"], masks[scan["id"]])


def test_any_source_is_one_scan():
    volume = np.random.default_rng(0).random((5, 8, 9, 2))
    (scan,) = predict(lambda x: -x, lt.DelayedView(volume))
    np.testing.assert_array_equal(scan["y_pred"], -volume)
    (scan,) = predict(lambda x: x.mean(axis=(1, 2, 3)), volume, batch_size=2)
    np.testing.assert_allclose(scan["y_pred"]["prediction"], volume.mean(axis=(1, 2, 3)))


def test_wrong_models_are_named(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    for wrong, message in [
        (lambda x: x[:, 2:-2], r"the model gives \(28, 32, 3\) for tiles of \(32, 32, 3\)"),
        (lambda x: [x, x], "the model gives 2 outputs"),
        (lambda x: x[:-1], r"shape \(\d+, 32, 32, 3\) for \d+ tiles"),
        (lambda x: 3, r"shape \(\) for \d+ tiles"),
    ]:
        with pytest.raises(ValueError, match=message):
            next(predict(wrong, tiles))
    with pytest.raises(TypeError, match="the model is a int"):
        predict(3, tiles)
    with pytest.raises(TypeError, match=r"predict takes tiles.* or another source, not int"):
        predict(identity, 5)
    with pytest.raises(ValueError, match="blend='x' is not known"):
        predict(identity, tiles, blend="x")


def test_nothing_is_read_before_the_first_scan_is_asked_for(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    before = lt.counters()["segments_decoded"], threading.active_count()
    predict(identity, tiles)
    assert (lt.counters()["segments_decoded"], threading.active_count()) == before


def test_tabular_columns_reach_the_model(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table.assign(height=np.arange(len(table)) * 1.0), folder, tabular=["height"]).shuffle(1)
    scores = pd.concat([s["y_pred"] for s in predict(lambda x: x[1][:, 0], tiles)])
    np.testing.assert_array_equal(scores.loc[table.tile_id, "prediction"], np.arange(len(table)))


def test_an_empty_array_has_no_scans(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    assert list(predict(identity, tiles.select([]))) == []


@pytest.mark.parametrize("layout", [{"tile": (64, 64), "compression": "zlib"}, {}], ids=["tiled", "mapped"])
def test_rows_that_lie_behind_leave_the_cache_and_the_map(tmp_path, layout, monkeypatch):
    from lazytiles.images.cache import segment_cache
    from lazytiles.images.files import pool

    image = np.random.default_rng(0).integers(0, 255, (2048, 256), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, **layout)
    tiles = lt.open_tiles(lt.make_grid({"a": image.shape}, 64, stride=48), tmp_path)
    released = []
    monkeypatch.setattr(pool, "release", lambda key, start, stop: released.append(stop - start))
    lt.clear_cache()
    before = lt.settings().cache_bytes
    lt.configure(cache_bytes=2**18)
    held, seen = [], lt.counters()["segments_decoded"]
    try:
        for scan in predict(lambda x: held.append(segment_cache.nbytes) or x, tiles, batch_size=4, blend="crop"):
            np.testing.assert_array_equal(scan["y_pred"][..., 0], image)
    finally:
        lt.configure(cache_bytes=before)
    if layout:
        # The read-ahead holds all of this small region at first; at the end little is left.
        assert held[-1] < image.nbytes / 4
        assert lt.counters()["segments_decoded"] - seen == 32 * 4
    else:
        assert image.nbytes - 256 * 256 < sum(released) <= image.nbytes


def test_memory_is_bounded_by_rows_in_flight(tmp_path):
    import tracemalloc

    shape, boxes = (4096, 512), [(x, y, x + 64, y + 64) for y in range(0, 4096, 64) for x in range(0, 512, 64)]
    tile = np.ones((1, 64, 64, 4), np.float32)
    tracemalloc.start()
    try:
        with lt.Canvas(shape, boxes=boxes, out=tmp_path / "a.tif") as canvas:
            for box in boxes:
                canvas.add([box], tile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert canvas.rows_held == 64
    # Out of 4096: 64 rows on the canvas, 256 of the TIFF's tiles, and as much again for all its overviews.
    assert peak < shape[0] * shape[1] * 16 / 4


def levels(batch):
    """The mean of each pixel; tells apart what is scaled from what is not."""
    return batch.mean(axis=-1, keepdims=True, dtype=np.float64)


def test_predict_scales_as_the_model_was_trained(scene):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder).shuffle(3)
    found = tiles.statistics()
    for normalize, scaled in [
        (True, lambda image: image / 255),
        (([1, 2, 3], 4), lambda image: (image - np.array([1.0, 2, 3])) / 4),
        ({"mean": 100, "std": 50}, lambda image: (image - 100.0) / 50),
        (found, lambda image: (image - found.mean) / found.std),
    ]:
        for scan in predict(levels, tiles, normalize=normalize, with_x=True):
            expected = scaled(images[scan["id"]]).mean(axis=-1, keepdims=True)
            np.testing.assert_allclose(scan["y_pred"], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(scan["x"], images[scan["id"]])
    with pytest.raises(ValueError, match=r"normalize is True, False, .*; not 'yes'"):
        predict(levels, tiles, normalize="yes")
    with pytest.raises(ValueError, match=r"x is float64, whose range is not known; pass normalize=\(mean, std\)"):
        predict(levels, np.zeros((2, 4, 4, 1)), normalize=True)


@pytest.mark.leaks(reason="a framework keeps its threads")
def test_an_adapter_brings_its_normalisation_and_batch_size(scene):
    pytest.importorskip("keras")
    folder, table, images, masks = scene
    tiles = lt.open_tiles(table.assign(height=np.arange(len(table)) / 7.0), folder, tabular="height").shuffle(2)
    sizes = set()

    def model(batch):
        image, height = batch
        assert image.dtype == np.float32
        sizes.add(len(image))
        return np.stack([image.mean(axis=(1, 2, 3)), height[:, 0]], axis=-1)

    adapter = lt.KerasAdapter(tiles, batch_size=5, shuffle=True, seed=3, normalize=True, drop_last=True)
    found = list(predict(model, adapter))
    assert max(sizes) == 5
    assert [scan["id"] for scan in found] == [scan["id"] for scan in predict(model, tiles, normalize=True)]
    scores = pd.concat([scan["y_pred"] for scan in found])
    assert len(scores) == len(tiles)
    for position, row in enumerate(tiles.table.itertuples()):
        tile = images[row.region_id][row.ymin : row.ymax, row.xmin : row.xmax]
        np.testing.assert_allclose(scores.loc[row.tile_id], [tile.mean() / 255, row.height], rtol=1e-4)
        assert tiles.labels[position] == row.target
    for scan in found:
        expected = tiles.table[tiles.table.region_id == scan["id"]].set_index("tile_id").target
        np.testing.assert_array_equal(scan["y_true"], expected.loc[scan["y_pred"].index])

    # Maps, mask tiles and dicts of inputs come the same way.
    tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif").shuffle(1)
    adapter = lt.KerasAdapter({"image": tiles, "number": np.arange(len(tiles))}, tiles.labels, normalize=(10, 2))
    for scan in predict(lambda x: x["image"], adapter, blend="crop", with_x=True):
        np.testing.assert_array_equal(scan["y_pred"], (images[scan["id"]] - np.float32(10)) / 2)
        np.testing.assert_array_equal(scan["y_true"][..., 0], masks[scan["id"]])
        np.testing.assert_array_equal(scan["x"], images[scan["id"]])
    plain = lt.KerasAdapter(np.full((4, 3, 3, 1), 51, np.uint8), np.arange(4), normalize=True)
    (scan,) = predict(identity, plain)
    np.testing.assert_array_equal(scan["y_pred"], np.full((4, 3, 3, 1), np.float32(0.2)))

    with pytest.raises(ValueError, match="an adapter brings its own normalize and batch_size"):
        predict(identity, plain, normalize=True)
    with pytest.raises(ValueError, match="an adapter brings its own normalize and batch_size"):
        predict(identity, plain, batch_size=7)
    with pytest.raises(ValueError, match="an adapter without a transform, which may augment"):
        predict(identity, lt.KerasAdapter(np.zeros((4, 3, 3, 1), "u1"), transform=lambda batch, rng: batch))


def test_what_becomes_of_the_array_meanwhile_changes_no_scan(scene):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder).shuffle(1)
    view = lt.DelayedView(np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1), shuffle=True, seed=1)
    expected = view[:]
    scans, slices = predict(lambda x: x.mean(axis=(1, 2)), tiles), predict(identity, view)
    tiles.shuffle(2)
    view.shuffle(3)
    for scan in scans:
        for row in table[table.region_id == scan["id"]].itertuples():
            tile = images[scan["id"]][row.ymin : row.ymax, row.xmin : row.xmax]
            np.testing.assert_allclose(scan["y_pred"].loc[row.tile_id], tile.mean(axis=(0, 1)), rtol=1e-6)
        tiles.shuffle(4)
    np.testing.assert_array_equal(next(slices)["y_pred"], expected)


def test_tuples_and_dicts_of_sources_go_to_the_model_as_they_are(scene):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder).shuffle(1)
    number = np.arange(len(table))[tiles.order]
    for scan in predict(lambda x: x["n"], {"n": number, "image": tiles}):
        rows = table[table.region_id == scan["id"]]
        assert scan["y_pred"].loc[rows.tile_id, "prediction"].tolist() == rows.index.tolist()
    for scan in predict(lambda x: x[1], (number[:, None], tiles), normalize=True, blend="crop"):
        np.testing.assert_allclose(scan["y_pred"], images[scan["id"]] / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="sources of one length are needed"):
        predict(identity, (tiles, number[1:]))


@pytest.mark.parametrize("ending", ["npy", "tif", ZARR])
def test_files_are_replaced_only_when_asked_and_said_to_exist_before_the_model_runs(scene, tmp_path, ending):
    folder, table, images, _ = scene
    if ending == "zarr":
        pytest.importorskip("zarr")
    tiles = lt.open_tiles(table, folder)
    out = str(tmp_path / "maps" / f"{{id}}.{ending}")
    for _ in predict(identity, tiles, out=out, blend="crop", dtype="float32"):
        pass

    def never(batch):
        raise AssertionError("the model ran")

    for goal in (out, {name: out.replace("{id}", name) for name in SHAPES}):
        with pytest.raises(lt.StoreError, match=rf"[abc]\.{ending} exists; .*pass overwrite=True"):
            predict(never, tiles, out=goal)
    for scan in predict(lambda x: x // 2, tiles, out=out, overwrite=True, blend="crop", dtype="float32"):
        np.testing.assert_array_equal(np.asarray(scan["y_pred"][:]), images[scan["id"]] // 2)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"{name}.{ending}" for name in "abc"]
    scans = predict(identity, tiles, out=out, overwrite=True, batch_size=1)
    next(scans)
    scans.close()  # what was not finished is the old file
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"{name}.{ending}" for name in "abc"]
    with pytest.raises(ValueError, match=r"the scans [abc] and [abc] would be one file"):
        predict(never, tiles, out=lambda name: tmp_path / "one.npy")
    with pytest.raises(ValueError, match=r"rows can be written to \.npy"):
        predict(never, tiles, out=f"{tmp_path}/{{id}}.png")


def test_progress_counts_tiles(scene, capsys):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder)
    seen = []
    for _ in predict(identity, tiles, batch_size=7, progress=lambda *step: seen.append(step)):
        pass
    assert seen == [(min(done, len(tiles)), len(tiles)) for done in range(7, len(tiles) + 7, 7)]
    assert len(list(predict(identity, tiles, progress=True))) == 3
    assert "predicting tiles" in capsys.readouterr().out


def same_scans(found, expected):
    found, expected = list(found), list(expected)
    assert [scan["id"] for scan in found] == [scan["id"] for scan in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"id", "seconds"}:
            if isinstance(other[key], pd.DataFrame):
                pd.testing.assert_frame_equal(one[key], other[key])
            else:
                np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(params=["memory", "npy", "h5", ZARR])
def written(request, tmp_path):
    """Writes tiles and opens what was written."""

    def write(tiles, name="tiles"):
        if request.param == "memory":
            return tiles.persist()
        lt.export(tiles, tmp_path / f"{name}.{request.param}", chunk=7)
        return lt.open_store(tmp_path / f"{name}.{request.param}")

    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(request.param, "numpy"))
    return write


def test_tiles_that_were_written_give_the_regions_that_they_came_from(scene, written):
    folder, table, images, _ = scene
    tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif").shuffle(3)
    kept = written(tiles)
    for scan in predict(identity, kept, blend="crop"):
        np.testing.assert_array_equal(scan["y_pred"], images[scan["id"]])
    same_scans(predict(model, kept, with_x=True), predict(model, tiles, with_x=True))
    # Selected, reordered, pickled and written once more.
    chosen = np.flatnonzero(tiles.table.region_id.isin(["a", "c"]))[::2]
    part, again = tiles.select(chosen), pickle.loads(pickle.dumps(kept.select(chosen).shuffle(1)))
    same_scans(predict(identity, again, blend="max", fill=0), predict(identity, part, blend="max", fill=0))
    same_scans(predict(identity, written(again, "more"), fill=0), predict(identity, part, fill=0))
    labelled = lt.open_tiles(table, folder).shuffle(5)
    kept = written(labelled, "labelled")
    same_scans(predict(levels_of, kept, paint=True), predict(levels_of, labelled, paint=True))
    same_scans(predict(levels_of, kept.shuffle(9)), predict(levels_of, labelled))


def levels_of(batch):
    return batch.mean(axis=(1, 2))


def test_views_of_tiles_and_arrays_of_arrays_give_regions_too(scene):
    folder, table, _, _ = scene
    tiles = lt.open_tiles(table, folder, masks="{region_id}_mask.tif")
    expected = list(predict(model, tiles))
    same_scans(predict(model, lt.DelayedView(tiles, shuffle=True, seed=2)), expected)
    for sides in (tiles.split(0.5, seed=1), tiles.split(0.5, by="region_id", seed=1)):
        whole = MultiSourceArray(list(sides)).shuffle(3)
        found = {scan["id"]: scan for scan in predict(model, whole)}
        assert len(found) == 3
        for scan in expected:
            np.testing.assert_array_equal(found[scan["id"]]["y_pred"], scan["y_pred"])
            np.testing.assert_array_equal(found[scan["id"]]["y_true"], scan["y_true"])
        same_scans(predict(model, whole.persist()), predict(model, whole))


def test_frames_volumes_and_whole_images_that_were_written_give_their_regions(years, written, tmp_path):
    same_scans(predict(identity, written(years)), predict(identity, years))
    rng = np.random.default_rng(0)
    volumes = {"u": rng.random((9, 20, 24), np.float32), "v": rng.random((5, 30, 22), np.float32)}
    table = lt.make_grid(volumes, (3, 8, 8), stride=(2, 6, 6), edge="pad")
    boxes = lt.open_volumes(table, volumes, pad="reflect").shuffle(1)
    same_scans(predict(identity, written(boxes, "boxes")), predict(identity, boxes))
    flat = lt.open_volumes(lt.make_grid(volumes, (1, 8, 8), edge="shift"), volumes, context=1)
    middle = lambda x: x[..., 1:2]  # noqa: E731
    same_scans(predict(middle, written(flat, "flat")), predict(middle, flat))
    files = pd.DataFrame({"tile_id": ["a", "b"], "path": ["2017/a.tif", "2018/b.tif"]})
    whole = lt.open_tiles(files, tmp_path, size=(50, 40))
    same_scans(predict(identity, written(whole, "whole")), predict(identity, whole))
    slices = MultiSourceArray([rng.random((n, 8, 9, 1)) for n in (3, 5)]).shuffle(4)
    same_scans(predict(identity, written(slices, "slices")), predict(identity, slices))
    same_scans(predict(levels_of, written(slices, "rows")), predict(levels_of, slices))
    (scan,) = predict(identity, written(MultiSourceArray(slices.sources[1:]), "one"))
    np.testing.assert_array_equal(scan["y_pred"], slices.sources[1])


def test_a_region_of_which_no_frame_is_there_is_as_large_as_its_tiles(tmp_path):
    image = np.random.default_rng(0).integers(1, 255, (40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image)
    rows = [(f"{name}{x}", name, x, 8, x + 16, 24) for name in ("a", "gone") for x in (0, 16)]
    table = pd.DataFrame(rows, columns=["tile_id", "region_id", "xmin", "ymin", "xmax", "ymax"])
    tiles = lt.open_tiles(table, tmp_path, missing="fill")
    for source in (tiles, tiles.persist()):
        there, gone = predict(identity, source, blend="crop", fill=7)
        assert there["y_pred"].shape == (40, 50, 1)
        assert gone["y_pred"].shape == (24, 32, 1)
        np.testing.assert_array_equal(gone["y_pred"][8:], 0)
        np.testing.assert_array_equal(there["y_pred"][8:24, :32, 0], image[8:24, :32])
