"""Modality-aware neuron unlearning (MANU, arXiv 2502.15910) for multimodal language models, one module per step."""

__version__ = "0.1.0"
