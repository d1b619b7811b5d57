"""Pictures that stay encoded until somebody looks, so that memory does not grow with people.

A benchmark of 500 people with pictures of 1,024 pixels a side is a quarter of a gigabyte as files
and nine as pixels. What is asked about a picture holds a :class:`Picture`: a PIL image that reads
and decodes its file when it is used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.ImageOps

from ..progress import no_dataset_bars

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "images")
# 200 MB decoded; what claims to be larger is a mistake or a decompression bomb
MAX_PIXELS = 50_000_000
# long side / short side: processors that keep the ratio make thousands of tokens of more, or none
MAX_RATIO = 20
MIN_SIDE = 2
# brightest grey level of a picture of floats that are not 0 to 1: taken for grey, 1.01 would be all
# black
LEAST_GREY = 16
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
# the pictures used last, as long as they have no more pixels (12 MB): most are used again
MOST_KEPT = 4_000_000
_kept: dict[Hashable, PIL.Image.Image] = {}


class Picture(PIL.Image.Image):
    """A PIL image, RGB, without pixels: it decodes its file when it is used. A few are kept: as
    many as have :data:`MOST_KEPT` pixels together, and one at least.

    Whoever draws on it gives it pixels of its own.

    Args:
        read: gives the encoded bytes.
        size: (width, height), after :func:`open_rgb`.
        key: the same for all objects that are the same picture.
    """

    def __init__(self, read: Callable[[], bytes], size: tuple[int, int], key: Hashable) -> None:
        super().__init__()
        self._read, self.key = read, key
        self._mode, self._size = "RGB", size
        self.readonly = 1  # PIL copies the pixels before it writes on them

    def decode(self) -> PIL.Image.Image:
        """The picture with its pixels: a plain PIL image that is not to be drawn on."""
        if self._im is not None:
            return self._new(self._im)
        image = _kept.pop(self.key, None)
        if image is None:
            image = open_rgb(self._read())
            n_pixels = sum(other.width * other.height for other in (image, *_kept.values()))
            for key, other in list(_kept.items()):  # the one that was not used for longest first
                if n_pixels <= MOST_KEPT:
                    break
                n_pixels -= other.width * other.height
                del _kept[key]
        _kept[self.key] = image
        return image

    @property
    def im(self):
        """PIL's pixels."""
        return self.decode().im if self._im is None else super().im

    @im.setter
    def im(self, pixels) -> None:
        self._im, self.key = pixels, object()  # drawn on, it is another picture

    def load(self):
        """PIL's access to single pixels."""
        return self.decode().load() if self._im is None else super().load()

    def __reduce__(self):  # a copy in another process has its pixels
        return PIL.Image.frombytes, (self.mode, self.size, self.tobytes())


def open_rgb(data: bytes) -> PIL.Image.Image:
    """Decode a picture file, turned upright as its EXIF data say, to RGB (:func:`as_rgb`).

    Raises:
        ValueError: see :func:`checked_size` and :func:`as_rgb`.
        OSError and others of PIL: the file is broken.
    """
    image = _opened(data)
    checked_size(image.size)
    image.load()
    return as_rgb(PIL.ImageOps.exif_transpose(image))


