"""How an action is sampled and scored: pure tensor functions.

A kernel knows tensors and the settings recorded with them. It must not know models, scenarios,
rewards or training.
"""
