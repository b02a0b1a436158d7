"""DINO-X: DINOv3-style pretraining on medical images, with an effective batch that is exact."""

__version__ = "0.1.0"
