"""Do damaged files ever crash, hang or swell the readers?

    python benchmarks/fuzz_readers.py [--files 2000] [--seed 0] [--only nrrd mha] [--keep FOLDER]

Makes that many damaged DICOM, NIfTI, NRRD, MetaImage, MGH, PNG, JPEG, TIFF and .npy files (cut off,
bits flipped, sizes lied about, pieces moved) and some decompression bombs, and reads each in a
process that is watched: it must give an image or a reason within 5 s and 1 GB. Exit status 1 if one
does not.
"""

import argparse
import sys
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.data.readers.fuzzing import BOMBS, mutants
from tests.data.watched import Outcome, Watched


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="suffixes of the files")
    parser.add_argument("--keep", type=Path, help="folder to keep bad files in")
    arguments = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    reader = Watched()
    with tempfile.TemporaryDirectory() as folder:
        bombs = ((name, make()) for name, make in BOMBS.items())
        for name, content in chain(bombs, mutants(arguments.files, arguments.seed, arguments.only)):
            path = Path(folder, name)
            path.write_bytes(content)
            outcomes[name] = reader.read(path)
            if not outcomes[name].is_good:
                print(f"BAD  {name}: {outcomes[name]}", flush=True)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / name).write_bytes(content)
            path.unlink()
    reader.close()
    return report(outcomes)


def report(outcomes: dict[str, Outcome]) -> int:
    """Print the table; 1 if a file was bad."""
    print(
        f"\n{'format':<8}{'files':>7}{'images':>8}{'refused':>9}{'bad':>5}{'max s':>8}{'max MB':>8}"
    )
    kinds = sorted({Path(name).suffix for name in outcomes})
    for kind in kinds:
        found = [outcome for name, outcome in outcomes.items() if Path(name).suffix == kind]
        counts = Counter(outcome.kind.split(":")[0] for outcome in found)
        bad = sum(not outcome.is_good for outcome in found)
        print(
            f"{kind[1:]:<8}{len(found):>7,}{counts['image']:>8,}{counts['unreadable']:>9,}{bad:>5}"
            f"{max(outcome.seconds for outcome in found):>8.2f}"
            f"{max(outcome.growth for outcome in found) / 2**20:>8.0f}"
        )
    bad = sum(not outcome.is_good for outcome in outcomes.values())
    print(f"\n{len(outcomes):,} files, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
