"""Series with named axes, as OME, ImageJ, MetaMorph, LSM, tifffile and OME-Zarr write them: what was written."""

from __future__ import annotations

import pickle
import re
import struct
import sys
import time

import numpy as np
import pytest
import tifffile

import lazytiles as lt
from tests.images.conftest import pixels
from tests.limits import within_limits

pytestmark = pytest.mark.usefixtures("quiet")
TILED = {"tile": (16, 16)}
PLAIN = {"metadata": None, "photometric": "minisblack"}


def series_equal(region, array):
    assert region.shape == array.shape
    np.testing.assert_array_equal(region, array)
    key = (-1, *(slice(None),) * (array.ndim - 3), slice(3, 9), slice(None, None, 2))
    np.testing.assert_array_equal(region[key], array[key])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(region))[0], array[0])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("axes", ["TCZYX", "ZCYX", "CTYX", "TZYX", "CYX"])
def test_ome(axes, compression, tmp_path):
    sizes = {"T": 2, "C": 3, "Z": 4, "Y": 20, "X": 18}
    array = pixels([sizes[letter] for letter in axes], np.uint16)
    metadata = {
        "axes": axes,
        "PhysicalSizeX": 0.25,
        "PhysicalSizeY": 500,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 2,
    }
    if "C" in axes:
        metadata["Channel"] = {"Name": ["DAPI", "FITC", "Cy5"]}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, array, ome=True, metadata=metadata, compression=compression, photometric="minisblack")
    region = lt.open_region(path, series=0)
    assert (region.axes, region.mpp, region.spacing) == (axes, (0.5, 0.25), (2.0, 0.5, 0.25))
    assert lt.open_region(path).mpp == (0.5, 0.25)
    series_equal(region, array)
    with tifffile.TiffFile(path) as tiff:
        assert (tiff.series[0].axes, region.associated) == (axes, {})
    if "C" in axes:
        some = lt.open_region(path, channels=["Cy5", 0, -2])
        series_equal(some, array.take([2, 0, 1], axis=axes.index("C")))
        assert some.channels == ("Cy5", "DAPI", "FITC")


def test_ome_planes_are_where_tiffdata_says(tmp_path):
    array = pixels((6, 12, 10), np.uint16)
    places = [(1, 2), (0, 0), (1, 0), (0, 2), (0, 1), (1, 1)]  # (c, z) of each directory
    data = "".join(f'<TiffData IFD="{k}" FirstC="{c}" FirstZ="{z}"/>' for k, (c, z) in enumerate(places))
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="10" SizeY="12" SizeZ="3" SizeC="2" '
        f'SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>{data}</Pixels></Image></OME>'
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, array, description=xml, metadata=None, photometric="minisblack")
    expected = np.empty((2, 3, 12, 10), np.uint16)
    for k, place in enumerate(places):
        expected[place] = array[k]
    region = lt.open_region(path, series=0)
    assert region.axes == "CZYX"
    series_equal(region, expected)
    np.testing.assert_array_equal(region, tifffile.imread(path))
    np.testing.assert_array_equal(lt.open_region(path, page="all"), array)


def test_ome_positions_are_series(tmp_path):
    first, second = pixels((3, 20, 18), np.uint16), pixels((3, 20, 18), np.uint16, seed=1)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(first, metadata={"axes": "ZYX", "Name": "left"}, photometric="minisblack")
        tiff.write(second, metadata={"axes": "ZYX", "Name": "right"}, photometric="minisblack")
    series_equal(lt.open_region(path, series=1), second)
    with pytest.raises(
        lt.RegionError, match=r"2 series \(0: 'left' \(ZYX, 3 x 20 x 18\), 1: 'right' .*open a series by"
    ):
        lt.open_region(path, page="all")
    with pytest.raises(lt.RegionError, match="has no series 2; it has 2 series"):
        lt.open_region(path, series=2)


