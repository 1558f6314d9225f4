"""Which pages are levels and which are other images, in the layouts of scanners, against what was written."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

import lazytiles as lt
from tests.images.conftest import pixels

pytestmark = pytest.mark.usefixtures("quiet")
SLIDES = Path(os.environ.get("LAZYTILES_SLIDES", Path(__file__).resolve().parents[2].parent / "shared" / "slides"))
TILED = {"tile": (16, 16), "metadata": None}
PLAIN = {"metadata": None}
APERIO = "Aperio Image Library v11.2.1 \n"


def halves(base, count=3):
    return [base[:: 2**k, :: 2**k] for k in range(count)]


def written(path, pages, **options):
    """A TIFF of pages: each an array, and what is particular to it."""
    with tifffile.TiffWriter(path, **options) as tiff:
        for page, how in pages:
            photometric = "rgb" if page.ndim == 3 and page.shape[-1] == 3 else "minisblack"
            tiff.write(np.ascontiguousarray(page), photometric=photometric, **how)
    return path


def shapes(region):
    return [level.shape for level in region.levels]


def rows():
    if not (SLIDES / "slides.csv").is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{SLIDES} is not here"))]
    with open(SLIDES / "slides.csv", newline="") as file:
        return [pytest.param(row, id=row["file"]) for row in csv.DictReader(file)]


def sizes(text):
    return tuple(int(n) for n in text.split("x"))


@pytest.mark.parametrize("row", rows())
def test_real_files_are_what_their_list_says(row):
    path = SLIDES / row["file"]
    lead = row["axes"].partition("Y")[0]
    options = {"series": 0} if lead else {}
    region = lt.open_region(path, **options)
    assert (region.axes, region.shape) == (row["axes"], sizes(row["shape"]))
    assert shapes(region) == [sizes(level) for level in row["levels"].split("; ")]
    images = {name: sizes(size) for name, size in (one.rsplit(" ", 1) for one in row["associated"].split("; ") if one)}
    assert {name: lt.open_region(path, page=name).shape[:2] for name in region.associated} == images
    assert region.mpp == ((float(row["mpp_y"]), float(row["mpp_x"])) if row["mpp_y"] else None)
    with tifffile.TiffFile(path) as tiff:
        for k, level in enumerate(tiff.series[0].levels):
            found = lt.open_region(path, level=k, **options)
            np.testing.assert_array_equal(found, level.asarray())
            expected = (region.shape[-3] if "S" in row["axes"] else region.shape[-2]) / found.levels[k].shape[0]
            assert found.levels[k].downsample[0] == expected
        for name, number in region.associated.items():
            np.testing.assert_array_equal(lt.open_region(path, page=name), tiff.pages[number].asarray())


def svs(path, *, thumbnail=True):
    base = pixels((128, 96, 3))
    pages = [(base, {**TILED, "description": APERIO + "128x96 (16x16) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"})]
    if thumbnail:
        pages.append((base[::4, ::4], {**PLAIN, "description": APERIO + "128x96 -> 32x24 - |AppMag = 20"}))
    pages += [(level, {**TILED, "description": APERIO + "level"}) for level in halves(base)[1:]]
    pages.append((pixels((40, 30, 3), seed=1), {**PLAIN, "description": APERIO + "label 30x40", "subfiletype": 1}))
    pages.append((pixels((30, 70, 3), seed=2), {**PLAIN, "description": APERIO + "macro 70x30", "subfiletype": 9}))
    written(path, pages)
    return base


@pytest.mark.parametrize("thumbnail", [True, False])
def test_aperio(thumbnail, tmp_path):
    base = svs(tmp_path / "a.svs", thumbnail=thumbnail)
    region = lt.open_region(tmp_path / "a.svs")
    assert shapes(region) == [(128, 96), (64, 48), (32, 24)]
    assert [level.downsample for level in region.levels] == [(1, 1), (2, 2), (4, 4)]
    assert set(region.associated) == ({"thumbnail"} if thumbnail else set()) | {"label", "macro"}
    assert region.mpp == (0.499, 0.499)
    for k, level in enumerate(halves(base)):
        small = lt.open_region(tmp_path / "a.svs", level=k)
        np.testing.assert_array_equal(small, level)
        assert small.mpp == (0.499 * 2**k, 0.499 * 2**k)
    np.testing.assert_array_equal(lt.open_region(tmp_path / "a.svs", page="macro"), pixels((30, 70, 3), seed=2))
    assert shapes(lt.open_region(tmp_path / "a.svs", page="label")) == [(40, 30)]
    with pytest.raises(lt.RegionError, match=r"a\.svs: has no page 'map'; beside its image it has .*'label', 'macro'"):
        lt.open_region(tmp_path / "a.svs", page="map")
    with pytest.raises(lt.RegionError, match="has no level 3; it has levels 0 to 2"):
        lt.open_region(tmp_path / "a.svs", level=3)


def test_hamamatsu(tmp_path):
    base = pixels((128, 96, 3))
    named = [(base, 40.0), (base[::4, ::4], 10.0), (pixels((20, 60, 3)), -1.0), (pixels((10, 30)), -2.0)]
    pages = []
    for page, lens in named:
        tags = [(65420, 4, 1, 1, True), (271, 2, None, "Hamamatsu", True), (65421, 11, 1, lens, True)]
        how = {**PLAIN, "extratags": tags, "resolution": (40000, 20000), "resolutionunit": "centimeter"}
        pages.append((page, how))
    path = written(tmp_path / "a.ndpi", pages)
    region = lt.open_region(path)
    assert (shapes(region), region.associated) == ([(128, 96), (32, 24)], {"macro": 2, "map": 3})
    assert region.mpp == (0.5, 0.25)  # y, x
    np.testing.assert_array_equal(lt.open_region(path, level=1), base[::4, ::4])


def scn(images):
    """A document of (name, view, pages)."""
    said = ""
    for name, view, pages in images:
        dims = "".join(
            f'<dimension sizeX="{x}" sizeY="{y}" r="{r}" ifd="{ifd}"/>' for r, (ifd, y, x) in enumerate(pages)
        )
        said += f'<image name="{name}"><pixels sizeX="{pages[0][2]}" sizeY="{pages[0][1]}">{dims}</pixels>'
        said += f'<view sizeX="{view[1]}" sizeY="{view[0]}" offsetX="0" offsetY="0"/></image>'
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="26000" sizeY="76000">{said}</collection></scn>'
    )


def test_leica(tmp_path):
    base, photo = pixels((128, 96, 3)), pixels((76, 26, 3), seed=1)
    document = scn([("photo", (76000, 26000), [(0, 76, 26), (1, 38, 13)]),
                    ("slide", (64000, 48000), [(2, 128, 96), (3, 64, 48)])])  # fmt: skip
    pages = [
        (photo, {**TILED, "description": document}),
        (photo[::2, ::2], TILED),
        (base, TILED),
        (base[::2, ::2], TILED),
    ]
    path = written(tmp_path / "a.scn", pages)
    region = lt.open_region(path)
    np.testing.assert_array_equal(region, base)
    assert (shapes(region), region.associated, region.mpp) == ([(128, 96), (64, 48)], {"macro": 0}, (0.5, 0.5))
    np.testing.assert_array_equal(lt.open_region(path, level=1), base[::2, ::2])
    np.testing.assert_array_equal(lt.open_region(path, page=0), photo)
    assert shapes(lt.open_region(path, page="macro")) == [(76, 26), (38, 13)]


def test_ventana(tmp_path):
    base = pixels((128, 96, 3))
    xmp = [(700, 1, None, b'<xml><iScan Magnification="40" ScanRes="0.25"/></xml>', True)]
    pages = [(pixels((60, 20, 3)), {**PLAIN, "description": "Label_Image", "extratags": xmp}),
             (pixels((30, 20)), {**PLAIN, "description": "Probability_Image"})]  # fmt: skip
    pages += [
        (level, {**TILED, "description": f"level={k} mag={40 / 2**k} quality=90"})
        for k, level in enumerate(halves(base))
    ]
    path = written(tmp_path / "a.bif", pages)
    region = lt.open_region(path)
    np.testing.assert_array_equal(region, base)
    assert (shapes(region), region.mpp) == ([(128, 96), (64, 48), (32, 24)], (0.25, 0.25))
    assert region.associated == {"label": 0, "page-1": 1}


def qptiff(path):
    base = pixels((4, 128, 96), np.uint16)

    def words(kind, name=""):
        said = f"<ImageType>{kind}</ImageType>" + (f"<Name>{name}</Name>" if name else "")
        return f"<PerkinElmer-QPI-ImageDescription>{said}</PerkinElmer-QPI-ImageDescription>"

    how = {**TILED, "software": "PerkinElmer-QPI", "resolution": (20000, 20000), "resolutionunit": "centimeter"}
    pages = [(base[k], {**how, "description": words("FullResolution", f"Opal {k}")}) for k in range(4)]
    pages.append((pixels((32, 24, 3)), {**PLAIN, "description": words("Thumbnail")}))
    pages += [(base[k, ::2, ::2], {**how, "description": words("ReducedResolution", f"Opal {k}")}) for k in range(4)]
    pages.append((pixels((20, 60, 3)), {**PLAIN, "description": words("Overview")}))
    pages.append((pixels((20, 20, 3)), {**PLAIN, "description": words("Label")}))
    written(path, pages)
    return base


def test_akoya(tmp_path):
    base = qptiff(tmp_path / "a.qptiff")
    region = lt.open_region(tmp_path / "a.qptiff")
    np.testing.assert_array_equal(region, base[0])
    assert (shapes(region), region.mpp) == ([(128, 96), (64, 48)], (0.5, 0.5))
    assert region.associated == {"thumbnail": 4, "macro": 9, "label": 10}
    whole = lt.open_region(tmp_path / "a.qptiff", series=0)
    assert (whole.axes, whole.channels) == ("CYX", ("Opal 0", "Opal 1", "Opal 2", "Opal 3"))
    np.testing.assert_array_equal(whole, base)
    np.testing.assert_array_equal(lt.open_region(tmp_path / "a.qptiff", series=0, level=1), base[:, ::2, ::2])
    some = lt.open_region(tmp_path / "a.qptiff", channels=["Opal 2", 0], level=1)
    np.testing.assert_array_equal(some, base[[2, 0], ::2, ::2])
    np.testing.assert_array_equal(lt.open_region(tmp_path / "a.qptiff", page=2, level=1), base[2, ::2, ::2])
    with pytest.raises(lt.RegionError, match="has no channel 'Opal 9'; it has channels 0 to 3, named 'Opal 0'"):
        lt.open_region(tmp_path / "a.qptiff", channels=["Opal 9"])


def philips_words(count):
    each = '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">{}</Attribute>'
    levels = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        + each.format(f'"{0.00025 * 2**k:g}" "{0.0005 * 2**k:g}"')
        + "</DataObject>"
        for k in range(count)
    )
    return f'<?xml version="1.0"?><DataObject ObjectType="DPUfsImport">{levels}</DataObject>'


def test_philips_levels_have_their_true_scale(tmp_path):
    base = np.zeros((128, 96, 3), np.uint8)
    pages = [(base, {**TILED, "software": "Philips DP v1.0", "description": philips_words(4)})]
    # 100 x 70 pixels are real; each level is padded to whole tiles of 16.
    pages += [(np.zeros((h, w, 3), np.uint8), {**TILED, "subfiletype": 1}) for h, w in ((64, 48), (32, 32), (16, 16))]
    pages.append((pixels((20, 60, 3)), {**PLAIN, "description": "Macro"}))
    pages.append((pixels((20, 20, 3)), {**PLAIN, "description": "Label"}))
    path = written(tmp_path / "a.tiff", pages)
    region = lt.open_region(path)
    assert shapes(region) == [(128, 96), (64, 48), (32, 32), (16, 16)]
    assert [level.downsample for level in region.levels] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert region.associated == {"macro": 4, "label": 5}
    assert region.mpp == (0.25, 0.5)
    assert lt.open_region(path, level=2).mpp == (1.0, 2.0)


def test_other_images_are_no_levels(tmp_path):
    base = pixels((128, 96, 3))
    reduced = {**PLAIN, "subfiletype": 1}
    others = [pixels((64, 64, 3)), pixels((64, 48)), pixels((64, 48, 3)).astype(np.uint16), pixels((200, 150, 3))]
    path = written(
        tmp_path / "a.tif", [(base, TILED), *((page, reduced) for page in others), (base[::3, ::3], reduced)]
    )
    region = lt.open_region(path)
    assert shapes(region) == [(128, 96), (43, 32)]
    assert region.levels[1].downsample == (128 / 43, 3.0)
    assert region.associated == {f"page-{k}": k for k in range(1, 5)}
    np.testing.assert_array_equal(lt.open_region(path, page="page-3"), others[2])
    assert shapes(lt.open_region(path, page=5)) == [(43, 32)]


def test_odd_sizes_halved_in_any_way_are_levels(tmp_path):
    for k, shape in enumerate([(101, 77), (3, 1000), (1, 1)]):
        sizes = [shape]
        while max(sizes[-1]) > 1:
            sizes.append(tuple((n + k % 2) // 2 or 1 for n in sizes[-1]))
        pages = [(np.zeros(size, np.uint8), {**PLAIN, "subfiletype": int(size != shape)}) for size in sizes]
        assert shapes(lt.open_region(written(tmp_path / f"{k}.tif", pages))) == sizes


def test_scale_by_resolution_tags_and_by_hand(tmp_path):
    def mpp(resolution, unit, **more):
        path = written(
            tmp_path / "a.tif", [(pixels((9, 9)), {**PLAIN, "resolution": resolution, "resolutionunit": unit})]
        )
        return lt.open_region(path, **more).mpp

    assert mpp((20000, 40000), "centimeter") == (0.25, 0.5)
    assert mpp((25400, 25400), "inch") == (1.0, 1.0)
    assert mpp((25400, 25400), "none") is None
    for dpi in (72, 96):
        assert mpp((dpi, dpi), "inch") is None
    assert mpp((1e9, 1e9), "centimeter") is None
    assert mpp((72, 72), "inch", mpp=0.5) == (0.5, 0.5)
    assert mpp((72, 72), "inch", mpp=(0.5, 0.25)) == (0.5, 0.25)
    for wrong in (0, -1, "x", (1, 2, 3), float("nan")):
        with pytest.raises(ValueError, match="mpp is a number of micrometres above 0"):
            mpp((72, 72), "inch", mpp=wrong)


def test_missing_tiles_are_filled_by_request(tmp_path):
    image = pixels((64, 48, 3))
    path = written(tmp_path / "a.tif", [(image, {**TILED, "compression": "zlib"})])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags["TileByteCounts"].overwrite([0, *counts[1:]])
        tiff.pages[0].tags["TileOffsets"].overwrite([0, *tiff.pages[0].dataoffsets[1:]])
    for fill, expected in ((None, 0), (255, 255)):
        image[:16, :16] = expected
        region = lt.open_region(path, fill=fill)
        np.testing.assert_array_equal(region, image)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(region)), image)
    with pytest.raises(lt.RegionError, match=r"uint8 samples cannot hold fill=256"):
        lt.open_region(path, fill=256)


@pytest.mark.parametrize("photometric", ["ycbcr", "cielab"])
def test_other_colours_are_refused(photometric, tmp_path):
    path = tmp_path / "a.tif"
    subsampling = {"subsampling": (1, 1)} if photometric == "ycbcr" else {}
    tifffile.imwrite(path, pixels((32, 32, 3)), photometric=photometric, metadata=None, **subsampling)
    with pytest.raises(lt.RegionError, match=r"a\.tif page 0: stores .*would pass for red, green and blue; refused"):
        lt.open_region(path)


def test_aperio_jpeg_2000_of_ycbcr_is_refused(tmp_path):
    path = written(tmp_path / "a.svs", [(pixels((32, 32, 3)), {**TILED, "compression": 33005, "description": APERIO})])
    np.testing.assert_array_equal(lt.open_region(path), tifffile.imread(path))
    data = path.read_bytes().replace((33005).to_bytes(2, "little"), (33003).to_bytes(2, "little"))
    path.write_bytes(data)
    with pytest.raises(lt.RegionError, match="compression 33003"):
        lt.open_region(path)


@pytest.mark.parametrize("height", [64, 50])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_jpeg_bands_as_gdal_reads_them(photometric, interleave, height, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    y, x = np.mgrid[:height, :64]
    image = np.stack([y * 3, x * 3, y + x]).astype(np.uint8)
    how = {"driver": "GTiff", "width": 64, "height": height, "count": 3, "dtype": "uint8", "compress": "jpeg"}
    place = rasterio.Affine(2, 0, 0, 0, -2, 0)
    with rasterio.open(
        tmp_path / "a.tif", "w", photometric=photometric, interleave=interleave, blockysize=16, transform=place, **how
    ) as file:
        file.write(image)
    with rasterio.open(tmp_path / "a.tif") as file:
        expected = np.moveaxis(file.read(), 0, -1)
    np.testing.assert_array_equal(lt.open_region(tmp_path / "a.tif"), expected)


def test_thumbnails_come_from_levels(tmp_path):
    svs(tmp_path / "a.svs")
    from lazytiles.images import thumbnail

    np.testing.assert_array_equal(
        thumbnail(lt.open_region(tmp_path / "a.svs"), longest=32), pixels((128, 96, 3))[::4, ::4]
    )
