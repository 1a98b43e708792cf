"""Measures of a finished model: rules and figures that judge pictures and answers after the fact.

Nothing here trains, and nothing here knows the embedded world: a real detector's boxes are judged by the same
rules as the world's own.
"""
