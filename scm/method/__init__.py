"""The mathematics: path, tangents, objectives, weights, samplers."""
