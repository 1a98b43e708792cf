"""What happens in an episode: short programs over a model's abilities, one file each.

A scenario names its segments and says which reward credits which. It must not know a model's class, an
action's kind, a loss or a trainer.
"""
