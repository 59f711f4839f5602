"""Trained networks for other programs: cards, ONNX, diffusers."""