def test_channels_of_a_pyramid(tmp_path):
    array = pixels((3, 64, 48), np.uint16)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(array, subifds=2, metadata={"axes": "CYX"}, photometric="minisblack", **TILED)
        for k in (2, 4):
            tiff.write(array[:, ::k, ::k], subfiletype=1, photometric="minisblack", **TILED)
    region = lt.open_region(path, series=0)
    assert [level.shape for level in region.levels] == [(64, 48), (32, 24), (16, 12)]
    for k in range(3):
        series_equal(lt.open_region(path, series=0, level=k), array[:, :: 2**k, :: 2**k])
        series_equal(lt.open_region(path, channels=[2, 1], level=k), array[[2, 1], :: 2**k, :: 2**k])
    np.testing.assert_array_equal(lt.open_region(path, page=1, level=2), array[1, ::4, ::4])
    with pytest.raises(lt.RegionError, match="has no level 3; it has levels 0 to 2"):
        lt.open_region(path, series=0, level=3)


@pytest.mark.parametrize("truncate", [False, True])
def test_imagej(truncate, tmp_path):
    array = pixels((2, 3, 4, 20, 18), np.uint16)
    path = tmp_path / "a.tif"
    metadata = {"axes": "TZCYX", "spacing": 3.0, "unit": "um"}
    tifffile.imwrite(path, array, imagej=True, metadata=metadata, resolution=(4, 2), truncate=truncate)
    region = lt.open_region(path, series=0)
    assert (region.axes, region.mpp, region.spacing) == ("TZCYX", (0.5, 0.25), (3.0, 0.5, 0.25))
    assert lt.open_region(path).mpp == (0.5, 0.25)
    series_equal(region, array)
    series_equal(lt.open_region(path, channels=[3]), array[:, :, [3]])
    series_equal(lt.open_region(path, page="all"), array.reshape(24, 20, 18))


def test_axes_of_plain_pages(tmp_path):
    array = pixels((5, 20, 18), np.uint16)
    plain, told = tmp_path / "plain.tif", tmp_path / "told.tif"
    with tifffile.TiffWriter(plain) as tiff:
        for page in array:
            tiff.write(page, metadata=None)
    tifffile.imwrite(told, pixels((2, 3, 20, 18), np.uint16), metadata={"axes": "TCYX"}, photometric="minisblack")
    region = lt.open_region(plain, series=0)
    assert region.axes == "PYX"
    series_equal(region, array)
    assert lt.open_region(plain, axes="CYX").axes == "CYX"
    series_equal(lt.open_region(plain, axes="CYX", channels=[4, 0]), array[[4, 0]])
    assert lt.open_region(told, series=0).axes == "TCYX"
    series_equal(lt.open_region(told, channels=[1]), pixels((2, 3, 20, 18), np.uint16)[:, [1]])
    with pytest.raises(
        lt.RegionError, match=r"axes='TCYX' for an array of shape \(5, 20, 18\); name one letter an axis"
    ):
        lt.open_region(plain, axes="TCYX")
    with pytest.raises(ValueError, match="axes are a letter an axis"):
        lt.open_region(plain, axes=3)
    with pytest.raises(ValueError, match="channels are a list of numbers and names"):
        lt.open_region(plain, channels="DAPI")
    with pytest.raises(ValueError, match="not both"):
        lt.open_region(plain, page=0, series=0)


def lsm(path, pages, thumbnails, scan, sizes):
    """An LSM file as the microscope writes it: each plane followed by a thumbnail, and CZ_LSMINFO in the first."""
    info = struct.pack("<IIiiiiiiiI", 67127628, 1000, *(sizes.get(k, 1) for k in "XYZCT"), 1, 0, 0)
    info += struct.pack("<6d", 5e-7, 2.5e-7, 2e-6, 0, 0, 0) + struct.pack("<H", scan)
    info += bytes(1000 - len(info))
    with tifffile.TiffWriter(path, byteorder="<") as tiff:
        for k, (page, small) in enumerate(zip(pages, thumbnails, strict=True)):
            tags = [(34412, 1, len(info), info, True)] if k == 0 else []
            tiff.write(page, planarconfig="separate", photometric="minisblack", metadata=None, extratags=tags)
            tiff.write(small, subfiletype=1, photometric="rgb", metadata=None)


