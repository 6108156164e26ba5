"""Measuring a model: metrics, robustness, dominance, interpretability."""
