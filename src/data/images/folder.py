"""Image folders: found, decoded in parallel, made one size and packed."""

import os
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from src.data.cache import files_in
from src.data.images.clean import Samples, at_least_two
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
    path: Path
    class_name: str  # empty if unknown
    size: Size = (0, 0)
    is_grey: bool = False


Files = dict[str, list[File]]  # of each split


def read(
    folder: Path, image_size: Size | None, cache_dir: Path, cleaning: Cleaning, known: Sequence[str] = ()
) -> tuple[dict[str, Samples], list[str]]:
    """The images of `folder/SPLIT/CLASS/` or `folder/CLASS/`, and the names of the classes. For a trained model also
    those of a folder without its classes, or one file: a test split whose targets are -1.

    Args:
        image_size: shorter sides are resized to it, and the centre is taken; by default see `choose_size`.
        cache_dir: decoded images lie there in files without a name until they are packed.
        known: the classes of a trained model, for which there need be no train split, and not all of them.

    Raises:
        DataError: there is no such layout, or a file that cannot be used.
    """
    root = find_root(folder, cleaning, bool(known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of files that can be read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        files = list_files(root, cleaning, known)
        class_names = list(known) or sorted({file.class_name for file in files["train"]})
        if bad := [n for name in class_names if (n := os.fsencode(name).decode(errors="replace")) != name]:
            raise DataError(f"{root}: the name of class folder {bad[0]} is not UTF-8 -> rename it")
        at_least_two(class_names)
        files = {split: known_classes(split, found, class_names, cleaning) for split, found in files.items()}
        for split, found in files.items():
            heads = readable(split, found, header, cleaning)
            files[split] = [file._replace(size=size, is_grey=is_grey) for file, (size, is_grey) in heads]
        cleaning.check_limit()
        arrays = pack_all(files, image_size, cache_dir, cleaning)
    samples = {}
    for split, x in arrays.items():
        names = [file.class_name for file in files[split]]
        targets = np.array([class_names.index(name) if name else -1 for name in names], np.int64)
        samples[split] = Samples(x, targets, [cleaning.name(file.path) for file in files[split]])
    return samples, class_names


def find_root(folder: Path, cleaning: Cleaning, takes_file: bool) -> Path:
    """What holds splits or classes: the given folder, or one that is alone in it; or the given file."""
    if takes_file and folder.is_file():
        cleaning.root = folder.parent
        return folder
    if not folder.is_dir():
        raise DataError(f"data.data_dir: {folder} is no folder -> name one of images in CLASS/ or train/CLASS/")
    while len(inner := subfolders(folder)) == 1 and subfolders(inner[0]) and inner[0].name.lower() not in SPLIT_NAMES:
        cleaning.root = folder
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                cleaning.came_in += 1
                cleaning.skip("", path, "in no class folder", f"move it to its class in {inner[0].name}")
        folder = inner[0]
    cleaning.root = folder
    return folder


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


def list_files(root: Path, cleaning: Cleaning, known: Sequence[str] = ()) -> Files:
    """The image files of each split with their classes."""
    unlabelled = known and not any(p.name in known or p.name.lower() in SPLIT_NAMES for p in subfolders(root))
    folders = {"test": root} if unlabelled else split_folders(root, trains=not known)
    out: Files = {split: [] for split in folders}
    for split, folder in folders.items():
        files, others = files_in(folder), {}  # first part of the path -> a file there that is no image by its name
        cleaning.came_in += len(files)
        for path in files:
            parts = path.relative_to(folder).parts or (path.name,)
            if any(part.startswith((".", "__MACOSX")) for part in parts):
                cleaning.ignore(split, path, "hidden file")
            elif path.suffix.lower() not in SUFFIXES + OTHERS * (len(parts) > 1):
                cleaning.ignore(split, path, "no image by its name")
                others[parts[0]] = path
            elif len(parts) == 1 and not unlabelled:
                cleaning.skip(split, path, "in no class folder", "move it into the folder of its class")
            else:
                out[split].append(File(path, "" if unlabelled else parts[0]))
        if not unlabelled:
            note_empty_classes(folder, {file.class_name for file in out[split]}, others, cleaning)
    if known and not any(out.values()):
        raise DataError(f"{root}: no image is in it, nor in folders there -> name a folder with images")
    if not known and not out["train"]:
        raise DataError(f"{root}: no image is in a class folder -> put images into CLASS/ or train/CLASS/")
    return out


def note_empty_classes(folder: Path, used: set[str], others: dict[str, Path], cleaning: Cleaning) -> None:
    """Raises DataError where a class folder has files, but none that is an image by its name."""
    for empty in sorted({p.name for p in subfolders(folder)} - used):
        if empty in others:
            raise DataError(f"{folder / empty}: no image in it, but {others[empty].name} -> add some, or take it out")
        cleaning.notes.append(
            f"class folder {(folder / empty).relative_to(cleaning.root)}/ has no images and is left out"
        )


def known_classes(split: str, files: list[File], class_names: list[str], cleaning: Cleaning) -> list[File]:
    known = {"", *class_names}
    for file in files:
        if file.class_name not in known:
            reason = f"class not in train: {file.class_name}"
            cleaning.skip(split, file.path, reason, "take it out, or train with samples of it")
    return [file for file in files if file.class_name in known]


def common_shape(files: Files, image_size: Size | None, cleaning: Cleaning) -> tuple[Shape, str]:
    """What all images are made: one channel if all are grey, and one size; and what to tell of it."""
    found = [file for split in files.values() for file in split]
    if not found:
        raise DataError(f"{cleaning.root}: no image can be read -> see {cleaning.skipped[0]}")
    size, note = choose_size([file.size for file in found]) if image_size is None else (image_size, "")
    return (1 if all(file.is_grey for file in found) else 3, *size), note


def choose_size(sizes: Sequence[Size]) -> tuple[Size, str]:
    """The common size if there is one of at most 224 pixels a side, else squares of the median shorter side, or 224."""
    kinds = Counter(sizes)
    if len(kinds) == 1 and max(sizes[0]) <= MAX_SIDE:
        return sizes[0], ""
    side = min(MAX_SIDE, int(statistics.median(min(size) for size in sizes)))
    what = f"images of {len(kinds):,} sizes" if len(kinds) > 1 else f"images of {sizes[0][0]}x{sizes[0][1]} pixels"
    return (side, side), f"{what} are made {side}x{side}; data.image_size sets another size"


def pack_all(files: Files, image_size: Size | None, cache_dir: Path, cleaning: Cleaning) -> dict[str, np.ndarray]:
    """The images of each split, all of one shape; files that cannot be decoded are taken out of `files`."""
    shape, (wanted, note) = None, common_shape(files, image_size, cleaning)
    while wanted != shape:  # again where a file that could not be decoded had its say in the size
        shape, out = wanted, {}
        for split in files:
            images = readable(split, files[split], partial(decode, shape=shape), cleaning)
            out[split], files[split] = pack(split, images, shape, cache_dir, cleaning)
        wanted, note = common_shape(files, image_size, cleaning)
    cleaning.notes += [note] if note else []
    return out


def pack(
    split: str, decoded: Iterable[tuple[File, np.ndarray]], shape: Shape, cache_dir: Path, cleaning: Cleaning
) -> tuple[np.ndarray, list[File]]:
    """Decoded images [N, *shape], kept in a file without a name, and which files they are of."""
    used = []
    with tempfile.TemporaryFile(dir=cache_dir) as target:
        for file, image in decoded:
            target.write(image.tobytes())
            used.append(file)
        if not used:
            raise DataError(f"{cleaning.root}: the {split} split has no image that can be read -> give it images")
        target.flush()
        return np.memmap(target, np.uint8, "r", shape=(len(used), *shape)), used


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
                    cleaning.skip(split, file.path, reason(error, file.path), "replace or delete it")
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


def decode(path: Path, shape: Shape) -> np.ndarray:
    """uint8 of that shape: the first frame, turned as its EXIF says, on white where it is transparent."""
    channels, *size = shape
    with Image.open(path, formats=FORMATS) as image:
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
