"""Segmentation networks: encoder and decoder from segmentation_models.pytorch and timm, chosen by name."""

from softjaccard.models.auxiliary import AuxiliaryHead, AuxiliarySettings
from softjaccard.models.factory import create_model
from softjaccard.models.network import NetworkOutput, SegmentationNetwork

__all__ = ["AuxiliaryHead", "AuxiliarySettings", "NetworkOutput", "SegmentationNetwork", "create_model"]
