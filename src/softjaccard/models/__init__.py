"""Segmentation networks: encoder and decoder from segmentation_models.pytorch and timm, chosen by name."""

from softjaccard.models.architectures import ARCHITECTURES, create_architecture
from softjaccard.models.auxiliary import AuxiliaryHead, AuxiliarySettings
from softjaccard.models.factory import create_model
from softjaccard.models.network import NetworkOutput, SegmentationNetwork

__all__ = [
    "ARCHITECTURES",
    "AuxiliaryHead",
    "AuxiliarySettings",
    "NetworkOutput",
    "SegmentationNetwork",
    "create_architecture",
    "create_model",
]
