"""What a user's own images say about the batch a model is trained with."""

from dino_x.audit.batch_floor import batch_floor

__all__ = ["batch_floor"]