def moved_bits(path):
    """Store BitsPerSample of two channels behind the file, as old LSM files do."""
    data = bytearray(path.read_bytes())
    at = data.find(struct.pack("<HHI", 258, 3, 2))
    while at > 0:
        bits = data[at + 8 : at + 12]
        data[at + 8 : at + 12] = struct.pack("<I", len(data))
        data += bits
        at = data.find(struct.pack("<HHI", 258, 3, 2), at + 12)
    path.write_bytes(data)


@pytest.mark.parametrize("channels", [2, 3])
def test_lsm(channels, tmp_path):
    array, small = pixels((4, channels, 40, 36), np.uint8), pixels((4, 20, 18, 3), np.uint8)
    path = tmp_path / "a.lsm"
    lsm(path, array, small, 0, {"X": 36, "Y": 40, "Z": 4, "C": channels})
    if channels == 2:
        moved_bits(path)
    region = lt.open_region(path, series=0)
    assert (region.axes, [level.shape for level in region.levels]) == ("ZCYX", [(40, 36)])
    assert region.associated == {"thumbnail": 1}
    series_equal(region, array)
    series_equal(lt.open_region(path, channels=[1]), array[:, [1]])
    np.testing.assert_array_equal(lt.open_region(path), np.moveaxis(array[0], 0, -1))
    np.testing.assert_array_equal(lt.open_region(path, page="thumbnail"), small[0])
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(region, tiff.series[0].asarray())


def test_axes_of_arrays(tmp_path):
    array = pixels((2, 3, 4, 20, 18), np.uint16)
    np.save(tmp_path / "a.npy", array)
    region = lt.open_region(tmp_path / "a.npy", axes="TCZYX")
    assert region.axes == "TCZYX"
    series_equal(region, array)
    series_equal(lt.open_region(tmp_path / "a.npy", axes="TCZYX", channels=[2, 0]), array[:, [2, 0]])
    np.save(tmp_path / "m.npy", array[0, 0].transpose(1, 2, 0)[:, :, None])  # (H, W, 1, 4)
    assert lt.open_region(tmp_path / "m.npy", axes="YXZC").shape == (1, 20, 18, 4)
    np.testing.assert_array_equal(lt.open_region(tmp_path / "m.npy", axes="YXZC")[0], array[0, 0].transpose(1, 2, 0))
    np.save(tmp_path / "few.npy", array[0, :, 0, :, :9])  # (3, 20, 9) is no image of 9 samples
    assert lt.open_region(tmp_path / "few.npy", axes="CYX").shape == (3, 20, 9)
    with pytest.raises(lt.RegionError, match=r"shape \(2, 3, 4, 20, 18\); without axes= .*such as axes=\"TCZYX\""):
        lt.open_region(tmp_path / "a.npy")
    for wrong in ("TCZXY", "YXTCZ", "CZYX", "TTZYX"):
        with pytest.raises(lt.RegionError, match="name one letter an axis"):
            lt.open_region(tmp_path / "a.npy", axes=wrong)


@pytest.mark.leaks(reason="zarr keeps its event loop")
@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_axes_of_chunked_arrays(kind, tmp_path):
    array = pixels((2, 3, 5, 20, 18), np.uint16)
    if kind == "hdf5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("d", data=array, chunks=(1, 2, 2, 8, 8), compression="gzip")
            file.create_dataset(
                "m", data=array[0, 0].transpose(1, 2, 0)[..., None], chunks=(8, 8, 2, 1), compression="gzip"
            )
        path = f"{tmp_path}/a.h5::d"
        np.testing.assert_array_equal(
            lt.open_region(f"{tmp_path}/a.h5::m", axes="YXCZ")[0], array[0, 0].transpose(1, 2, 0)
        )
    else:
        zarr = pytest.importorskip("zarr")
        path = tmp_path / "a.zarr"
        zarr.create_array(str(path), data=array, chunks=(1, 2, 2, 8, 8))
    region = lt.open_region(path, axes="TCZYX")
    series_equal(region, array)
    np.testing.assert_array_equal(region[1, [2, 0], 1:4, 5, ::3], array[1, [2, 0], 1:4, 5, ::3])