def decoded(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in RGB with its pixels: a :class:`Picture` as PIL image, others as :func:`as_rgb`.

    Raises:
        ValueError: see :func:`as_rgb`.
    """
    return as_rgb(image.decode() if isinstance(image, Picture) else image)


def readable_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture file that :func:`open_rgb` is sure to read: it was decoded.

    Raises:
        ValueError: with what is wrong with the file.
    """
    try:
        image = _opened(data)
        checked_size(image.size)
        if image.format not in ("JPEG", "MPO"):
            return open_rgb(data).size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = image.size[::-1] if turned else image.size
        image.draft(None, (1, 1))  # all bytes are read, and only an eighth of the pixels computed
        image.load()
        return size
    except Exception as error:
        # PIL raises OSError, SyntaxError, ValueError and more, by file format
        raise ValueError(
            "not an image" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        ) from error


def checked_size(size: tuple[int, int]) -> None:
    """Refuse a size that no portrait has and that processors cannot take, or take minutes for.

    Raises:
        ValueError: a side below :data:`MIN_SIDE`, more than :data:`MAX_PIXELS`, or a ratio of the
            sides above :data:`MAX_RATIO`.
    """
    short, long = sorted(size)
    if short < MIN_SIDE:
        raise ValueError(f"it has {size[0]} x {size[1]} pixels; each side needs {MIN_SIDE}")
    if short * long > MAX_PIXELS:
        raise ValueError(
            f"it has {size[0]} x {size[1]} pixels; {MAX_PIXELS:,} are the most that is decoded"
        )
    if long > MAX_RATIO * short:
        raise ValueError(
            f"it has {size[0]} x {size[1]} pixels; the long side may be {MAX_RATIO} times the "
            f"short one"
        )


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in RGB; the same object if it is.

    What is transparent becomes white, 16 bits become 8 by their full range, and of floats those
    from 0 to 1 are taken as black to white, those beyond as grey levels up to 255. Floats that end
    little above 1 may be either.

    Raises:
        ValueError: a mode whose range is not known: 32-bit integers, or floats outside 0 to 255 or
            that end between 1 and :data:`LEAST_GREY`.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in (*_SIXTEEN, "I", "F"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert(
            "RGB"
        )
    return image.convert("RGB")


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey levels of 16 bits or floats as 8 bits."""
    import numpy as np

    levels = np.asarray(image).astype(np.float64)
    lowest, highest = levels.min(), levels.max()
    # not with NaN
    if image.mode == "F" and 0 <= lowest and (highest <= 1 or LEAST_GREY <= highest <= 255):
        levels = levels * 255 if highest <= 1 else levels
    elif image.mode in _SIXTEEN or (
        image.mode == "I" and image.format == "PNG" and 0 <= lowest and highest < 1 << 16
    ):
        levels = levels / 257
    else:
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its pixels are {kind} from {lowest:g} to {highest:g}, whose black and white are not "
            f"known"
        )
    return PIL.Image.fromarray(levels.round().astype(np.uint8))


def _opened(data: bytes) -> PIL.Image.Image:
    """The file with its header read."""
    with warnings.catch_warnings():
        # checked_size refuses those
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        return PIL.Image.open(io.BytesIO(data))


def with_files_inside(rows: Dataset, *folders: Path) -> Dataset:
    """The rows with pictures that are files of the dataset put in; no other file is opened.

    A picture column may hold names of files in place of bytes, and ``datasets`` opens what it is
    told to, a file anywhere or an address. Names of files inside the folder are read here; any
    other is kept as a note and is no picture.
    """
    from datasets import Image, List

    def embedded(file):
        data, path = (
            (file.get("bytes"), file.get("path")) if isinstance(file, dict) else (file, None)
        )
        if isinstance(data, str):
            data, path = None, data
        if data or not path:
            return {"bytes": data, "path": None} if data else None
        for folder in folders:
            try:
                place = (folder / path).resolve()
                if place.is_relative_to(folders[0].resolve()) and place.is_file():
                    return {"bytes": place.read_bytes(), "path": None}
            except (OSError, ValueError):
                # no name that a file can have, or one that must not be read
                continue
        return {"bytes": b"", "path": f"not read: {path}"}

    for where in IMAGE_COLUMNS:
        if where not in rows.column_names or not _has_paths(rows.data.column(where)):
            continue
        rows = undecoded(rows, where)
        with no_dataset_bars():
            many = isinstance(rows.features[where], List)
            features = rows.features.copy() | {where: List(Image()) if many else Image()}

            def embed(row, where=where, many=many):
                return {
                    where: [embedded(file) for file in row[where] or []]
                    if many
                    else embedded(row[where])
                }

            rows = rows.map(embed, features=type(rows.features)(features))
    return rows


def undecoded(rows: Dataset, where: str) -> Dataset:
    """The rows with the pictures of a column as they are stored."""
    from datasets import Image, List

    feature, encoded = rows.features[where], Image(decode=False)
    with no_dataset_bars():
        if isinstance(feature, Image):
            return rows.cast_column(where, encoded)
        if isinstance(getattr(feature, "feature", None), Image):
            return rows.cast_column(where, List(encoded))
    return rows


def _has_paths(column) -> bool:
    """Whether the pictures of a ``pyarrow.ChunkedArray`` are names of files; none is read."""
    import pyarrow as pa
    from pyarrow import compute

    def names(array) -> bool:
        array = getattr(array, "storage", array)  # of an extension type
        if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            return names(array.flatten())
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            return array.null_count < len(array)
        if not pa.types.is_struct(array.type) or array.type.get_field_index("path") < 0:
            return False
        has_path = array.field("path").is_valid()
        if array.type.get_field_index("bytes") >= 0:
            has_path = compute.and_(has_path, array.field("bytes").is_null())
        return has_path.true_count > 0

    return any(names(chunk) for chunk in column.chunks)
