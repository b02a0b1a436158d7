"""Real medical images inside the package, so that a first run needs no download.

Their licences are not the code's: see LICENSE.md and ATTRIBUTION.md in this folder.
"""

from pathlib import Path


def demo_folder() -> Path:
    """The folder with the demo's images: 2,400 chest films (``films``), two MR slices (``mri``)."""
    return Path(__file__).parent


def demo_labels() -> Path:
    """The CSV file that labels the films: path, label, subtype, patient, split.

    ``label`` is normal or pneumonia, ``subtype`` normal, bacteria or virus. No patient is in
    both splits.
    """
    return demo_folder() / "manifest.csv"
