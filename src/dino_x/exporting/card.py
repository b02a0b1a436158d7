"""The model card that goes with an exported model: README.md, as model hubs show it.

Nothing of a patient and no path is in it: metrics, settings and names of models alone.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dino_x.config.presets import nested
from dino_x.data.image import DEFAULT, Reading
from dino_x.evaluation.backbone import LoadedModel
from dino_x.files import last_part
from dino_x.model.pretrained import Preparation, StepOfRun, split_name
from dino_x.runs.environment import in_a_line
from dino_x.runs.evaluation_file import read_evaluation
from dino_x.runs.folder import CONFIG, RunFolder, run_of
from dino_x.runs.origin import read_origin
from dino_x.version import __version__

PRIVATE = ("data.paths", "data.labels", "data.where", "data.index", "data.cache")  # stay here
DINOV3 = "dinov3"
DINOV3_LICENSE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
METAS_DINOV3 = (
    "**They began with Meta's DINOv3 weights, which are under the DINOv3 License"
    f" ({DINOV3_LICENSE}). Weights that were trained on from them inherit it**: pass the"
    " licence on with them, and keep to it."
)
LIKE_DINOV3 = (
    "What they began with has the architecture of DINOv3. If it came from Meta's DINOv3"
    f" weights, the DINOv3 License ({DINOV3_LICENSE}) counts for these too: continued"
    " weights inherit it."
)
USE = {
    "transformers": """from PIL import Image
from transformers import AutoImageProcessor, AutoModel

image = Image.open("image.png"){converted}
processor = AutoImageProcessor.from_pretrained("{folder}")
backbone = AutoModel.from_pretrained("{folder}")
features = backbone(**processor(image, return_tensors="pt")).pooler_output""",
    "timm": """import timm

backbone = timm.create_model("local-dir:{folder}", pretrained=True)
features = backbone(images)  # CLS, of images normalised as below""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
cls, patches = session.run(None, {{"pixel_values": images}})  # normalised as below, float32""",
}
# Images that are no 8-bit pictures: their windows, and neighbours in 2.5D, are ours to prepare.
USE_OURS = """import dino_x

model = dino_x.load("{folder}")
features = model.embed("FOLDER OF IMAGES").cls"""

NOT_EVALUATED = "None was made: a metric by `dino-x evaluate` with your labels belongs here."


def write_card(
    source: Path, folder: Path, format_: str, name: str, backbone: LoadedModel, worst: float
) -> None:
    """README.md of an exported model.

    Args:
        source: the RUN, or another model, about which less is known.
        folder: where the export is made.
        format_: transformers, timm or onnx.
        name: what the folder is going to be called.
        backbone: what was exported.
        worst: the largest difference that reading it back showed.
    """
    run, at_step = run_of(source), split_name(source)
    settings = run.settings() if run.exists else {}
    chain = read_origin(run) if run.exists else [itself(source, backbone)]
    tag, licence = licence_notes(chain)
    title = run.path.resolve().name if run.exists or source.exists() else str(source)
    command = shlex.join(
        ["dino-x", "export", title, "--to", name, "--format", format_, *flags_of(at_step)]
    )
    parts = [
        f"---\nlibrary_name: {format_}\nlicense: {tag}\ntags: [self-supervised, medical-imaging,"
        " image-feature-extraction]\n---",
        f"# {name}",
        network(backbone),
        f"## Use\n\n```python\n{use(format_, backbone.preparation).format(folder=name)}\n```",
        images(backbone),
        "## Trained on",
        data_summary(run, settings),
        "## Evaluation",
        evaluation(run) if at_step is None else NOT_EVALUATED,
        "## Where the weights come from, and licences",
        licence,
        f"## How it was made\n\n{made_with(run)}",
        f"```\n{training_command(title, settings)}{command}\n```",
        f"The export was read back: its features differ from those of the run by {worst:.1g} at"
        " most, relative to the largest.",
    ]
    if settings:
        parts.append(f"{CONFIG}:\n\n```yaml\n{public(settings, chain)}```")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def made_with(run: RunFolder) -> str:
    """What the run was started with, and what exported it; no host and no path."""
    trained = in_a_line(run.environment)
    exported = f"Exported by dino-x {__version__}:"
    return f"Trained with {trained}. {exported}" if trained else exported


