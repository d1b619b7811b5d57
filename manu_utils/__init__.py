"""Modality-aware neuron unlearning (MANU, arXiv 2502.15910) of multimodal models, step by step."""

__version__ = "0.1.0"
