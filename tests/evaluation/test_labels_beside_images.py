"""Labels in a column beside the images are taken by every command that takes labels."""

import json

import pyarrow.parquet as pq

from dino_x.cli import main
from dino_x.data.index.index import build_index
from dino_x.data.index.labels import label_of
from tests.data.packing import NAMES, pack_labelled


def test_an_evaluation_and_an_index_take_them(tmp_path, tiny_model, capsys):
    for split, count in (("train", 24), ("test", 12)):
        pack_labelled(tmp_path / f"{split}-00000.parquet", [0, 1, 2] * (count // 3))
    out = tmp_path / "evaluation.json"
    data = ["--data", str(tmp_path), "--labels", "column"]
    assert main(["evaluate", "--model", str(tiny_model), *data, "--tasks", "linear", "--out",
                 str(out)]) == 0  # fmt: skip
    result = json.loads(out.read_text())
    assert result["counts"]["test"] == {"effusion": 4, "mass": 4, "normal": 4}
    pixels = result["results"]["pixels"]["linear"]["all"]["balanced_accuracy"]
    assert pixels["value"] == 1.0  # each label is as bright as it should be
    index = tmp_path / "index.parquet"
    assert main(["index", str(tmp_path), "--labels", "column", "--out", str(index)]) == 0
    rows = pq.read_table(index, columns=["path", "label"]).to_pylist()
    assert {row["label"] for row in rows if "test" in row["path"]} == set(NAMES)
    files = [ref.path for ref in build_index([index]).rows]
    assert len(label_of("column", files, data_paths=[index])) == 36