def use(format_: str, preparation: Preparation) -> str:
    """The code that gets features, for the images that the model was trained on."""
    if format_ == "transformers" and not preparation.plain:
        return USE_OURS
    grey, colours = '.convert("L")', '.convert("RGB")'
    if preparation.channels == 1:
        converted = grey
    elif preparation.grey:
        converted = grey + colours
    else:
        converted = colours
    return USE[format_].replace("{converted}", converted)


def flags_of(at_step: StepOfRun | None) -> list[str]:
    """The flags of ``dino-x export`` that name a step of a run."""
    if at_step is None:
        return []
    which = ["--which", "student"] if at_step.student else []
    return ["--step", str(at_step.step), *which]


def itself(source: Path, backbone: LoadedModel) -> dict[str, Any]:
    """A model that is no RUN, as the one link of its chain."""
    kind, name = "hub", str(source)
    if source.exists():
        kind = "file" if source.is_file() else "folder"
        name = source.resolve().name
    return {"kind": kind, "name": name, "architecture": backbone.config.model_type}


def training_command(title: str, settings: dict[str, Any]) -> str:
    """The line that repeats the run, or nothing if there is none."""
    if not settings:
        return ""
    return f"dino-x pretrain --config {CONFIG} --data FOLDER --out {title}\n"


def network(backbone: LoadedModel) -> str:
    """One sentence on architecture and size."""
    config = backbone.config
    parameters = sum(weight.numel() for weight in backbone.model.parameters()) / 1e6
    return (
        f"A vision backbone, pretrained without labels: `{config.model_type}`,"
        f" {config.num_hidden_layers} layers of {config.hidden_size} features, patches of"
        f" {config.patch_size} px, {parameters:.1f} M parameters. It is for research, and no"
        " medical device."
    )


def images(backbone: LoadedModel) -> str:
    """How the network wants its images."""
    p = backbone.preparation
    mean = ", ".join(f"{value:.4g}" for value in p.mean)
    std = ", ".join(f"{value:.4g}" for value in p.std)
    text = (
        f"Images: {p.channels} channel{'s' * (p.channels > 1)}, {p.image_size} x {p.image_size} px,"
        f" windowed to [0, 1], then minus mean ({mean}), divided by std ({std})."
    )
    if p.slices == 3:
        text += " The three channels are a slice and its two neighbours (2.5D)."
    if p.grey:
        text += " The three channels are equal: an image with colours becomes grey first."
    text += reading(p.reading)
    if not p.plain:
        text += (
            " They were no 8-bit pictures, so how their values are windowed matters: let `dino_x`"
            " prepare them (`dino_x.load(...).embed(...)`). `AutoImageProcessor` refuses this"
            " folder, as it would saturate 16-bit images in silence."
        )
    return text


def reading(said: Reading) -> str:
    """What the run was told of files that do not say it themselves; empty if nothing."""
    told = []
    if said.modality is not None:
        told.append(f"files that name no modality are {said.modality} (`data.modality`)")
    if said.slice_axis != DEFAULT.slice_axis:
        told.append(f"volumes are cut into {said.slice_axis} slices (`data.slice_axis`)")
    if said.axes is not None:
        told.append(f"arrays that do not name their axes are {said.axes} (`data.axes`)")
    return f" As the run was told, {', and '.join(told)}: `dino_x` does so again." if told else ""


def data_summary(run: RunFolder, settings: dict[str, Any]) -> str:
    """How many images for how many steps, without a name or a path."""
    if not settings:
        return "Not known: this is no RUN of dino-x."
    images = run.read_facts().get("images")
    counted = "not counted" if images is None else f"{images:,}"
    held_out = ""
    if settings.get("data.labels"):
        left = "left out" if settings.get("data.hold_out") else "not left out"
        held_out = f"; those that the evaluation below tests on were {left}"
    steps, batch = settings["train.steps"], settings["train.effective_batch"]
    lines = [
        f"- images: {counted}, without labels{held_out}",
        f"- steps in this stage: {steps:,} of {batch:,} images",
        f"- crops: {crops(settings)}",
    ]
    return "\n".join(lines)


