"""Speed and memory of `maskbridge convert`, as ratios to the floor: decoding, hashing and linking the files once.

    MASKBRIDGE_DATA=path/to/data python benchmarks/convert.py [--source mvtec_ad/bottle] [--repeat 5]

Without MASKBRIDGE_DATA the made-up sample is used, enlarged by copies. Floor and conversion are interleaved, each
round in fresh processes; the median ratio is printed. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from converters.mvtec import read
from maskbridge import geometry, masks
from maskbridge.binarisation import mask_values
from maskbridge.dataset import Dataset
from maskbridge.files import link_file, sha256_file
from maskbridge.sample import make_sample

CHILD = "--child"


def floor(source: Path, out: Path) -> None:
    """Decode every image and mask once, hash and link the images; one worker."""
    cv2.setNumThreads(1)
    for image in read(source)[0].images:
        cv2.imread(str(image.path))
        sha256_file(image.path)
        link_file(image.path, out / image.file_name, "hard")
        if image.mask is not None:
            cv2.imread(str(image.mask))


def conversion(source: Path, out: Path, workers: int) -> None:
    """A whole conversion."""
    from maskbridge.convert import ConvertOptions, convert

    convert("mvtec", source, out, ConvertOptions(workers=workers))


def mask_path(source: Path) -> tuple[float, float]:
    """Seconds to decode all masks with `cv2.imread`, and to take them from file to RLE; best of five, interleaved."""
    cv2.setNumThreads(1)
    paths = [image.mask for image in read(source)[0].images if image.mask is not None]
    decode, whole = [], []
    for _ in range(5):
        start = time.perf_counter()
        for path in paths:
            cv2.imread(str(path))
        middle = time.perf_counter()
        for path in paths:
            mask = masks.read_mask(path)
            mask_values(mask)
            geometry.instances(mask)
        decode.append(middle - start)
        whole.append(time.perf_counter() - middle)
    return min(decode), min(whole)


def timed(kind: str, source: Path, workers: int = 1) -> tuple[float, float]:
    """Run a part in a fresh process: seconds inside it, peak memory in MiB."""
    out = Path(tempfile.mkdtemp(dir=source.parent if os.access(source.parent, os.W_OK) else None, prefix="bench-"))
    try:
        command = [sys.executable, __file__, CHILD, kind, str(source), str(out / "out"), str(workers)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, peak = json.loads(answer.stdout.splitlines()[-1])
        return seconds, peak
    finally:
        shutil.rmtree(out)


def child(kind: str, source: str, out: str, workers: str) -> None:
    start = time.perf_counter()
    if kind == "floor":
        floor(Path(source), Path(out))
    else:
        conversion(Path(source), Path(out), int(workers))
    print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def repeated(source: Path, out: Path, times: int) -> Path:
    """The source several times over, each copy with other pixels in one corner."""
    for image in read(source)[0].images:
        pixels = cv2.imread(str(image.path), cv2.IMREAD_UNCHANGED)
        for copy in range(times):
            target = out / image.part / image.defect_type / f"{image.path.stem}_{copy}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shifted = np.roll(pixels, copy * 7, axis=1)
            cv2.imwrite(str(target), shifted)
            if image.mask is not None:
                mask = out / "ground_truth" / image.defect_type / f"{image.path.stem}_{copy}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(mask), np.roll(cv2.imread(str(image.mask), cv2.IMREAD_UNCHANGED), copy * 7, axis=1))
    return out


def peer(source: Path, folder: Path) -> None:
    """Ultralytics' own mask converter on the same masks: instances kept by each."""
    try:
        os.environ.update(YOLO_CONFIG_DIR=str(folder / "settings"), YOLO_OFFLINE="true", YOLO_VERBOSE="false")
        from ultralytics.data.converter import convert_segment_masks_to_yolo_seg
    except ImportError:
        print("Ultralytics is not installed: no peer")
        return
    images = [image for image in read(source)[0].images if image.mask is not None]
    raw, ones, labels_raw, labels = (folder / name for name in ("raw", "ones", "labels-raw", "labels"))
    for path in (raw, ones, labels_raw, labels):
        path.mkdir()
    for number, image in enumerate(images):
        mask = masks.read_mask(image.mask)
        cv2.imwrite(str(raw / f"{number}.png"), (mask > 0).astype(np.uint8) * 255)
        cv2.imwrite(str(ones / f"{number}.png"), (mask > 0).astype(np.uint8))
    convert_segment_masks_to_yolo_seg(str(raw), str(labels_raw), classes=1)
    start = time.perf_counter()
    convert_segment_masks_to_yolo_seg(str(ones), str(labels), classes=1)
    seconds = time.perf_counter() - start
    conversion(source, folder / "dataset", 1)
    kept = len(Dataset.open(folder / "dataset").annotations)
    theirs = sum(len(path.read_text().splitlines()) for path in labels.glob("*.txt"))
    theirs_raw = sum(len(path.read_text().splitlines()) for path in labels_raw.glob("*.txt"))
    components = sum(geometry.component_count(masks.read_mask(image.mask)) for image in images)
    print(f"instances in {len(images)} masks: {components} components")
    print(f"  maskbridge                              {kept} kept, {components - kept} lost")
    print(f"  Ultralytics, masks 0/255, classes=1     {theirs_raw} kept, {components - theirs_raw} lost")
    print(f"  Ultralytics, masks 0/1,   classes=1     {theirs} kept, {components - theirs} lost ({seconds:.2f} s)")


def main() -> None:
    if CHILD in sys.argv:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="mvtec_ad/bottle", help="category below MASKBRIDGE_DATA")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--times", type=int, default=4, help="how often the source is repeated for the larger set")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maskbridge-bench-") as name:
        folder = Path(name)
        data = os.environ.get("MASKBRIDGE_DATA")
        if data:
            original = Path(data) / arguments.source
        else:
            make_sample(folder / "plate")
            original = folder / "plate"
        source = folder / "source"
        shutil.copytree(original, source)
        print(f"{original.name}: {len(read(source)[0].images)} images, {os.cpu_count()} cores")
        decode, whole = mask_path(source)
        print(f"mask path, decode to RLE: {whole / decode:.2f} x decoding the masks ({whole:.3f} s / {decode:.3f} s)")
        rounds = [(timed("floor", source), timed("convert", source)) for _ in range(arguments.repeat)]
        ratios = [ours[0] / theirs[0] for theirs, ours in rounds]
        print(
            f"convert, 1 worker: {statistics.median(ratios):.2f} x the floor "
            f"(from {min(ratios):.2f} to {max(ratios):.2f}; floor {statistics.median(f[0] for f, _ in rounds):.2f} s)"
        )
        large = repeated(source, folder / "large", arguments.times)
        pairs = [(timed("convert", large, 1), timed("convert", large, 2)) for _ in range(3)]
        gains = [one[0] / two[0] for one, two in pairs]
        one = pairs[0][0]
        print(
            f"{arguments.times} x as many images: 1 worker {one[0]:.1f} s; 2 workers are "
            f"{statistics.median(gains):.2f} x faster (from {min(gains):.2f} to {max(gains):.2f})"
        )
        print(
            f"peak memory, 1 worker: {rounds[0][1][1]:.0f} MiB, with {arguments.times} x the images {one[1]:.0f} MiB; "
            f"floor {rounds[0][0][1]:.0f} MiB"
        )
        peer(source, folder)


if __name__ == "__main__":
    main()