@pytest.mark.leaks(reason="zarr keeps its event loop")
@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(version, tmp_path):
    zarr = pytest.importorskip("zarr")
    array = pixels((1, 2, 3, 64, 48), np.uint16)
    path = tmp_path / "a.ome.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    datasets = []
    for k in range(3):
        scale = [1, 1, 2.0, 0.5 * 2**k, 0.25 * 2**k]
        group.create_array(str(k), data=array[..., :: 2**k, :: 2**k], chunks=(1, 1, 2, 32, 32))
        datasets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    axes = [
        {"name": n, "type": kinds.get(n, "space"), **({"unit": "micrometer"} if n in "zyx" else {})} for n in "tczyx"
    ]
    told = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}],
            "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}}  # fmt: skip
    group.attrs.update(told if version == 2 else {"ome": {"version": "0.5", **told}})
    region = lt.open_region(path)
    assert (region.axes, region.channels) == ("TCZYX", ("DAPI", "GFP"))
    assert [level.downsample for level in region.levels] == [(1, 1), (2, 2), (4, 4)]
    assert (region.mpp, region.spacing) == ((0.5, 0.25), (2.0, 0.5, 0.25))
    series_equal(region, array)
    small = lt.open_region(path, level=1, channels=["GFP"])
    series_equal(small, array[:, [1], :, ::2, ::2])
    assert small.mpp == (1.0, 0.5)
    with pytest.raises(lt.RegionError, match="has no level 3"):
        lt.open_region(path, level=3)
    with pytest.raises(lt.RegionError, match="has no series 1; it has 1"):
        lt.open_region(path, series=1)


@pytest.mark.leaks(reason="zarr keeps its event loop")
def test_ome_zarr_opens_nothing_outside_its_folder(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "secret"), data=pixels((20, 18), np.uint16))
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    plain = zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    plain.create_array("0", data=pixels((20, 18), np.uint16))
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    for path in ("../secret", str(tmp_path / "secret"), "missing"):
        group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [{"path": path}]}]}
        with pytest.raises(lt.RegionError):
            lt.open_region(tmp_path / "a.zarr")
    with pytest.raises(lt.RegionError, match=r"is a Zarr group, neither .*it holds 0: name one, as in b\.zarr::NAME"):
        lt.open_region(tmp_path / "b.zarr")