def crops(settings: dict[str, Any]) -> str:
    """Sizes of the crops, in words."""
    sets = settings.get("views.sizes") or [
        {"global_size": settings["views.global_size"], "local_size": settings["views.local_size"]}
    ]
    several = settings["views.local_crops"]
    texts = []
    for one in sets:
        text = f"2 global ones of {one['global_size']} px"
        if several:
            text += f" and {several} local ones of {one['local_size']} px"
        texts.append(text)
    return "; or ".join(texts)


def evaluation(run: RunFolder) -> str:
    """The metrics of evaluation.json as a table; in words if there are none.

    Raises: UserError for a file that holds something else.
    """
    result = read_evaluation(run.evaluation)
    if result is None:
        return NOT_EVALUATED
    names = list(result.get("results", {}))
    shown = [name if is_on_hub(name) else last_part(name) for name in names]
    lines = ["| metric | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(names)]
    for title, by_name in metrics_of(result).items():
        cells = [by_name.get(name, "") for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    counts = result.get("counts") or {}
    sides = ", ".join(f"{sum(of.values()):,} {side}" for side, of in counts.items())
    images = f" Images: {sides}." if sides else ""
    return "\n".join(lines) + f"\n\nValues with their 95% intervals over patients.{images}"


def is_on_hub(name: str) -> bool:
    """Whether a model's name is one of the hub, such as ``facebook/dinov2-small``."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def metrics_of(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The metrics of an evaluation as text: by title, then by the name of the model."""
    found: dict[str, dict[str, str]] = {}
    for name, tasks in result.get("results", {}).items():
        for task, settings in tasks.items():
            for setting, metrics in settings.items():
                for metric, values in metrics.items():
                    title = f"{task} {setting}, {metric}".replace("_", " ")
                    found.setdefault(title, {})[name] = with_interval(values)
    return found


def with_interval(found: Mapping[str, Any]) -> str:
    """``0.877 (0.850 to 0.901)``, or the value alone."""
    value, low, high = found.get("value"), found.get("low"), found.get("high")
    if value is None:
        return ""
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def licence_notes(chain: list[dict[str, Any]]) -> tuple[str, str]:
    """The licence for the card's header, and what to know about it.

    Args:
        chain: of models that the weights started from, newest first; empty for new weights.
    """
    if not chain:
        return "other", (
            "Trained from new weights. Their licence is for whoever made them to choose, within"
            " what the images' licence and their ethics approval allow."
        )
    lines = [f"{n}. {described(link)}" for n, link in enumerate(chain, start=1)]
    tag, note = licence_of(chain[-1])
    steps = "\n".join(lines)
    images_too = "The images' licence counts as well."
    return tag, f"Started from, newest first:\n\n{steps}\n\n{note} {images_too}"


def described(link: Mapping[str, Any]) -> str:
    """``hub `facebook/dinov2-small` (dinov2, 223 of 223 tensors)``."""
    tensors = f", {link['tensors']} tensors" if "tensors" in link else ""
    return f"{link['kind']} `{link['name']}` ({link['architecture']}{tensors})"


def licence_of(first: Mapping[str, Any]) -> tuple[str, str]:
    """The licence that the weights of a model at the beginning of a chain hand on."""
    if first["kind"] == "run":
        return "other", "That run began with new weights, whose licence its makers chose."
    by_meta = first["kind"] == "file" or (first["kind"] == "hub" and "facebook/" in first["name"])
    if first["architecture"].startswith(DINOV3):
        named = DINOV3 in first["name"].lower()
        return "other", METAS_DINOV3 if named or by_meta else LIKE_DINOV3
    if by_meta:
        return "apache-2.0", "They began with Meta's DINOv2 weights, under Apache-2.0."
    return "other", "The licence of what they began with counts for these too."


def public(settings: dict[str, Any], chain: list[dict[str, Any]]) -> str:
    """The settings as YAML, without what is private to a machine: of a path the name is kept.

    Args:
        settings: a run's, as ``section.key`` values.
        chain: where its weights come from; names on the hub are no paths.
    """
    on_hub = {link["name"] for link in chain if link["kind"] == "hub"}

    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(item) for item in value]
        return value if not isinstance(value, str) or value in on_hub else last_part(value)

    kept = {name: name_of(v) for name, v in settings.items() if name not in PRIVATE}
    return yaml.safe_dump(nested(kept), sort_keys=False)
