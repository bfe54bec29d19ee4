"""Segmentation networks: encoder and decoder from segmentation_models.pytorch and timm, chosen by name."""

from softjaccard.models.factory import create_model
from softjaccard.models.network import SegmentationNetwork

__all__ = ["SegmentationNetwork", "create_model"]
