"""Patches against their naive definition: pad the whole image, loop over its pixels."""

from __future__ import annotations

import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from lazytiles.arrays.patch_pixels import MaskPixels, Scatter, runs
from lazytiles.arrays.patches import PatchGenerator
from lazytiles.config import counters
from lazytiles.errors import StoreError
from lazytiles.images.region import open_region
from lazytiles.stores.patch_sets import create_dataset

FORMATS = [
    "hdf5",
    pytest.param("zarr", marks=pytest.mark.leaks("Zarr keeps an event loop and its threads for good")),
    "blosc2",
    "npy",
]


class Slices:
    """A source that knows slices and integers only, and counts what is read of it."""

    axes: str

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.reads = self.pixels = 0

    def __getitem__(self, key: Any) -> np.ndarray:
        assert all(isinstance(k, int | slice) for k in (key if isinstance(key, tuple) else (key,)))
        part = self.array[key]
        self.reads += 1
        self.pixels += part.size
        return part


def naive(source: np.ndarray, sizes: tuple[int, ...], mask: np.ndarray | None, mirrored: bool) -> np.ndarray:
    spatial = source.shape[: len(sizes)]
    pad = [(size // 2, (size - 1) // 2) for size in sizes] + [(0, 0)] * (source.ndim - len(sizes))
    padded = np.pad(source, pad, mode="symmetric" if mirrored else "constant")
    patches = [
        padded[tuple(slice(p, p + size) for p, size in zip(pixel, sizes, strict=True))]
        for pixel in np.ndindex(*spatial)
        if mask is None or mask[pixel]
    ]
    return np.array(patches, source.dtype).reshape(-1, *sizes, *source.shape[len(sizes) :])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], np.ndarray | None]:
    axes = draw(st.integers(2, 3))
    spatial = tuple(draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes)))
    channels = draw(st.sampled_from([(), (1,), (3,)]))
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes)))
    dtype = draw(st.sampled_from(["u1", ">i2", "f4", "?", "c8"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    source = rng.integers(0, 200, spatial + channels).astype(dtype)
    kind = draw(st.sampled_from(["none", "empty", "full", "some", "classes"]))
    mask = {
        "none": None,
        "empty": np.zeros(spatial, bool),
        "full": np.ones(spatial),
        "some": rng.random(spatial) < 0.3,
        "classes": rng.integers(-1, 2, spatial),
    }[kind]
    source.flags.writeable = False
    return source, sizes, mask


@given(case=cases(), mirrored=st.booleans(), wrap=st.booleans())
@settings(max_examples=150, deadline=None)
def test_patches_equal_the_naive_definition(case: Any, mirrored: bool, wrap: bool) -> None:
    source, sizes, mask = case
    wanted = naive(source, sizes, mask, mirrored)
    given_mask = Slices(mask) if wrap and mask is not None else mask
    patches = PatchGenerator(Slices(source) if wrap else source, sizes, given_mask, mirrored=mirrored)
    assert (len(patches), patches.shape, patches.ndim) == (len(wanted), wanted.shape, wanted.ndim)
    assert patches.dtype == wanted.dtype.newbyteorder("=")
    np.testing.assert_array_equal(patches[...], wanted)
    np.testing.assert_array_equal(np.asarray(patches), wanted)
    for one, other in zip(patches, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    centers = patches.centers()
    np.testing.assert_array_equal(centers, np.argwhere(np.ones(source.shape[: len(sizes)]) if mask is None else mask))
    middle = (slice(None), *(size // 2 for size in sizes))
    np.testing.assert_array_equal(wanted[middle], source[tuple(centers.T)])


@given(case=cases(), mirrored=st.booleans(), seed=st.integers(0, 5), most=st.none() | st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_random_order_is_a_permutation_by_its_seed(case: Any, mirrored: bool, seed: int, most: int | None) -> None:
    source, sizes, mask = case
    wanted = naive(source, sizes, mask, mirrored)
    patches = PatchGenerator(source, sizes, mask, True, mirrored, most, seed)
    order = Scatter(len(wanted), seed)(np.arange(len(wanted)))
    assert sorted(order) == list(range(len(wanted)))
    np.testing.assert_array_equal(patches[:], wanted[order[:most]])
    again = PatchGenerator(source, sizes, mask, random=True, mirrored=mirrored, max_num=most, seed=seed)
    np.testing.assert_array_equal(again[:], patches[:])


KEYS: list[Any] = [
    0,
    -1,
    np.int64(3),
    slice(None),
    slice(2, -1, 3),
    slice(None, None, -2),
    slice(5, 5),
    ...,
    [0, 5, 5, -2],
    np.array([[0, 1], [2, 3]]),
    (slice(None), 0),
    (3, ..., -1),
    (slice(1, 4), slice(1, 3), slice(None, None, -1)),
    (None, 2),
    ([0, 2], [1, 0]),
    (slice(None), [2, 0], [1, 1]),
    np.arange(20) % 3 == 0,
    True,
    np.zeros(20, bool),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("random", [False, True])
def test_every_key_gives_what_numpy_gives(key: Any, random: bool) -> None:
    source = np.arange(60).reshape(4, 5, 3)
    patches = PatchGenerator(source, (3, 4), random=random, seed=1)
    wanted = patches.take(np.arange(20))
    np.testing.assert_array_equal(patches[key], wanted[key], strict=True)


@pytest.mark.parametrize("key", [20, -21, [0, 20], (0, 3), 1.5, "a", np.ones(19, bool), (0, 0, 0, 0, 0)])
def test_every_bad_key_raises_what_numpy_raises(key: Any) -> None:
    patches = PatchGenerator(np.arange(60).reshape(4, 5, 3), (3, 4))
    with pytest.raises(IndexError) as wanted:
        patches[:][key]
    with pytest.raises(IndexError) as got:
        patches[key]
    assert str(got.value) == str(wanted.value)


def test_take_keeps_order_and_repetitions_and_fills_out() -> None:
    patches = PatchGenerator(np.arange(60).reshape(4, 5, 3), (3, 4))
    wanted = patches[:][[7, 0, 7, -1]]
    np.testing.assert_array_equal(patches.take([7, 0, 7, -1]), wanted)
    out = np.zeros_like(wanted)
    assert patches.take(np.array([7, 0, 7, -1]), out=out) is out
    np.testing.assert_array_equal(out, wanted)
    assert patches.take([]).shape == (0, 3, 4, 3)
    with pytest.raises(IndexError, match="indices 3 to 20 asked for of 20 patches"):
        patches.take([3, 20])


def test_one_number_is_a_size_along_all_spatial_axes() -> None:
    image, volume = np.zeros((6, 7, 3)), np.zeros((6, 7, 8))
    assert PatchGenerator(image[..., 0], 3).shape == (42, 3, 3)
    assert PatchGenerator(image, 3).shape == (42, 3, 3, 3)
    assert PatchGenerator(volume, 3).shape == (336, 3, 3, 3)
    assert PatchGenerator(image, 3, np.ones((6, 7))).shape == (42, 3, 3, 3)
    assert PatchGenerator(volume, 2, np.ones((6, 7))).shape == (42, 2, 2, 8)
    assert PatchGenerator(volume, 2, np.ones((6, 7, 8))).shape == (336, 2, 2, 2)
    assert PatchGenerator(volume, (1, 5, 4)).shape == (336, 1, 5, 4)
    named = Slices(np.zeros((3, 6, 7)))
    named.axes = "PYX"
    assert PatchGenerator(named, 2).shape == (126, 2, 2, 2)
    named.axes = "YXS"
    assert PatchGenerator(named, 2).shape == (18, 2, 2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 5), 0), "patch_size=0 does not fit .* at least 1"),
        (((4, 5), (3,)), r"does not fit a source of shape \(4, 5\)"),
        (((4, 5), (3, 3, 3)), r"\(height, width\) or \(depth, height, width\)"),
        (((5,), 3), r"source of shape \(5,\)"),
        (((4, 5), 3, np.ones((5, 4))), r"a mask of shape \(5, 4\) does not fit .* spatial shape \(4, 5\)"),
        (((4, 5), (3, 3), np.ones((4, 5, 2))), "it must have the source's spatial shape"),
        (((4, 5), 3, None, False, True, -1), "max_num must be at least 0 patches, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, message: str) -> None:
    shape, *rest = arguments
    with pytest.raises(ValueError, match=message):
        PatchGenerator(np.zeros(shape), *rest)


@pytest.mark.parametrize(
    "arguments", [{"patch_size": (3.7, 3)}, {"max_num": 2.5}, {"random": True, "seed": 1.5}, {"patch_size": 3.0}]
)
def test_numbers_are_never_cut_to_whole_ones(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="float"):
        PatchGenerator(np.zeros((4, 5)), **{"patch_size": 3} | arguments)


def test_the_random_order_is_pinned() -> None:
    """The same seed gives the same order for ever."""
    assert Scatter(10, 42)(np.arange(10)).tolist() == [6, 5, 1, 0, 3, 4, 2, 8, 9, 7]
    assert Scatter(10**12, 7)(np.array([0, 1, 10**12 - 1])).tolist() == [
        609503865267,
        862490874375,
        733666621860,
    ]
    assert PatchGenerator(np.zeros((9, 9)), 3, random=True).seed is not None
    assert PatchGenerator(np.zeros((9, 9)), 3, seed=5).seed is None


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_scatter_is_a_permutation_of_any_length(n: int) -> None:
    order = Scatter(n, 3)(np.arange(n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n > 16:
        np.testing.assert_array_equal(Scatter(n, 3)(np.arange(n)[::-7]), order[::-7])


def test_scatter_mixes_as_chance_does() -> None:
    """Every permutation of three and every place of every number turn up as often as they should."""
    orders = np.array([Scatter(3, seed)(np.arange(3)) for seed in range(1200)])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 130
    order = Scatter(10_000, 1)(np.arange(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    table = np.histogram2d(order, np.arange(10_000), bins=10)[0]
    assert ((table - 100) ** 2 / 100).sum() < 150


def test_pixels_are_found_across_blocks() -> None:
    mask = np.random.default_rng(0).random((3, 700, 301)) < 0.01
    pixels = MaskPixels(Slices(mask))
    wanted = np.argwhere(mask)
    assert len(pixels) == len(wanted)
    numbers = np.random.default_rng(1).permutation(len(wanted))[:200]
    np.testing.assert_array_equal(pixels.at(numbers), wanted[numbers])


def test_memory_does_not_grow_with_the_number_of_patches() -> None:
    peaks = []
    for density in (0.001, 0.9):
        mask = np.random.default_rng(0).random((1500, 1500)) < density
        image = np.broadcast_to(np.uint8(3), (1500, 1500))
        tracemalloc.start()
        patches = PatchGenerator(image, 9, mask, random=True, seed=0)
        for start in range(0, len(patches), max(1, len(patches) // 5)):
            patches.take(np.arange(start, min(start + 32, len(patches))))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2_000_000, "two million patches may take no more than a block of the mask does"
    huge = PatchGenerator(np.broadcast_to(np.uint8(3), (10**6, 10**6)), 4, random=True, seed=0)
    assert len(huge) == 10**12
    assert huge[10**11].shape == (4, 4)


def test_neighbouring_patches_are_read_together() -> None:
    source = Slices(np.random.default_rng(0).random((64, 64)))
    patches = PatchGenerator(source, 7)
    patches.take(np.arange(256))
    assert source.reads == 1
    assert source.pixels <= 64 * 11
    source.reads = source.pixels = 0
    far = PatchGenerator(source, 3, mask=np.eye(64)[::-1] * (np.arange(64) % 16 == 0))
    far[:]
    assert (source.reads, source.pixels) == (4, 3 * 9 + 4)


def test_runs_cover_each_box_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 60, (200, 2))
    stops = starts + rng.integers(1, 9, (200, 2))
    seen = []
    for which, low, high in runs(starts, stops, 500):
        seen += which.tolist()
        assert (low == starts[which].min(axis=0)).all()
        assert (high == stops[which].max(axis=0)).all()
        assert len(which) == 1 or (high - low).prod() <= 500
    assert sorted(seen) == list(range(200))
    assert list(runs(starts[:0], stops[:0], 500)) == []


def test_threads_and_pickles_read_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype="u1")
    patches = PatchGenerator(image, 6, image[..., 0] > 100, random=True, seed=3)
    wanted = patches[:]
    again = pickle.loads(pickle.dumps(patches))
    assert repr(again) == repr(patches)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda k: again.take(np.arange(k, len(wanted), 8)), range(8)))
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(part, wanted[k::8])
    assert "seed 3" in repr(patches)
    assert "seed 3" in patches._repr_html_()


def classes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (3, 20, 30), dtype="u1"), rng.choice([0, 1, 7], (3, 20, 30), p=[0.9, 0.08, 0.02])


def opened(store: Path) -> np.ndarray:
    if store.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(store) as file:
            return np.asarray(file["data"][...])
    if store.suffix == ".zarr":
        return np.asarray(pytest.importorskip("zarr").open_array(store, mode="r")[...])
    if store.suffix == ".b2nd":
        return np.asarray(pytest.importorskip("blosc2").open(str(store), mode="r")[...])
    return np.load(store)


@pytest.mark.parametrize("format_", FORMATS)
def test_each_class_gets_an_array(tmp_path: Path, format_: str) -> None:
    volume, mask = classes()
    stores = create_dataset(
        tmp_path / "patches",
        (1, 4, 5),
        volume,
        mask,
        [1, 7],
        format=format_,
        batch_size=16,
        seed=2,
        progress=False,
    )
    assert list(stores) == [1, 7]
    for value, store in stores.items():
        wanted = naive(volume, (1, 4, 5), mask == value, True)
        order = Scatter(len(wanted), 2)(np.arange(len(wanted)))
        np.testing.assert_array_equal(opened(store), wanted[order], strict=True)
        assert store.name.startswith(f"class_{value}.")
    left = {path for path in (tmp_path / "patches").iterdir() if not path.name.startswith(".")}
    assert left == set(stores.values())


def test_options_reach_the_patches_and_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, mask = classes()
    stores = create_dataset(
        tmp_path,
        3,
        volume,
        mask,
        [7],
        random=False,
        mirrored=False,
        max_num=5,
        compression="gzip",
        batch_size=2,
    )
    np.testing.assert_array_equal(opened(stores[7]), naive(volume, (3, 3, 3), mask == 7, False)[:5])
    with pytest.importorskip("h5py").File(stores[7]) as file:
        assert file["data"].compression == "gzip"
        assert file["data"].chunks == (2, 3, 3, 3)
    shown = capsys.readouterr()
    assert "class_7" in shown.err
    assert not shown.out
    with pytest.raises(StoreError, match="overwrite=True"):
        create_dataset(tmp_path, 3, volume, mask, [7], progress=False)
    create_dataset(tmp_path, 3, volume, mask, [7], overwrite=True, progress=False)
    assert len(opened(stores[7])) == (mask == 7).sum()


def test_a_killed_call_goes_on_where_it_stopped(tmp_path: Path) -> None:
    volume, mask = classes()
    full = Slices(volume)
    whole = create_dataset(tmp_path / "a", 3, full, mask, [1], format="npy", batch_size=8, progress=False)
    failing = Failing(volume, 9)
    with pytest.raises(OSError, match="the disk is gone"):
        create_dataset(tmp_path / "b", 3, failing, mask, [1], format="npy", batch_size=8, progress=False)
    left = Failing(volume, 10**6)
    resumed = create_dataset(
        tmp_path / "b", 3, left, mask, [1], format="npy", batch_size=8, progress=False, resume=True
    )
    np.testing.assert_array_equal(opened(resumed[1]), opened(whole[1]))
    assert left.reads <= full.reads  # what is there is compared


@pytest.mark.parametrize("format_", FORMATS)
def test_a_call_killed_between_two_classes_goes_on_with_the_second(tmp_path: Path, format_: str) -> None:
    volume, mask = classes()
    arguments: dict[str, Any] = {"format": format_, "batch_size": 8, "progress": False}
    whole = create_dataset(tmp_path / "a", 3, volume, mask, [1, 7], **arguments)
    done = create_dataset(tmp_path / "b", 3, volume, mask, [1], **arguments)[1].stat()
    resumed = create_dataset(tmp_path / "b", 3, volume, mask, [1, 7], **arguments, resume=True)
    for value in (1, 7):
        np.testing.assert_array_equal(opened(resumed[value]), opened(whole[value]))
    left = resumed[1].stat()  # reading it just now may have changed the time of access, nothing else
    assert (left.st_ino, left.st_size, left.st_mtime_ns) == (done.st_ino, done.st_size, done.st_mtime_ns)


def test_patches_of_other_arguments_are_not_mixed(tmp_path: Path) -> None:
    volume, mask = classes()
    arguments: dict[str, Any] = {"format": "npy", "batch_size": 8, "progress": False}
    with pytest.raises(OSError, match="the disk is gone"):
        create_dataset(tmp_path, 3, Failing(volume, 9), mask, [1], **arguments)
    stores = create_dataset(tmp_path, 3, Failing(volume, 10**6), mask, [1], **arguments, seed=1, resume=True)
    whole = create_dataset(tmp_path / "a", 3, volume, mask, [1], **arguments, seed=1)
    np.testing.assert_array_equal(opened(stores[1]), opened(whole[1]))
    with pytest.raises(StoreError, match="overwrite=True"):
        create_dataset(tmp_path, 3, volume, mask, [1], **arguments, seed=2, resume=True)


class Failing(Slices):
    """A source that fails after some reads."""

    def __init__(self, array: np.ndarray, reads: int) -> None:
        super().__init__(array)
        self.left = reads

    def __getitem__(self, key: Any) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "bcolz"}, "format='bcolz' is not one of hdf5, zarr, blosc2, npy"),
        ({"class_list": [1, 1]}, "must name each class once"),
        ({"class_list": ["../x"]}, "by a plain value"),
        ({"class_list": []}, "names no class"),
        ({"mask": np.ones((3, 20))}, "a mask of shape"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    volume, mask = classes()
    arguments = {"volume": volume, "mask": mask, "class_list": [1], "progress": False} | changed
    with pytest.raises(ValueError, match=message):
        create_dataset(tmp_path / "new", (3, 3, 3), **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("size", "mirrored"), [(5, True), (6, False), ((3, 90), True), ((200, 7), True)])
def test_patches_of_a_region_equal_those_of_its_pixels(tmp_path: Path, size: Any, mirrored: bool) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype="u1")
    mask = (image[..., 0] > 240).astype("u1")
    tifffile.imwrite(tmp_path / "image.tif", image, tile=(16, 16), compression="zlib", photometric="rgb")
    tifffile.imwrite(tmp_path / "mask.tif", mask, tile=(16, 16), compression="zlib")
    under = open_region(tmp_path / "mask.tif")
    sizes = size if isinstance(size, tuple) else (size, size)
    for keywords, wanted in (({}, image), ({"bands": [2, 0]}, image[..., [2, 0]]), ({"gray": True}, None)):
        region = open_region(tmp_path / "image.tif", **keywords)
        pixels = region[:] if wanted is None else wanted
        patches = PatchGenerator(region, size, under, mirrored=mirrored)
        np.testing.assert_array_equal(patches[:], naive(pixels, sizes, mask, mirrored), strict=True)


@pytest.mark.parametrize("sizes", [(1, 5, 4), (3, 4, 4), (9, 3, 3)])
@pytest.mark.parametrize("mirrored", [True, False])
def test_patches_of_a_stack_of_pages_are_those_of_a_volume(
    tmp_path: Path, sizes: tuple[int, ...], mirrored: bool
) -> None:
    volume = np.random.default_rng(0).integers(0, 999, (5, 40, 50), dtype="u2")
    tifffile.imwrite(tmp_path / "stack.tif", volume, photometric="minisblack", rowsperstrip=16)
    mask = volume > 970
    patches = PatchGenerator(open_region(tmp_path / "stack.tif", page="all"), sizes, mask, mirrored=mirrored)
    np.testing.assert_array_equal(patches[:], naive(volume, sizes, mask, mirrored), strict=True)


def test_a_batch_decodes_each_segment_of_a_region_once(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64), dtype="u1")
    tifffile.imwrite(tmp_path / "image.tif", image, tile=(16, 16), compression="zlib")
    patches = PatchGenerator(open_region(tmp_path / "image.tif"), 9, random=True, seed=0)
    before = counters()["segments_decoded"]
    patches.take(np.arange(500))
    assert counters()["segments_decoded"] - before == 16


def test_a_class_that_is_not_in_the_mask_is_refused(tmp_path: Path) -> None:
    mask = np.array([[0, 2, 2], [5, 0, 2]])
    with pytest.raises(ValueError, match=r"class_list=\[2, 7\]: no pixel of the mask is 7; it holds 0, 2, 5"):
        create_dataset(tmp_path, 3, np.ones((2, 3)), mask, [2, 7], progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="names values of a mask, but there is no mask"):
        create_dataset(tmp_path, 3, np.ones((2, 3)), None, [2], progress=False)
    image = np.arange(4000).reshape(40, 100)
    with pytest.raises(ValueError, match="more than 1000 values, as images do; name the classes"):
        create_dataset(tmp_path, 3, image, image, progress=False)


def test_without_a_mask_all_pixels_and_without_classes_all_values(tmp_path: Path) -> None:
    volume, mask = np.arange(6.0).reshape(2, 3), np.array([[0, 2, 2], [5, 0, 2]])
    options = {"format": "npy", "progress": False, "random": False}
    stores = create_dataset(tmp_path, 1, volume, mask, **options)
    assert {value: np.load(path)[:, 0, 0].tolist() for value, path in stores.items()} == {
        0: [0, 4], 2: [1, 2, 5], 5: [3]
    }  # fmt: skip
    stores = create_dataset(tmp_path, 1, volume, **options)
    assert {value: path.name for value, path in stores.items()} == {"all": "class_all.npy"}
    assert np.load(stores["all"]).ravel().tolist() == volume.ravel().tolist()


def test_resumed_patches_are_compared(tmp_path: Path) -> None:
    volume, mask = classes()
    options = {"format": "npy", "batch_size": 8, "progress": False, "random": False}
    create_dataset(tmp_path, 1, volume, mask, [1], **options)
    other = volume.copy()
    first = np.argwhere(mask == 1)[2]
    other[tuple(first)] += 1
    with pytest.raises(OSError, match="exists; pass overwrite=True to replace it: row 2 is the first"):
        create_dataset(tmp_path, 1, other, mask, [1], resume=True, **options)
    create_dataset(tmp_path, 1, other, mask, [1], overwrite=True, **options)
