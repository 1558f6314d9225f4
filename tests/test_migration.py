"""The examples of five older systems, written against lazytiles; `docs/do/migrating.md` shows both sides."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import lazytiles as lt
from lazytiles.augment import random_transform, random_transform_stack

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
TRAINS = pytest.mark.leaks(reason="a framework keeps its threads")


@pytest.fixture
def keras():
    return pytest.importorskip("keras")


def small_model(keras, shape, outputs, activation=None):
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )
    loss = "mse" if activation is None else "sparse_categorical_crossentropy"
    model.compile("adam", loss)
    return model


@pytest.fixture
def yearly(tmp_path):
    """`Images/<label_id>/<region_id>.tif` and a table, one row per tile and year."""
    rng = np.random.default_rng(0)
    images, rows = {}, []
    for year in (2016, 2017, 2018):
        (tmp_path / "Images" / str(year)).mkdir(parents=True)
        for region in ("1225", "0007", "88"):
            image = rng.integers(0, 255, (96, 128, 3), np.uint8)
            images[str(year), region] = image
            tifffile.imwrite(tmp_path / "Images" / str(year) / f"{region}.tif", image, compression="lzw")
            rows += [
                (f"{region}{x}{y}", region, year, (x + y) / 200, x / 96, y / 64, f"({x}, {y}, {x + 32}, {y + 32})")
                for y in (0, 32, 64)
                for x in (0, 32, 64, 96)
            ]
    names = ["tile_id", "region_id", "label_id", "target", "slope", "height", "region_coordinates"]
    table = pd.DataFrame(rows, columns=names)
    table.to_csv(tmp_path / "tiles.csv", index=False)
    return tmp_path, table, images


@TRAINS
def test_keras_sequence_over_region_tiffs(yearly, keras):
    folder, table, images = yearly
    tiles = lt.open_tiles(
        folder / "tiles.csv", folder / "Images", frames=[2016, 2017, 2018], tabular=["slope", "height"]
    )
    assert tiles.shape == (36, 3, 32, 32, 3)
    last = table[table.label_id == 2018].reset_index(drop=True)
    np.testing.assert_array_equal(tiles.labels, last.target)
    np.testing.assert_array_equal(tiles.tabular, last[["slope", "height"]].to_numpy(np.float32))
    row = last.iloc[20]
    x, y = (int(n) for n in row.region_coordinates.strip("()").split(",")[:2])
    for frame, year in enumerate(("2016", "2017", "2018")):
        np.testing.assert_array_equal(tiles[20, frame], images[year, row.region_id][y : y + 32, x : x + 32])

    # Several targets, and batches in which regions stand together.
    both = lt.open_tiles(folder / "tiles.csv", folder / "Images", frames=2018, target=["target", "slope"])
    assert both.labels.shape == (36, 2)
    regions = both.shuffle(0, window=1).table.region_id.to_numpy()
    assert (regions[1:] != regions[:-1]).sum() == 2

    def augment(batch, rng):
        (x, tabular), y = batch
        return (
            np.stack([random_transform_stack(one, rotation=20, flip=(True, True), rng=rng) for one in x]),
            tabular,
        ), y

    train, test = tiles.split(0.7, by="region_id", seed=0)
    assert not set(train.table.region_id) & set(test.table.region_id)
    frames = keras.Input((3, 32, 32, 3))
    columns = keras.Input((2,))
    pooled = keras.layers.GlobalAveragePooling3D()(frames)
    joined = keras.layers.Concatenate()([pooled, columns])
    model = keras.Model([frames, columns], keras.layers.Dense(1)(joined))
    model.compile("adam", "mse")
    history = model.fit(
        lt.KerasAdapter(train, batch_size=8, shuffle=True, seed=1, normalize=True, transform=augment),
        validation_data=lt.KerasAdapter(test, batch_size=8, normalize=True),
        epochs=2,
        verbose=0,
    )
    assert len(history.history["val_loss"]) == 2
    predicted = model.predict(lt.KerasAdapter(test, batch_size=8, normalize=True), verbose=0)
    assert predicted.shape == (len(test), 1)

    # What its prediction of whole regions was: a number for every tile, by its id.
    scans = lt.predict(model, lt.KerasAdapter(test, batch_size=8, normalize=True))
    numbers = pd.concat([scan["y_pred"] for scan in scans])
    np.testing.assert_allclose(numbers.loc[test.table.tile_id].to_numpy(), predicted, rtol=1e-4, atol=1e-5)


@TRAINS
def test_keras_generator_over_a_csv_of_images(tmp_path, keras):
    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        name = f"{k:03}.{('png', 'jpg', 'tif')[k % 3]}"
        height, width = rng.integers(40, 90, 2)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(tmp_path / name)
        rows.append((name, name, name, 4.0, 6.0, width / 2, height / 2, height, width))
    columns = ["tile_id", "region_id", "path", "x0", "y0", "x1", "y1", "height", "width"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(tmp_path / "images.csv", index=False)
    tiles = lt.open_tiles(tmp_path / "images.csv", tmp_path, size=(48, 64), target=["x0", "y0", "x1", "y1"])
    assert tiles.shape == (12, 48, 64, 3)
    np.testing.assert_array_equal(tiles.labels, table[["x0", "y0", "x1", "y1"]])
    with Image.open(tmp_path / "003.png") as image:
        expected = np.asarray(image.resize((64, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(tiles[3], expected)

    places = ["x0", "y0", "x1", "y1"]
    boxes = lt.open_tiles(tmp_path / "images.csv", tmp_path, size=(48, 64), target=places, scale_boxes=places)
    scaled = boxes.labels
    np.testing.assert_allclose(scaled[:, 2], 32)
    np.testing.assert_allclose(scaled[:, 3], 24)
    np.testing.assert_allclose(scaled[:, 0], 4 * 64 / table.width)

    model = small_model(keras, (48, 64, 3), 4)
    adapter = lt.KerasAdapter(tiles, batch_size=5, shuffle=True, seed=3)
    assert len(model.fit(adapter, epochs=2, verbose=0).history["loss"]) == 2


@TRAINS
def test_keras_generator_over_ids_and_npy_files(tmp_path, keras):
    rng = np.random.default_rng(0)
    labels = {f"id-{k}": k % 6 for k in range(14)}
    for name in labels:
        np.save(tmp_path / f"{name}.npy", rng.random((8, 8, 8)).astype(np.float32))
    ids = list(labels)
    table = pd.DataFrame({"tile_id": ids, "target": list(labels.values())})
    tiles = lt.open_volumes(table, tmp_path, path="{tile_id}.npy")
    assert tiles.shape == (14, 8, 8, 8, 1)
    np.testing.assert_array_equal(tiles[9, ..., 0], np.load(tmp_path / "id-9.npy"))
    train = tiles.select(slice(0, 10))
    adapter = lt.KerasAdapter(train, batch_size=5, shuffle=True, num_classes=6, prefetch=4)
    x, y = adapter[0]
    assert x.shape == (5, 8, 8, 8, 1)
    assert y.shape == (5, 6)
    model = keras.Sequential(
        [keras.Input((8, 8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(6, activation="softmax")]
    )
    model.compile("adam", "categorical_crossentropy")
    model.fit(adapter, validation_data=lt.KerasAdapter(tiles.select(slice(10, 14)), num_classes=6), verbose=0)


@TRAINS
def test_toolbox_of_array_wrappers(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    data = rng.random((40, 8, 8, 1))

    # Delayed view: samples of a data set, shuffled, nothing read.
    with h5py.File(tmp_path / "data.h5", "w") as file:
        view = lt.DelayedView(file.create_dataset("x", data=data), shuffle=True, seed=0, idx_min=10, idx_max=30)
        assert view.shape == (20, 8, 8, 1)
        np.testing.assert_array_equal(view[[3, 1]], data[10:30][view.order[[3, 1]]])

    # Multi-source array: classes by source, at most so many of each, two arrays in one order.
    cats, dogs = data[:25], data[25:]
    both = lt.MultiSourceArray([cats, dogs], labels=[0, 1], shuffle=True, maxlen=10, seed=1)
    assert both.shape == (20, 8, 8, 1)
    assert sorted(both.get_labels()) == [0] * 10 + [1] * 10
    pairs = both.index_pairs
    for k in (0, 7, 19):
        np.testing.assert_array_equal(both[k], (cats, dogs)[pairs[k, 0]][pairs[k, 1]])

    # Data flow: sources in tandem, transformed, written by a buffered writer.
    def transform(batch, rng):
        x, y = batch
        return np.stack([random_transform(one, rotation=15, shift=(0.1, 0.1), rng=rng) for one in x]), y

    with (
        lt.BatchFlow((both, both.labels), 6, shuffle=True, seed=2, transform=transform) as flow,
        lt.HDF5Writer(tmp_path / "out.h5") as writer,
    ):
        for x, _ in flow:
            writer.write(x)
    region = lt.open_region(f"{tmp_path}/out.h5::data")
    assert region.shape == (20, 8, 8, 1)

    # Patches around the pixels under a mask.
    image, mask = rng.random((40, 50)), np.zeros((40, 50), bool)
    mask[3, 4] = mask[39, 49] = True
    patches = lt.PatchGenerator(image, 7, mask=mask, mirrored=True)
    assert patches.shape[:3] == (2, 7, 7)
    np.testing.assert_array_equal(patches[0], image[0:7, 1:8])


def test_medical_loaders_of_volumes_and_patches(tmp_path):
    rng = np.random.default_rng(0)
    scans = {"anna": rng.random((9, 40, 40), np.float32), "bert": rng.random((7, 48, 32), np.float32)}
    stacks, truths = {}, {}
    for name, scan in scans.items():
        (tmp_path / name).mkdir()
        for z, image in enumerate(scan):
            tifffile.imwrite(tmp_path / name / f"{z:03}.tif", image)
        stacks[name] = lt.stack_regions(sorted((tmp_path / name).glob("*.tif")))
        truths[name] = (scan > 0.6).astype(np.uint8)

    # Scattered into overlapping patches, padded at the edges; gathered into whole scans.
    grid = lt.make_grid(stacks, (4, 16, 16), stride=(3, 12, 12), edge="pad")
    patches = lt.open_volumes(grid, stacks, masks=truths, pad="reflect").shuffle(0)
    assert patches.shape[1:] == (4, 16, 16, 1)
    dice = {}
    for scan in lt.predict(lambda x: x, patches, blend="gaussian", with_x=True, batch_size=8):
        np.testing.assert_allclose(scan["y_pred"][..., 0], scans[scan["id"]], rtol=1e-6)
        np.testing.assert_array_equal(scan["y_true"][..., 0], truths[scan["id"]])
        found, truth = scan["y_pred"] > 0.6, scan["y_true"] > 0
        dice[scan["id"]] = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice == {"anna": 1.0, "bert": 1.0}

    # Slice by slice with its neighbours as channels, the whole plane at once.
    grid = lt.make_grid(stacks, (1, 16, 16), edge="shift")
    slices = lt.open_volumes(grid, stacks, masks=truths, context=1)
    assert slices.shape[1:] == (16, 16, 3)
    for scan in lt.predict(lambda x: x.mean(axis=-1, keepdims=True), slices, out=tmp_path / "maps"):
        assert scan["y_pred"].shape == (*scans[scan["id"]].shape, 1)