@pytest.mark.leaks(reason="zarr keeps its event loop")
@pytest.mark.parametrize("rows", ["0", "1e999", '"many"'])
def test_ome_zarr_of_damaged_shapes(rows, tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    for k in range(2):
        group.create_array(str(k), data=pixels((20, 18), np.uint8))
    group.attrs["multiscales"] = [{"axes": ["y", "x"], "datasets": [{"path": "0"}, {"path": "1"}]}]
    facts = tmp_path / "a.zarr" / "1" / ".zarray"
    facts.write_text(re.sub(r'("shape": \[\s*)20', rf"\g<1>{rows}", facts.read_text()))
    with pytest.raises(lt.RegionError, match=r"\.zattrs: its multiscale metadata make no sense"):
        lt.open_region(tmp_path / "a.zarr")


# -- hostile and huge --------------------------------------------------------------------------------------------


def ome_document(inner, head=""):
    return (
        f'<?xml version="1.0"?>{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels DimensionOrder="XYZCT" {inner}</Pixels></Image></OME>'
    )


HOSTILE = {
    "billions": ('SizeZ="2147483647" SizeC="2147483647" SizeT="2147483647"><TiffData/>', "planes; at most"),
    "lying": ('SizeZ="90" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="2147483648"/>', "90 planes, of which 87"),
    "negative": ('SizeZ="-3" SizeC="1" SizeT="1"><TiffData/>', "says a size of '-3'"),
    "words": ('SizeZ="3" SizeC="1" SizeT="1"><TiffData IFD="x"/>', "damaged TiffData"),
    "order": ('SizeZ="3" SizeC="1" SizeT="1"><TiffData FirstZ="9"/>', "3 planes, of which 3 are not"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_lying_documents_are_refused(name, tmp_path):
    inner, words = HOSTILE[name]
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels((3, 8, 8), np.uint16), description=ome_document(inner), **PLAIN)
    begin = time.perf_counter()
    with pytest.raises(lt.RegionError, match=words):
        lt.open_region(path, series=0)
    assert lt.open_region(path).shape == (8, 8)
    assert time.perf_counter() - begin < 6


def test_entities_are_refused(tmp_path):
    bomb = '<!DOCTYPE OME [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ) + "]>"  # fmt: skip
    path = tmp_path / "a.ome.tif"
    inner = 'SizeZ="3" SizeC="1" SizeT="1"><TiffData/><Annotation>&i;</Annotation>'
    tifffile.imwrite(path, pixels((3, 8, 8), np.uint16), description=ome_document(inner, bomb), **PLAIN)
    with pytest.raises(lt.RegionError, match="its XML declares entities; refused"):
        lt.open_region(path, series=0)
    assert lt.open_region(path).mpp is None


def test_a_chain_that_turns_back_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder="<") as tiff:
        for page in pixels((3, 8, 8), np.uint16):
            tiff.write(page, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        offsets = [page.offset for page in tiff.pages]
    data = bytearray(path.read_bytes())
    for target in offsets[:2]:
        tags = struct.unpack_from("<H", data, offsets[2])[0]
        struct.pack_into("<I", data, offsets[2] + 2 + 12 * tags, target)
        path.write_bytes(data)
        with pytest.raises(lt.RegionError, match="page 3 of its chain is one that came before"):
            lt.open_region(path, series=0)
        assert lt.open_region(path).shape == (8, 8)


def test_files_that_a_document_names_are_never_opened(tmp_path):
    other = tmp_path / "other.ome.tif"
    tifffile.imwrite(other, pixels((1, 8, 8), np.uint16), metadata=None)
    planes = "".join(
        f'<TiffData FirstZ="{k}" IFD="0"><UUID FileName="{file}">urn:uuid:{k}</UUID></TiffData>'
        for k, file in enumerate(["a.ome.tif", "other.ome.tif"])
    )
    document = ome_document(f'SizeZ="2" SizeC="1" SizeT="1">{planes}').replace("<OME ", '<OME UUID="urn:uuid:0" ')
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels((1, 8, 8), np.uint16), description=document, metadata=None)
    opened = []
    sys.addaudithook(lambda event, args, to=opened: to.append(str(args[0])) if event == "open" else None)
    for ask in ({"series": 0}, {"axes": "ZYX"}, {"channels": [0]}):
        with pytest.raises(
            lt.RegionError, match=r"1 of its 2 planes lie in other files \(other\.ome\.tif\).*stack_reg"
        ):
            lt.open_region(path, **ask)
    assert lt.open_region(path, page="all").shape == (1, 8, 8)
    assert path.name in str(opened)
    assert "other" not in str(opened)


def test_a_companion_document_is_never_opened(tmp_path):
    document = '<?xml version="1.0"?><OME><BinaryOnly MetadataFile="/etc/passwd" UUID="urn:uuid:1"/></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels((1, 8, 8), np.uint16), description=document, metadata=None)
    with pytest.raises(lt.RegionError, match="lies in '/etc/passwd', and files that a file names are never opened"):
        lt.open_region(tmp_path / "a.ome.tif", series=0)


@pytest.mark.parametrize("ome", [False, True])
def test_many_planes_are_parsed_once(ome, tmp_path, monkeypatch):
    """Directories of one form are one page to tifffile, which takes 100,000 pages too slowly."""
    array = pixels((4000, 8, 8), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, ome=ome, metadata={"axes": "ZYX"}, photometric="minisblack", rowsperstrip=4)
    monkeypatch.setattr("lazytiles.images.layouts.directories.MOST_FORMS", 3)  # beyond which it is refused
    with within_limits(cache_bytes=0):
        region = lt.open_region(path, series=0)
        np.testing.assert_array_equal(region, array)
        assert len(region._windows(region._request((7, 3)))[0].pages) == 1
