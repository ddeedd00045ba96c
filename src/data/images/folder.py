"""Image folders: found, decoded in parallel, made one size and packed."""

import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from src.data.cache import files_in
from src.data.images.samples import Samples
from src.data.report import Cleaning
from src.run.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
OTHERS = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".ico", "")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # what a file may hold, whatever its name
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
GREY = ("1", "L", "LA", "La", "I")
MAX_SIDE = 224  # of images whose size the config leaves open
CHUNK = 512  # images decoded before they are written

Size = tuple[int, int]  # height, width
Shape = tuple[int, int, int]  # channels, height, width


class File(NamedTuple):
    path: Any  # or an image itself
    class_name: str  # empty if unknown


def read(
    root: Path, image_size: Size | None, cache_dir: Path, cleaning: Cleaning, known: Sequence[str] = ()
) -> tuple[dict[str, Samples], list[str]]:
    """The images of `root/SPLIT/CLASS/` or `root/CLASS/`, and the names of the classes. For a trained model also
    those of a folder without its classes, or one file: a test split whose targets are -1.

    Args:
        image_size: shorter sides are resized to it, and the centre is taken; by default see `choose_size`.
        cache_dir: decoded images lie there in files without a name until they are packed.
        known: the classes of a trained model, for which there need be no train split, and not all of them.
    """
    if not root.is_dir() and not (known and root.is_file()):
        raise DataError(f"data.data_dir: {root} is no folder -> name one of images in CLASS/ or train/CLASS/")
    cleaning.root = root if root.is_dir() else root.parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of files that can be read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        files = list_files(root, cleaning, known)
        class_names = list(known) or sorted({file.class_name for file in files["train"]})
        heads = {}
        for split, found in files.items():
            usable = [file for file in found if has_class(split, file, class_names, cleaning)]
            heads[split] = dict(readable(split, usable, header, cleaning))
        cleaning.check()  # before what takes long
        shape = common_shape([head for found in heads.values() for head in found.values()], image_size, cleaning)
        samples = {split: pack(split, list(heads[split]), shape, class_names, cache_dir, cleaning) for split in files}
    return samples, class_names


def list_files(root: Path, cleaning: Cleaning, known: Sequence[str] = ()) -> dict[str, list[File]]:
    """The image files of each split with their classes."""
    unlabelled = known and not any(p.name in known or p.name.lower() in SPLIT_NAMES for p in subfolders(root))
    folders = {"test": root} if unlabelled else split_folders(root, trains=not known)
    out: dict[str, list[File]] = {split: [] for split in folders}
    others = []
    for split, folder in folders.items():
        for path in files_in(folder):
            parts = path.relative_to(folder).parts or (path.name,)
            hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
            if hidden or path.suffix.lower() not in SUFFIXES + OTHERS * (len(parts) > 1):
                others.append(path)
            elif len(parts) == 1 and not unlabelled:
                cleaning.skip(split, path, "in no class folder", "move it into the folder of its class")
            else:
                out[split].append(File(path, "" if unlabelled else parts[0]))
    cleaning.came_in = sum(map(len, out.values())) + cleaning.skipped
    cleaning.note_others(others)
    if not (any(out.values()) if known else out["train"]):
        where = "no image is in it, nor in a class folder there"
        raise DataError(f"{root}: {where} -> put images into CLASS/ or train/CLASS/")
    return out


def subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def split_folders(root: Path, trains: bool) -> dict[str, Path]:
    """Split -> its folder; a root without splits holds the classes themselves."""
    splits: dict[str, Path] = {}
    others = []
    for path in subfolders(root):
        split = SPLIT_NAMES.get(path.name.lower())
        if split in splits:
            raise DataError(f"{path}: {splits[split]} is {split} already -> put all of it into one of them")
        if split:
            splits[split] = path
        else:
            others.append(path)
    if not splits:
        return {"train": root}
    if "train" not in splits and trains:
        raise DataError(f"{root}: there is {', '.join(splits)} but no train -> add it, or name classes only")
    if others:
        raise DataError(f"{others[0]}: stands beside train, val or test, but is none -> move or rename it")
    return splits


def has_class(split: str, file: File, class_names: list[str], cleaning: Cleaning) -> bool:
    known = file.class_name in ("", *class_names)
    if not known:
        reason = f"class not in train: {file.class_name}"
        cleaning.skip(split, file.path, reason, "take it out, or train with samples of it")
    return known


