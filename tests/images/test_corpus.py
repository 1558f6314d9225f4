"""Real TIFFs against tifffile: the right pixels or one of our errors, and never anything else."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

import lazytiles as lt
from tests.limits import outcome, within_limits

CORPUS = Path(os.environ.get("LAZYTILES_CORPUS", Path(__file__).resolve().parents[2].parent / "shared" / "corpus"))
LARGE = 2**27  # bytes of an image that is compared by windows alone

# What tifffile gives for these is not what the file holds; HAZARDS.md lists both kinds. Shown by their neighbours'
# smoothness: little-endian 24-bit samples are byte-swapped, and samples of 2, 4 and 2 bits come as one flat axis.
REFUSED = {
    "tiger-rgb-tile-planar-24.tif": "24-bit integers",
    "tiger-rgb-tile-planar-24.tif_converted_strips.tif": "24-bit integers",
    "test-rgb-2-4-2.tif": r"\(2, 4, 2\) bits",
    "flower-ycbcr-separate-08.tif": "would pass for red",
    "flower-ycbcr-contig-08_h1v1.tiff": "would pass for red",
    "ycbcr_lzw_broken.tif": "would pass for red",
}


def rows():
    """The lines of the index, or one that skips where there is no corpus."""
    if not (CORPUS / "INDEX.csv").is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{CORPUS} is not here"))]
    with open(CORPUS / "INDEX.csv", newline="") as file:
        return [pytest.param(row, id=row["path"].removeprefix("files/")) for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def quiet():
    """tifffile logs what it finds odd; what matters here is what is read."""
    logging.disable(logging.CRITICAL)
    with within_limits(cache_bytes=0):
        yield
    logging.disable(logging.NOTSET)


def is_exact(row):
    """Whether tifffile's answer is the expected one."""
    told = ("GDAL turns", "chroma upsampling", "JPEG is RGB")
    return row["oracle"] in ("exact(tifffile=GDAL)", "tifffile only") or row["note"].startswith(told)


def samples_last(page, array):
    separate = page.planarconfig == 2 and page.samplesperpixel > 1 and array.ndim == 3
    return np.moveaxis(array, 0, -1) if separate else array


def windows(shape, count, seed):
    """Random rectangles of an image, the corners among them."""
    rng = np.random.default_rng(seed)
    height, width = shape
    yield (slice(height - 1, height), slice(width - 1, width))
    for _ in range(count):
        y, x = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        y[1], x[1] = min(y[1], y[0] + 600), min(x[1], x[0] + 600)
        yield (slice(*map(int, y)), slice(*map(int, x)))


def segment_by_segment(path, box):
    """A window of page 0 from tifffile's decoder of single segments: the oracle for images too large to hold."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        (top, bottom), (left, right) = ((part.start, part.stop) for part in box)
        out = np.full((bottom - top, right - left, page.samplesperpixel), page.nodata, page.dtype)
        across = -(-page.imagewidth // page.tilewidth)
        for row in range(top // page.tilelength, -(-bottom // page.tilelength)):
            for column in range(left // page.tilewidth, -(-right // page.tilewidth)):
                index = row * across + column
                if not page.databytecounts[index]:
                    continue
                tiff.filehandle.seek(page.dataoffsets[index])
                tile = page.decode(tiff.filehandle.read(page.databytecounts[index]), index)[0][0]
                y, x = row * page.tilelength, column * page.tilewidth
                y0, y1 = max(y, top), min(y + tile.shape[0], bottom)
                x0, x1 = max(x, left), min(x + tile.shape[1], right)
                out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return out


@pytest.mark.parametrize("row", rows())
def test_page_0(row):
    path = CORPUS / row["path"]
    if path.name in REFUSED:
        with pytest.raises(lt.RegionError, match=REFUSED[path.name]):
            lt.open_region(path)[:1]
        return
    region = outcome(lambda: lt.open_region(path))
    if isinstance(region, lt.Region) and region.nbytes > LARGE:
        for box in windows(region.shape[:2], 6, 0):
            np.testing.assert_array_equal(region[box], segment_by_segment(path, box))
        return
    whole = region if isinstance(region, lt.LazyTilesError) else outcome(lambda: np.asarray(region))
    if isinstance(whole, lt.LazyTilesError):
        assert not is_exact(row), whole
        assert path.name in str(whole)
        return
    if not is_exact(row):
        check_leniently(path, whole)
        return
    with tifffile.TiffFile(path) as tiff:
        expected = samples_last(tiff.pages[0], tiff.pages[0].asarray())
    assert region.shape == whole.shape == expected.shape
    assert region.dtype == whole.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(whole, expected)
    for box in windows(region.shape[:2], 6, 1):
        np.testing.assert_array_equal(region[box], expected[box])
    far = (np.random.default_rng(2).integers(0, expected.shape[0], 5), slice(None, None, 3))
    np.testing.assert_array_equal(region[far], expected[far])


def check_leniently(path, whole):
    """A file that readers disagree on may be read, if one of the others gives the same."""
    answers = []
    with tifffile.TiffFile(path) as tiff:
        try:
            answers.append(samples_last(tiff.pages[0], tiff.pages[0].asarray()))
        except Exception as error:
            answers.append(repr(error))
    pillow = pytest.importorskip("PIL.Image")
    try:
        with pillow.open(path) as image:
            answers.append(np.asarray(image))
    except Exception as error:
        answers.append(repr(error))
    assert any(isinstance(answer, np.ndarray) and np.array_equal(answer, whole) for answer in answers)


@pytest.mark.parametrize("row", [p for p in rows() if not p.values[0] or p.values[0]["npages"] not in ("", "1")])
def test_other_pages_and_levels(row):
    path = CORPUS / row["path"]
    with tifffile.TiffFile(path) as tiff:
        for k in range(1, min(len(tiff.pages), 12)):
            try:
                if tiff.pages[k].size * 16 > LARGE:
                    continue
                expected = samples_last(tiff.pages[k], tiff.pages[k].asarray())
            except Exception:
                expected = None  # then any answer but a foreign exception will do
            whole = outcome(lambda k=k: np.asarray(lt.open_region(path, page=k)))
            if isinstance(whole, lt.LazyTilesError):
                assert expected is None or "24-bit integers" in str(whole)
                continue
            assert expected is None or np.array_equal(whole, expected)
    shapes = outcome(lambda: [level.shape for level in lt.open_region(path).levels])
    if isinstance(shapes, lt.LazyTilesError):
        return  # of a damaged chain of directories
    assert list(shapes) == sorted(shapes, key=lambda shape: -shape[0] * shape[1])
    for k, shape in enumerate(shapes):
        box = (slice(shape[0] // 3, min(shape[0] // 2, shape[0] // 3 + 500)), slice(0, min(shape[1] // 2, 700)))
        part = outcome(lambda k=k, box=box: lt.open_region(path, level=k)[box])
        assert isinstance(part, lt.LazyTilesError) or part.shape[:2] == (box[0].stop - box[0].start, box[1].stop)
