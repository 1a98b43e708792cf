"""The embedded world: scenes of flat coloured shapes, prompts and questions about them, an exact verifier.

It is data for the same code that trains the real thing, so it knows nothing of models, scenarios or training,
and needs numpy and scipy only.
"""