def common_shape(heads: list[tuple[Size, bool]], image_size: Size | None, cleaning: Cleaning) -> Shape:
    """What all images are made: one channel if all are grey, and one size: the given one, or their own if they have
    one of at most 224 pixels a side, else squares of the median shorter side, or 224."""
    if not heads:
        raise DataError(f"{cleaning.root}: no image can be read -> see {cleaning.first}")
    sizes, is_grey = [size for size, _ in heads], all(is_grey for _, is_grey in heads)
    size = image_size or sizes[0]
    if image_size is None and (len(set(sizes)) > 1 or max(size) > MAX_SIDE):
        side = min(MAX_SIDE, int(statistics.median(map(min, sizes))))
        size, kinds = (side, side), f"{len(set(sizes)):,} size{'s' * (len(set(sizes)) > 1)}"
        cleaning.notes.append(f"images of {kinds} are made {side}x{side}; data.image_size sets another size")
    return (1 if is_grey else 3, *size)


def pack(
    split: str, files: list[File], shape: Shape, class_names: list[str], cache_dir: Path, cleaning: Cleaning
) -> Samples:
    """The files that can be decoded, all of one shape; they are kept in a file without a name."""
    targets, names = [], []
    with tempfile.TemporaryFile(dir=cache_dir) as target:
        for file, image in readable(split, files, partial(decode, shape=shape), cleaning):
            target.write(image.tobytes())
            targets.append(class_names.index(file.class_name) if file.class_name else -1)
            names.append(str(file.path.relative_to(cleaning.root)))
        if not names:
            raise DataError(f"{cleaning.root}: the {split} split has no image that can be read -> give it images")
        target.flush()
        return Samples(np.memmap(target, np.uint8, "r", shape=(len(names), *shape)), np.array(targets, np.int64), names)


def given_images(raw: Any) -> Iterator[File]:
    """Of a file, a folder, an array uint8 [H, W], [N, H, W] or [N, H, W, C], a list, or standard input (`-`: a file in
    each line), each with its name in place of a class."""
    if isinstance(raw, (list, tuple)):
        yield from (File(file.path, str(i)) for i, one in enumerate(raw) for file in given_images(one))
    elif isinstance(raw, (str, Path)):
        paths = (Path(line.strip()) for line in sys.stdin) if str(raw) == "-" else files_in(Path(raw)) or [Path(raw)]
        yield from (File(p, str(p)) for p in paths if str(raw) in ("-", str(p)) or p.suffix.lower() in SUFFIXES)
    elif (array := np.asarray(raw)).dtype == np.uint8 and 2 <= array.ndim <= 4:
        images = array[None] if array.ndim == 2 else array[..., 0] if array.shape[3:] == (1,) else array
        yield from (File(image, str(i)) for i, image in enumerate(images))
    else:
        what = f"{type(raw).__name__} of {array.dtype} {list(array.shape)} is no image"
        raise DataError(f"{what} -> give files, or uint8 [N, H, W] or [N, H, W, C]; (x * 255).round() if it is 0 to 1")


def readable(
    split: str, files: list[File], act: Callable[[Path], Any], cleaning: Cleaning
) -> Iterator[tuple[File, Any]]:
    """Files with `act(path)`, without those at which it fails; in parallel, as PIL decodes without Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            results = [pool.submit(act, file.path) for file in part]
            for file, result in zip(part, results, strict=True):
                if error := result.exception():  # PIL's readers raise a dozen kinds at broken files
                    name = file.path if split else file.class_name
                    cleaning.skip(split, name, reason(error, file.path), "replace or delete it")
                else:
                    yield file, result.result()


def reason(e: BaseException, path: Path) -> str:
    if isinstance(e, Image.UnidentifiedImageError):
        return f"unreadable: {'not an image of ' + ', '.join(FORMATS) if path.stat().st_size else 'it is empty'}"
    return f"unreadable: {str(e) or type(e).__name__}".split("\n")[0]


def header(path: Path) -> tuple[Size, bool]:
    """Size as it will be shown, and whether the image is grey; nothing is decoded."""
    with Image.open(path, formats=FORMATS) as image:
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # PIL makes it 16 bits of a PPM
            raise ValueError("its pixels are 32-bit numbers of unknown range")
        turned = "exif" in image.info and image.getexif().get(0x0112, 1) >= 5
        size = image.size if turned else image.size[::-1]
        return size, image.mode in GREY or image.mode.startswith("I;16")


def decode(given: Path | np.ndarray, shape: Shape) -> np.ndarray:
    """uint8 of that shape: the first frame, turned as its EXIF says, on white where it is transparent."""
    channels, *size = shape
    with Image.open(given, formats=FORMATS) if isinstance(given, Path) else Image.fromarray(given) as image:
        image.draft(None, (2 * max(size), 2 * max(size)))  # JPEG alone: large photos are decoded at a fraction
        shown = eight_bit(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    if shown.size != (size[1], size[0]):
        shown = ImageOps.fit(shown, (size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(shown)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip 16 bits at 255
        return Image.fromarray(((np.asarray(image).astype(np.int32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
