"""Archives made from folders, as users make them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as Pillow

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["normal", "effusion", "mass"]


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pack_tar(folder: Path, tar: Path, files: list[Path] | None = None) -> Path:
    """What GNU `tar --sort=name -cf TAR -C FOLDER .` writes."""
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for file in files_below(folder) if files is None else files:
            archive.add(file, arcname=f"./{file.relative_to(folder)}")
    return tar


def add_to_tar(tar: Path, **contents: bytes) -> Path:
    """Append members, as `tar -r` does; double underscores in names are dots."""
    with tarfile.open(tar, "a") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tar


def pack_parquet(folder: Path, parquet: Path, rows: int = 7, names: bool = True) -> Path:
    """A dataset as Hugging Face has it, in row groups of so many rows."""
    images = [
        {"bytes": file.read_bytes(), "path": str(file.relative_to(folder)) if names else None}
        for file in files_below(folder)
        if file.suffix not in (".json", ".cls")
    ]
    table = pa.table({"image": pa.array(images, STRUCT), "label": list(range(len(images)))})
    pq.write_table(table, parquet, row_group_size=rows)
    return parquet


def described(**features):
    """The metadata that Hugging Face's datasets write."""
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


CLASSES = described(image={"_type": "Image"}, label={"names": NAMES, "_type": "ClassLabel"})


def pack_labelled(file, labels, metadata=CLASSES, column="label", bright=None, **columns):
    """A Parquet file of so many small images, the brighter the higher their label."""
    rng = np.random.default_rng(len(labels))
    images = []
    for number, label in enumerate(labels):
        level = bright[number] if bright else 60 * (label or 0)
        pixels = (rng.integers(0, 40, (16, 16)) + level).astype(np.uint8)
        stream = io.BytesIO()
        Pillow.fromarray(pixels).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": f"{number}.png"})
    table = pa.table({"image": pa.array(images, STRUCT), column: labels, **columns})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=4)
    return file
