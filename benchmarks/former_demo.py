"""The network, batch and rate that the demo had before: what older tables were measured with."""

from pathlib import Path

from dino_x.config.presets import read_config

FORMER_DEMO = read_config(Path(__file__).with_suffix(".yaml"))
